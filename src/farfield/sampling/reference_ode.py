"""Reference solutions of the sampling ODE, for laws whose flow has no closed form: mixtures and the training set.

    dx/du = x − D(x, e^u),    u = ln σ,    then  x ← D(x, σ_min)

(Wang & Vastola 2024, A.4, in the logarithm of their σ, where the right-hand side has no pole.) The integrator is scipy's
adaptive Runge-Kutta; a Gaussian needs none, its flow is a formula. In one dimension the flow keeps the order of the points,
so it maps quantiles to quantiles, which is exact for any mixture: :func:`monotone_map`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, NonFiniteError
from farfield.sampling.grids import validated

Method = Literal["DOP853", "RK45"]

#: Rows that are integrated together unless told otherwise. They share their steps.
BATCH = 64


@dataclass(frozen=True, eq=False)
class ReferencePath:
    """A solution of the sampling ODE at given noise levels.

    Attributes:
        sigmas: the levels, decreasing; the last is 0 where the denoiser finished the path.
        states: (L, B, *event) float64.
        denoised: ``D`` at the positive levels, each along its own path, (L, B, *event) or one row fewer than ``states``.
        evaluations: calls of the denoiser for each row, those at the levels included; 0 for a Gaussian. Where batches
            differ, the largest.
    """

    sigmas: tuple[float, ...]
    states: Tensor
    denoised: Tensor
    evaluations: int


def reference_path(
    law: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    rtol: float,
    atol: float,
    method: Method = "DOP853",
    batch_size: int = BATCH,
    dtype: torch.dtype = torch.float64,
) -> ReferencePath:
    """The path of a law from given states: by formula for a Gaussian, by adaptive Runge-Kutta for any other denoiser.

    The tolerances have no defaults, because scipy's own (1e-3, 1e-6) leave errors of a few thousandths, and a default that
    suits a mixture would keep a float32 network busy below its rounding. 1e-10 and 1e-12 reach the last digits of a law in
    float64; 1e-5 and 1e-6 are below what a picture shows.

    Args:
        law: any denoiser of a Gaussian process.
        x: states (B, *event) at ``sigmas[0]``.
        sigmas: the levels asked for, decreasing; positive ones are read off the integrator's dense output. A closing 0
            stands for ``D(x, σ)`` at the lowest positive level (for a Gaussian: the exact limit of the flow).
        rtol, atol: relative and absolute tolerance of the state, per step. They hold for the root mean square over all
            coordinates of the rows that are integrated together.
        method: ``"DOP853"`` (order 8) or ``"RK45"`` (order 5).
        batch_size: rows integrated together. It changes the result within the tolerances only.
        dtype: of the states that the law is given; the integrator itself keeps float64. float32 is several times faster for
            a large training set, and good for tolerances down to about 1e-6.

    Raises:
        ArgumentError: for levels that do not decrease, tolerances that are not positive, an unknown method, or a process
            without a Gaussian kernel.
        NonFiniteError: if the denoiser's output is not finite, or the integrator fails.
    """
    law.check_shape(x)
    levels = validated(sigmas[:-1] if len(sigmas) and sigmas[-1] == 0 else sigmas)
    finish = bool(len(sigmas) and sigmas[-1] == 0)
    if not (0 < rtol < 1 and 0 < atol < math.inf):
        raise ArgumentError(f"rtol = {rtol}, atol = {atol}; expected positive tolerances, rtol below 1")
    if method not in ("DOP853", "RK45"):
        raise ArgumentError(f"method = {method!r}; expected 'DOP853' or 'RK45'")
    if batch_size < 1:
        raise ArgumentError(f"batch_size = {batch_size}; expected at least 1")
    if not law.process.gaussian:
        raise ArgumentError(f"reference paths are solved for Gaussian diffusion; the law belongs to {law.process!r}")
    with torch.no_grad():
        if isinstance(law, Gaussian):
            return _closed_form(law, x.double(), levels, finish)
        parts = [_integrate(law, rows, levels, finish, dtype, (rtol, atol), method) for rows in x.split(batch_size)]
    return ReferencePath(
        parts[0].sigmas,
        torch.cat([p.states for p in parts], 1),
        torch.cat([p.denoised for p in parts], 1),
        max(p.evaluations for p in parts),
    )


def _closed_form(law: Gaussian, x: Tensor, levels: tuple[float, ...], finish: bool) -> ReferencePath:
    """Each level by the flow's formula (Wang & Vastola 2024, Eqs. 14-17)."""
    states = [x, *(law.flow(x, levels[0], s) for s in levels[1:])]
    denoised = [law(state, s) for state, s in zip(states, levels, strict=True)]
    if finish:
        states.append(law.flow(x, levels[0], 0.0))
    return ReferencePath((*levels, 0.0) if finish else levels, torch.stack(states), torch.stack(denoised), 0)


