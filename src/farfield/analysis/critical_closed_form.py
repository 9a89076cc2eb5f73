"""Critical times in closed form, for laws that are symmetric about their mean.

A law with second-moment eigenvalue λ about its centre there, carried by blobs of variance w² (equal clusters at ±m: λ = m²;
points on a sphere: λ = r²/D; normalised data: the eigenvalues of their second moments; w = 0 for points). At signal scale
θ, with ``q = θ²`` and ``V = 1 − q (1 − w²)`` for a variance-preserving process, the centre is unstable where

    reverse SDE   q λ/V² > 1/V − 1/2     q = [sqrt(λ² + (1−w²)²) − λ]/(1−w²)²;  for points B = asinh λ
    reverse ODE   q λ/V² > 1/V − 1       q = (1 − w² − λ)/(1−w²)²;              for points q = 1 − λ
    density       q λ/V² > 1/V           q = 1/(1 + λ − w²)

(Raya & Ambrogioni 2023, Eqs. 8-13, for the SDE and points). At any time map the same condition is solved for σ:
``w² σ²/(w² + σ²) + λ σ⁴/(w² + σ²)² = κ(σ) σ²``, the left side being the posterior variance at the centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from farfield.analysis.critical_field import Dynamics, check_dynamics, critical_ratio
from farfield.analysis.critical_times import first_index_below
from farfield.errors import ArgumentError
from farfield.processes import DDPM, VP, TimeMap


@dataclass(frozen=True)
class CriticalPoint:
    """An instability in all coordinates of the noise level.

    Attributes:
        theta: signal scale α.
        sigma: noise level of the variance-exploding state.
        time, generative_time: s, and ``t = t_max − s``.
        integral: ``B = −2 log θ``, the integrated β of a variance-preserving process.
        index: the first 0-based index of the discrete schedule below θ, or None beyond its end.
    """

    theta: float
    sigma: float
    time: float
    generative_time: float
    integral: float
    index: int | None


def critical_signal(variance: float, width: float = 0.0, dynamics: Dynamics = "sde") -> float | None:
    """θ at which the centre becomes unstable under a variance-preserving process, or None if it never does.

    Args:
        variance: λ > 0, see the head of this module.
        width: w ≥ 0, standard deviation of the blobs.
        dynamics: see :data:`farfield.analysis.critical_field.Dynamics`.

    Returns:
        θ in (0, 1); for the ODE 0 where the centre is unstable at every time (λ ≥ 1 − w²).

    Raises:
        ArgumentError: for a variance that is not positive or a negative width.
    """
    check_dynamics(dynamics)
    if not variance > 0 or not width >= 0:
        raise ArgumentError(f"variance = {variance}, width = {width}; expected variance > 0 and width >= 0")
    rest = 1 - width * width
    if dynamics == "sde":
        # In the form that does not cancel for large λ; for w = 1 it is 1/(2λ).
        q = 1 / (math.hypot(variance, rest) + variance)
    elif dynamics == "ode":
        if rest <= variance:
            return 0.0
        q = (rest - variance) / rest**2
    else:
        q = 1 / (variance + rest) if variance + rest > 0 else math.inf
    return math.sqrt(q) if q < 1 else None


def spread_signal(variance: float, dynamics: Dynamics = "sde") -> float | None:
    """θ at which the centre of a single **Gaussian** of variance λ becomes unstable, or None: no sign of several modes.

    ``q = 1/(λ − 1)`` for λ > 2 under the reverse SDE; 0, at every time, for λ > 1 under the ODE; never for the density.
    """
    check_dynamics(dynamics)
    if not variance > 0:
        raise ArgumentError(f"variance = {variance}; expected a positive number")
    if dynamics == "sde":
        return 1 / math.sqrt(variance - 1) if variance > 2 else None
    return 0.0 if dynamics == "ode" and variance > 1 else None


def critical_time_closed_form(
    variance: float,
    process: TimeMap | None = None,
    *,
    width: float = 0.0,
    dynamics: Dynamics = "sde",
    discrete: DDPM | None = None,
) -> CriticalPoint | None:
    """The first instability of a symmetric law, for any time map; None where there is none between t_min and t_max.

    For a variance-preserving map the level follows from :func:`critical_signal`; for others the condition at the head of this
    module is solved by Brent's method.

    Args:
        variance: λ.
        process: the time map, :class:`VP` by default.
        width: w.
        dynamics: see :data:`farfield.analysis.critical_field.Dynamics`.
        discrete: the schedule for ``index``; DDPM's by default.

    Raises:
        ArgumentError: as :func:`critical_signal`.
    """
    process = process if process is not None else VP()
    top, bottom = process.sigma(process.t_max), process.sigma(process.t_min)
    if _preserves_variance(process):
        theta = critical_signal(variance, width, dynamics)
        if theta is None or theta == 0:
            return None
        sigma = math.sqrt((1 - theta) * (1 + theta)) / theta
        if not bottom <= sigma <= top:
            return None
    else:
        found = _solve(variance, process, width, dynamics, bottom, top)
        if found is None:
            return None
        sigma = found
    time = process.time(sigma)
    alpha = process.alpha(time)
    grid = process if isinstance(process, DDPM) else discrete if discrete is not None else DDPM()
    integral = -2 * math.log(alpha)
    return CriticalPoint(alpha, sigma, time, process.t_max - time, integral, first_index_below(grid, sigma))


def _preserves_variance(process: TimeMap) -> bool:
    t = torch.linspace(process.t_min, process.t_max, 5, dtype=torch.float64)
    return bool(((process.alpha(t) ** 2 + process.std(t) ** 2 - 1).abs() < 1e-9).all())


def _solve(
    variance: float, process: TimeMap, width: float, dynamics: Dynamics, bottom: float, top: float
) -> float | None:
    from scipy.optimize import brentq

    critical_signal(variance, width, dynamics)  # checks the arguments

    def gap(u: float) -> float:
        s2 = math.exp(2 * u)
        total = width**2 + s2
        return (width**2 / total + variance * s2 / total**2) - critical_ratio(process, math.exp(u), dynamics)

    high, low = math.log(top), math.log(bottom)
    if gap(high) >= 0:
        return None
    count = 400
    u = high
    for k in range(1, count + 1):
        below = high + (low - high) * k / count
        if gap(below) >= 0:
            return math.exp(float(brentq(gap, below, u, xtol=1e-14)))
        u = below
    return None


def nearest_grid_time(theta: float, process: TimeMap, times: torch.Tensor) -> int:
    """The number of the grid time whose θ is nearest to a given one: the rule of the source's one-dimensional example."""
    return int((process.alpha(times.double()) - theta).abs().argmin())
