"""Curves over starts, and what is read off them: three regions, growth, and levels that stand out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

#: A deviation counts as negligible up to this share of its peak, and as rising from this share of the way to it.
NEGLIGIBLE = 0.1

#: It has fallen again where the end is below this share.
FALLEN = 0.5

#: A level stands out if it is this many times above its neighbours on both sides, alone or with one or two beside it.
OUTLIER = 3.0
_RUN = 3


@dataclass(frozen=True)
class Band:
    """A quantity over the starts, along the levels: its mean, and its 25 and 75 % quantiles."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def band(values: Tensor) -> Band:
    """(L, n) to a band along L."""
    low, high = torch.quantile(values, torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device), dim=1)
    return Band(tuple(values.mean(1).tolist()), tuple(low.tolist()), tuple(high.tolist()))


@dataclass(frozen=True)
class Regions:
    """The regions of a curve that sampling runs through from high to low noise.

    Attributes:
        rising: the level σ at which the curve rises above ``NEGLIGIBLE`` of its peak, on the way to it; where it is never
            below that, by this share of the way from the least value before the peak. Interpolated in log σ and log value;
            the highest level where nothing precedes the peak.
        falling: the level of the peak.
        peak: the largest value.
        before: the largest value above ``rising``, over the peak: negligible where it is at most ``NEGLIGIBLE``.
        start, end: the values at the highest and the lowest level.
    """

    rising: float
    falling: float
    peak: float
    before: float
    start: float
    end: float

    @property
    def negligible(self) -> bool:
        """Whether the curve is negligible above ``rising``."""
        return self.before <= NEGLIGIBLE

    @property
    def falls(self) -> bool:
        """Whether it falls from its peak to at most ``FALLEN`` of it."""
        return self.end <= FALLEN * self.peak

    @property
    def three(self) -> bool:
        """Whether it is negligible, rises and falls."""
        return self.negligible and self.falls

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, and whether there are three regions."""
        return {**asdict(self), "negligible": self.negligible, "falls": self.falls, "three": self.three}


def regions(sigmas: Sequence[float], curve: Sequence[float], skip: Sequence[float] = ()) -> Regions | None:
    """Where a curve is negligible, rises and falls; None where it is zero throughout.

    Args:
        sigmas: the levels, decreasing.
        curve: a value ≥ 0 at each.
        skip: levels to leave out, such as :func:`outliers`.
    """
    kept = [(s, v) for s, v in zip(sigmas, curve, strict=True) if s not in skip]
    if not kept or not max(v for _, v in kept) > 0:
        return None
    values = [v for _, v in kept]
    top = max(range(len(kept)), key=values.__getitem__)
    peak, least = values[top], min(values[: top + 1])
    edge = NEGLIGIBLE * peak
    if least >= edge:
        edge = least + NEGLIGIBLE * (peak - least)
    # The last crossing on the way to the peak: what happens above the least value is not the rise.
    first = next((k + 1 for k in range(top - 1, -1, -1) if values[k] < edge), 0)
    rising = kept[first][0]
    if first > 0:
        (above, low), (here, high) = kept[first - 1], kept[first]
        if low > 0:
            rising = above * (here / above) ** (math.log(edge / low) / math.log(high / low))
    before = max(values[:first], default=peak) / peak
    return Regions(rising, kept[top][0], peak, before, values[0], values[-1])


def outliers(sigmas: Sequence[float], curve: Sequence[float]) -> tuple[float, ...]:
    """Levels, up to three in a row, whose values are ``OUTLIER`` times above those of the levels on either side.

    A run that reaches the lowest level does not count: there is nothing below it to come back to.
    """
    count, found = len(curve), set[int]()
    for length in range(1, _RUN + 1):
        for k in range(count - length):
            around = [curve[k + length], *([curve[k - 1]] if k else [])]
            if min(curve[k : k + length]) > OUTLIER * max(around) > 0:
                found.update(range(k, k + length))
    return tuple(sigmas[k] for k in sorted(found))


def drops(sigmas: Sequence[float], values: Tensor, skip: Sequence[float] = ()) -> tuple[float, ...]:
    """The levels at which the mean over the starts has fallen against the level before, by more than two standard errors.

    Args:
        sigmas: (L,) the levels, decreasing.
        values: (L, n), one column for each start; the differences are taken start by start.
        skip: levels to leave out.
    """
    rows = [k for k, s in enumerate(sigmas) if s not in skip]
    if len(rows) < 2:
        return ()
    change = values[rows[1:]].double() - values[rows[:-1]].double()
    n = change.shape[1]
    error = change.std(1) / math.sqrt(n) if n > 1 else torch.zeros(len(change), dtype=torch.float64)
    limit = torch.maximum(2 * error, 1e-9 * values.double().mean(1).max())
    fallen = (change.mean(1) < -limit).tolist()
    return tuple(sigmas[k] for k, down in zip(rows[1:], fallen, strict=True) if down)


def reached(sigmas: Sequence[float], share: Sequence[float], least: float) -> float | None:
    """The highest level from which on down to the last one a share is at least ``least``; None if it is never."""
    found = None
    for s, value in zip(reversed(sigmas), reversed(share), strict=True):
        if value < least:
            break
        found = s
    return found
