"""What the linear multistep rules share: a state moved by a weighted sum of remembered values.

    x' = g x + Σ_j w_j v_j

The values v are the slopes ``ε = (x − D)/σ`` of the Adams rules, with g = 1, or the denoiser outputs themselves, with
``g = σ'/σ``. A step may also be taken once more, from where it set out, when the value at its end is known: that costs no
evaluation, and it is how the start-up errors of the higher orders, or of every step, are taken back.

A rule has ``points``, the number of values that its polynomial goes through; publications call it the order. How fast the
error of a whole run falls is another matter (``order``): weights made for equal steps fall behind on other grids, and the
first step, which has one value only, leaves an error of second order behind whatever follows it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.adams import exponential_integrals
from farfield.sampling.solvers.base import Evaluate, Solver
from farfield.sampling.solvers.finite_difference import Master, master_step, transported

if TYPE_CHECKING:
    from farfield.distributions import Gaussian

#: What happens to the first steps of a rule with more than two points.
StartUp = Literal["rising", "corrected"]

RISING = "rising: 1 value, then 2, …; Euler first"


class Advance(NamedTuple):
    """One linear advance: the gain of the state and the weights of the values, newest first."""

    gain: float
    weights: tuple[float, ...]


class Differences(NamedTuple):
    """The step in finite differences: the master update, and σ/σ₋, which carries ``x₋ − D₋`` to the present level."""

    master: Master
    carried: float | None


class Plan(NamedTuple):
    """One step; ``advance`` is None for the step to zero noise, and ``keep`` says whether the next one corrects it."""

    leg: Leg
    advance: Advance | None
    correct: Advance | None = None
    keep: bool = False
    differences: Differences | None = None


class Memory(NamedTuple):
    """The state that the step set out from, where it will be corrected, and the values, newest first."""

    before: Tensor | None
    values: tuple[Tensor, ...]


class Multistep(Solver):
    """Base class of the linear multistep rules; subclasses are frozen dataclasses and give the coefficients.

    Attributes:
        points: how many values a step interpolates.
        slopes: whether the values are slopes, or the denoiser's outputs.
    """

    slopes: ClassVar[bool] = True

    if TYPE_CHECKING:

        @property
        def points(self) -> int:
            """A class constant or a field."""

    @property
    def history(self) -> int:
        """``points − 1``."""
        return self.points - 1

    @abstractmethod
    def advance(self, leg: Leg, known: Sequence[float]) -> Advance:
        """The step from the levels of the values ``known``, newest first, ``known[0] = leg.start``."""

    def correction(self, leg: Leg, known: Sequence[float]) -> Advance:
        """The same step once the value at its end is known, ``known[0] = leg.end``."""
        return self.advance(leg, known)

    def corrects(self, number: int) -> bool:
        """Whether step ``number`` begins by taking the step before it once more."""
        return False

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[Plan]:
        """Gains and weights of each step, as numbers: those of a grid are computed once."""
        return list(_plans(self, tuple(legs)))

    def _plan(self, legs: Sequence[Leg]) -> tuple[Plan, ...]:
        starts = [leg.start for leg in legs]
        plans: list[Plan] = []
        for k, leg in enumerate(legs):
            if not leg.end:
                plans.append(Plan(leg, None))
                continue
            known = starts[max(0, k + 1 - self.points) : k + 1][::-1]
            correct = None
            if k and self.corrects(k) and legs[k - 1].end == leg.start:  # no noise has come in between
                before = starts[k - min(self.points, k) : k + 1][::-1]
                correct = self._per_value(self.correction(legs[k - 1], before), before)
                plans[-1] = plans[-1]._replace(keep=True)
            advance = self._per_value(self.advance(leg, known), known)
            plans.append(Plan(leg, advance, correct, False, self.differences(leg, known)))
        return tuple(plans)

    def _per_value(self, advance: Advance, known: Sequence[float]) -> Advance:
        """The weights of what is remembered: ``x − D`` stands for the slope, which saves a division in every step."""
        if not self.slopes:
            return advance
        return Advance(advance.gain, tuple(w / s for w, s in zip(advance.weights, known, strict=True)))

    def differences(self, leg: Leg, known: Sequence[float]) -> Differences | None:
        """The step in finite differences, where it is asked for."""
        return None

    def moved(self, memory: Memory | None, x: Tensor) -> Memory | None:
        """The values; the state that the step set out from is no longer the run's."""
        return None if memory is None else Memory(None, memory.values)

    def step(
        self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Memory | None, plan: Plan
    ) -> tuple[Tensor, Memory]:
        """The correction of the step before, if there is one, and the advance."""
        value = torch.sub(x, d) if self.slopes else d
        values = (value,) if memory is None else (value, *memory.values)
        if plan.advance is None:
            return d, Memory(None, values[: self.history])
        if plan.correct is not None and memory is not None and memory.before is not None:
            x = advanced(plan.correct, memory.before, values)
        if plan.differences is not None:
            reached = differenced(plan.differences, x, d, values)
        else:
            reached = advanced(plan.advance, x, values)
        return reached, Memory(x if plan.keep else None, values[: self.history])

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """The solver with these options; ``order`` is understood as ``points``, which publications call so."""
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        if "order" in options and "points" in known and "points" not in options:
            options = {("points" if key == "order" else key): value for key, value in options.items()}
        return super().from_options(options)


@lru_cache(maxsize=64)
def _plans(rule: Multistep, legs: tuple[Leg, ...]) -> tuple[Plan, ...]:
    return rule._plan(legs)


class DenoiserMultistep(Multistep):
    """The rules that interpolate the denoiser in log σ: ``x' = (σ'/σ) x + Σ_j D_j ∫ ℓ_j(log s) (σ'/s) d log s``."""

    slopes: ClassVar[bool] = False

    def advance(self, leg: Leg, known: Sequence[float]) -> Advance:
        """The exponential integrals, to rounding."""
        return Advance(leg.end / leg.start, tuple(exponential_integrals(known, leg.start, leg.end, leg.level)))


def advanced(advance: Advance, x: Tensor, values: Sequence[Tensor]) -> Tensor:
    """``g x + Σ_j w_j v_j`` in one new tensor."""
    first, *rest = advance.weights
    if advance.gain == 1:
        reached = torch.add(x, values[0], alpha=first)
    else:
        reached = torch.mul(x, advance.gain).add_(values[0], alpha=first)
    for weight, value in zip(rest, values[1:], strict=False):
        reached.add_(value, alpha=weight)
    return reached


def differenced(plan: Differences, x: Tensor, d: Tensor, values: Sequence[Tensor]) -> Tensor:
    """The master update with the difference between this output and the one before, carried to the present state."""
    if plan.carried is None:
        return master_step(x, d, None, plan.master)
    return master_step(x, d, torch.sub(d, transported(x, values[1], plan.carried)), plan.master)


def check_points(solver: str, points: object, most: int) -> None:
    """Raise ``ArgumentError`` unless ``points`` is a whole number from 1 to ``most``."""
    if not isinstance(points, int) or isinstance(points, bool) or not 1 <= points <= most:
        raise ArgumentError(f"points = {points!r}; {solver} interpolates 1 to {most} values")


def check_start(start: str) -> None:
    """Raise ``ArgumentError`` unless ``start`` is one of the two."""
    if start not in ("rising", "corrected"):
        raise ArgumentError(f"start = {start!r}; expected 'rising' or 'corrected'")


def in_words(start: StartUp) -> str:
    """The start-up in words."""
    return RISING if start == "rising" else f"{RISING}; taken once more when the value at the end is known"
