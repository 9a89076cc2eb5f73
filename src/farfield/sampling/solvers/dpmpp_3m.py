"""DPM-Solver++(3M): the third-order multistep rule in the denoiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from farfield.errors import ArgumentError
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Description, Row
from farfield.sampling.solvers.multistep import RISING, Advance, DenoiserMultistep, StartUp, check_start, in_words


@dataclass(frozen=True)
class DPMpp3M(DenoiserMultistep):
    """DPM-Solver++(3M) (Lu et al. 2022): D as the parabola in log σ through its last three values. One evaluation a step.

    The first step is Euler's, the second goes through two values; its weights are the exponential integrals, as in
    k-diffusion, and not those of a midpoint (``dpmpp_2m``, and diffusers by default).

    The authors' program and its descendants (k-diffusion, diffusers) give the second derivative half of its weight: the
    coefficient that belongs to ``D''`` multiplies the divided difference, which is ``D''/2``. That is of second order
    whatever the start; with few steps the damping is more often a help than a harm, and it is what the name stands for.
    ``curvature="exact"`` gives it the whole weight: the isotropic case of ``whitened`` with order 3, exponent 0 and no
    corrector, and azula's xEAB.

    With noise between the steps the parabola is run through over the fall of the noise level, as ``dpmpp_2m`` does: with
    ``Ancestral(1)`` that is the third-order SDE solver of k-diffusion.

    Args:
        start: ``"rising"`` as published, after which the error of the first step is of second order, or ``"corrected"``: the
            first step is taken once more when the output at its end is known, at no cost; with exact weights the order is 3.
        curvature: ``"published"`` or ``"exact"``.

    Raises:
        ArgumentError: for other options.
    """

    start: StartUp = "rising"
    curvature: Literal["published", "exact"] = "published"
    points: ClassVar[int] = 3
    name: ClassVar[str] = "dpmpp_3m"
    takes_noise: ClassVar[bool] = True
    row: ClassVar[Row] = Row(startup=RISING, source="Lu et al. 2022 (DPM-Solver++), program")

    def __post_init__(self) -> None:
        check_start(self.start)
        if self.curvature not in ("exact", "published"):
            raise ArgumentError(f"curvature = {self.curvature!r}; expected 'published' or 'exact'")

    @property
    def order(self) -> int:
        """3 with the corrected start and the exact weights, otherwise 2."""
        return 3 if (self.start, self.curvature) == ("corrected", "exact") else 2

    def advance(self, leg: Leg, known: Sequence[float]) -> Advance:
        """The exponential integrals, with half of the second divided difference's on request."""
        gain, weights = super().advance(leg, known)
        if self.curvature == "exact" or len(known) < 3:
            return Advance(gain, weights)
        u = [math.log(s / leg.start) for s in known]
        # The whole weight of a parabola's quadratic coefficient, as a quadratic function at the three levels has it.
        second = sum(w * v * v for w, v in zip(weights, u, strict=True))
        shares = [1 / math.prod(v - other for other in u if other != v) for v in u]
        return Advance(gain, tuple(w - second / 2 * c for w, c in zip(weights, shares, strict=True)))

    def corrects(self, number: int) -> bool:
        """The first step, with the corrected start."""
        return self.start == "corrected" and number == 1

    def describe(self) -> Description:
        """With the chosen start-up."""
        return replace(super().describe(), startup=in_words(self.start))
