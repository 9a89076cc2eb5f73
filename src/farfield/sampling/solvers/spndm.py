"""S-PNDM: two slopes with the weights of equal steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Row
from farfield.sampling.solvers.finite_difference import Form, check_form, master
from farfield.sampling.solvers.ipndm import EqualSteps
from farfield.sampling.solvers.multistep import Differences


@dataclass(frozen=True)
class SPNDM(EqualSteps):
    """The second-order pseudo numerical method (Liu et al. 2022): ``x' = x + (h/2)(3 ε − ε₋)``. One evaluation a step.

    It is ``ipndm`` with two points, and has a form in finite differences of its own. On steps that alternate in length it
    is of first order, where DEIS with two points stays of second.

    Args:
        form: ``"finite_difference"`` writes it as a difference of denoiser outputs, the earlier one carried to the present
            state: the same to rounding. With the earlier output as it is (Chen et al., table 1) it is another rule.

    Raises:
        ArgumentError: for another form.
    """

    form: Form = "native"
    points: ClassVar[int] = 2
    name: ClassVar[str] = "spndm"
    row: ClassVar[Row] = Row(
        derivative="γ (r₁ − r̃₂)/h, r̃₂ = x − σ ε₂",
        gamma="1",
        identity="yes; with r₂ for r̃₂ only where the step before was Euler's",
        startup="Euler",
        source="Liu et al. 2022; Chen et al., A geometric perspective on diffusion models, table 1",
    )

    def __post_init__(self) -> None:
        check_form(self.form)

    def differences(self, leg: Leg, known: Sequence[float]) -> Differences | None:
        """``Ṙ = (r₁ − r̃₂)/h``."""
        if self.form == "native":
            return None
        if len(known) == 1:
            return Differences(master(leg.start, leg.end, 1.0, 1.0), None)
        return Differences(master(leg.start, leg.end, 1.0, leg.end - leg.start), known[0] / known[1])
