"""Ratios and logarithms of modified Bessel functions of the first kind, safe at any order and argument.

    A_D(κ) = I_{D/2}(κ)/I_{D/2−1}(κ),   A' = 1 − A² − (D − 1) A/κ
    F_D(κ) = log[Γ(D/2) (2/κ)^ν I_ν(κ) e^{−κ}],  ν = D/2 − 1,   F' = A − 1

Exponentially scaled values serve wherever they do not underflow; below, Gauss's continued fraction for the ratio
``A_D = 1/(D/κ + 1/((D + 2)/κ + …))`` and the power series of ``₀F₁`` for the logarithm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_SMALL = 1e-280


def _ratio(kappa: np.ndarray[Any, Any], dim: int) -> np.ndarray[Any, Any]:
    from scipy.special import ive

    nu = dim / 2 - 1
    low, high = ive(nu, kappa), ive(nu + 1, kappa)
    safe = (low > _SMALL) & (high > _SMALL)
    result = np.divide(high, low, out=np.zeros_like(kappa), where=safe)
    # Where the values underflow κ is below a few times the order, and 400 terms have long converged.
    rest = ~safe & (kappa > 0)
    if rest.any():
        k, tail = kappa[rest], np.zeros(int(rest.sum()))
        for n in range(400, -1, -1):
            tail = k / (dim + 2 * n + k * tail)
        result[rest] = tail
    return result


def _log(kappa: np.ndarray[Any, Any], dim: int) -> np.ndarray[Any, Any]:
    from scipy.special import gammaln, ive, logsumexp

    nu = dim / 2 - 1
    value = ive(nu, kappa)
    safe = (value > _SMALL) & (kappa > 0)
    result = np.zeros_like(kappa)
    result[safe] = np.log(value[safe]) - nu * np.log(kappa[safe] / 2) + gammaln(nu + 1)
    rest = ~safe & (kappa > 0)
    if rest.any():
        # ₀F₁(ν + 1; κ²/4); the terms peak near k = κ²/(4ν), for which the range leaves room.
        k = kappa[rest]
        terms = np.arange(int(64 + k.max() ** 2 / (2 * (nu + 1)) + 2 * np.sqrt(k.max())))
        logs = 2 * terms * np.log(k[:, None] / 2) - gammaln(terms + 1) - gammaln(nu + 1 + terms) + gammaln(nu + 1)
        result[rest] = logsumexp(logs, axis=1) - k
    return result


def _evaluate(function: Any, kappa: Tensor, dim: int) -> Tensor:
    values = function(np.atleast_1d(kappa.detach().cpu().double().numpy()), dim)
    return torch.from_numpy(values).reshape(kappa.shape).to(kappa.device)


class _Ratio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.dim = dim
        return _evaluate(_ratio, kappa, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (kappa,) = ctx.saved_tensors
        return gradients[0] * bessel_ratio_slope(kappa, ctx.dim), None


class _Log(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.dim = dim
        return _evaluate(_log, kappa, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (kappa,) = ctx.saved_tensors
        return gradients[0] * (bessel_ratio(kappa, ctx.dim) - 1), None


def bessel_ratio(kappa: Tensor, dim: int) -> Tensor:
    """``A_D(κ)`` for κ ≥ 0 (float64, any shape), in [0, 1); differentiable."""
    return _Ratio.apply(kappa, dim)


def bessel_ratio_over(kappa: Tensor, dim: int) -> Tensor:
    """``A_D(κ)/κ``, which is 1/D at κ = 0."""
    safe = kappa.clamp(min=1e-30)
    return bessel_ratio(safe, dim) / safe


def bessel_ratio_slope(kappa: Tensor, dim: int) -> Tensor:
    """``A_D'(κ) = 1 − A² − (D − 1) A/κ``; at large κ by its expansion ``(D − 1)/2κ² + (D − 1)(D − 3)/4κ³``."""
    exact = 1 - bessel_ratio(kappa, dim) ** 2 - (dim - 1) * bessel_ratio_over(kappa, dim)
    far = kappa.clamp(min=1.0)
    series = (dim - 1) / (2 * far**2) * (1 + (dim - 3) / (2 * far))
    # The three terms cancel to κ⁻²; past this point the expansion is the closer one.
    return torch.where(kappa > 1e4 * max(dim, 1), series, exact)


def log_bessel(kappa: Tensor, dim: int) -> Tensor:
    """``F_D(κ)`` for κ ≥ 0 (float64, any shape), 0 at κ = 0; differentiable."""
    return _Log.apply(kappa, dim)
