"""What a curve of quality against the start index tells: where it bends, how far its plateau reaches, where it is lowest.

Late starts from N(0, I) cost little down to a threshold, then the samples fall apart. The bend is the largest second difference
of the curve (Raya & Ambrogioni 2023, section 4.1, a rough estimate of the first critical time); the plateau's edge is the
lowest start whose value is within 5 % of that of the highest start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from farfield.errors import ArgumentError


def _checked(starts: Sequence[float], values: Sequence[float], least: int) -> None:
    if len(starts) != len(values) or len(starts) < least:
        raise ArgumentError(
            f"{len(starts)} starts and {len(values)} values; expected as many of both, at least {least}"
        )
    if any(b <= a for a, b in pairwise(starts)):
        raise ArgumentError(f"starts = {list(starts)}; expected increasing indices")
    if not all(math.isfinite(v) for v in values):
        raise ArgumentError("values are not all finite")


def second_differences(starts: Sequence[float], values: Sequence[float]) -> tuple[float, ...]:
    """The second derivative at the inner starts, by the three-point formula for unequal spacing.

    ``2 [(F₊ − F)/(s₊ − s) − (F − F₋)/(s − s₋)]/(s₊ − s₋)``; exact for a parabola.

    Raises:
        ArgumentError: for fewer than three points, or starts that do not increase.
    """
    _checked(starts, values, 3)
    found = []
    for k in range(1, len(starts) - 1):
        right = (values[k + 1] - values[k]) / (starts[k + 1] - starts[k])
        left = (values[k] - values[k - 1]) / (starts[k] - starts[k - 1])
        found.append(2 * (right - left) / (starts[k + 1] - starts[k - 1]))
    return tuple(found)


def knee(starts: Sequence[float], values: Sequence[float]) -> float:
    """The inner start with the largest second difference, the bend of the curve.

    Raises:
        ArgumentError: as :func:`second_differences`.
    """
    curvature = second_differences(starts, values)
    return float(starts[1 + max(range(len(curvature)), key=curvature.__getitem__)])


def plateau_edge(starts: Sequence[float], values: Sequence[float], tolerance: float = 0.05) -> float:
    """The lowest start from which on upwards every value is within ``tolerance`` of the one at the highest start.

    A value below the reference is as good as it: only a loss ends the plateau.

    Raises:
        ArgumentError: for no points, or starts that do not increase.
    """
    _checked(starts, values, 1)
    allowed, edge = values[-1] + tolerance * abs(values[-1]), len(starts) - 1
    while edge > 0 and values[edge - 1] <= allowed:
        edge -= 1
    return float(starts[edge])


def lowest(starts: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The start of the lowest value, and that value. (The source's text says "highest", which is a slip.)

    Raises:
        ArgumentError: for no points, or starts that do not increase.
    """
    _checked(starts, values, 1)
    best = min(range(len(values)), key=values.__getitem__)
    return float(starts[best]), float(values[best])


@dataclass(frozen=True)
class StartCurve:
    """Quality against the start index, at a fixed sampler, number of steps and law of the start.

    Attributes:
        sampler, n, law: what was run.
        nfe: evaluations for each sample.
        starts: indices, increasing.
        values: means over the seeds, (starts).
        runs: the value of each seed, (starts, seeds).
    """

    sampler: str
    n: int
    law: str
    nfe: int
    starts: tuple[float, ...]
    values: tuple[float, ...]
    runs: tuple[tuple[float, ...], ...]

    @property
    def knee(self) -> float | None:
        """The bend; None with fewer than three starts."""
        return knee(self.starts, self.values) if len(self.starts) > 2 else None

    @property
    def plateau(self) -> float:
        """The plateau's edge."""
        return plateau_edge(self.starts, self.values)

    @property
    def best(self) -> tuple[float, float]:
        """The best start and its value."""
        return lowest(self.starts, self.values)

    def at(self, start: float) -> int:
        """The position of a start.

        Raises:
            ArgumentError: for one that was not run.
        """
        if start not in self.starts:
            raise ArgumentError(f"start = {start:g} was not run; there are {', '.join(f'{s:g}' for s in self.starts)}")
        return self.starts.index(start)
