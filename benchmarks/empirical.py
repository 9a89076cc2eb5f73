"""The empirical denoiser against the two matrix products it cannot do without.

    python -m benchmarks.empirical

N = 50,000 points in 3072 dimensions, a batch of 64, float32, on one CPU thread and on all, one call at each noise level. The
bare calls are ``x @ Y.T`` and ``w @ Y`` on the same tensors, interleaved with the library's calls in the same process; times
are medians. Memory is the growth of the peak resident set over that with the data alone, measured in a process that does
nothing else.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.table import Row, show
from farfield.distributions import Empirical

N, DIM, BATCH, REPEATS = 50_000, 3072, 64, 7
LEVELS = (0.1, 1.0, 10.0, 80.0)


def points() -> torch.Tensor:
    """Correlated data with an image-like spectrum and rms 0.5, made block by block."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(100, DIM, generator=generator) * torch.arange(1, 101).pow(-0.6).unsqueeze(1) * 0.25
    data = torch.empty(N, DIM)
    for i in range(0, N, 1000):
        latent = torch.randn(1000, 100, generator=generator)
        data[i : i + 1000] = latent @ basis
        data[i : i + 1000] += 0.05 * torch.randn(1000, DIM, generator=generator)
    return data


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def memory_mib() -> float:
    """Extra peak memory, MiB, of building the law and calling it at every level; run in a fresh process."""
    data = points()
    noise = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(1))
    torch.mm(noise, data[:64].T)
    before = peak_kib()
    law = Empirical(data)
    for sigma in LEVELS:
        law(data[:BATCH] + sigma * noise, sigma)
    return (peak_kib() - before) / 1024


def run() -> list[Row]:
    command = [sys.executable, "-m", "benchmarks.empirical", "memory"]
    extra = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows = [Row("empirical, extra peak memory", extra, 200, "MiB")]
    threads = torch.get_num_threads()
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            rows += times(count)
    finally:
        torch.set_num_threads(threads)
    return rows


def times(threads: int) -> list[Row]:
    data = points()
    law = Empirical(data)
    rows = []
    noise = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(2))
    for sigma in LEVELS:
        x = data[:BATCH] + sigma * noise
        law(x, sigma)
        bare, ours = [], []
        for _ in range(REPEATS):
            bare.append(timed(lambda x=x: x @ data.T) + timed(lambda: weights @ data))
            ours.append(timed(lambda x=x, sigma=sigma: law(x, sigma)))
        name = f"empirical, σ = {sigma:g}, {threads} thread{'s' if threads > 1 else ''}"
        seconds = f"{statistics.median(ours):.3f} s"
        ratio = statistics.median(ours) / statistics.median(bare)
        rows.append(Row(name, ratio, 1.1, "× two bare matrix products", seconds))
    return rows


if __name__ == "__main__":
    if sys.argv[1:] == ["memory"]:
        print(memory_mib())
    else:
        show(run())
