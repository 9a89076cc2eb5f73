"""The second-order Taylor step, with the denoiser's derivative along the trajectory itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Differentiable, Evaluate, Row, Solver
from farfield.sampling.solvers.finite_difference import Form, Master, check_form, master, master_step

if TYPE_CHECKING:
    from farfield.distributions import Gaussian

#: How far into the step the difference quotient looks, as a part of its length.
REACH = 1 / 64


class Plan(NamedTuple):
    """One step: σ, h (0 for the Euler step to zero noise), the way to the second evaluation, the weight of Ṙ."""

    start: float
    length: float = 0.0
    reach: float = 0.0
    update: Master = Master(0.0, 0.0)


@dataclass(frozen=True)
class Taylor2(Solver):
    """Taylor's step of order 2: ``x' = x + h ε + ½ h² ε̇`` with ``ε̇ = −Ṙ/σ``, Ṙ = dD/dσ along the ODE. Order 2.

    It is the rule that the second-order rules of Chen et al. (table 1) approximate by finite differences. (GENIE of Dockhorn,
    Vahdat & Kreis 2022 trains a network for the same derivative.)

    The derivative counts as one evaluation, so that a step costs two. ``"exact"`` is one pass of the model in dual numbers,
    which on a network takes about the time of two; a finite set has it in closed form. Guidance is differentiated too: a
    guidance function then gets σ as a tensor and has to be written in tensor operations. ``"difference"`` evaluates once
    more at 1/64 of the step and asks nothing of the model.

    Args:
        derivative: ``"exact"`` or ``"difference"``.
        form: of the arithmetic: the slope and its derivative, or the output and its derivative.

    Raises:
        ArgumentError: for another derivative or form; in a run, if the model has no forward derivative.
    """

    derivative: Literal["exact", "difference"] = "exact"
    form: Form = "native"
    name: ClassVar[str] = "taylor2"
    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    takes_noise: ClassVar[bool] = True
    row: ClassVar[Row] = Row(
        derivative="dr/dσ along the ODE, itself",
        gamma="1",
        identity="yes",
        cost="2: one and a derivative, which counts as one",
        source="Taylor's expansion in σ; Chen et al., Eq. 26",
    )

    def __post_init__(self) -> None:
        if self.derivative not in ("exact", "difference"):
            raise ArgumentError(f"derivative = {self.derivative!r}; expected 'exact' or 'difference'")
        check_form(self.form)

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[Plan]:
        """Lengths and weights of each step."""
        return [
            Plan(a, b - a, REACH * (b - a), master(a, b, gamma=1.0, interval=1.0)) if b else Plan(a) for a, b, _ in legs
        ]

    def visits(self, legs: Sequence[Leg]) -> list[tuple[float, ...]]:
        """The start twice, or the start and a level close to it; the step down to 0 has no derivative."""
        reach = REACH if self.derivative == "difference" else 0.0
        return [(a, a + reach * (b - a)) if b else (a,) for a, b, _ in legs]

    def step(self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Any, plan: Plan) -> tuple[Tensor, None]:
        """The slope, the derivative along it, and the parabola."""
        start, length, reach, update = plan
        if not length:
            return d, None
        slope = (x - d).div_(start)
        if self.derivative == "exact":
            assert isinstance(evaluate, Differentiable)
            rate = evaluate.derivative(x, start, slope)
        else:
            rate = evaluate(torch.add(x, slope, alpha=reach), start + reach).sub(d).div_(reach)
        if self.form != "native":
            return master_step(x, d, rate, update), None
        return torch.add(x, slope, alpha=length).add_(rate, alpha=update.weight), None
