"""Heun's second-order rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Evaluate, Row, Solver, blend
from farfield.sampling.solvers.finite_difference import Form, Master, check_form, master, master_step

if TYPE_CHECKING:
    from farfield.distributions import Gaussian


class Plan(NamedTuple):
    """One step: σ'/σ, σ' (0 for the Euler step), and the weight of the difference of outputs."""

    ratio: float
    end: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's step of ``dx/dσ = (x − D)/σ`` (Karras et al. 2022, Alg. 1). Two evaluations, order 2.

    With ``x_E`` the Euler step and ``D'`` the denoiser there, the mean of the two slopes is the same as
    ``x' = x_E + (σ − σ')/(2σ') (D' − D)`` (Chen et al., A geometric perspective on diffusion models, Table 1; the factor
    σ/σ' that the last line of their Eq. 29 has lost is in it): the difference of the two denoiser outputs is all that the
    second evaluation adds. ``form="finite_difference"`` gets the weight from the table's γ.

    Raises:
        ArgumentError: for another form.
    """

    form: Form = "native"
    name: ClassVar[str] = "heun"
    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    takes_noise: ClassVar[bool] = True
    row: ClassVar[Row] = Row(
        derivative="γ (r(x_E, σ') − r₁)/h",
        gamma="σ/σ'",
        identity="yes",
        source="Karras et al. 2022, Alg. 1; Chen et al., table 1",
    )

    def __post_init__(self) -> None:
        check_form(self.form)

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[Plan]:
        """``(σ'/σ, σ', (σ − σ')/2σ')`` of each step."""
        return [self._plan(a, b) for a, b, _ in legs]

    def _plan(self, a: float, b: float) -> Plan:
        if not b:
            return Plan(0.0)
        if self.form == "native":
            return Plan(b / a, b, (a - b) / (2 * b))
        return Plan(b / a, b, master(a, b, gamma=a / b, interval=b - a).weight)

    def visits(self, legs: Sequence[Leg]) -> list[tuple[float, ...]]:
        """Start and end; the step down to 0 has no second evaluation."""
        return [(leg.start, leg.end) if leg.end else (leg.start,) for leg in legs]

    def step(self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Any, plan: Plan) -> tuple[Tensor, None]:
        """The Euler predictor, one evaluation there, and the correction."""
        ratio, end, weight = plan
        if not end:
            return d, None
        x_euler = blend(d, x, ratio)
        difference = evaluate(x_euler, end) - d
        if self.form == "native":
            return torch.add(x_euler, difference, alpha=weight), None
        return master_step(x, d, difference, Master(ratio, weight)), None
