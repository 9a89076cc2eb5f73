"""Heun's second-order rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Evaluate, Solver, blend

if TYPE_CHECKING:
    from farfield.distributions import Gaussian


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's step of ``dx/dσ = (x − D)/σ`` (Karras et al. 2022, Alg. 1). Two evaluations, order 2.

    With ``x_E`` the Euler step and ``D'`` the denoiser there, the mean of the two slopes is the same as
    ``x' = x_E + (σ − σ')/(2σ') (D' − D)`` (Chen et al., A geometric perspective on
    diffusion models, Table 1): the difference of the two denoiser outputs is all that the second evaluation adds.
    """

    name: ClassVar[str] = "heun"
    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    takes_noise: ClassVar[bool] = True

    def plan(
        self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None
    ) -> list[tuple[float, float, float]]:
        """``(σ'/σ, σ', (σ − σ')/2σ')`` of each step."""
        return [(b / a, b, (a - b) / (2 * b) if b else 0.0) for a, b, _ in legs]

    def visits(self, legs: Sequence[Leg]) -> list[tuple[float, ...]]:
        """Start and end; the step down to 0 has no second evaluation."""
        return [(leg.start, leg.end) if leg.end else (leg.start,) for leg in legs]

    def step(
        self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Any, plan: tuple[float, float, float]
    ) -> tuple[Tensor, None]:
        """The Euler predictor, one evaluation there, and the correction."""
        ratio, sigma_next, weight = plan
        if not sigma_next:
            return d, None
        x_euler = blend(d, x, ratio)
        return torch.add(x_euler, evaluate(x_euler, sigma_next) - d, alpha=weight), None
