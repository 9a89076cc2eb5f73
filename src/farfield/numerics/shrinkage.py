"""How far a sample covariance should be drawn towards a multiple of the identity.

    Σ_ρ = (1 − ρ) Σ + ρ m I,    m = tr Σ / d.

With N points in d dimensions the sample's large eigenvalues are too large and its small ones too small, and for N < d
most are zero. The intensity ρ that minimises the expected squared error is estimated from the sample itself (Ledoit &
Wolf 2004; Chen, Wiesel, Eldar & Hero 2010). The eigenvectors stay, so shrinkage costs nothing once there is a spectrum.

scikit-learn's functions of the same name need all of the data in memory and form the covariance once more; these need
three numbers of it, and agree with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from farfield.errors import ArgumentError

Shrinkage: TypeAlias = Literal["ledoit_wolf", "oas"] | float | None


def ledoit_wolf(count: int, dim: int, trace: float, squares: float, fourth: float) -> float:
    """The intensity ρ of Ledoit & Wolf (2004, Lemmas 3.1-3.4), in [0, 1].

    ``ρ = min(β², δ²)/δ²`` with ``β² = (E‖y‖⁴ − ‖Σ‖²)/N`` and ``δ² = ‖Σ‖² − (tr Σ)²/d``.

    Args:
        count: N.
        dim: d.
        trace: tr Σ.
        squares: ``‖Σ‖² = tr Σ²``.
        fourth: ``E‖y‖⁴``, the mean fourth power of the distance to the mean.
    """
    spread = squares - trace * trace / dim
    error = (fourth - squares) / count
    return min(max(error, 0.0), spread) / spread if dim > 1 and spread > 0 and error > 0 else 0.0


def oas(count: int, dim: int, trace: float, squares: float) -> float:
    """The intensity ρ of oracle approximating shrinkage (Chen et al. 2010, Eq. 23 for large d), in [0, 1].

    ``ρ = min(1, (tr Σ² + (tr Σ)²) / ((N + 1)(tr Σ² − (tr Σ)²/d)))``. It takes the data for Gaussian.
    """
    spread = squares - trace * trace / dim
    if dim == 1 or trace == 0:
        return 0.0
    return min(1.0, (squares + trace * trace) / ((count + 1) * spread)) if spread > 0 else 1.0


@dataclass(frozen=True)
class Regulariser:
    """What is done to the eigenvalues of a sample covariance of divisor N: ``λ' = a λ + b``.

    Args:
        shrinkage: ρ, or how to estimate it, or None for 0.
        correction: the divisor is N minus this; with 1 the covariance of independent points is unbiased.
        jitter: added to every eigenvalue.

    Raises:
        ArgumentError: for an unknown name, an intensity outside [0, 1], or a negative number.
    """

    shrinkage: Shrinkage = None
    correction: int = 0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        rho = self.shrinkage
        if isinstance(rho, str):
            known = rho in ("ledoit_wolf", "oas")
        else:
            known = rho is None or 0 <= rho <= 1
        if not known:
            raise ArgumentError(f"shrinkage = {rho!r}; expected None, 'ledoit_wolf', 'oas' or a number in [0, 1]")
        if self.correction < 0:
            raise ArgumentError(f"correction = {self.correction}; expected at least 0")
        if not (math.isfinite(self.jitter) and self.jitter >= 0):
            raise ArgumentError(f"jitter = {self.jitter}; expected a finite number >= 0")

    def line(
        self, count: int, dim: int, trace: float, squares: float = 0.0, fourth: float | None = None
    ) -> tuple[float, float]:
        """a and b; the arguments are those of :func:`ledoit_wolf`, of the covariance with divisor N.

        Raises:
            ArgumentError: for Ledoit & Wolf's method where the fourth moment is not known.
        """
        rho = self.shrinkage
        if rho == "oas":
            rho = oas(count, dim, trace, squares)
        elif rho == "ledoit_wolf":
            if fourth is None:
                raise ArgumentError("shrinkage = 'ledoit_wolf' needs fourth moments, which are not known; use 'oas'")
            rho = ledoit_wolf(count, dim, trace, squares, fourth)
        rho = 0.0 if rho is None else float(rho)
        # One point has no covariance whatever the divisor.
        factor = count / (count - self.correction) if count > self.correction else 1.0
        return (1 - rho) * factor, rho * factor * trace / dim + self.jitter


#: The sample covariance as it is.
PLAIN = Regulariser()
