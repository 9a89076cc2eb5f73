"""Sections of the potential against the network evaluations they cannot do without.

    python -m benchmarks.potential_sections

Pairs × angles rows in chunks, on the bundled ``digits`` and ``cifar10`` networks, over the bare network on as many rows in
chunks of the same size; interleaved on one thread, median of the ratios. The split of a pair is told by the sign of its
curvature, at two evaluations a pair: the last row is that over its bare evaluations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.table import Row, show
from farfield.analysis.potential import Potential
from farfield.analysis.potential_sections import potential_sections, section_curvature
from farfield.denoiser import Denoiser
from farfield.interop import load

LIMIT, ROUNDS, BATCH, TIME = 1.3, 5, 256, 0.3
#: Model, pairs, angles.
CASES = (("digits", 32, 64), ("cifar10", 8, 64))


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def ratio(ours: Callable[[], object], bare: Callable[[], object]) -> tuple[float, float, float]:
    """The median ratio and both median times, the order changed from round to round."""
    times: list[tuple[float, float]] = []
    ours(), bare()
    for k in range(ROUNDS):
        if k % 2:
            mine = seconds(ours)
            times.append((mine, seconds(bare)))
        else:
            plain = seconds(bare)
            times.append((seconds(ours), plain))
    return (statistics.median(a / b for a, b in times), *(statistics.median(t[k] for t in times) for k in (0, 1)))


def bare(model: Denoiser, rows: Tensor, sigma: float) -> None:
    for part in rows.split(BATCH):
        model(part, sigma)


@torch.no_grad()
def run() -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = []
    try:
        for name, pairs, angles in CASES:
            model = load(name)
            potential = Potential(model)
            first, second = torch.randn(2, pairs, *model.event_shape, generator=torch.Generator().manual_seed(0))
            rows = first.repeat_interleave(angles, 0)
            sigma = potential.process.sigma(TIME)
            kinds = {
                "sections": (
                    lambda p=potential, a=first, b=second, n=angles: potential_sections(
                        p, a, b, TIME, angles=n, batch_size=BATCH
                    ),
                    lambda m=model, x=rows, s=sigma: bare(m, x, s),
                ),
            }
            if name == CASES[-1][0]:
                a, b = (x.repeat(angles // 2, *[1] * (first.ndim - 1)) for x in (first, second))
                kinds["curvatures"] = (
                    lambda p=potential, a=a, b=b: section_curvature(p, a, b, TIME, batch_size=BATCH),
                    lambda m=model, x=rows, s=sigma: bare(m, x, s),
                )
            for kind, (ours, plain) in kinds.items():
                value, mine, theirs = ratio(ours, plain)
                detail = f"{mine:.2f} s against {theirs:.2f} s"
                title = f"{kind} of {name}, {pairs} pairs x {angles} angles"
                out.append(Row(title, value, LIMIT, "× bare evaluations", detail))
    finally:
        torch.set_num_threads(threads)
    return out


if __name__ == "__main__":
    show(run())
