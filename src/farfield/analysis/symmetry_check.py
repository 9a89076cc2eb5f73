"""Is a map a symmetry of a potential, or of a data set?

A linear isometry h belongs to the symmetry group where ``u(h x, s) = u(x, s)`` for all x and s; then
``∇u(h x) = h ∇u(x)`` (Raya & Ambrogioni 2023, Eq. 5). For a finite data set that is so exactly where h permutes the points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from farfield.analysis.potential import Potential, symmetry_error
from farfield.analysis.potential_sections import device_of
from farfield.errors import ArgumentError
from farfield.metrics.memorisation import nearest_distances
from farfield.numerics import streams

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SymmetryErrors:
    """How far a map is from a symmetry at the states and times that were tried.

    Attributes:
        value: the largest ``|u(h x) − u(x)|/g²``; 0 for denoisers without a density.
        gradient: the largest ``‖∇u(h x) − h ∇u(x)‖/g²``.
        isometry: the largest ``|‖h x‖ − ‖x‖|/‖x‖``: a map that stretches cannot be a symmetry.
        tried: how many states, at each of how many ``times``.
        times: the forward times.
    """

    value: float
    gradient: float
    isometry: float
    tried: int
    times: tuple[float, ...]

    def holds(self, tolerance: float = 1e-9) -> bool:
        """Whether all three are below a tolerance."""
        return max(self.value, self.gradient, self.isometry) < tolerance

    def to_dict(self) -> dict[str, object]:
        """All fields, JSON-safe."""
        return {**asdict(self), "times": list(self.times)}


def check_symmetry(
    potential: Potential,
    transform: Map,
    *,
    times: Sequence[float] | None = None,
    count: int = 64,
    scale: float = 1.0,
    seed: int = 0,
) -> SymmetryErrors:
    """Try a map at random states and times.

    Args:
        potential: the potential.
        transform: h, on native states (B, *event).
        times: forward times; by default 0.1, 0.3, 0.5, 0.7 and 0.9 of the horizon.
        count: states at each, normal with standard deviation ``scale``.
        seed: of the states.

    Raises:
        ArgumentError: if the map changes the shape, or there is nothing to try.
    """
    process = potential.process
    if times is None:
        times = [process.t_min + f * (process.t_max - process.t_min) for f in (0.1, 0.3, 0.5, 0.7, 0.9)]
    if count < 1 or not times:
        raise ArgumentError(f"count = {count}, times = {list(times)}; expected states and times to try")
    device = device_of(potential.denoiser)
    # Networks compute in the type of their weights.
    dtype = next((p.dtype for p in potential.denoiser.parameters()), torch.float64)
    worst = [0.0, 0.0, 0.0]
    for k, t in enumerate(map(float, times)):
        shape = potential.denoiser.event_shape
        x = scale * streams.normal(seed, range(count), shape, purpose="symmetry", step=k, dtype=torch.float64)
        x = x.to(device, dtype)
        moved = transform(x)
        if moved.shape != x.shape:
            raise ArgumentError(f"the map takes {tuple(x.shape)} to {tuple(moved.shape)}; a symmetry keeps the shape")
        value, gradient = symmetry_error(potential, transform, x, t)
        norms, rate = x.flatten(1).norm(dim=1), float(potential.rate(t))
        stretch = float(((moved.flatten(1).norm(dim=1) - norms).abs() / norms).max())
        worst = [max(a, b) for a, b in zip(worst, (value / rate, gradient / rate, stretch), strict=True)]
    return SymmetryErrors(worst[0], worst[1], worst[2], count, tuple(map(float, times)))


def is_symmetry_of(data: Tensor, transform: Map, tolerance: float = 1e-6) -> bool:
    """Whether a map permutes the points of a data set, each as often as it occurs.

    Args:
        data: (N, *event).
        transform: h, on points (N, *event).
        tolerance: distance within which two points are the same, in units of the largest distance from their mean; points
            farther apart than twice that are told apart.

    Raises:
        ArgumentError: if the map changes the shape or there are no data.
    """
    moved = transform(data)
    if moved.shape != data.shape or data.ndim < 2 or len(data) == 0:
        raise ArgumentError(
            f"the map takes {tuple(data.shape)} to {tuple(moved.shape)}; expected (N, *event) to the same"
        )
    points, images = data.flatten(1).double(), moved.flatten(1).double()
    reach = tolerance * float((points - points.mean(0)).norm(dim=1).max().clamp(min=torch.finfo(torch.float64).tiny))
    distinct, counts = torch.unique(points, dim=0, return_counts=True)
    distances, nearest = nearest_distances(images, distinct, 1)
    if float(distances.max()) > reach:
        return False
    return bool((torch.bincount(nearest.flatten(), minlength=len(distinct)) == counts).all())
