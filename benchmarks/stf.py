"""Stable targets: against the two matrix products they cannot do without, and beside a training step.

    python -m benchmarks.stf

A mini-batch of 128 and a reference of 4096 images of 3×32×32 in float32, whose spectrum falls like that of photographs.

- *target*: ``stable_target`` at the noise levels of each objective, one call a batch with everything that a fresh reference
  needs, over the bare ``x @ Y.T`` and ``w @ Y``; interleaved in one process, medians, one thread and all. The noise levels
  are those of 128 equally likely quantiles, so that every batch is an average one.
- *step*: what a step spends on its targets (drawing the reference, gathering it, computing), over the loss and gradient of
  the network of ``configs/cifar10.yaml`` at batch 128, in float32 on all threads: a median of three, and one step.
- *memory*: growth of the peak resident set by the targets alone, over that by the step, in a process of its own. The targets
  are done before the network starts, so this is more than they add to a step's peak.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.table import Row, show
from farfield.objectives import (
    EDMObjective,
    IDDPMObjective,
    Objective,
    StableTargets,
    TargetConfig,
    VEObjective,
    VPObjective,
    stable_target,
)

BATCH, REFERENCE, SHAPE, REPEATS = 128, 4096, (3, 32, 32), 11
OBJECTIVES: tuple[Objective, ...] = (EDMObjective(), VPObjective(), VEObjective(), IDDPMObjective())
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "cifar10.yaml"


def images(count: int) -> Tensor:
    """Images with most of their variance at coarse scales, in [−1, 1] with rms near 0.5, made block by block."""
    generator = torch.Generator().manual_seed(0)
    data = torch.empty(count, *SHAPE)
    for part in data.split(512):
        part.zero_()
        for size, weight in ((1, 0.35), (2, 0.3), (4, 0.25), (8, 0.2), (16, 0.12), (32, 0.06)):
            grey = torch.randn(len(part), 1, size, size, generator=generator)
            tint = 0.3 * torch.randn(len(part), 3, size, size, generator=generator)
            part += F.interpolate(weight * (grey + tint), SHAPE[1:], mode="bilinear")
        part.clamp_(-1, 1)
    return data


def quantiles(objective: Objective) -> Tensor:
    """The noise levels of an average batch, in mixed order."""
    z = torch.special.ndtri((torch.arange(BATCH, dtype=torch.float64) + 0.5) / BATCH).float()
    return objective.sigma(z[torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))])


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def targets(threads: int) -> list[Row]:
    reference = images(REFERENCE)
    flat, source = reference.flatten(1), torch.arange(BATCH)
    generator = torch.Generator().manual_seed(2)
    noise, weights = torch.randn(BATCH, *SHAPE, generator=generator), torch.rand(BATCH, REFERENCE, generator=generator)
    rows = []
    for objective in OBJECTIVES:
        sigma = quantiles(objective)
        noisy = reference[:BATCH] + sigma.reshape(-1, 1, 1, 1) * noise
        x = noisy.flatten(1)
        bare, ours = [], []
        for _ in range(REPEATS):
            bare.append(timed(lambda x=x: x @ flat.T) + timed(lambda: weights @ flat))
            ours.append(timed(lambda noisy=noisy, sigma=sigma: stable_target(noisy, sigma, reference, source)))
        kind = objective.kind  # type: ignore[attr-defined]
        name = f"stable target, {kind} noise levels, {threads} thread{'s' if threads > 1 else ''}"
        ratio = statistics.median(ours) / statistics.median(bare)
        milliseconds = f"{1e3 * statistics.median(ours):.0f} ms"
        rows.append(Row(name, ratio, 1.3, "× two bare matrix products", milliseconds))
    return rows


def peak_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def step() -> dict[str, float]:
    """Seconds and extra peak KiB of a step's targets and of a step's loss and gradient; run in a fresh process."""
    from farfield.networks.model_file import ModelSpec, build_model
    from farfield.networks.preconditioning import Preconditioned
    from farfield.training.config import load_config

    config = load_config(CONFIG)
    preconditioning = dataclasses.replace(config.preconditioning, sigma_data=0.5)
    model: Preconditioned = build_model(ModelSpec(config.network, SHAPE, preconditioning)).train()
    data, rows = images(2 * REFERENCE), torch.arange(BATCH)
    stable = StableTargets(TargetConfig("stf", REFERENCE), len(data), lambda at: (data[at], None), BATCH, seed=0)
    objective, noise = config.objective, torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(3))
    sigma, clean = quantiles(objective), data[:BATCH]
    torch.mm(noise.flatten(1), clean.flatten(1).T)
    start = peak_kib()
    times = [timed(lambda k=k: stable(k, rows, clean, sigma, noise)) for k in range(3)]
    after = peak_kib()
    target = stable(0, rows, clean, sigma, noise)
    once = timed(lambda: objective(model, clean, sigma, noise, model.sigma_data, target=target).mean().backward())
    return {
        "target": statistics.median(times),
        "step": once,
        "target memory": after - start,
        "step memory": peak_kib() - start,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def run() -> list[Row]:
    rows: list[Row] = []
    threads = torch.get_num_threads()
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            rows += targets(count)
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, "-m", "benchmarks.stf", "step"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    share = 1 + found["target"] / found["step"]
    network = f"{found['parameters'] / 1e6:.1f} M parameters"
    detail = f"{1e3 * found['target']:.0f} ms beside {found['step']:.1f} s on the CPU, {network}"
    rows.append(Row("training step with stable targets", share, 1.03, "× without", detail))
    extra = 1 + found["target memory"] / found["step memory"]
    detail = f"{found['target memory'] / 1024:.0f} MiB beside {found['step memory'] / 1024:.0f} MiB"
    rows.append(Row("training step with stable targets, peak memory", extra, 1.05, "× without, at most", detail))
    return rows


if __name__ == "__main__":
    if sys.argv[1:] == ["step"]:
        print(json.dumps(step()))
    else:
        show(run())
