"""The linear multistep rule of k-diffusion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from farfield.sampling.solvers.base import Description, Row
from farfield.sampling.solvers.deis import AdamsBashforth
from farfield.sampling.solvers.multistep import RISING, StartUp, check_points, check_start, in_words


@dataclass(frozen=True)
class LMS(AdamsBashforth):
    """k-diffusion's linear multistep rule (Crowson 2022): :class:`AdamsBashforth` with four points. One evaluation a step.

    It is DEIS's ρAB (``deis`` with ``variant="rhoab"``) and ``ipndm_v``. The coefficients are exact; k-diffusion and
    diffusers integrate them adaptively to 1e-4.

    Args:
        points: 1 to 4 values, the order in k-diffusion.
        start: ``"rising"`` as published, or ``"corrected"``.

    Raises:
        ArgumentError: for options out of range.
    """

    points: int = 4
    start: StartUp = "rising"
    name: ClassVar[str] = "lms"
    row: ClassVar[Row] = Row(startup=RISING, source="Crowson 2022, k-diffusion; Adams & Bashforth 1883")

    def __post_init__(self) -> None:
        check_points(self.name, self.points, 4)
        check_start(self.start)

    def describe(self) -> Description:
        """With the chosen start-up."""
        return replace(super().describe(), startup=in_words(self.start))
