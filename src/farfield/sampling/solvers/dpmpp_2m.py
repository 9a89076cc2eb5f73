"""DPM-Solver++(2M): the second-order multistep rule in the denoiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Evaluate, Solver, blend

if TYPE_CHECKING:
    from farfield.distributions import Gaussian


@dataclass(frozen=True)
class DPMpp2M(Solver):
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2). One evaluation, order 2.

    With ``h = log(σ/σ')`` and ``h₋`` the length of the previous step in log σ, the denoiser is extrapolated to the middle
    of the step, ``D̃ = D + (h/2h₋)(D − D₋)``, and held fixed: ``x' = (σ'/σ) x + (1 − σ'/σ) D̃``. The first step is Euler's,
    and so is the last one, down to 0, where h is infinite. With noise between the steps h and h₋ are still those of the
    noise level, and σ' in the step is where the solver has to arrive: for ``Ancestral(1)`` that is SDE-DPM-Solver++(2M)
    of the same authors (their appendix A, at the midpoint).
    """

    name: ClassVar[str] = "dpmpp_2m"
    order: ClassVar[int] = 2
    takes_noise: ClassVar[bool] = True

    @property
    def history(self) -> int:
        """One."""
        return 1

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[tuple[float, float]]:
        """``(σ'/σ, h/2h₋)`` of each step."""
        plans = []
        for k, leg in enumerate(legs):
            extrapolation = 0.0
            if k and leg.end:
                before = math.log(legs[k - 1].start / leg.start)
                extrapolation = math.log(leg.start / leg.level) / (2 * before)
            plans.append((leg.end / leg.start, extrapolation))
        return plans

    def step(
        self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Tensor | None, plan: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """Extrapolate the denoiser to mid-step, then step with it held fixed."""
        ratio, extrapolation = plan
        if not ratio:
            return d, d
        middle = d if memory is None else torch.lerp(d, memory, -extrapolation)
        return blend(middle, x, ratio), d
