"""iPNDM: Adams-Bashforth with the weights of equal steps, and the rule for the steps as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from farfield.sampling.legs import Leg
from farfield.sampling.solvers.adams import equal_step_weights
from farfield.sampling.solvers.base import Row
from farfield.sampling.solvers.lms import LMS
from farfield.sampling.solvers.multistep import RISING, Advance, Multistep, check_points


class EqualSteps(Multistep):
    """Adams-Bashforth with the weights of equal steps in σ, whatever the steps are: ``x' = x + (σ' − σ) Σ_j c_j ε_j``.

    On a grid whose neighbouring steps are nearly alike (any smooth one, refined) the error is of second order, however many
    points there are; on one with alternating steps it is of first order. On equal steps the weights are right.
    """

    @property
    def order(self) -> int:
        """At most 2."""
        return min(self.points, 2)

    def advance(self, leg: Leg, known: Sequence[float]) -> Advance:
        """``(σ' − σ) c_j``."""
        return Advance(1.0, tuple(equal_step_weights(known, leg.start, leg.end)))


@dataclass(frozen=True)
class IPNDM(EqualSteps):
    """The improved pseudo numerical method (Zhang & Chen 2023, section 4): PNDM without its Runge-Kutta start.

    One evaluation a step; see :class:`EqualSteps`.

    Args:
        points: 1 to 4 values; the first steps have fewer.

    Raises:
        ArgumentError: for another number of points.
    """

    points: int = 4
    name: ClassVar[str] = "ipndm"
    row: ClassVar[Row] = Row(startup=RISING, source="Liu et al. 2022, Eq. 12, 13; Zhang & Chen 2023, section 4")

    def __post_init__(self) -> None:
        check_points(self.name, self.points, 4)


@dataclass(frozen=True)
class IPNDMv(LMS):
    """Variable-step iPNDM, done right: the same rule as :class:`~farfield.sampling.solvers.lms.LMS`.

    The published program (diff-sampler's ``ipndm_v``) agrees with one and two points. With three and four it is no
    Adams-Bashforth rule: a misplaced parenthesis, and 11/24 where equal steps ask for 9/24. Here the integrals are exact.

    Args:
        points: 1 to 4 values.
        start: ``"rising"`` as published, or ``"corrected"``.

    Raises:
        ArgumentError: for options out of range.
    """

    name: ClassVar[str] = "ipndm_v"
    row: ClassVar[Row] = Row(startup=RISING, source="Zhou et al. 2024, diff-sampler, corrected; Adams & Bashforth 1883")
