"""Updates of averaged weights against ``torch._foreach_lerp_`` over the same tensors: 40 M parameters in 400 tensors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.table import Row, show
from farfield.training.config import EMAConfig
from farfield.training.ema import EMA
from farfield.training.posthoc import PowerEMA

LIMIT = 1.1
ROUNDS = 31


def model() -> nn.Module:
    """Convolutions and vectors in the proportions of a large U-Net."""
    kernels = [nn.Parameter(torch.randn(256, 256, 3, 3)) for _ in range(67)]
    vectors = [nn.Parameter(torch.randn(256)) for _ in range(333)]
    return nn.ParameterList(kernels + vectors)


def ratio(ours: Callable[[], None], plain: Callable[[], None]) -> tuple[float, float, float]:
    """Median ratio of two times within a round, and the median of each; the order alternates.

    Times are those of the one thread that works, so that other programs do not count.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for k in range(ROUNDS + 2):
        for which in (0, 1) if k % 2 else (1, 0):
            start = time.process_time()
            (ours, plain)[which]()
            times[which].append(time.process_time() - start)
    a, b = (t[2:] for t in times)
    return statistics.median(x / y for x, y in zip(a, b, strict=True)), statistics.median(a), statistics.median(b)


@torch.no_grad()
def run() -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        source = model()
        weights = [p.detach() for p in source.parameters()]
        count = sum(w.numel() for w in weights) / 1e6

        ema, power = EMA(source, EMAConfig()), PowerEMA(source, (0.05, 0.10))
        tracked = list(power.tensors().values())
        contenders: list[tuple[str, list[list[torch.Tensor]], Callable[[], None]]] = [
            ("EMA", [list(ema.model.parameters())], lambda: ema.update(1_000_000, 128)),
            ("PowerEMA, two widths", [tracked[: len(weights)], tracked[len(weights) :]], lambda: power.update(10_000)),
        ]
        for name, averages, update in contenders:

            def plain(averages: list[list[torch.Tensor]] = averages) -> None:
                for average in averages:
                    torch._foreach_lerp_(average, weights, 1e-3)

            value, a, b = ratio(update, plain)
            detail = f"{count:.0f} M in {len(weights)} tensors, {1e3 * a:.0f} ms against {1e3 * b:.0f} ms"
            rows.append(Row(f"{name} update", value, LIMIT, "× foreach_lerp", detail))
    finally:
        torch.set_num_threads(threads)
    return rows


if __name__ == "__main__":
    show(run())
