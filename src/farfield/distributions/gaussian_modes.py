"""What a Gaussian law does along one principal component, as functions of its variance λ and of the scales α and s.

Along the sampling flow from (α_T, s_T) to (α, s) a coefficient of variance λ, measured from the scaled mean, obeys

    ψ = sqrt((s² + α²λ)/(s_T² + α_T²λ))                        state            (Wang & Vastola 2024, Eqs. 15, 18)
    ξ = α λ / sqrt((s² + α²λ)(s_T² + α_T²λ))                   denoiser         (Eqs. 16, 20)
    s / sqrt((s² + α²λ)(s_T² + α_T²λ))                         noise ε
    α²λ / (s² + α²λ)                                           shrinkage        (Eqs. 12, 100)

all times the coefficient at the start. With α = α_T = 1 these are the variance-exploding forms. λ = 0 is the direction
without data: there ψ = s/s_T and ξ = 0, at every s, 0 included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum

if TYPE_CHECKING:
    from farfield.distributions.gaussian import Gaussian

Number = float | Tensor


def wide(value: Number) -> Tensor:
    """A number or tensor as float64."""
    return value.double() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)


def spread(variance: Number, std: Number, alpha: Number = 1.0) -> Tensor:
    """``sqrt(s² + α²λ)``, the standard deviation of the component at scales (α, s); nothing is squared that could vanish."""
    signal = wide(alpha) * wide(variance).sqrt()
    noise = wide(std)
    return torch.hypot(noise.to(signal.device), signal)


def noise_share(variance: Number, std: Number, alpha: Number = 1.0) -> Tensor:
    """``s/sqrt(s² + α²λ)``, 1 where both are 0: the limit without data."""
    total = spread(variance, std, alpha)
    return torch.where(total > 0, wide(std).to(total.device) / total, 1.0)


def signal_share(variance: Number, std: Number, alpha: Number = 1.0) -> Tensor:
    """``α sqrt(λ)/sqrt(s² + α²λ)``, 0 where both are 0."""
    total = spread(variance, std, alpha)
    signal = (wide(alpha) * wide(variance).sqrt()).to(total.device)
    return torch.where(total > 0, signal / total, 0.0)


def shrinkage(variance: Number, std: Number, alpha: Number = 1.0) -> Tensor:
    """``α²λ/(s² + α²λ)``: the part of a noisy coefficient that the denoiser believes, in [0, 1]."""
    return signal_share(variance, std, alpha).square()


def psi(variance: Number, std: Number, std_from: Number, alpha: Number = 1.0, alpha_from: Number = 1.0) -> Tensor:
    """The state's gain ψ from (α_T, s_T) to (α, s), float64.

    Args:
        variance: λ ≥ 0.
        std: s ≥ 0 where the flow has arrived; ``alpha`` is α there.
        std_from: s_T where it started; ``alpha_from`` is α_T there.
    """
    return spread(variance, std, alpha) / spread(variance, std_from, alpha_from)


def xi(variance: Number, std: Number, std_from: Number, alpha: Number = 1.0, alpha_from: Number = 1.0) -> Tensor:
    """The denoiser's gain ξ, arguments as for :func:`psi`; ξ = shrinkage/α · ψ."""
    root = wide(variance).sqrt()
    return root * signal_share(variance, std, alpha) / spread(variance, std_from, alpha_from)


def emergence(z: Number) -> Tensor:
    """``e(z) = 1/sqrt(1 + z²)``, z = s/(α sqrt(λ)): the denoiser's gain from pure noise over sqrt(λ), its final value."""
    return torch.rsqrt(1 + wide(z).square())


def emergence_rate(variance: Number, std: Number, alpha: Number, std_rate: Number, alpha_rate: Number) -> Tensor:
    """``de/dt = sqrt(λ) s (α' s − α s')/(s² + α²λ)^{3/2}`` of :func:`emergence` along a schedule, float64.

    Args:
        variance: λ > 0.
        std, alpha: the scales at t, not both without noise and signal.
        std_rate, alpha_rate: their derivatives in t.
    """
    total = spread(variance, std, alpha)
    turn = wide(alpha_rate) * wide(std) - wide(alpha) * wide(std_rate)
    return wide(variance).sqrt() * wide(std) * turn / total**3


def all_variances(spectrum: Spectrum) -> Tensor:
    """The eigenvalues with the tail's as one more, the last, where there is a tail: (r,) or (r + 1,) in float64."""
    if not spectrum.tail_dim:
        return spectrum.values
    return torch.cat((spectrum.values, spectrum.values.new_full((1,), spectrum.tail)))


def multiplicities(spectrum: Spectrum) -> Tensor:
    """How many directions have each of :func:`all_variances`, float64."""
    ones = torch.ones_like(spectrum.values)
    return ones if not spectrum.tail_dim else torch.cat((ones, ones.new_full((1,), float(spectrum.tail_dim))))


def principal_components(law: Gaussian, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The directions of largest variance: variances (k,) descending, and unit vectors (k, *event) in float64.

    Args:
        law: the Gaussian.
        count: k; the whole rank by default, and never more.

    Raises:
        ArgumentError: if ``count`` is below 1 or the law holds no component one by one.
    """
    spectrum = law.spectrum
    if not spectrum.rank:
        raise ArgumentError("the covariance is isotropic: it has no principal components")
    if count is not None and count < 1:
        raise ArgumentError(f"components = {count}; expected at least 1")
    values, vectors = spectrum.leading(min(count or spectrum.rank, spectrum.rank))
    return values, vectors.double().view(len(values), *law.event_shape)
