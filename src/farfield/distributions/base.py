"""Exact laws: distributions whose posterior mean, density and Jacobian are known in closed form.

A law p₀ blurred by Gaussian noise has ``∂D/∂x = Cov(x₀ | x)/σ²``, symmetric and positive semidefinite, so that products
with the Jacobian and with its transpose agree.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError


def level(sigma: float | Tensor, device: torch.device, rows: int | None = None) -> float | Tensor:
    """σ as a number or as a float64 tensor () or (B, 1), ready to meet (B, r) statistics.

    The values of a tensor are never read: that would wait for the device.

    Raises:
        ArgumentError: if a number is negative or NaN, or a tensor is neither () nor, where ``rows`` is given, (rows,).
    """
    if not isinstance(sigma, Tensor):
        if not sigma >= 0:
            raise ArgumentError(f"sigma = {sigma}: a noise level is not negative; expected a number >= 0")
        return float(sigma)
    if sigma.ndim > 1 or (rows is not None and sigma.ndim and sigma.shape[0] not in (1, rows)):
        raise ArgumentError(f"sigma has shape {tuple(sigma.shape)}; expected () or ({'B' if rows is None else rows},)")
    wide = sigma.to(device=device, dtype=torch.float64)
    return wide.unsqueeze(1) if wide.ndim else wide


def unit_roundoff() -> float:
    """Unit roundoff of a float32 matrix product as configured; TF32 keeps 11 bits, bfloat16 8."""
    precision = torch.get_float32_matmul_precision()
    return {"highest": 2.0**-24, "high": 2.0**-11}.get(precision, 2.0**-8)


class Distribution(Denoiser):
    """A law of x₀ that can be sampled, whose blurred density is known, and that is its own exact denoiser."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None, sigma: float = 0.0) -> Tensor:
        """``n`` draws (n, *event) at noise level σ (0: of the law itself)."""

    @abstractmethod
    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0, **condition: Any) -> Tensor:
        """``log p(x; σ)`` in nats, normalised: (B,) in float64. ``x`` is (B, *event), σ a number, () or (B,)."""

    def vjp(self, x: Tensor, sigma: float | Tensor, v: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """``D(x, σ)`` and ``(∂D/∂x)ᵀ v``; the Jacobian is symmetric, so this is :meth:`jvp`."""
        return self.jvp(x, sigma, v, **condition)

    def trace(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``tr ∂D/∂x`` for each sample, (B,) in float64; subclasses know it in closed form."""
        return Denoiser.divergence(self, x, sigma, "exact", **condition)

    def posterior_trace(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``tr Cov(x₀ | x, σ) = σ² tr ∂D/∂x`` for each sample, (B,) in float64."""
        wide = sigma.to(device=x.device, dtype=torch.float64) if isinstance(sigma, Tensor) else sigma
        return self.trace(x, sigma, **condition) * (wide * wide)

    def posterior_spectrum(
        self, x: Tensor, sigma: float | Tensor, count: int, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """The leading eigenvalues and directions of ``Cov(x₀ | x, σ) = σ² ∂D/∂x`` for each sample.

        Laws that know their posterior covariance decompose a thin factor of it; this base method asks for Jacobian
        products, d of them in up to 256 dimensions and Lanczos' method above.

        Args:
            x, sigma: as in :meth:`forward`, σ positive.
            count: how many, 1 to d.

        Returns:
            Values (B, count) in float64, descending, in squared units of x, and unit vectors (B, count, *event) in the
            type of ``x``, each up to its sign.

        Raises:
            ArgumentError: if ``count`` is out of range.
        """
        from farfield.distributions.curvature import by_products

        return by_products(self, x, sigma, count, condition)

    def hessian_spectrum(self, x: Tensor, sigma: float | Tensor, count: int, **condition: Any) -> tuple[Tensor, Tensor]:
        """The largest eigenvalues of ``∇² log p(x; σ) = (∂D/∂x − I)/σ²`` and their directions, as above.

        With a posterior variance v along a direction the density curves by ``(v/σ² − 1)/σ²``: upwards where v > σ².
        """
        values, vectors = self.posterior_spectrum(x, sigma, count, **condition)
        s = level(sigma, values.device, x.shape[0])
        return (values / (s * s) - 1) / (s * s), vectors

    def divergence(
        self,
        x: Tensor,
        sigma: float | Tensor,
        method: Literal["exact", "hutchinson"] = "exact",
        probes: int = 1,
        generator: torch.Generator | None = None,
        **condition: Any,
    ) -> Tensor:
        """``tr ∂D/∂x``, (B,): in closed form for ``"exact"``, else as :meth:`Denoiser.divergence`."""
        if method == "exact":
            return self.trace(x, sigma, **condition)
        return super().divergence(x, sigma, method, probes, generator, **condition)
