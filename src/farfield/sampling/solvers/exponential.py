"""Weights of the exponential multistep rule: one-dimensional integrals of a polynomial against an integrating factor.

A mode of variance λ under ``dz/d log σ = σ²/(σ² + λ) z − R(σ)`` goes from level a to level b < a by

    z(b) = g z(a) + sqrt(b² + λ) ∫_{log b}^{log a} R(s)/sqrt(s² + λ) d log s,      g = sqrt((b² + λ)/(a² + λ)).

R is measured in a unit ν(σ), and R/ν is replaced by the polynomial in ``u(σ)`` through its last p values; the weight of
value j is the integral with ``ℓ_j(u) ν/ν_j`` in place of R, ℓ_j the Lagrange basis polynomial. The unit is either 1, or
the standard deviation of the Gaussian posterior up to a constant, ``ν = σ/sqrt(σ² + λ)``: R is the part of a posterior mean
that the Gaussian does not explain, and it shrinks as that posterior does. For λ = 0 both are the same.

With measured gains (:class:`~farfield.sampling.solvers.gains.GainTable`) the linear part is ``λ/(λ + σ²) + δ(σ)`` and R what
is left of it: g gets the factor ``exp(Δ(a) − Δ(b))`` and the integrand ``exp(Δ(s) − Δ(b))``, Δ the integral of δ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from farfield.sampling.solvers.gains import GainTable

NODES = 24


@lru_cache(maxsize=4)
def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(n)


def nodes_and_weights(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [low, high], in panels no longer than 2.

    1/sqrt(s² + λ) as a function of log s has its nearest pole at distance π/2 from the real axis, whatever λ is: on a panel
    of length 2 the error of 24 nodes is below 1e-16.
    """
    panels = max(1, math.ceil((high - low) / 2))
    x, w = _gauss_legendre(NODES)
    edges = np.linspace(low, high, panels + 1)
    half = (edges[1:] - edges[:-1])[:, None] / 2
    middle = (edges[1:] + edges[:-1])[:, None] / 2
    return (middle + half * x).ravel(), (half * w).ravel()


def variable(log_sigma: np.ndarray, exponent: float) -> np.ndarray:
    """The interpolation variable ``u = σ^exponent``, or log σ for exponent 0."""
    return np.exp(exponent * log_sigma) if exponent else log_sigma


#: The interpolation variable as a function of log σ.
Coordinate = Callable[[np.ndarray], np.ndarray]

#: How much longer one step may be than the next, in log σ, for the number of the level to be a coordinate.
UNEVEN = 5.0


def level_number(levels: Sequence[float]) -> Coordinate | None:
    """The number of the level as coordinate, linear in log σ between two levels; None where their distances jump.

    Polynomials in it have the fixed weights of equal steps: where a grid follows the structure of the data, outputs change by
    about as much from each level to the next.

    Args:
        levels: at least 3 positive levels, rising or falling.
    """
    at = np.log(np.asarray(levels))
    steps = np.abs(np.diff(at))
    if len(steps) < 2 or not bool((steps > 0).all()):
        return None
    ratio = steps[1:] / steps[:-1]
    if float(np.maximum(ratio, 1 / ratio).max()) > UNEVEN:
        return None
    order = np.argsort(at)
    known, number = at[order], np.arange(len(at), dtype=np.float64)[order]
    return lambda log_sigma: np.interp(log_sigma, known, number)


def lagrange(u: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The Lagrange basis polynomials through ``points`` (p,), evaluated at ``u`` (m,): (p, m)."""
    rows = []
    for j, own in enumerate(points):
        others = np.delete(points, j)
        rows.append(np.prod((u[None, :] - others[:, None]) / (own - others)[:, None], axis=0))
    return np.stack(rows)


def step_weights(
    variances: Tensor,
    a: float,
    b: float,
    known: Sequence[float],
    exponent: float | Coordinate,
    posterior_unit: bool,
    level: float | None = None,
    gains: GainTable | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Gain and residual weights of one step, for every mode.

    Args:
        variances: (r,) λ ≥ 0, float64.
        a, b: the levels from which and to which the step leads, ``a > b >= 0``.
        known: the levels at which the residual is known, p of them; for b = 0 the level a alone.
        exponent: of the interpolation variable, or that variable itself.
        posterior_unit: measure the residual in units of the Gaussian posterior's standard deviation.
        level: where noise will bring the state back to once it is at b, ``b <= level < a``: the residual is interpolated over
            the levels from a to there, run through in log σ at a constant rate; b by default, without noise.

    Returns:
        g (r,) and one weight (r,) for each level of ``known``, float64.
    """
    lam = variances.double()
    if b == 0:
        if gains is not None and math.log(a) > gains.lowest:
            return _measured_to_zero(lam, a, gains)
        # Near zero noise the residual of a mode of variance λ goes as σ²/(σ² + λ) (a cluster whose mean is not the data's);
        # with that factor the integral converges and the step is exact for such a cluster, and for λ = 0 it returns R = D.
        gain = (lam / (a * a + lam)).sqrt()
        return gain, [(a * a + lam) / (a * a) * (1 - gain)]
    gain = ((b * b + lam) / (a * a + lam)).sqrt()
    log_s, w = nodes_and_weights(math.log(b), math.log(a))
    seen = log_s  # the level at which the residual is taken
    if level is not None and level != b:
        seen = math.log(a) + (log_s - math.log(a)) * (math.log(a / level) / math.log(a / b))
    u = exponent if callable(exponent) else partial(variable, exponent=exponent)
    basis = lagrange(u(seen), u(np.log(np.asarray(known)))) * w
    # sqrt(b² + λ)/sqrt(s² + λ) as one ratio: neither factor may overflow or vanish on its own.
    s2 = torch.from_numpy(np.exp(2 * log_s))
    factor = ((b * b + lam)[:, None] / (s2[None, :] + lam[:, None])).sqrt()
    if gains is not None:
        below = gains.integral(math.log(b))
        gain = gain * (gains.integral(math.log(a)) - below).exp()
        factor = factor * (gains.integral(log_s) - below).exp().T
    if not posterior_unit:
        return gain, list((factor @ torch.from_numpy(basis).T).unbind(1))
    at = torch.tensor(known, dtype=torch.float64).square()
    r2 = s2 if seen is log_s else torch.from_numpy(np.exp(2 * seen))
    weights = (factor * (r2 / (r2 + lam[:, None])).sqrt()) @ torch.from_numpy(basis).T
    return gain, list((weights * ((at + lam[:, None]) / at).sqrt()).unbind(1))


def _measured_to_zero(lam: Tensor, a: float, gains: GainTable) -> tuple[Tensor, list[Tensor]]:
    """The step to zero noise with measured gains and the same law of R, which makes the integrand ``−d sqrt(λ/(s² + λ))``."""
    log_s = np.linspace(gains.lowest, math.log(a), 16 * NODES)
    shrink = (lam / (torch.from_numpy(np.exp(2 * log_s))[:, None] + lam)).sqrt()
    extra = gains.integral(log_s).exp()
    weight = 1 - shrink[0] + ((shrink[:-1] - shrink[1:]) * (extra[1:] + extra[:-1]) / 2).sum(0)
    return shrink[-1] * extra[-1], [(a * a + lam) / (a * a) * weight]
