"""The sampling ODE run upwards with its divergence: data to noise, and what becomes of volumes on the way.

    dx/d log σ = x − D(x, σ),        d log p/d log σ = −(d − tr ∂D/∂x)

along a trajectory (Chen et al. 2018; Song et al. 2021, section 4.3), integrated by the classical Runge-Kutta rule of order
four in equal steps of log σ. The state's Jacobian in log σ has eigenvalues between 0 and 1: the equation is not stiff.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.distributions.base import Distribution
from farfield.errors import ArgumentError
from farfield.numerics import streams

#: D(x, σ) and tr ∂D/∂x, (B, P) in float64: one column for each probe.
Field = Callable[[Tensor, float], tuple[Tensor, Tensor]]

#: Rows of a batch of Jacobian products.
_ROWS = 512


def signs(seed: int, index: Tensor, shape: tuple[int, ...], probes: int, dtype: torch.dtype) -> Tensor:
    """Rademacher vectors (B, P, *event): those of sample i depend on seed and i alone, probe p on neither P nor the batch."""
    drawn = [
        streams.uniform(seed, index, shape, purpose="likelihood probe", step=p, dtype=torch.float64)
        for p in range(probes)
    ]
    return torch.stack([torch.where(u < 0.5, -1.0, 1.0).to(dtype) for u in drawn], dim=1)


def _repeat(condition: Mapping[str, Any], rows: int, times: int) -> dict[str, Any]:
    """Conditions with a row for each sample, repeated along with it."""
    return {
        k: v.repeat_interleave(times, 0) if isinstance(v, Tensor) and v.ndim and len(v) == rows else v
        for k, v in condition.items()
    }


def estimated(
    denoiser: Denoiser, vectors: Tensor, condition: Mapping[str, Any], control: Gaussian | None = None
) -> Field:
    """The field with ``vᵀ (∂D/∂x) v`` for each of fixed vectors (B, P, *event) (Hutchinson 1989; Grathwohl et al. 2019).

    Args:
        denoiser: the model.
        vectors: v.
        condition: of the model.
        control: a Gaussian whose own ``vᵀ (∂D/∂x) v`` is taken off and whose trace is put in its place.
    """
    count = vectors.shape[1]

    def field(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        rows, v = x.repeat_interleave(count, 0), vectors.flatten(0, 1)
        value, product = denoiser.jvp(rows, sigma, v, **_repeat(condition, len(x), count))
        if control is not None:
            product = product - control.jvp(rows, sigma, v)[1]
        trace = (v.double() * product.double()).flatten(1).sum(1).view(len(x), count)
        if control is not None:
            trace = trace + control.trace(x, sigma).unsqueeze(1)
        return value.view(len(x), count, *x.shape[1:])[:, 0], trace

    return field


def exact(denoiser: Denoiser, condition: Mapping[str, Any]) -> Field:
    """The field with the exact trace: in closed form for a law, else from one product for each coordinate."""
    if isinstance(denoiser, Distribution):
        law = denoiser
        return lambda x, sigma: (law(x, sigma, **condition), law.trace(x, sigma, **condition).unsqueeze(1))
    dim, shape = denoiser.dim, denoiser.event_shape

    def field(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        value = x
        size = max(1, _ROWS // len(x))
        for low in range(0, dim, size):
            k = torch.arange(low, min(low + size, dim), device=x.device)
            axes = torch.nn.functional.one_hot(k, dim).to(x.dtype).view(-1, *shape)
            rows, v = x.repeat_interleave(len(k), 0), axes.repeat(len(x), *(1,) * len(shape))
            answer, product = denoiser.jvp(rows, sigma, v, **_repeat(condition, len(x), len(k)))
            total += (v.double() * product.double()).flatten(1).sum(1).view(len(x), len(k)).sum(1)
            value = answer.view(len(x), len(k), *shape)[:, 0]
        return value, total.unsqueeze(1)

    return field


def without_divergence(denoiser: Denoiser, condition: Mapping[str, Any]) -> Field:
    """The field alone, for encoding."""

    def field(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return denoiser(x, sigma, **condition), torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)

    return field


@dataclass(frozen=True)
class Ascent:
    """The result of one integration.

    Attributes:
        x: (B, *event) the states at the upper level.
        volume: (B, P) ``∫ (d − tr ∂D/∂x) d log σ``, the logarithm of the map's Jacobian determinant.
    """

    x: Tensor
    volume: Tensor


def ascend(field: Field, x: Tensor, low: float, high: float, steps: int) -> Ascent:
    """Integrate states from level ``low`` up to ``high`` in equal steps of log σ; 4 evaluations each.

    Raises:
        ArgumentError: unless ``0 < low <= high`` and ``steps >= 1``.
    """
    if not 0 < low <= high < math.inf or steps < 1:
        raise ArgumentError(f"levels {low} to {high} in {steps} steps; expected 0 < low <= high and at least one step")
    dim = math.prod(x.shape[1:])
    h = math.log(high / low) / steps
    volume: Tensor | None = None

    def slopes(state: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        value, trace = field(state, sigma)
        return state - value, dim - trace

    for k in range(steps if high > low else 0):
        a, middle, b = (low * math.exp(h * (k + part)) for part in (0.0, 0.5, 1.0))
        x1, v1 = slopes(x, a)
        x2, v2 = slopes(torch.add(x, x1, alpha=h / 2), middle)
        x3, v3 = slopes(torch.add(x, x2, alpha=h / 2), middle)
        x4, v4 = slopes(torch.add(x, x3, alpha=h), b)
        x = x + (h / 6) * (x1 + 2 * (x2 + x3) + x4)
        gain = (h / 6) * (v1 + 2 * (v2 + v3) + v4)
        volume = gain if volume is None else volume + gain
    if volume is None:
        volume = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
    return Ascent(x, volume)
