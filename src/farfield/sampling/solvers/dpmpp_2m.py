"""DPM-Solver++(2M): the second-order multistep rule in the denoiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Evaluate, Row, Solver, blend
from farfield.sampling.solvers.finite_difference import Form, Master, check_form, master, master_step

if TYPE_CHECKING:
    from farfield.distributions import Gaussian


@dataclass(frozen=True)
class DPMpp2M(Solver):
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2). One evaluation, order 2.

    With ``h = log(σ/σ')`` and ``h₋`` the length of the previous step in log σ, the denoiser is extrapolated to the middle
    of the step, ``D̃ = D + (h/2h₋)(D − D₋)``, and held fixed: ``x' = (σ'/σ) x + (1 − σ'/σ) D̃``. The first step is Euler's,
    and so is the last one, down to 0, where h is infinite. With noise between the steps h and h₋ are still those of the
    noise level, and σ' in the step is where the solver has to arrive: for ``Ancestral(1)`` that is SDE-DPM-Solver++(2M)
    of the same authors (their appendix A, at the midpoint). ``form="finite_difference"`` gets the weight of ``D − D₋`` from
    the row of the table.

    Raises:
        ArgumentError: for another form.
    """

    form: Form = "native"
    name: ClassVar[str] = "dpmpp_2m"
    order: ClassVar[int] = 2
    takes_noise: ClassVar[bool] = True
    row: ClassVar[Row] = Row(
        derivative="γ (r₁ − r₂)/(σ − σ₋)",
        gamma="(σ − σ₋)/(σ' − σ) · log(σ/σ')/log(σ₋/σ)",
        identity="yes",
        startup="Euler",
        source="Lu et al. 2022 (DPM-Solver++), Alg. 2",
    )

    def __post_init__(self) -> None:
        check_form(self.form)

    @property
    def history(self) -> int:
        """One."""
        return 1

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[tuple[float, float]]:
        """``(σ'/σ, h/2h₋)`` of each step; in the other form the second is the weight of ``D − D₋``."""
        plans = []
        for k, (start, end, level) in enumerate(legs):
            weight = 0.0
            if k and end:
                previous = legs[k - 1].start
                steps = math.log(start / level) / math.log(previous / start)
                if self.form == "native":
                    weight = steps / 2
                else:
                    gap = start - previous
                    weight = master(start, end, gamma=gap / (end - start) * steps, interval=gap).weight
            plans.append((end / start, weight))
        return plans

    def step(
        self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Tensor | None, plan: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """Extrapolate the denoiser to mid-step, then step with it held fixed."""
        ratio, weight = plan
        if not ratio:
            return d, d
        if memory is None or not weight:
            return blend(d, x, ratio), d
        if self.form == "native":
            return blend(torch.lerp(d, memory, -weight), x, ratio), d
        return master_step(x, d, d - memory, Master(ratio, weight)), d
