"""DPM-Solver-3: the third-order one-step rule in the noise prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from farfield.errors import ArgumentError
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Evaluate, Row, Solver, blend
from farfield.sampling.solvers.midpoint import between

if TYPE_CHECKING:
    from farfield.distributions import Gaussian


class Stage(NamedTuple):
    """Where the denoiser is asked: at the level, in the Euler step to it plus ``weight`` times the difference so far."""

    sigma: float
    ratio: float
    weight: float = 0.0


class Plan(NamedTuple):
    """One step: σ'/σ (0 for the Euler step to zero noise), its stages, and the weight of the last difference."""

    ratio: float
    stages: tuple[Stage, ...] = ()
    weight: float = 0.0


def _phi(z: float) -> float:
    """``(e^z − 1)/z − 1``."""
    return math.expm1(z) / z - 1


@dataclass(frozen=True)
class DPM3(Solver):
    """DPM-Solver-3 (Lu et al. 2022, DPM-Solver, Alg. 2). Three evaluations, order 3.

    With ``H = log(σ/σ')``, ``φ(z) = (e^z − 1)/z − 1``, the levels σ₁, σ₂ at one and two thirds of the step in log σ and ε the
    noise prediction:

        u₁ = x + (σ₁ − σ) ε,                                  D₁ = ε(u₁, σ₁) − ε,
        u₂ = x + (σ₂ − σ) ε − 2 σ₂ φ(2H/3) D₁,                D₂ = ε(u₂, σ₂) − ε,
        x' = x + (σ' − σ) ε − (3/2) σ' φ(H) D₂.

    It is computed in differences of denoiser outputs, ``ε(u, s) − ε = −(D(u, s) − D − correction of u)/s``, which takes fewer
    operations. It is not the third-order expansion in σ, but in log σ.

    The authors' plan for a budget ends with a step of order 2 and one of order 1 (``final="reduce"``): 18 grid points, 17
    steps, 48 evaluations with ``AtLastLevel``. With that the order is 2: the error of the last step decides.

    Args:
        final: ``"full"`` for order 3 to the end, or ``"reduce"``.

    Raises:
        ArgumentError: for another ``final``.
    """

    final: Literal["full", "reduce"] = "full"
    name: ClassVar[str] = "dpm3"
    evaluations_per_step: ClassVar[int] = 3
    takes_noise: ClassVar[bool] = True
    row: ClassVar[Row] = Row(
        final="Euler; with final = reduce the two steps before are of order 2 and 1",
        source="Lu et al. 2022 (DPM-Solver), Alg. 2",
    )

    def __post_init__(self) -> None:
        if self.final not in ("full", "reduce"):
            raise ArgumentError(f"final = {self.final!r}; expected 'full' or 'reduce'")

    @property
    def order(self) -> int:
        """3, or 2 with reduced last steps."""
        return 3 if self.final == "full" else 2

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[Plan]:
        """Ratios, stages and weights of each step."""
        return [_plan(leg.start, leg.end, order) for leg, order in zip(legs, self._orders(legs), strict=True)]

    def _orders(self, legs: Sequence[Leg]) -> list[int]:
        """The order of each step."""
        count = sum(leg.end > 0 for leg in legs)
        left = [3] * count
        if self.final == "reduce":
            left = [3] * max(count - 2, 0) + [2, 1][-count:] if count else []
        return left + [1] * (len(legs) - count)

    def visits(self, legs: Sequence[Leg]) -> list[tuple[float, ...]]:
        """The start of each step and its stages; the step down to 0 has none."""
        plans = [_plan(leg.start, leg.end, order) for leg, order in zip(legs, self._orders(legs), strict=True)]
        return [(leg.start, *(s.sigma for s in plan.stages)) for leg, plan in zip(legs, plans, strict=True)]

    def step(self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Any, plan: Plan) -> tuple[Tensor, None]:
        """The stages one after the other, each corrected by the difference of the one before, and the whole step."""
        if not plan.ratio:
            return d, None
        difference: Tensor | None = None
        for stage in plan.stages:
            state = blend(d, x, stage.ratio)
            if difference is None:
                difference = evaluate(state, stage.sigma) - d
            else:
                # The correction moves the state, and with it σ_s ε there: what is left is the change of ε alone.
                correction = difference.mul_(stage.weight)
                difference = evaluate(state.add_(correction), stage.sigma).sub(d).sub_(correction)
        end = blend(d, x, plan.ratio)
        return (end if difference is None else end.add_(difference, alpha=plan.weight)), None


def _plan(start: float, end: float, order: int) -> Plan:
    """The step of order 1 (Euler), 2 (DPM-Solver-2) or 3."""
    if not end or order == 1:
        return Plan(end / start)
    if order == 2:
        middle = between(start, end, 0.5)
        return Plan(end / start, (Stage(middle, middle / start),), (start - end) / middle)
    length = math.log(start / end)
    first, second = between(start, end, 1 / 3), between(start, end, 2 / 3)
    inner = 2 * (second / first) * _phi(2 * length / 3)
    stages = (Stage(first, first / start), Stage(second, second / start, inner))
    return Plan(end / start, stages, 1.5 * (end / second) * _phi(length))
