"""The far field: what of a law is still seen when the noise is much larger than the cloud.

A Gaussian score expands in powers of Σ/σ² about the isotropic one, and matching mean and covariance leaves third cumulants:

    s = Σ_m (−1)^m Σ^m (μ − x)/σ^(2m+2),   E‖s − s_Gauss‖²/E‖s‖² ≈ ‖κ₃‖²_F / (2 d σ⁶)

(Wang & Vastola 2024, Eqs. 25-27 and 156-159, D.8; the remainder after the first order is O(‖Σ‖²/σ⁶).)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions.base import level
from farfield.distributions.gaussian import Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.numerics import moments


class GaussianSeries(Denoiser):
    """The score of a Gaussian to a finite order in Σ/σ², as a denoiser.

    ``D = μ + U g Uᵀ (x − μ)`` with ``g = −Σ_{m=1..order} (−λ/σ²)^m``. Order 0 is the isotropic score ``(μ − x)/σ²``, order 1
    adds ``−Σ (μ − x)/σ⁴``. The series converges where σ² > λ_max and diverges below: there a higher order is worse.

    Args:
        gaussian: the law that is expanded.
        order: the highest power of Σ, at least 0.

    Raises:
        ArgumentError: if ``order`` is negative.
    """

    def __init__(self, gaussian: Gaussian, order: int = 1) -> None:
        if order < 0:
            raise ArgumentError(f"order = {order}; expected at least 0")
        super().__init__(gaussian.event_shape)
        self.gaussian = gaussian
        self.order = int(order)

    @property
    def radius(self) -> float:
        """``sqrt(λ_max)``, the noise level above which the series converges."""
        values, tail = self.gaussian.spectrum.values, self.gaussian.spectrum.tail
        return max(float(values.max()) if values.numel() else 0.0, tail) ** 0.5

    def _gains(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, float | Tensor]:
        self.check_shape(x)
        spectrum = self.gaussian.spectrum
        s = level(sigma, spectrum.values.device, x.shape[0])
        if not isinstance(s, Tensor) and s == 0:
            raise ArgumentError("sigma = 0: a series in powers of 1/σ² has no value there; expected a positive number")
        ratio, rest = spectrum.values / (s * s), spectrum.tail / (s * s)
        gains, tail = torch.zeros_like(ratio), rest * 0
        for _ in range(self.order):
            # Horner's rule for ρ − ρ² + ρ³ − …
            gains, tail = ratio * (1 - gains), rest * (1 - tail)
        return gains, tail

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``x + σ² s`` to the order kept."""
        mean = self.gaussian.mean.to(x.dtype).flatten()
        gains, tail = self._gains(x, sigma)
        return self.gaussian.spectrum.filter(x.flatten(1) - mean, gains, tail, offset=mean).view(x.shape)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """``D(x, σ)`` and ``U g Uᵀ v``."""
        gains, tail = self._gains(x, sigma)
        return self(x, sigma), self.gaussian.spectrum.filter(v.flatten(1), gains, tail).view(v.shape)

    def vjp(self, x: Tensor, sigma: float | Tensor, v: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`jvp`: the Jacobian is symmetric."""
        return self.jvp(x, sigma, v)


def third_cumulant_norm(data: Tensor | np.ndarray, unbiased: bool = False, block: int = 2048) -> float:
    """``‖κ₃‖²_F``, the squared Frobenius norm of the third cumulant tensor: ``mean over (i, j) of (y_i − μ)·(y_j − μ)³``.

    The d³ tensor is never formed; blocks of the Gram matrix cost N² d/2 multiply-adds and ``block``² numbers of memory, so
    take a sample of a large set.

    Args:
        data: (N, *event).
        unbiased: leave out i = j. With them this is the norm for the cloud itself; without them an estimate for the law
            that it was drawn from, unbiased but for the mean being estimated, and possibly negative.
        block: rows of the Gram matrix at a time.

    Raises:
        DataError: if there are fewer points than one, or two without i = j, or values that are not finite.
    """
    count = data.shape[0]
    if count < (2 if unbiased else 1):
        raise DataError(f"{count} points; expected at least {2 if unbiased else 1}")
    _, mean = moments.mean_of(data)
    centre, total = mean.flatten(), 0.0

    def rows(i: int) -> Tensor:
        part = data[i : i + block]
        part = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
        return part.detach().to(torch.float64).flatten(1) - centre

    for i in range(0, count, block):
        own = rows(i)
        gram = own @ own.T
        if unbiased:
            gram.fill_diagonal_(0.0)
        total += float((gram * gram * gram).sum())
        for j in range(i + block, count, block):
            gram = own @ rows(j).T
            total += 2 * float((gram * gram * gram).sum())
    return total / (count * (count - 1) if unbiased else count * count)


def far_field_fuv(
    source: Tensor | np.ndarray | float, sigma: float, dim: int | None = None, unbiased: bool = False
) -> float:
    """The unexplained variance of a law's score by the Gaussian of equal mean and covariance, at large σ.

    ``‖κ₃‖²_F / (2 d σ⁶)`` for states drawn from the noised law; it is approached from below as σ grows.

    Args:
        source: data (N, *event), or ``‖κ₃‖²_F`` itself.
        sigma: a positive number.
        dim: d, needed with a number.
        unbiased: as in :func:`third_cumulant_norm`.

    Raises:
        ArgumentError: if ``sigma`` is not positive or ``dim`` is missing.
    """
    if not sigma > 0:
        raise ArgumentError(f"sigma = {sigma}; expected a positive number")
    if isinstance(source, Tensor | np.ndarray):
        dim = int(np.prod(source.shape[1:]))
        source = third_cumulant_norm(source, unbiased)
    elif dim is None or dim < 1:
        raise ArgumentError(f"dim = {dim}; expected the number of coordinates, for source is a number")
    return float(source) / (2 * dim * sigma**6)
