"""DEIS, and the Adams-Bashforth rule for the steps as they are, which several methods share under different names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch

from farfield.errors import ArgumentError
from farfield.processes import VP
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.adams import Variable, step_integrals
from farfield.sampling.solvers.base import Description, Row
from farfield.sampling.solvers.finite_difference import Form, check_form, master
from farfield.sampling.solvers.multistep import (
    RISING,
    Advance,
    Differences,
    Multistep,
    StartUp,
    check_points,
    check_start,
    in_words,
)


class AdamsBashforth(Multistep):
    """Adams-Bashforth in the slope ``ε = (x − D)/σ`` for steps of any length: ``x' = x + Σ_j ε_j ∫ ℓ_j(u(σ)) dσ``.

    With u = σ this is one rule under four names: DEIS's ρAB (Zhang & Chen 2023), k-diffusion's ``lms``, the ``ipndm_v`` that
    the variable-step iPNDM is meant to be, and azula's zAB. Subclasses choose u, the defaults and the name.

    The first steps have fewer values. ``start="rising"`` leaves it at that, and the run keeps the second-order error of its
    first step. ``start="corrected"`` takes each of the first ``points − 2`` steps once more when the slope at its end is
    known (Adams-Moulton, no evaluation), which gives order 3. With four points the error falls faster at first; what is
    left of the first step is of third order with a small factor, and shows beyond a hundred steps.
    """

    if TYPE_CHECKING:

        @property
        def start(self) -> StartUp:
            """A field."""

    @property
    def order(self) -> int:
        """``points``, but at most 2 with the rising start and 3 with the corrected one."""
        return min(self.points, 2 if self.start == "rising" else 3)

    @property
    def variable(self) -> Variable | None:
        """u(σ); None for σ itself."""
        return None

    def advance(self, leg: Leg, known: Sequence[float]) -> Advance:
        """The integrals of the Lagrange polynomials."""
        return Advance(1.0, tuple(step_integrals(known, leg.start, leg.end, self.variable)))

    def corrects(self, number: int) -> bool:
        """The first ``points − 2`` steps, with the corrected start."""
        return self.start == "corrected" and number <= self.points - 2


@dataclass(frozen=True)
class DEIS(AdamsBashforth):
    """The diffusion exponential integrator sampler (Zhang & Chen 2023, Eq. 14, 15; Prop. 3). One evaluation a step.

    ε is interpolated through its last ``points`` values and integrated against dσ, which is their exponential integrator in
    the variance-exploding state. The variants differ in the variable in which ε is a polynomial:

    - ``"tab"``: the time of the linear-β VP process, the authors' tAB. The integrals are taken to rounding; the authors'
      program and its descendants sum rectangles, which is off by 7e-5 in the weights.
    - ``"rhoab"``: σ, the authors' ρAB; the same rule as ``lms`` and ``ipndm_v``.
    - ``"logrho"``: log σ, which is what diffusers calls DEIS, and azula's zEAB.

    The authors count from 0: their tAB3 has four points.

    Args:
        variant: as above.
        points: 1 to 4 values; 1 is DDIM.
        start: ``"rising"`` as published, or ``"corrected"``; see :class:`AdamsBashforth`.
        form: ``"finite_difference"`` writes ρAB with two points as a difference of denoiser outputs, the earlier one carried to
            the present state: the same to rounding. With the earlier output as it is (Chen et al., table 1) it is another rule.
        beta_min, beta_max: of the VP process, for ``"tab"``.

    Raises:
        ArgumentError: for options out of range or that do not go together.
    """

    variant: Literal["tab", "rhoab", "logrho"] = "tab"
    points: int = 4
    start: StartUp = "rising"
    form: Form = "native"
    beta_min: float = 0.1
    beta_max: float = 20.0
    name: ClassVar[str] = "deis"
    row: ClassVar[Row] = Row(
        startup=RISING,
        source="Zhang & Chen 2023, Eq. 14; Chen et al., A geometric perspective on diffusion models, table 1",
    )

    def __post_init__(self) -> None:
        check_points("deis", self.points, 4)
        check_start(self.start)
        check_form(self.form)
        if self.variant not in ("tab", "rhoab", "logrho"):
            raise ArgumentError(f"variant = {self.variant!r}; expected 'tab', 'rhoab' or 'logrho'")
        if self.form != "native" and (self.variant, self.points) != ("rhoab", 2):
            raise ArgumentError(
                f"form = {self.form!r} with variant = {self.variant!r} and points = {self.points}; "
                "only 'rhoab' with 2 points is a finite difference of outputs"
            )
        VP(self.beta_min, self.beta_max)
        if self.variant != "tab" and (self.beta_min, self.beta_max) != (0.1, 20.0):
            raise ArgumentError(f"beta_min and beta_max have no effect with variant = {self.variant!r}")

    @property
    def variable(self) -> Variable | None:
        """The VP time, log σ, or σ itself."""
        if self.variant == "rhoab":
            return None
        return np.log if self.variant == "logrho" else self._time

    def _time(self, sigma: np.ndarray) -> np.ndarray:
        return VP(self.beta_min, self.beta_max).time(torch.from_numpy(sigma)).numpy()

    def differences(self, leg: Leg, known: Sequence[float]) -> Differences | None:
        """``Ṙ = (r₁ − r̃₂)/(σ − σ₋)``."""
        if self.form == "native":
            return None
        if len(known) == 1:
            return Differences(master(leg.start, leg.end, 1.0, 1.0), None)
        return Differences(master(leg.start, leg.end, 1.0, known[0] - known[1]), known[0] / known[1])

    def describe(self) -> Description:
        """The row of ρAB with two points is that of the table; the others are no differences of two outputs."""
        row = super().describe()
        if (self.variant, self.points) == ("rhoab", 2):
            row = replace(
                row,
                derivative="γ (r₁ − r̃₂)/(σ − σ₋), r̃₂ = x − σ ε₂",
                gamma="1",
                identity="yes; with r₂ for r̃₂ only where the step before was Euler's",
            )
        return replace(row, startup=in_words(self.start))
