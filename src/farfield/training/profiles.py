"""Power-function averaging profiles and their combinations (Karras et al. 2024, section 3.1 and appendix C).

"Analyzing and improving the training dynamics of diffusion models" averages weights with a power function of time: after
t steps those of step τ ∈ (0, t] count with

    p(τ) = (γ + 1) τ^γ / t^(γ + 1),     relative width σ_rel = std(τ)/t = √(γ + 1) / ((γ + 2) √(γ + 3)),

which the update θ̂ ← β θ̂ + (1 − β) θ with β(t) = (1 − 1/t)^(γ + 1) follows exactly. A profile that was not tracked is made
from those that were, by least squares. Unlike in the paper the combination's weights sum to one, so what training has
not moved comes back as it was; with 8 snapshots the result is several times nearer to the directly tracked average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from farfield.errors import ArgumentError

#: The relative width of the plain mean of all steps, γ = 0.
WIDEST = 12**-0.5

Vector = NDArray[np.float64]


def power_share(step: int, gamma: float) -> float:
    """``1 − β(t) = 1 − (1 − 1/t)^(γ+1)``, the share of the newest weights at step t ≥ 1; all of it at the first."""
    return -math.expm1((gamma + 1) * math.log1p(-1 / step)) if step > 1 else 1.0


def sigma_rel_of(gamma: float) -> float:
    """The relative width ``√(γ+1)/((γ+2)√(γ+3))`` of a profile with exponent γ > −1."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float, name: str = "sigma_rel") -> float:
    """The exponent γ ≥ 0 of the profile of a relative width, the inverse of :func:`sigma_rel_of`.

    It is the largest root of ``(γ+2)²(γ+3) = (γ+1)/σ_rel²``, by Viète's formula for three real roots.

    Args:
        sigma_rel: the width in (0, 1/√12]; the widest is the plain mean of all steps.
        name: what messages call it.

    Raises:
        ArgumentError: for a width out of range.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ArgumentError(f"{name} = {sigma_rel}; expected a width in (0, {math.floor(WIDEST * 1e4) / 1e4}]")
    # With v = γ + 7/3 the cubic is v³ + p v + q.
    s = sigma_rel**-2
    p, q = -1 / 3 - s, 2 / 27 + 4 * s / 3
    radius = math.sqrt(-p / 3)
    cosine = q / (2 * p * radius) * 3
    return max(2 * radius * math.cos(math.acos(max(-1.0, min(1.0, cosine))) / 3) - 7 / 3, 0.0)


def inner_products(time_a: ArrayLike, gamma_a: ArrayLike, time_b: ArrayLike, gamma_b: ArrayLike) -> Vector:
    """``∫ p_a(τ) p_b(τ) dτ`` of two profiles, all arguments broadcast against each other.

    For t_a ≤ t_b it is ``(γ_a+1)(γ_b+1)/(γ_a+γ_b+1) · (t_a/t_b)^γ_b / t_b`` (γ ≥ 0).
    """
    ta, ga, tb, gb = (np.asarray(v, dtype=np.float64) for v in (time_a, gamma_a, time_b, gamma_b))
    later = np.maximum(ta, tb)
    ratio = np.minimum(ta, tb) / later
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * ratio ** np.where(ta <= tb, gb, ga) / later


def solve_weights(times: Sequence[float], gammas: Sequence[float], time: float, gamma: float) -> tuple[Vector, float]:
    """The combination of profiles that is nearest to another one, among those whose weights sum to one.

    Args:
        times, gammas: of the profiles at hand, times > 0 and γ ≥ 0.
        time, gamma: of the one that is wanted.

    Returns:
        The weights (n,), and how far the combination is off: ``‖Σ xᵢ pᵢ − p‖ / ‖p‖``, the norms over time.
    """
    t, g = np.asarray(times, dtype=np.float64), np.asarray(gammas, dtype=np.float64)
    gram = inner_products(t[:, None], g[:, None], t, g)
    right = inner_products(t, g, time, gamma)
    size = float(inner_products(time, gamma, time, gamma))
    # Profiles of unit norm: early ones are narrow and high, and would else decide which directions count as zero.
    norm = np.sqrt(np.diag(gram))
    n, border = len(t), norm.min() / norm
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = gram / norm[:, None] / norm
    system[n, :n] = system[:n, n] = border
    weights = np.linalg.lstsq(system, np.append(right / norm, norm.min()), rcond=None)[0][:n] / norm
    squared = (weights @ gram @ weights - 2 * weights @ right + size) / size
    return weights, math.sqrt(max(float(squared), 0.0))
