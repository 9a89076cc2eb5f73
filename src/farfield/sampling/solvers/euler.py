"""Euler's rule, which is DDIM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Evaluate, Row, Solver, blend

if TYPE_CHECKING:
    from farfield.distributions import Gaussian


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's step of ``dx/dσ = (x − D)/σ``: ``x' = (σ'/σ) x + (1 − σ'/σ) D``. One evaluation, order 1.

    It solves the equation exactly while D stays constant, and is DDIM in any parameterisation (Song, Meng & Ermon 2021).
    """

    name: ClassVar[str] = "euler"
    order: ClassVar[int] = 1
    takes_noise: ClassVar[bool] = True
    row: ClassVar[Row] = Row(
        derivative="0", identity="yes", final="the same", source="Song, Meng & Ermon 2021; Karras et al. 2022"
    )

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[float]:
        """``σ'/σ`` of each step."""
        return [leg.end / leg.start for leg in legs]

    def step(self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Any, plan: float) -> tuple[Tensor, None]:
        """``x' = (σ'/σ) x + (1 − σ'/σ) D``."""
        return (blend(d, x, plan) if plan else d), None
