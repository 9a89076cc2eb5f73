"""Ratios and logarithms of modified Bessel functions of the first kind, safe at any order and argument.

    A_D(κ) = I_{D/2}(κ)/I_{D/2−1}(κ),   A' = 1 − A² − (D − 1) A/κ
    F_D(κ) = log[Γ(D/2) (2/κ)^ν I_ν(κ) e^{−κ}],  ν = D/2 − 1,   F' = A − 1

Up to ``R = sqrt(ν² + κ²) = 1000`` exponentially scaled values serve wherever they do not underflow; where they do, for κ
small beside the order, Gauss's continued fraction for the ratio ``A_D = 1/(D/κ + 1/((D + 2)/κ + …))`` and the power series
of ``₀F₁`` for the logarithm. Beyond, Debye's expansion (DLMF 10.41.3), uniform in order and argument, in q = 1/R:

    log I_ν(κ) = R + ν log(κ/(ν + R)) − ½ log 2πR + Σ_k q^k E_k(p²),   p = νq

Its derivatives in κ are taken term by term, so that nothing cancels however large κ is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_SMALL = 1e-280
#: R beyond which the expansion below holds to 1e-15: the next term is under 0.6 R⁻⁶.
_FAR = 1000.0
#: E_k(p²) for k = 1 … 5: a divisor, then the coefficients of 1, p², p⁴, …; the logarithm of the series U_k of DLMF 10.41.10.
_DEBYE = (
    (24, (3, -5)),
    (16, (1, -6, 5)),
    (5760, (375, -4779, 9945, -5525)),
    (128, (13, -284, 1062, -1356, 565)),
    (322560, (67599, -2252205, 13077470, -28286370, 26089875, -8696625)),
)


def _is_far(kappa: Any, dim: int) -> Any:
    return kappa * kappa + (dim / 2 - 1) ** 2 > _FAR**2


def _series(order: int, k: int, coefficients: tuple[int, ...], p2: Any) -> Any:
    """E_k, or what its terms turn into in ``A = κ/(ν + R) − κq²/2 − κ q² Σ q^k F_k`` and ``A' = … + q² Σ q^k H_k``."""
    total = 0.0 * p2
    # d(q^k p^2j)/dκ = −κ q² (k + 2j) q^k p^2j, for p² = ν² q²; and κ² q² = 1 − p².
    for j in reversed(range(len(coefficients))):
        power = k + 2 * j
        if order == 0:
            factor = 1
        elif order == 1:
            factor = power
        else:
            factor = power * ((power + 2) * (1 - p2) - 1)
        total = total * p2 + coefficients[j] * factor
    return total


def _debye(order: int, q: Any, p2: Any) -> Any:
    """The sum over k of the series above, by Horner's rule in q."""
    total = 0.0 * q
    for k in range(len(_DEBYE), 0, -1):
        divisor, coefficients = _DEBYE[k - 1]
        total = (total + _series(order, k, coefficients, p2) / divisor) * q
    return total


def _far(kappa: Any, dim: int) -> tuple[float, Any, Any, Any]:
    """ν, R, q and p²; arrays and tensors alike."""
    nu = dim / 2 - 1
    big = (kappa * kappa + nu * nu) ** 0.5
    return nu, big, 1 / big, (nu / big) ** 2


def _far_ratio(kappa: Any, dim: int) -> Any:
    nu, big, q, p2 = _far(kappa, dim)
    return kappa * (1 / (nu + big) - q * q * (0.5 + _debye(1, q, p2)))


def _far_slope(kappa: Any, dim: int) -> Any:
    nu, big, q, p2 = _far(kappa, dim)
    return nu * q / (nu + big) + q * q * (0.5 - p2 + _debye(2, q, p2))


def _far_log(kappa: Any, dim: int) -> Any:
    from scipy.special import gammaln

    nu, big, q, p2 = _far(kappa, dim)
    lead = gammaln(nu + 1) - nu * np.log((nu + big) / 2) - 0.5 * np.log(2 * np.pi * big)
    return lead + nu * nu / (big + kappa) + _debye(0, q, p2)


def _ratio(kappa: np.ndarray[Any, Any], dim: int) -> np.ndarray[Any, Any]:
    from scipy.special import ive

    result, far = np.zeros_like(kappa), _is_far(kappa, dim)
    result[far] = _far_ratio(kappa[far], dim)
    nu, near = dim / 2 - 1, np.where(far, 0.0, kappa)
    low, high = ive(nu, near), ive(nu + 1, near)
    safe = ~far & (low > _SMALL) & (high > _SMALL)
    np.divide(high, low, out=result, where=safe)
    # Where the values underflow κ is below a few times the order, and 400 terms have long converged.
    rest = ~far & ~safe & (kappa > 0)
    if rest.any():
        k, tail = kappa[rest], np.zeros(int(rest.sum()))
        for n in range(400, -1, -1):
            tail = k / (dim + 2 * n + k * tail)
        result[rest] = tail
    return result


def _log(kappa: np.ndarray[Any, Any], dim: int) -> np.ndarray[Any, Any]:
    from scipy.special import gammaln, ive, logsumexp

    result, far = np.zeros_like(kappa), _is_far(kappa, dim) & (kappa > 0)
    result[far] = _far_log(kappa[far], dim)
    nu = dim / 2 - 1
    value = ive(nu, np.where(far, 0.0, kappa))
    safe = ~far & (value > _SMALL) & (kappa > 0)
    result[safe] = np.log(value[safe]) - nu * np.log(kappa[safe] / 2) + gammaln(nu + 1)
    rest = ~far & ~safe & (kappa > 0)
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
    """``A_D'(κ) = 1 − A² − (D − 1) A/κ``; at large κ or D, where the three terms cancel, by Debye's expansion."""
    far = _is_far(kappa, dim)
    # Each branch gets arguments of its own, so that the unused one stays finite.
    near, distant = torch.where(far, 1.0, kappa), torch.where(far, kappa, _FAR)
    exact = 1 - bessel_ratio(near, dim) ** 2 - (dim - 1) * bessel_ratio_over(near, dim)
    result: Tensor = torch.where(far, _far_slope(distant, dim), exact)
    return result


def log_bessel(kappa: Tensor, dim: int) -> Tensor:
    """``F_D(κ)`` for κ ≥ 0 (float64, any shape), 0 at κ = 0; differentiable."""
    return _Log.apply(kappa, dim)
