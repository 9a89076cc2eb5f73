"""The start of a late start, chosen: from what is known of the data before sampling, or by search on a metric.

Before sampling two things tell how late one may start. Above the first critical time the dynamics has not chosen yet, whatever
the data are; and the noised law's divergence from the law of the start can be measured. The second is a number that steps can
be weighed against: n first-order steps are off by O(1/n) in the state, hence by O(1/n²) in the divergence, and a start whose
own divergence is no more than that costs nothing that the steps do not cost anyway. So the divergence decides where it is
given, with a tolerance of ``4/n²`` nats, and the critical time where it is not. The constant is DDIM's on the
bundled digits model, whose best starts among whole hundreds are 300, 400 and 400 for 3, 5 and 10 steps, all below the critical
time. DDPM's noise forgives a wrong start, and its best ones are later still; PNDM's better steps call for earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from farfield.analysis.critical_result import CriticalTimes
from farfield.analysis.late_start_mismatch import LawMismatch
from farfield.errors import ArgumentError
from farfield.processes import DDPM

#: Nats that the noised law may differ from its Gaussian, for one step; n steps allow this over n².
TOLERANCE = 4.0


@dataclass(frozen=True)
class StartChoice:
    """A start, and why.

    Attributes:
        start: the index.
        sigma: its noise level.
        n: steps it is meant for.
        by: what decided: ``"critical time"``, ``"Gaussianity"`` or ``"search"``.
        critical: the first critical index, where it was given.
        gaussian: the lowest index at which the law is close enough to that of the start for n steps, where that was given.
        tried: (index, value) of a search, in the order they were tried.
    """

    start: int
    sigma: float
    n: int
    by: Literal["critical time", "Gaussianity", "search"]
    critical: float | None = None
    gaussian: float | None = None
    tried: tuple[tuple[int, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        plain = {k: getattr(self, k) for k in ("start", "sigma", "n", "by", "critical", "gaussian")}
        return {**plain, "tried": [list(pair) for pair in self.tried]}

    def summary(self) -> str:
        """The start and what decided, in one sentence."""
        text = f"Start {self.n} steps at index {self.start} (σ = {self.sigma:.3g}), chosen by {self.by}"
        if self.tried:
            best = min(self.tried, key=lambda pair: pair[1])
            text += f": {best[1]:.4g} there, the lowest of {len(self.tried)} starts tried"
        return text + "."


def critical_index(critical: CriticalTimes | float | None, table: DDPM | None = None) -> float | None:
    """The index of the first critical time; a number is an index already.

    None stays None, and so does a result without a choice between modes: the centre may be stable down to the lowest level, or
    lose its stability to the mere spread of a wide law, which a Gaussian start takes as it is.
    """
    if isinstance(critical, CriticalTimes):
        schedule = table if table is not None else DDPM()
        for crossing in critical.crossings:
            if crossing.kind in ("modes", "unchecked"):
                return min(max(schedule.time(crossing.sigma), 0.0), schedule.t_max)
        return None
    return None if critical is None else float(critical)


def choose_start(
    n: int,
    *,
    critical: CriticalTimes | float | None = None,
    mismatch: LawMismatch | None = None,
    metric: Callable[[int], float] | None = None,
    evaluations: int = 8,
    low: int = 50,
    high: int = 900,
    resolution: int = 25,
    method: Literal["golden", "grid"] = "golden",
    tolerance: float = TOLERANCE,
    table: DDPM | None = None,
) -> StartChoice:
    """The start for n steps: a prior from critical time and Gaussianity, or a search on a metric within bounds.

    The prior is the lowest index at which the law's divergence from the start's is ``tolerance/n²`` nats, or without a measured
    divergence the critical index. The search asks there first, where there is one, and returns the start of the *lowest* value
    it has seen.

    Args:
        n: the budget of steps.
        critical: critical times, or the critical index.
        mismatch: the noised law's divergence from that of the start, from
            :func:`~farfield.analysis.late_start_mismatch.law_mismatch`: the data's Gaussian for a Gaussian late start,
            ``Gaussian.isotropic(zero, 1)`` for one from N(0, I).
        metric: the quality of a start, lower is better; None returns the prior.
        evaluations: values of the metric that the search may ask for.
        low, high: indices between which to look.
        resolution: where two candidates are this close the search ends.
        method: ``"golden"`` narrows the interval about the lowest value, ``"grid"`` asks at equal distances.
        tolerance: nats for one step.
        table: the schedule, DDPM's by default.

    Raises:
        ArgumentError: if there is neither prior nor metric, or for numbers out of range.
    """
    schedule = table if table is not None else DDPM()
    if n < 1 or not 0 <= low < high <= schedule.t_max:
        raise ArgumentError(
            f"n = {n}, low = {low}, high = {high}; expected n >= 1 and 0 <= low < high <= {schedule.t_max:.0f}"
        )
    if not 0 < tolerance < math.inf:
        raise ArgumentError(f"tolerance = {tolerance}; expected nats > 0")
    first, normal = critical_index(critical, schedule), None
    if mismatch is not None:
        normal = min(max(schedule.time(mismatch.lowest(tolerance / n**2)), 0.0), schedule.t_max)
    known = normal if normal is not None else first
    bottom = min(max(low, n - 1), high)  # n steps need n indices
    prior = None if known is None else min(max(math.ceil(known), bottom), high)
    if metric is not None:
        tried = search_start(
            metric, bottom, high, evaluations=evaluations, resolution=resolution, method=method, hint=prior
        )
        best = min(tried, key=lambda pair: pair[1])[0]
        return StartChoice(best, schedule.sigma(float(best)), n, "search", first, normal, tried)
    if prior is None:
        raise ArgumentError("nothing to choose by: give a mismatch, a critical time that is a choice, or a metric")
    by: Literal["critical time", "Gaussianity"] = "critical time" if normal is None else "Gaussianity"
    return StartChoice(prior, schedule.sigma(float(prior)), n, by, first, normal)


def search_start(
    metric: Callable[[int], float],
    low: int,
    high: int,
    *,
    evaluations: int = 8,
    resolution: int = 25,
    method: Literal["golden", "grid"] = "golden",
    hint: int | None = None,
) -> tuple[tuple[int, float], ...]:
    """Ask a metric at indices in [low, high] and return all (index, value), in the order they were asked.

    Golden section assumes one valley; on a curve with several it ends in one of them. The grid assumes nothing.

    Args:
        metric: lower is better; asked once for each index.
        low, high: the bounds, both included.
        evaluations: at most so many values, at least 3.
        resolution: golden section ends where its interval is no wider.
        method: ``"golden"`` or ``"grid"``.
        hint: an index to ask first.

    Raises:
        ArgumentError: for bounds or numbers out of range, or a metric that is not finite.
    """
    if not low < high or evaluations < 3 or resolution < 1 or method not in ("golden", "grid"):
        raise ArgumentError(
            f"low = {low}, high = {high}, evaluations = {evaluations}, resolution = {resolution}, method = {method!r}; "
            "expected low < high, at least 3 evaluations, resolution >= 1, 'golden' or 'grid'"
        )
    seen: dict[int, float] = {}

    def ask(index: int) -> float:
        if index not in seen:
            seen[index] = float(metric(index))
            if not math.isfinite(seen[index]):
                raise ArgumentError(f"the metric at index {index} is {seen[index]}; expected a finite number")
        return seen[index]

    if hint is not None:
        ask(min(max(hint, low), high))
    if method == "grid":
        count = evaluations - len(seen)
        for k in range(count):
            ask(round(low + k * (high - low) / max(count - 1, 1)))
        return tuple(seen.items())
    golden = (math.sqrt(5) - 1) / 2
    a, b = low, high
    left, right = round(b - golden * (b - a)), round(a + golden * (b - a))
    for index in (left, right):
        ask(index)
    while len(seen) < evaluations and b - a > resolution and a < left < right < b:
        if seen[left] <= seen[right]:
            b, right = right, left
            left = round(b - golden * (b - a))
            ask(left)
        else:
            a, left = left, right
            right = round(a + golden * (b - a))
            ask(right)
    return tuple(seen.items())
