"""DPM-Solver++(2S): the second-order one-step rule in the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Evaluate, Row, Solver, blend
from farfield.sampling.solvers.finite_difference import Form, Master, check_form, master, master_step
from farfield.sampling.solvers.midpoint import between, check_midpoint, visits

if TYPE_CHECKING:
    from farfield.distributions import Gaussian


class Plan(NamedTuple):
    """One step: σ'/σ (0 for the Euler step to zero noise), the stage's level and ratio, the update in the other form."""

    ratio: float
    stage: float = 0.0
    stage_ratio: float = 0.0
    update: Master = Master(0.0, 0.0)


@dataclass(frozen=True)
class DPMpp2S(Solver):
    """DPM-Solver++(2S) with midpoint c (Lu et al. 2022, Alg. 1). Two evaluations, order 2.

    With ``σ_s = σ'^c σ^{1−c}``, the Euler step x_s to it and ``D_s = D(x_s, σ_s)``: ``D̃ = D + (D_s − D)/2c`` is held fixed,
    ``x' = (σ'/σ) x + (1 − σ'/σ) D̃``. For c = 1/2 that is D_s alone. As a finite difference of the denoiser it is
    DPM-Solver-2 with γ = 1 in place of σ/σ_s.

    Args:
        midpoint: c, in (0, 1].
        form: of the arithmetic.

    Raises:
        ArgumentError: for a midpoint outside (0, 1] or another form.
    """

    midpoint: float = 0.5
    form: Form = "native"
    name: ClassVar[str] = "dpmpp_2s"
    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    takes_noise: ClassVar[bool] = True
    row: ClassVar[Row] = Row(
        derivative="γ (r(x_s, σ_s) − r₁)/(c h), σ_s = σ'^c σ^{1−c}",
        gamma="1",
        identity="yes",
        source="Lu et al. 2022 (DPM-Solver++), Alg. 1",
    )

    def __post_init__(self) -> None:
        check_midpoint(self.midpoint)
        check_form(self.form)

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[Plan]:
        """Ratios and stage of each step."""
        return [self._plan(leg.start, leg.end) for leg in legs]

    def _plan(self, start: float, end: float) -> Plan:
        if not end:
            return Plan(0.0)
        stage = between(start, end, self.midpoint)
        return Plan(end / start, stage, stage / start, master(start, end, 1.0, self.midpoint * (end - start)))

    def visits(self, legs: Sequence[Leg]) -> list[tuple[float, ...]]:
        """The start and the stage of each step; the step down to 0 has none."""
        return visits(legs, self.midpoint)

    def step(self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Any, plan: Plan) -> tuple[Tensor, None]:
        """An Euler step to the stage, one evaluation there, and the step with the denoiser carried to mid-step."""
        if not plan.ratio:
            return d, None
        r = evaluate(blend(d, x, plan.stage_ratio), plan.stage)
        if self.form != "native":
            return master_step(x, d, r - d, plan.update), None
        middle = r if self.midpoint == 0.5 else torch.lerp(d, r, 0.5 / self.midpoint)
        return blend(middle, x, plan.ratio), None
