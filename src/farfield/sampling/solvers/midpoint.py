"""What the rules with one stage inside the step share: where that stage lies."""

from __future__ import annotations

from collections.abc import Sequence

from farfield.errors import ArgumentError
from farfield.sampling.legs import Leg


def check_midpoint(midpoint: float) -> None:
    """Raise ``ArgumentError`` unless ``0 < midpoint <= 1``."""
    if isinstance(midpoint, bool) or not isinstance(midpoint, int | float) or not 0 < midpoint <= 1:
        raise ArgumentError(
            f"midpoint = {midpoint!r}; expected a number in (0, 1], 0.5 for the middle of the step in log σ"
        )


def between(start: float, end: float, fraction: float) -> float:
    """The level ``σ'^c σ^{1−c}``, a fraction c of the step in log σ; the end itself for 1."""
    return float(end) if fraction == 1 else float(start ** (1 - fraction) * end**fraction)


def visits(legs: Sequence[Leg], *fractions: float) -> list[tuple[float, ...]]:
    """The start of each step and the levels at those fractions of it; the start alone for the step down to 0."""
    return [
        (leg.start, *(between(leg.start, leg.end, c) for c in fractions)) if leg.end else (leg.start,) for leg in legs
    ]
