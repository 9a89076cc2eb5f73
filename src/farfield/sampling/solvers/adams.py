"""Weights of the multistep rules: integrals over a step of the polynomial through a few values.

The slope of ``dx/dσ = ε``, ``ε = (x − D)/σ``, is replaced by the polynomial in a variable ``u(σ)`` through its values at the
levels σ_1, …, σ_p, so that value j has the weight ``∫_a^b ℓ_j(u(σ)) dσ`` with ℓ_j the Lagrange basis polynomial. In σ itself
the integrand is a polynomial, and a Gauss-Legendre rule of few nodes is exact; in other variables it is analytic, and the
panels of :func:`~farfield.sampling.solvers.exponential.nodes_and_weights` leave nothing but rounding. Values of the
denoiser itself are integrated in log σ against the exponential factor of their equation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from farfield.sampling.solvers.exponential import nodes_and_weights

#: An interpolation variable u(σ), increasing.
Variable = Callable[[np.ndarray], np.ndarray]

#: Adams-Bashforth for equal steps, by the number of values, newest first: the step is h times their weighted sum.
EQUAL_STEPS: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def equal_step_weights(known: Sequence[float], a: float, b: float) -> list[float]:
    """The weights for equal steps, whatever the steps are: ``b − a`` times those of :data:`EQUAL_STEPS`.

    Args:
        known: the levels of the values, newest first; only their number counts.
        a, b: the ends of the step.
    """
    return [(b - a) * weight for weight in EQUAL_STEPS[len(known)]]


def step_integrals(known: Sequence[float], a: float, b: float, variable: Variable | None = None) -> list[float]:
    """``∫_a^b ℓ_j(u(σ)) dσ`` for each level of ``known``.

    With ``known[0] = a`` these are the Adams-Bashforth weights for the steps as they are; with ``known[0] = b`` those of
    Adams-Moulton, for a step whose end is known.

    Args:
        known: 1 to 4 different levels.
        a, b: the ends of the step, ``a > b > 0``; the sum of the weights is ``b − a``, below 0.
        variable: u(σ), analytic in log σ up to a distance of π/2 from the real axis; σ itself by default.
    """
    if variable is None:
        half = (b - a) / 2
        nodes = (a + b) / 2 + half * _TWO_NODES
        return _integrals(nodes, np.asarray(known, dtype=np.float64), np.full(2, half))
    log_sigma, w = nodes_and_weights(math.log(b), math.log(a))
    sigma = np.exp(log_sigma)
    return _integrals(variable(sigma), variable(np.asarray(known, dtype=np.float64)), -w * sigma)


def exponential_integrals(known: Sequence[float], a: float, b: float, level: float | None = None) -> list[float]:
    """``∫_{log b}^{log a} (b/s) ℓ_j(log s) d log s``: the weights of denoiser outputs, whose sum is ``1 − b/a``.

    Args:
        known: the levels of the outputs.
        a, b: the ends of the step, ``a > b > 0``.
        level: where noise will bring the state back to once it is at b, ``b <= level < a``: ℓ_j is run through from log a to
            log level while s falls from a to b; b by default.
    """
    low, high = math.log(b), math.log(a)
    log_s, w = nodes_and_weights(low, high)
    seen = log_s if level is None or level == b else high + (log_s - high) * (math.log(a / level) / (high - low))
    return _integrals(seen, np.log(np.asarray(known, dtype=np.float64)), w * np.exp(low - log_s))


#: Two Gauss-Legendre nodes: exact up to degree 3, which is four values.
_TWO_NODES = np.array([-1.0, 1.0]) / math.sqrt(3)


def _integrals(u: np.ndarray, points: np.ndarray, w: np.ndarray) -> list[float]:
    """``Σ_m w_m ℓ_j(u_m)`` for the Lagrange basis through ``points``."""
    gaps = [u - point for point in points]
    found = []
    for j, own in enumerate(points):
        value, scale = w, 1.0
        for i, other in enumerate(points):
            if i != j:
                value, scale = value * gaps[i], scale * (own - other)
        found.append(float(value.sum() / scale))
    return found
