"""Sampling as a rotation from noise to sample: the closed forms.

For a variance-preserving process, ``α² + s² = 1``, and a Gaussian law the states of the flow obey, for any start α_T,

    x_t = (α_t − α_T κ) x_0 + κ x_T + R_t,          κ = s_t/s_T
    R_t = Σ_k ρ_k c̄_k u_k,    ρ = ψ̄ − κ − (α_t − α_T κ) sqrt(λ)/n_T,    n_T = sqrt(s_T² + λ α_T²)

(Wang & Vastola 2024, Eq. 103). For α_T → 0, ρ is

    J(α; λ) = sqrt(s² + λα²) − α sqrt(λ) − s = −2 s α sqrt(λ) / (sqrt(s² + λα²) + α sqrt(λ) + s)

with −min(s, α sqrt(λ)) ≤ J ≤ 0. The published bound |J| ≤ 2 − √2 holds for λ ≤ 5.30 only; the supremum is 1, reached as
λ → ∞ near ``α ≈ (4λ)^(−1/6)`` where ``J ≈ −1 + 1.5 (4λ)^(−1/3)``. What always holds is ‖R‖² ≤ Σ_k c̄_k² min(1, λ_k).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from farfield.distributions.gaussian_modes import Number, psi, spread, wide
from farfield.errors import ArgumentError


def _noise(alpha: Tensor) -> Tensor:
    """``sqrt(1 − α²)`` without the cancellation near α = 1."""
    return ((1 - alpha) * (1 + alpha)).clamp(min=0).sqrt()


def rotation_deficit(alpha: Number, variance: Number) -> Tensor:
    """``J(α; λ)`` in the form that does not cancel, float64.

    Args:
        alpha: signal scale in [0, 1].
        variance: λ ≥ 0.
    """
    a = wide(alpha)
    noise, signal = _noise(a), a * wide(variance).sqrt()
    total = torch.hypot(noise, signal) + signal + noise
    return torch.where(total > 0, -2 * noise * signal / total.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def rotation_remainder(variance: Number, alpha: Number, alpha_from: Number = 0.0) -> Tensor:
    """ρ, the gain of the remainder R_t along a component of variance λ, for a start at any α_T < 1, float64."""
    a, top, root = wide(alpha), wide(alpha_from), wide(variance).sqrt()
    kappa = _noise(a) / _noise(top)
    gain = psi(variance, _noise(a), _noise(top), a, top)
    return gain - kappa - (a - top * kappa) * root / spread(variance, _noise(top), top)


def rotation_weights(alpha: Number, alpha_from: Number = 0.0) -> tuple[Tensor, Tensor]:
    """The weights of x_0 and x_T in the rotation: ``(α_t − α_T κ, κ)``; ``(α, sqrt(1 − α²))`` from pure noise."""
    a, top = wide(alpha), wide(alpha_from)
    kappa = _noise(a) / _noise(top)
    return a - top * kappa, kappa


def deepest_deficit(variance: Number, steps: int = 80) -> tuple[Tensor, Tensor]:
    """The α at which J(α; λ) is least, and that least value, for each λ > 0.

    With α = cos θ, dJ/dθ has one zero in (0, π/2), which bisection finds.
    """
    root = wide(variance).sqrt()
    low, high = torch.zeros_like(root), torch.full_like(root, math.pi / 2)
    for _ in range(steps):
        middle = (low + high) / 2
        sine, cosine = middle.sin(), middle.cos()
        total = torch.hypot(sine, root * cosine)
        slope = (1 - root.square()) * sine * cosine / total + root * sine - cosine
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    alpha = ((low + high) / 2).cos()
    return alpha, rotation_deficit(alpha, root.square())


def rotation_bound(coefficients: Tensor, variances: Tensor) -> Tensor:
    """``Σ_k c̄_k² min(1, λ_k)`` over the last axis, which ‖R_t‖² never exceeds for a start in pure noise, float64.

    Args:
        coefficients: c̄ (…, r).
        variances: λ (r,).
    """
    return (coefficients.double().square() * variances.double().clamp(max=1)).sum(-1)


def extrapolation_error(alpha: Number, variance: Number) -> Tensor:
    """``J/α``: the error, per c̄_k, of reading the endpoint off a state as ``(x_t − sqrt(1 − α²) x_T)/α``; α > 0."""
    a = wide(alpha)
    noise, root = _noise(a), wide(variance).sqrt()
    return (
        -2 * noise * root / (torch.hypot(noise, a * root) + a * root + noise).clamp(min=torch.finfo(torch.float64).tiny)
    )


def frozen_flow(x: Tensor, denoised: Tensor, alpha: float, std: float, alpha_to: float, std_to: float) -> Tensor:
    """The flow with the denoiser's output held fixed: ``x' = α' D + (s'/s)(x − α D)``.

    ``(x − α D)/s`` is conserved. This is one step of DDIM, for any schedule (Wang & Vastola 2024, Eqs. 112-132).

    Args:
        x, denoised: states and outputs D, the same shape.
        alpha, std: scales of x, std > 0.
        alpha_to, std_to: scales of the result.

    Raises:
        ArgumentError: unless std > 0.
    """
    if not std > 0:
        raise ArgumentError(f"std = {std}; expected a state with noise")
    return alpha_to * denoised + (std_to / std) * (x - alpha * denoised)
