"""A run in batches: where it runs, which rows of the conditions each batch gets, and the batches put side by side again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.sampling.recording import TrajectoryStatistics, joined
from farfield.sampling.results import Samples, Stops, Trajectory


def device_of(denoiser: Denoiser) -> torch.device:
    """Where a model's tensors are; the CPU if it has none."""
    for tensor in (*denoiser.parameters(), *denoiser.buffers()):
        return tensor.device
    return torch.device("cpu")


def cut_rows(value: Any, low: int, high: int, n: int, place: Tensor) -> Any:
    """The rows of a condition that belong to a batch, filled up as the batch is; one without a row a sample stays whole."""
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == n:
        return value[low:high][place.to(value.device)]
    return value


def side_by_side(parts: list[Samples]) -> Samples:
    """The samples of all batches as one result; of the evaluations at each step, those of the batch that took the most."""
    if len(parts) == 1:
        return parts[0]
    curves = [p.trajectory for p in parts if p.trajectory is not None]
    sums = [p.statistics for p in parts if p.statistics is not None]
    stops = [p.stops for p in parts if p.stops is not None]
    return Samples(
        torch.cat([p.x for p in parts]),
        max(p.nfe for p in parts),
        replace(joined(curves), nfe=_most(curves)) if curves else None,
        replace(reduce(TrajectoryStatistics.merge, sums), nfe=_longest(p.nfe for p in sums)) if sums else None,
        Stops(torch.cat([s.sigma for s in stops]), torch.cat([s.nfe for s in stops])) if stops else None,
    )


def _most(parts: list[Trajectory]) -> tuple[int, ...]:
    """The evaluations spent to reach each state of the longest part.

    A rule that chooses its own steps spends another number in every batch.
    """
    spent: dict[int, int] = {}
    for part in parts:
        for step, nfe in zip(part.step_numbers, part.nfe, strict=True):
            spent[step] = max(spent.get(step, 0), nfe)
    longest = max(parts, key=lambda part: part.step_numbers[-1])
    return tuple(spent[step] for step in longest.step_numbers)


def _longest(parts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The same of statistics, which are kept at every step."""
    return tuple(max(counts) for counts in zip_longest(*parts, fillvalue=0))
