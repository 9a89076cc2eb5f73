"""Noise grids as sequences of weights, and what Euler's method makes of them.

An Euler step is a convex combination of the state and the denoiser's output there (Chen et al., A geometric perspective on
diffusion models, Eq. 9 and Proposition 5),

    x_{n−1} = (1 − w_n) x_n + w_n r_n,        w_n = 1 − σ_{n−1}/σ_n ∈ (0, 1],        w_1 = 1,

so a grid is the same as its first level and its weights: ``σ_{n−1} = (1 − w_n) σ_n``. Unrolled, each state is a convex
combination of the first state and the outputs on the way, exactly:

    x_n = (σ_n/σ_N) x_N + Σ_{k>n} σ_n (1/σ_{k−1} − 1/σ_k) r_k,        x_0 = r_1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.sampling.grids import Explicit, Grid, as_grid


def weights_of(sigmas: Grid | Sequence[float]) -> tuple[float, ...]:
    """The weight that each Euler step gives to the denoiser's output, in the order of sampling; the last is 1.

    Args:
        sigmas: a grid, or decreasing levels; a closing 0 is implied.

    Returns:
        As many weights as there are positive levels, each in (0, 1].
    """
    levels = as_grid(sigmas).values
    # (σ − σ')/σ keeps the digits of small weights, which 1 − σ'/σ loses.
    return tuple((a - b) / a for a, b in pairwise(levels))


def grid_from_weights(sigma_max: float, weights: Sequence[float]) -> Explicit:
    """The grid whose Euler steps have the given weights: ``σ_{n−1} = (1 − w_n) σ_n`` from ``sigma_max`` down.

    Args:
        sigma_max: the first level, > 0.
        weights: in the order of sampling, each in (0, 1); a closing 1, which is the step to zero noise, may be left out.

    Returns:
        An explicit grid with one level for each weight, the closing 1 counted once.

    Raises:
        ArgumentError: for a first level that is not positive and finite, a weight outside (0, 1), or weights so large or so
            many that a level is no longer a positive number below the one before.
    """
    if not 0 < sigma_max < math.inf:
        raise ArgumentError(f"sigma_max = {sigma_max}; expected a positive, finite level")
    inner = [float(w) for w in weights]
    if inner and inner[-1] == 1:
        inner.pop()
    levels = [float(sigma_max)]
    for k, w in enumerate(inner):
        if not 0 < w < 1:
            raise ArgumentError(f"weight {k} is {w}; expected a number between 0 and 1, and 1 for the last step alone")
        levels.append((1 - w) * levels[-1])
    if not levels[-1] > 0 or any(b >= a for a, b in pairwise(levels)):
        raise ArgumentError(
            f"the weights lead from {sigma_max:g} to {levels[-1]:g}; expected levels that fall and stay above 0"
        )
    return Explicit(tuple(levels))


def unrolled_weights(sigmas: Grid | Sequence[float], steps: int) -> tuple[float, tuple[float, ...]]:
    """What the state after some Euler steps is made of: the weight of the first state, and of each output so far.

    Args:
        sigmas: a grid, or decreasing levels; a closing 0 is implied.
        steps: how many steps have been taken, 0 to the number of positive levels.

    Returns:
        ``σ_n/σ_N``, and the weights of the ``steps`` outputs in the order of sampling. They are not negative and sum to 1.

    Raises:
        ArgumentError: for a number of steps that the grid does not have.
    """
    levels = as_grid(sigmas).values
    if not 0 <= steps < len(levels):
        raise ArgumentError(f"steps = {steps}; this grid has 0 to {len(levels) - 1}")
    end = levels[steps]
    if end == 0:
        # The last step forgets the state: all weight is on the last output.
        return 0.0, tuple(float(k == steps - 1) for k in range(steps))
    return end / levels[0], tuple(end * ((a - b) / a) / b for a, b in pairwise(levels[: steps + 1]))


def unrolled_state(sigmas: Grid | Sequence[float], x: Tensor, denoised: Tensor, steps: int) -> Tensor:
    """The state after some Euler steps, from the first state and the denoiser's outputs alone.

    Args:
        sigmas: the levels of the run.
        x: (B, *event), the state at the first level.
        denoised: (K, B, *event) outputs on the way, K ≥ steps, as :class:`~farfield.sampling.Trajectory` keeps them.
        steps: how many steps have been taken.

    Returns:
        (B, *event) in the type of ``x``; summed in float64.

    Raises:
        ArgumentError: for a number of steps that the grid or the outputs do not have, or shapes that do not fit.
    """
    if tuple(denoised.shape[1:]) != tuple(x.shape) or len(denoised) < steps:
        raise ArgumentError(
            f"denoised has shape {tuple(denoised.shape)}; expected at least {steps} outputs of shape {tuple(x.shape)}"
        )
    first, rest = unrolled_weights(sigmas, steps)
    coefficients = torch.tensor(rest, dtype=torch.float64, device=x.device)
    total = torch.tensordot(coefficients, denoised[:steps].double(), dims=1) + first * x.double()
    return total.to(x.dtype)
