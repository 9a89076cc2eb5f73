"""Finding the noise level at which a direction of the central state becomes unstable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from farfield.analysis.critical_field import Dynamics, critical_ratio
from farfield.analysis.critical_path import CentralPath, Level
from farfield.processes import TimeMap

#: No step of the search passes over more than this factor in σ.
_STRIDE = 0.4
#: Points closer than this in log σ say little about a slope.
_APART = 0.03


@dataclass(frozen=True, eq=False)
class Root:
    """A sign change of the excess, located.

    Attributes:
        level: the last level examined, next to the crossing.
        sigma: the crossing.
        bracket: uncertainty of σ that the search has left.
        slope: ``d log(μ/κ)/d log σ`` there, negative where a direction becomes unstable with falling noise.
    """

    level: Level
    sigma: float
    bracket: float
    slope: float


def next_sigma(path: CentralPath, level: Level, order: int) -> float:
    """Where to look next, below a level at which direction ``order`` is stable.

    If the posterior covariance stayed as it is, the crossing would lie where ``μ σ² = κ(σ') σ'²``. Most of the way to
    there is safe to skip; close to it the step goes a little beyond.
    """
    variance = float(level.values[order]) * level.sigma**2
    guess = frozen_crossing(path.process, path.dynamics, variance, level.sigma)
    if guess is None:
        return level.sigma * _STRIDE
    ratio = guess / level.sigma
    ratio = ratio * 0.98 if ratio > 0.8 else ratio**0.7
    return level.sigma * min(max(ratio, _STRIDE), 0.97)


def frozen_crossing(process: TimeMap, dynamics: Dynamics, variance: float, below: float) -> float | None:
    """The largest σ ≤ ``below`` with ``variance/σ² = κ(σ)`` for a constant posterior variance, or None."""
    from scipy.optimize import brentq

    def gap(log_sigma: float) -> float:
        sigma = math.exp(log_sigma)
        return variance / sigma**2 - critical_ratio(process, sigma, dynamics)

    high = math.log(below)
    low = high - 0.25
    while gap(low) < 0:
        low -= 0.25
        if low < high - 40:
            return None
    if gap(high) >= 0:
        return below
    return math.exp(float(brentq(gap, low, min(low + 0.25, high), xtol=1e-9)))


def refine(
    evaluate: Callable[[float, Level], Level],
    order: int,
    upper: Level,
    lower: Level,
    tolerance: float,
    floor: float,
    steps: int = 40,
) -> Root | None:
    """The σ between two levels at which direction ``order`` becomes critical, by the secant method, inside a
    bracket as soon as there is one.

    The two levels may come from a coarser measurement than ``evaluate`` makes, so they are a guess and no bracket.

    Args:
        evaluate: the level at a σ, starting from a neighbouring one.
        order: the direction.
        upper, lower: levels with a negative and a positive excess.
        tolerance: relative to σ.
        floor: do not search below this.
        steps: levels evaluated at most.
    """
    a, fa, b, fb = math.log(upper.sigma), upper.excess(order), math.log(lower.sigma), lower.excess(order)
    coarse = slope = (fb - fa) / (b - a) if math.isfinite(fa) else -1.0
    u = b - fb / slope
    near, widths = lower, [math.inf]
    ends: dict[bool, float] = {}
    points: list[tuple[float, float]] = []
    for _ in range(steps):
        near = evaluate(math.exp(u), near)
        f = near.excess(order)
        if points and u != points[-1][0] and (f - points[-1][1]) / (u - points[-1][0]) < 0:
            slope = (f - points[-1][1]) / (u - points[-1][0])
        points.append((u, f))
        ends[f >= 0] = u
        move = -f / slope
        widths.append(abs(ends[True] - ends[False]) if len(ends) == 2 else math.inf)
        if min(abs(move), widths[-1]) <= tolerance:
            return Root(
                near, math.exp(u + move), math.exp(u) * min(abs(move), widths[-1]), _steepness(points, slope, coarse)
            )
        if len(ends) == 2:
            stalled = len(widths) > 3 and widths[-1] > 0.5 * widths[-4]
            inside = min(ends.values()) < u + move < max(ends.values())
            u = u + move if inside and not stalled else (ends[True] + ends[False]) / 2
        else:
            u = u + math.copysign(min(1.2 * abs(move), 0.3), move)
        if not floor <= math.exp(u) <= 4 * upper.sigma:
            return None
    return Root(near, math.exp(u), math.exp(u) * min(widths[-1], 1.0), _steepness(points, slope, coarse))


def _steepness(points: list[tuple[float, float]], slope: float, coarse: float) -> float:
    """The slope for the errors: over points that lie wide enough apart for what the solver leaves open in each.

    Between the last points of a search the solver's own tolerance may be all there is; with draws of noise the former search
    with fewer of them, over a wider stretch, tells better.
    """
    low, high = min(points), max(points)
    if high[0] - low[0] >= _APART:
        found = (high[1] - low[1]) / (high[0] - low[0])
        return found if found < 0 else slope
    return coarse if math.isfinite(coarse) and coarse < 0 else slope
