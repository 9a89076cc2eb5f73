"""What a linear denoiser learns, and when: the law against which the learning of networks is read.

A linear denoiser ``D(x) = μ + W (x − μ)`` on data of covariance ``Σ = U diag(λ) Uᵀ`` has the loss ``E‖D(y + n) − y‖²``
(Wang & Vastola 2024, Eq. 3), a sum over the coordinates. Where W starts diagonal in U, gradient flow of rate η keeps it so:

    dW_k/dτ = −2η [(λ_k + σ²) W_k − λ_k],    W_k(τ) = Λ_k + (W_k(0) − Λ_k) e^{−2η (λ_k + σ²) τ},    Λ_k = λ_k/(λ_k + σ²).

Directions of large variance are learned first, and all at one rate where σ² is far above λ. The unexplained fractions of
the score follow in closed form, for queries from the noised data:

    by the Gaussian    Σ_k (W_k − Λ_k)² (λ_k + σ²) / Σ_k (1 − W_k)² (λ_k + σ²),
    by the mean alone  Σ_k W_k² (λ_k + σ²) / Σ_k (1 − W_k)² (λ_k + σ²).

Everything is in float64; τ = number of steps is gradient descent's law for η (λ + σ²) ≪ 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class LinearLearning:
    """Gradient flow of a linear denoiser at one noise level.

    Args:
        variances: λ, (d,), ≥ 0; directions outside of the data have 0.
        sigma: the noise level, > 0.
        start: W(0), a number or (d,).
        rate: η, > 0.

    Raises:
        ArgumentError: for a value out of range, or sizes that differ.
    """

    variances: Tensor
    sigma: float
    start: Tensor | float = 0.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.variances, dtype=torch.float64)
        start = torch.as_tensor(self.start, dtype=torch.float64, device=values.device)
        if values.ndim != 1 or not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
            raise ArgumentError("variances hold values that are not finite numbers of at least 0 along one axis")
        if start.shape not in (torch.Size(), values.shape):
            raise ArgumentError(f"start has shape {tuple(start.shape)}; expected a number or ({len(values)},)")
        if not (0 < self.sigma < math.inf and 0 < self.rate < math.inf):
            raise ArgumentError(f"sigma = {self.sigma}, rate = {self.rate}; expected positive numbers")
        object.__setattr__(self, "variances", values)
        object.__setattr__(self, "start", start.expand(values.shape))

    @property
    def spread(self) -> Tensor:
        """``λ + σ²``, (d,)."""
        return self.variances + self.sigma**2

    @property
    def goal(self) -> Tensor:
        """``Λ = λ/(λ + σ²)``, (d,): the gains of the Gaussian denoiser."""
        return self.variances / self.spread

    @property
    def learning_times(self) -> Tensor:
        """``1/(2η (λ + σ²))``, (d,): when a direction has gone 63 % (1 − 1/e) of its way."""
        return 1 / (2 * self.rate * self.spread)

    @property
    def half_times(self) -> Tensor:
        """``ln 2/(2η (λ + σ²))``, (d,): when it has gone half of its way."""
        return math.log(2) * self.learning_times

    def gains(self, time: float | Tensor) -> Tensor:
        """``W(τ)``: (d,) for a time, (T, d) for times (T,)."""
        tau = torch.as_tensor(time, dtype=torch.float64, device=self.variances.device)
        return self.goal + (self.start - self.goal) * torch.exp(-tau[..., None] / self.learning_times)  # type: ignore[operator]

    def unexplained(self, time: float | Tensor) -> Tensor:
        """The score's fraction that the Gaussian leaves unexplained at a time, () or (T,)."""
        w = self.gains(time)
        return self._share((w - self.goal).square(), w)

    def unexplained_by_mean(self, time: float | Tensor) -> Tensor:
        """The same by the isotropic law, whose denoiser is the mean."""
        w = self.gains(time)
        return self._share(w.square(), w)

    def _share(self, gap: Tensor, w: Tensor) -> Tensor:
        return (gap * self.spread).sum(-1) / ((1 - w).square() * self.spread).sum(-1)

    def descend(self, steps: int) -> Tensor:
        """``W`` after gradient descent in steps of η instead of gradient flow, (d,): its law for small η.

        Each step multiplies the way that is left by ``1 − 2η (λ + σ²)``.
        """
        if steps < 0:
            raise ArgumentError(f"steps = {steps}; expected a number of at least 0")
        return self.goal + (self.start - self.goal) * (1 - 1 / self.learning_times) ** steps  # type: ignore[operator]