def _integrate(
    law: Denoiser,
    x: Tensor,
    levels: tuple[float, ...],
    finish: bool,
    dtype: torch.dtype,
    tolerances: tuple[float, float],
    method: Method,
) -> ReferencePath:
    from scipy.integrate import solve_ivp

    def denoise(state: Tensor, sigma: float) -> Tensor:
        return law(state.to(dtype), sigma).double()

    def slope(u: float, flat: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(flat).to(x.device).view(x.shape)
        change = (state - denoise(state, math.exp(u))).flatten().cpu().numpy()
        if not np.isfinite(change).all():  # the integrator would shorten its step for ever
            raise NonFiniteError(f"the denoiser's output at sigma = {math.exp(u):.3g} is not finite")
        return change

    x = x.double()
    states, calls = [x], 0
    if len(levels) > 1:
        nodes = [math.log(s) for s in levels]
        found = solve_ivp(
            slope, (nodes[0], nodes[-1]), x.cpu().numpy().ravel(), method=method, t_eval=nodes,
            rtol=tolerances[0], atol=tolerances[1],
        )  # fmt: skip
        if not found.success:
            raise NonFiniteError(
                f"the sampling ODE could not be integrated from sigma = {levels[0]:g} to {levels[-1]:g}: {found.message}"
            )
        calls = int(found.nfev)
        states += [torch.from_numpy(y.copy()).to(x.device).view(x.shape) for y in found.y.T[1:]]
    denoised = [denoise(state, s) for state, s in zip(states, levels, strict=True)]
    if finish:
        states.append(denoised[-1])
    return ReferencePath(
        (*levels, 0.0) if finish else levels, torch.stack(states), torch.stack(denoised), calls + len(levels)
    )


def monotone_map(
    x: Tensor,
    sigma_from: float,
    sigma_to: float,
    *,
    weights: Tensor | Sequence[float],
    means: Tensor | Sequence[float],
    variances: Tensor | Sequence[float],
) -> Tensor:
    """The exact flow of a mixture of Gaussians on the line, ``x' = F'⁻¹(F(x))``, by quantiles.

    The sampling ODE cannot change the order of points on a line, so it carries each quantile of the law at one level to the
    same quantile at another. Both tails are treated in logarithms, so that no quantile is lost to rounding.

    Args:
        x: states (…), any shape.
        sigma_from, sigma_to: the levels, in either order; ≥ 0, and positive where a variance is 0.
        weights, means, variances: of the components, (K,).

    Returns:
        The states at ``sigma_to``, shaped like ``x``, float64.

    Raises:
        ArgumentError: for sizes that disagree, or a level at which a component has no spread.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, logsumexp, ndtri_exp

    pi, mu, var = (np.asarray(torch.as_tensor(a, dtype=torch.float64).cpu()) for a in (weights, means, variances))
    if not (pi.ndim == 1 and len(pi) and pi.shape == mu.shape == var.shape):
        raise ArgumentError(f"weights, means, variances have shapes {pi.shape}, {mu.shape}, {var.shape}; expected (K,)")
    if not ((pi > 0).all() and (var >= 0).all()):
        raise ArgumentError("weights must be positive and variances not negative")
    for name, sigma in (("sigma_from", sigma_from), ("sigma_to", sigma_to)):
        if not (sigma >= 0 and (sigma > 0 or (var > 0).all()) and math.isfinite(sigma)):
            raise ArgumentError(f"{name} = {sigma}; expected a level at which every component has some spread")
    log_pi = np.log(pi / pi.sum())
    start, end = np.sqrt(var + sigma_from**2), np.sqrt(var + sigma_to**2)

    def tail(at: float, spread: np.ndarray, side: int) -> float:
        """log F (side 1) or log(1 − F) (side −1)."""
        return float(logsumexp(log_pi + log_ndtr(side * (at - mu) / spread)))

    def one(at: float) -> float:
        side = 1 if tail(at, start, 1) < -math.log(2) else -1
        level = tail(at, start, side)
        # A quantile of a mixture lies between the same quantiles of its components.
        own = mu + side * end * float(ndtri_exp(level))
        low, high = float(own.min()), float(own.max())
        margin = 1e-9 * (1 + abs(low) + abs(high))
        return float(brentq(lambda y: tail(y, end, side) - level, low - margin, high + margin, xtol=1e-14, rtol=1e-14))

    values = [one(float(v)) for v in x.detach().double().cpu().flatten()]
    return torch.tensor(values, dtype=torch.float64, device=x.device).view(x.shape)
