"""DPM-Solver++(2S): the second-order one-step rule in the denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from farfield.sampling.solvers.base import Evaluate, Row, blend
from farfield.sampling.solvers.finite_difference import Master, master, master_step
from farfield.sampling.solvers.midpoint import MidpointRule, between


class Plan(NamedTuple):
    """One step: σ'/σ (0 for the Euler step to zero noise), the stage's level and ratio, the update in the other form."""

    ratio: float
    stage: float = 0.0
    stage_ratio: float = 0.0
    update: Master = Master(0.0, 0.0)


@dataclass(frozen=True)
class DPMpp2S(MidpointRule):
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

    name: ClassVar[str] = "dpmpp_2s"
    row: ClassVar[Row] = Row(
        derivative="γ (r(x_s, σ_s) − r₁)/(c h), σ_s = σ'^c σ^{1−c}",
        gamma="1",
        identity="yes",
        source="Lu et al. 2022 (DPM-Solver++), Alg. 1",
    )

    def coefficients(self, start: float, end: float) -> Plan:
        """Ratios and stage of a step."""
        if not end:
            return Plan(0.0)
        stage = between(start, end, self.midpoint)
        return Plan(end / start, stage, stage / start, master(start, end, 1.0, self.midpoint * (end - start)))

    def step(self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Any, plan: Plan) -> tuple[Tensor, None]:
        """An Euler step to the stage, one evaluation there, and the step with the denoiser carried to mid-step."""
        if not plan.ratio:
            return d, None
        r = evaluate(blend(d, x, plan.stage_ratio), plan.stage)
        if self.form != "native":
            return master_step(x, d, r - d, plan.update), None
        middle = r if self.midpoint == 0.5 else torch.lerp(d, r, 0.5 / self.midpoint)
        return blend(middle, x, plan.ratio), None
