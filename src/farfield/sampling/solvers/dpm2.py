"""DPM-Solver-2: the second-order rule in the noise prediction, with its stage anywhere in the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from farfield.sampling.solvers.base import Evaluate, Row, blend
from farfield.sampling.solvers.finite_difference import Master, master, master_step
from farfield.sampling.solvers.midpoint import MidpointRule, between


class Plan(NamedTuple):
    """One step of either form.

    Attributes:
        start, stage, length: σ, σ_s and ``h = σ' − σ``; a length of 0 stands for the Euler step to zero noise.
        first, second: weights of the slopes at σ and at σ_s in the native form.
        update: the step in the other form.
    """

    start: float
    stage: float = 0.0
    length: float = 0.0
    first: float = 0.0
    second: float = 0.0
    update: Master = Master(0.0, 0.0)


@dataclass(frozen=True)
class DPM2(MidpointRule):
    """DPM-Solver-2 with a general midpoint c (Lu et al. 2022, DPM-Solver, Alg. 4). Two evaluations, order 2.

    With ``ε = (x − D)/σ``, ``h = σ' − σ``, the stage ``σ_s = σ'^c σ^{1−c}`` and ``x_s = x + (σ_s − σ) ε``:

        x' = x + h [(1 − 1/2c) ε + (1/2c) ε(x_s, σ_s)]

    c = 1/2 is DPM-Solver-2, c = 1 is Heun's rule. In the form of finite differences (Chen et al., table 1)
    ``Ṙ = γ (r(x_s, σ_s) − r)/(c h)`` with ``γ = σ/σ_s``, which the last line of their Eq. 35 has lost.

    DPM-Solver counts grid points, EDM steps: 18 points are 17 steps and 34 evaluations here, with ``AtLastLevel``; the step
    down to 0 costs one more.

    Args:
        midpoint: c, in (0, 1].
        form: of the arithmetic.

    Raises:
        ArgumentError: for a midpoint outside (0, 1] or another form.
    """

    name: ClassVar[str] = "dpm2"
    row: ClassVar[Row] = Row(
        derivative="γ (r(x_s, σ_s) − r₁)/(c h), σ_s = σ'^c σ^{1−c}",
        gamma="σ/σ_s",
        identity="yes",
        source="Lu et al. 2022 (DPM-Solver), Alg. 4; Chen et al., table 1",
    )

    def coefficients(self, start: float, end: float) -> Plan:
        """Levels, length and weights of a step."""
        if not end:
            return Plan(start)
        h, stage, half = end - start, between(start, end, self.midpoint), 0.5 / self.midpoint
        update = master(start, end, gamma=start / stage, interval=self.midpoint * h)
        return Plan(start, stage, h, h * (1 - half), h * half, update)

    def step(self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Any, plan: Plan) -> tuple[Tensor, None]:
        """An Euler step to the stage, one evaluation there, and the whole step with both slopes."""
        start, stage, length, first, second, update = plan
        if not length:
            return d, None
        if self.form != "native":
            r = evaluate(blend(d, x, stage / start), stage)
            return master_step(x, d, r - d, update), None
        slope = (x - d).div_(start)
        at = torch.add(x, slope, alpha=stage - start)
        later = (at - evaluate(at, stage)).div_(stage)
        moved = torch.add(x, later, alpha=second)
        return (moved.add_(slope, alpha=first) if first else moved), None
