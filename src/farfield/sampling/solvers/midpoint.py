"""What the rules with one stage inside the step share: where that stage lies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from farfield.errors import ArgumentError
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Solver
from farfield.sampling.solvers.finite_difference import Form, check_form

if TYPE_CHECKING:
    from farfield.distributions import Gaussian


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


@dataclass(frozen=True)
class MidpointRule(Solver):
    """A rule of order 2 with one stage at ``σ'^c σ^{1−c}``, in either form; the step down to 0 is Euler's.

    Args:
        midpoint: c, in (0, 1].
        form: of the arithmetic.

    Raises:
        ArgumentError: for a midpoint outside (0, 1] or another form.
    """

    midpoint: float = 0.5
    form: Form = "native"
    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    takes_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_midpoint(self.midpoint)
        check_form(self.form)

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[Any]:
        """The coefficients of each step by itself."""
        return [self.coefficients(leg.start, leg.end) for leg in legs]

    @abstractmethod
    def coefficients(self, start: float, end: float) -> Any:
        """Those of a step, which may end at 0."""

    def visits(self, legs: Sequence[Leg]) -> list[tuple[float, ...]]:
        """The start and the stage of each step; the step down to 0 has none."""
        return visits(legs, self.midpoint)
