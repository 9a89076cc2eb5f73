"""Late starts that need no sampler: the mass that a mode ends with, from the monotone flow of one coordinate.

The probability flow of one coordinate keeps quantiles. The left of two modes of weight w is fed by the states below the
separatrix ``x_b`` with ``F_σ(x_b) = w``; what a start puts below it is what that mode gets:

    Φ((x_b − μ)/τ)    from N(μ, τ²), at any number of steps an exact solver may take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from farfield.errors import ArgumentError


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def separatrix(
    weights: Sequence[float], means: Sequence[float], deviations: Sequence[float], sigma: float, mass: float
) -> float:
    """The state below which a mixture of one coordinate, noised to σ, has the mass ``mass``.

    Args:
        weights, means, deviations: of the components; a deviation may be 0.
        sigma: the level, > 0, of the variance-exploding state.
        mass: in (0, 1).

    Raises:
        ArgumentError: for lists that differ in length, or numbers out of range.
    """
    if not len(weights) == len(means) == len(deviations) or not weights:
        raise ArgumentError(
            f"{len(weights)} weights, {len(means)} means, {len(deviations)} deviations; expected as many of each"
        )
    if not (0 < mass < 1 and 0 < sigma < math.inf) or abs(sum(weights) - 1) > 1e-9:
        raise ArgumentError(f"mass = {mass}, sigma = {sigma}, weights of sum {sum(weights)}; expected (0, 1), > 0, 1")
    from scipy.optimize import brentq

    widths = [math.hypot(d, sigma) for d in deviations]
    parts = list(zip(weights, means, widths, strict=True))
    reach = 40 * max(widths)
    return float(
        brentq(
            lambda x: sum(w * _phi((x - m) / s) for w, m, s in parts) - mass,
            min(means) - reach, max(means) + reach, xtol=1e-13, rtol=1e-14,
        )
    )  # fmt: skip


def late_mode_mass(
    weights: Sequence[float],
    means: Sequence[float],
    deviations: Sequence[float],
    sigma: float,
    mass: float,
    gaussian: bool = True,
) -> float:
    """The final mass of the left modes of total weight ``mass`` after a late start and an exact solver.

    Args:
        weights, means, deviations, sigma, mass: as for :func:`separatrix`.
        gaussian: start from the Gaussian with the noised data's moments; False starts from N(0, I) in variance-preserving
            coordinates, ``N(0, 1 + σ²)`` here.
    """
    edge = separatrix(weights, means, deviations, sigma, mass)
    if not gaussian:
        return _phi(edge / math.hypot(1.0, sigma))
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    second = sum(w * (d * d + m * m) for w, m, d in zip(weights, means, deviations, strict=True))
    return _phi((edge - mean) / math.sqrt(second - mean * mean + sigma * sigma))
