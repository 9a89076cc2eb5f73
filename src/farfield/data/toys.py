"""Toy data in few dimensions: their geometry, and draws from them.

The laws themselves (density, posterior mean) are in :mod:`farfield.distributions.toys`, which reads the same tables, so
that a toy's sample, density and denoiser belong together. Curves are mixtures of small round Gaussians along the curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.errors import ArgumentError, unknown_name
from farfield.numerics import streams


@dataclass(frozen=True)
class Components:
    """A mixture of round Gaussians: weights (K,), means (K, D) and variances (K,), float64."""

    weights: Tensor
    means: Tensor
    variances: Tensor


def _wide(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def two_points(weight: float = 0.5, radius: float = 1.0, dim: int = 1) -> Components:
    """Two points at ±radius on the first axis; ``weight`` is the share of the positive one."""
    if not 0 < weight < 1 or dim < 1:
        raise ArgumentError(f"weight = {weight}, dim = {dim}; expected 0 < weight < 1 and dim >= 1")
    means = torch.zeros(2, dim, dtype=torch.float64)
    means[:, 0] = _wide([-radius, radius])
    return Components(_wide([1 - weight, weight]), means, _wide([0.0, 0.0]))


def two_modes() -> Components:
    """The unbalanced one-dimensional mixture with weights 0.3 and 0.7, means −2 and 1, variances 0.09 and 0.25."""
    return Components(_wide([0.3, 0.7]), _wide([[-2.0], [1.0]]), _wide([0.09, 0.25]))


def three_gaussians() -> Components:
    """Three round components on the unit circle about (0.3, 0), variance 0.02, weights 0.5, 0.3 and 0.2."""
    angle = 2 * math.pi * torch.arange(3, dtype=torch.float64) / 3
    means = torch.stack((angle.cos() + 0.3, angle.sin()), 1)
    return Components(_wide([0.5, 0.3, 0.2]), means, torch.full((3,), 0.02, dtype=torch.float64))


def eight_gaussians(radius: float = 2.0, deviation: float = 0.2) -> Components:
    """Eight equal round components on a circle."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    means = radius * torch.stack((angle.cos(), angle.sin()), 1)
    return Components(torch.full((8,), 1 / 8, dtype=torch.float64), means, torch.full((8,), deviation**2).double())


def _curve(curve: Callable[[Tensor], Tensor], start: float, stop: float, count: int, thickness: float) -> Components:
    """``count`` round Gaussians at equal arc length along a curve t -> (n, D)."""
    fine = curve(torch.linspace(start, stop, 20_001, dtype=torch.float64))
    length = torch.cat((torch.zeros(1, dtype=torch.float64), (fine[1:] - fine[:-1]).norm(dim=1).cumsum(0)))
    # The middles of equal pieces: a closed curve then has no doubled point.
    wanted = (torch.arange(count, dtype=torch.float64) + 0.5) / count * length[-1]
    means = fine[torch.searchsorted(length, wanted).clamp(max=fine.shape[0] - 1)]
    return Components(
        torch.full((count,), 1 / count, dtype=torch.float64), means, torch.full((count,), thickness**2).double()
    )


def swiss_roll(thickness: float = 0.05, count: int = 512) -> Components:
    """The planar Swiss roll ``(t cos t, t sin t)``, t from 1.5π to 4.5π, scaled to radius 2."""
    scale = 2 / (4.5 * math.pi)
    return _curve(
        lambda t: scale * torch.stack((t * t.cos(), t * t.sin()), 1), 1.5 * math.pi, 4.5 * math.pi, count, thickness
    )


def heart(thickness: float = 0.05, count: int = 512) -> Components:
    """The curve ``(16 sin³t, 13 cos t − 5 cos 2t − 2 cos 3t − cos 4t)``, scaled by 1/10."""

    def curve(t: Tensor) -> Tensor:
        y = 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()
        return torch.stack((16 * t.sin() ** 3, y), 1) / 10

    return _curve(curve, 0.0, 2 * math.pi, count, thickness)


#: The toys that are mixtures of round Gaussians, by name.
MIXTURES: dict[str, Callable[..., Components]] = {
    "two_points": two_points,
    "two_modes": two_modes,
    "three_gaussians": three_gaussians,
    "eight_gaussians": eight_gaussians,
    "swiss_roll": swiss_roll,
    "heart": heart,
}

#: Every toy that can be sampled.
TOY_NAMES: tuple[str, ...] = tuple(sorted((*MIXTURES, "sphere", "ring", "checkerboard")))

#: Lower left corners (8, 2) of the unit squares of the checkerboard on [−2, 2]².
SQUARES: tuple[tuple[int, int], ...] = tuple((i, j) for i in range(-2, 2) for j in range(-2, 2) if (i + j) % 2 == 0)


def sample_toy(name: str, n: int, seed: int = 0) -> Tensor:
    """``n`` independent draws from a toy in its default form: (n, D) float32; row i depends on the seed and i alone.

    Args:
        name: one of ``TOY_NAMES``.
        n: how many.
        seed: names the stream of random numbers.

    Raises:
        ArgumentError: if the name is unknown or ``n`` negative.
    """
    if name not in TOY_NAMES:
        raise unknown_name("toy", name, TOY_NAMES)
    if n < 0:
        raise ArgumentError(f"n = {n}; expected at least 0")
    purpose = f"toy {name}"

    def uniform(count: int, step: int = 0) -> Tensor:
        return streams.uniform(seed, range(n), (count,), purpose=purpose, step=step, dtype=torch.float64)

    if name in MIXTURES:
        parts = MIXTURES[name]()
        edges = parts.weights.cumsum(0) / parts.weights.sum()
        choice = torch.searchsorted(edges, uniform(1).flatten().contiguous(), right=True).clamp(max=len(edges) - 1)
        z = streams.normal(seed, range(n), (parts.means.shape[1],), purpose=purpose, step=1, dtype=torch.float64)
        return (parts.means[choice] + parts.variances[choice].sqrt().unsqueeze(1) * z).float()
    if name == "checkerboard":
        u = uniform(3)
        corner = _wide(SQUARES)[(u[:, 0] * len(SQUARES)).long()]
        return (corner + u[:, 1:]).float()
    z = streams.normal(seed, range(n), (2 if name == "ring" else 3,), purpose=purpose, dtype=torch.float64)
    return (z / z.norm(dim=1, keepdim=True)).float()
