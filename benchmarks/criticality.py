"""Critical times: of a large data set as an exact law, and of the bundled CIFAR-10 network.

    python -m benchmarks.criticality

- *exact law*: 45,000 images of 3×32×32 in float32 on all threads, with the check of what the crossing leads to; CIFAR-10 where
  ``FARFIELD_CIFAR10`` names it, else images with a like spectrum. One run.
- *network*: Jacobian products, each counted for one state, of the first critical time of the bundled 16×16 network, averaged
  over six draws of noise about its own mean, with the same check.
"""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor

from benchmarks.stf import images
from benchmarks.table import Row, show
from farfield.analysis.critical_times import critical_times
from farfield.data import load as load_data
from farfield.distributions import Empirical
from farfield.interop import load

COUNT = 45_000


def data() -> tuple[Tensor, str]:
    if os.environ.get("FARFIELD_CIFAR10"):
        return load_data("cifar10").images[:COUNT], "CIFAR-10"
    return images(COUNT), "synthetic images"


def exact(check: bool = True) -> Row:
    points, name = data()
    mean = points.mean(0)
    start = time.perf_counter()
    found = critical_times(Empirical(points), origin=mean, check=check)
    seconds = time.perf_counter() - start
    first = found.first
    told = "none" if first is None else f"σ = {first.sigma:.4g} ± {first.error:.1g}, {first.kind}"
    return Row(f"critical time of {COUNT:,}×{points[0].numel()} {name}", seconds, 300, "s", told)


def network() -> Row:
    model = load("cifar10")
    with torch.no_grad():
        mean = model(torch.zeros(1, *model.event_shape), model.sigma_max)[0]
    found = critical_times(model, origin=mean, noise=6)
    first = found.first
    told = "none" if first is None else f"σ = {first.sigma:.4g} ± {first.error:.1g}, {first.kind}"
    return Row("critical time of the cifar10 network", found.products, 200, "Jacobian products", told)


def run() -> list[Row]:
    return [network(), exact()]


if __name__ == "__main__":
    show(run())
