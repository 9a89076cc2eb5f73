"""The sliced Wasserstein distance: the mean over directions θ of one-dimensional transport costs.

    SW₂² = E_θ W₂²(θᵀa, θᵀb),        W₂² = ∫₀¹ (F_a⁻¹(u) − F_b⁻¹(u))² du

(Rabin et al. 2011; Bonneel et al. 2015). In one dimension the integral is exact for any two sample sizes: both quantile
functions are steps, and the integral is a sum over the union of their jumps. A shift by v gives SW₂² = |v|²/d on
average: the distance is the transport distance scaled down by about √d.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics import streams

_CHUNK = 2**22  # projected values held at once


@dataclass(frozen=True)
class SlicedWasserstein:
    """A sliced Wasserstein distance.

    Args:
        value: SW₂ (not squared), in the units of the data.
        standard_error: of ``value``, from the spread over the directions; 0 in one dimension.
        projections, seed: the directions.
        n_a, n_b: sample counts.
    """

    value: float
    standard_error: float
    projections: int
    seed: int
    n_a: int
    n_b: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def directions(dim: int, count: int, seed: int) -> Tensor:
    """Uniform directions on the sphere, (dim, count) float64; direction i is the same for any ``count``."""
    if dim == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    z = streams.normal(seed, range(count), (dim,), purpose="sliced", dtype=torch.float64)
    return (z / z.norm(dim=1, keepdim=True)).T


def _steps(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pieces on which both quantile functions are constant: index into a, index into b, and length of each."""
    # In units of 1/(n m) the jumps are integers, so the two grids are merged without rounding.
    edges = torch.cat((torch.arange(n + 1) * m, torch.arange(1, m) * n)).unique()
    left = edges[:-1]
    return left // m, left // n, (edges[1:] - left).double() / (n * m)


def wasserstein_1d(a: Tensor, b: Tensor) -> Tensor:
    """The exact squared 2-Wasserstein distance of each column of ``a`` (n, P) and ``b`` (m, P): (P,) float64."""
    a, b = a.double().sort(0).values, b.double().sort(0).values
    if len(a) == len(b):
        return (a - b).square().mean(0)
    left, right, length = (part.to(a.device) for part in _steps(len(a), len(b)))
    return length @ (a[left] - b[right]).square()


def _project(x: Tensor, theta: Tensor) -> Tensor:
    return torch.cat([block.flatten(1).double() @ theta for block in x.split(4096)])


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 256, seed: int = 0) -> SlicedWasserstein:
    """SW₂ between two sets of samples.

    Args:
        a, b: (n, *event) and (m, *event), flattened; n and m may differ.
        projections: number of random directions; one dimension needs none and is exact.
        seed: of the directions.

    Raises:
        ArgumentError: for empty or unlike shapes, or ``projections`` below 1.
    """
    if a.ndim < 2 or a.shape[1:] != b.shape[1:] or 0 in (*a.shape, *b.shape):
        raise ArgumentError(f"a is {tuple(a.shape)} and b is {tuple(b.shape)}; expected (n, *event) and (m, *event)")
    if projections < 1:
        raise ArgumentError(f"projections = {projections}; expected at least 1")
    theta = directions(a[0].numel(), projections, seed).to(a.device)
    width = max(1, _CHUNK // (len(a) + len(b)))
    costs = torch.cat([wasserstein_1d(_project(a, part), _project(b, part)) for part in theta.split(width, dim=1)])
    value = float(costs.mean().sqrt())
    error = float(costs.std()) / len(costs) ** 0.5 / (2 * value) if len(costs) > 1 and value > 0 else 0.0
    return SlicedWasserstein(value, error, theta.shape[1], seed, len(a), len(b))
