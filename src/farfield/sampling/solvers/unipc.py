"""UniPC: a multistep predictor and a corrector that asks for nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from farfield.errors import ArgumentError
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Description, Row
from farfield.sampling.solvers.multistep import RISING, Advance, DenoiserMultistep, check_points


@dataclass(frozen=True)
class UniPC(DenoiserMultistep):
    """The unified predictor-corrector UniPC-p (Zhao et al. 2023, Alg. 1, 2; data prediction). One evaluation a step.

    The predictor UniP-p interpolates the denoiser in log σ through its last p values. When the output at the predicted state
    is known, UniC-p takes the step once more with that output as one more value; the step that follows sets out from
    there, with the output as it is. So every step but the last is corrected at no cost; after the last one there is no
    output, and the step to σ = 0 is the denoiser's output.

    With ``h = log(σ/σ')``, ``B(h) = h`` (``"bh1"``) or ``1 − e^{−h}`` (``"bh2"``). The authors solve for the weights, and B
    cancels, except where one unknown is left, which they set to ½ for any B: UniP-2 and UniC-1. There the step is

        UniP-2:  x' = (σ'/σ) x + (1 − σ'/σ) D + ½ B (h/h₋)(D − D₋)        UniC-1:  x' = (σ'/σ) x + (1 − σ'/σ) D + ½ B (D' − D)

    and everywhere else the exponential integral of the Lagrange polynomial, taken to rounding here.

    The corrector raises the order by one, up to 3: with p = 3 the error falls faster at first, but the first step leaves one
    of third order behind.

    Args:
        points: p, 1 to 3; the first steps have fewer.
        variant: ``"bh1"`` or ``"bh2"``.
        corrector: ``"always"``, or ``"never"`` for UniP alone.

    Raises:
        ArgumentError: for options out of range.
    """

    points: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: Literal["always", "never"] = "always"
    name: ClassVar[str] = "unipc"
    row: ClassVar[Row] = Row(startup=RISING, source="Zhao et al. 2023, Alg. 1, 2")

    def __post_init__(self) -> None:
        check_points(self.name, self.points, 3)
        if self.variant not in ("bh1", "bh2"):
            raise ArgumentError(f"variant = {self.variant!r}; expected 'bh1' or 'bh2'")
        if self.corrector not in ("always", "never"):
            raise ArgumentError(f"corrector = {self.corrector!r}; expected 'always' or 'never'")

    @property
    def order(self) -> int:
        """``min(points + 1, 3)`` with the corrector, ``min(points, 2)`` without."""
        return min(self.points + 1, 3) if self.corrector == "always" else min(self.points, 2)

    @property
    def history(self) -> int:
        """``points`` with the corrector, which has one value more; ``points − 1`` without."""
        return self.points if self.corrector == "always" else self.points - 1

    def advance(self, leg: Leg, known: Sequence[float]) -> Advance:
        """UniP."""
        if len(known) != 2:
            return super().advance(leg, known)
        share = self._half(leg) * math.log(leg.start / leg.end) / math.log(known[1] / known[0])
        ratio = leg.end / leg.start
        return Advance(ratio, (1 - ratio + share, -share))

    def correction(self, leg: Leg, known: Sequence[float]) -> Advance:
        """UniC."""
        if len(known) != 2:
            return super().advance(leg, known)
        ratio, half = leg.end / leg.start, self._half(leg)
        return Advance(ratio, (half, 1 - ratio - half))

    def _half(self, leg: Leg) -> float:
        """``½ B(h)``."""
        return math.log(leg.start / leg.end) / 2 if self.variant == "bh1" else (1 - leg.end / leg.start) / 2

    def corrects(self, number: int) -> bool:
        """Every step."""
        return self.corrector == "always"

    def describe(self) -> Description:
        """With the corrector."""
        text = super().describe()
        return replace(text, startup=RISING + ("; every step corrected" if self.corrector == "always" else ""))
