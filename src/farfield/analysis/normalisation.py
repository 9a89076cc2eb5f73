"""Normalised data, for which the theory of critical times is exact, and how far a data set is from it.

The theory asks for ``Σ y_j = 0`` and ``‖y_j‖ = r`` for all j (Raya & Ambrogioni 2023, section 3.2). Centring on the mean and
rescaling each point does not give both: rescaling moves the mean again. There is one centre c that does. The unit vectors
from it cancel, ``Σ (y_j − c)/‖y_j − c‖ = 0``, where the mean distance to the data is least: at the geometric median, found by
the iteration of Weiszfeld (1937), which Anderson's mixing makes quick, with the rule of Vardi and Zhang (2000) at data points.
Where a point holds the median fast no centre serves, and that is said.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.critical_closed_form import critical_signal
from farfield.analysis.fixed_points import anderson
from farfield.analysis.tables import Table
from farfield.errors import ArgumentError, DataError
from farfield.numerics.krylov import leading_eigenpairs, random_start

#: Points whose distances are computed at once.
_BLOCK = 4096
#: Length of the mean of the unit vectors below which they cancel.
_CANCELS = 1e-7


@dataclass(frozen=True)
class Departure:
    """How far data are from the theory's assumptions; all lengths in units of the root mean square distance to the mean.

    Attributes:
        offset: length of the mean: the theory's centre is 0.
        spread: standard deviation of the distances to the mean.
        imbalance: length of the mean unit vector from the mean, 0 to 1: what centring and rescaling leave uncentred.
        shift: from the mean to the centre that leaves nothing, the geometric median.
        moved: root mean square distance by which rescaling moves the points about that centre.
        eigenvalue: largest eigenvalue of the raw data's covariance.
        normalised: largest eigenvalue of the second moments about that centre after rescaling.
        radius: root mean square distance to the centre, in the data's units, to which all points are rescaled.
        dim, count: coordinates, and points.
    """

    offset: float
    spread: float
    imbalance: float
    shift: float
    moved: float
    eigenvalue: float
    normalised: float
    radius: float
    dim: int
    count: int

    @property
    def theta(self) -> float | None:
        """θ_c of the raw covariance's λ by ``θ² = sqrt(1 + λ²) − λ``, as if the data were normalised."""
        return critical_signal(self.eigenvalue)

    @property
    def theta_normalised(self) -> float | None:
        """θ_c of the normalised data, where that formula is exact."""
        return critical_signal(self.normalised)

    @property
    def theta_laplacian(self) -> float | None:
        """θ* ≥ θ_c of the normalised data, where the Laplacian changes sign: λ = r²/D."""
        return critical_signal(self.radius**2 / self.dim)

    def summary(self) -> str:
        """The departures in one sentence."""
        return (
            f"{self.count} points: their mean lies {self.offset:.2g} of their spread from 0, their distances to it differ by "
            f"{100 * self.spread:.2g} %; normalising moves them by {100 * self.moved:.2g} % and their largest eigenvalue "
            f"from {self.eigenvalue:.4g} to {self.normalised:.4g}."
        )

    def tables(self) -> list[Table]:
        """All of it."""
        rows = (
            ("mean, from 0", self.offset, 0.0),
            ("spread of the distances to the mean", self.spread, 0.0),
            ("mean unit vector from the mean", self.imbalance, 0.0),
            ("geometric median, from the mean", self.shift, 0.0),
            ("rescaling moves the points by", self.moved, 0.0),
            ("largest eigenvalue λ", self.eigenvalue, self.normalised),
            ("θ_c by asinh λ", self.theta, self.theta_normalised),
        )
        title = "distance from normalised data; lengths over the root mean square distance to the mean"
        return [Table(title, ("", "raw data", "normalised"), rows)]

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""
        thetas = {"theta": self.theta, "theta_normalised": self.theta_normalised}
        return {**asdict(self), **thetas, "theta_laplacian": self.theta_laplacian}


@dataclass(frozen=True, eq=False)
class NormalisedData:
    """Centred points of one length, with what it takes to go back.

    Attributes:
        points: (N, *event), ``Σ y = 0`` and ``‖y‖ = radius``.
        distances: (N,) in float64, of the raw points from ``centre`` (*event).
        centre, radius: of the map ``y ↦ r (y − c)/‖y − c‖``.
    """

    points: Tensor
    distances: Tensor
    centre: Tensor
    radius: float

    def apply(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Other points (n, *event) under the same map, and their distances (n,), which :meth:`restore` takes.

        Raises:
            DataError: for a point at the centre, which has no direction.
        """
        return _rescaled(raw, self.centre, self.radius)

    def restore(self, points: Tensor | None = None, distances: Tensor | None = None) -> Tensor:
        """The inverse: the raw points of the data set, or of points (n, *event) with their distances (n,)."""
        if (points is None) != (distances is None):
            raise ArgumentError("points and distances belong together; expected both or neither")
        x, lengths = (self.points, self.distances) if points is None or distances is None else (points, distances)
        scale = (lengths.double() / self.radius).view(-1, *(1,) * (x.ndim - 1))
        return (self.centre.double() + x.double() * scale).to(x.dtype)


def normalise(data: Tensor, radius: float | None = None) -> NormalisedData:
    """Centre and rescale data to a common norm, so that the theory's closed forms hold for them.

    Args:
        data: (N, *event), N ≥ 2.
        radius: r > 0; by default the root mean square distance to the centre, which leaves the total variance.

    Raises:
        ArgumentError: for fewer than two points or a radius that is not positive.
        DataError: where no centre exists: a data point is their geometric median, as with half of all points in one place.
    """
    points = _checked(data)
    if radius is not None and not radius > 0:
        raise ArgumentError(f"radius = {radius}; expected a positive number")
    centre = geometric_median(points)
    distances, units = _about(points, centre)
    r = float(distances.square().mean().sqrt()) if radius is None else float(radius)
    if float(units.norm()) > _CANCELS:
        raise DataError(
            f"the data have no centre of equal distances: the unit vectors from their geometric median leave "
            f"{float(units.norm()):.2g}; one point holds it fast"
        )
    scaled, lengths = _rescaled(data, centre.view(data.shape[1:]), r)
    return NormalisedData(scaled, lengths, centre.view(data.shape[1:]), r)


def departure(data: Tensor) -> Departure:
    """Measure how far data (N, *event) are from the theory's assumptions.

    Raises:
        ArgumentError: for fewer than two points.
        DataError: for points that are all the same.
    """
    points = _checked(data)
    mean = points.mean(0)
    about_mean, units = _about(points, mean)
    size = float(about_mean.square().mean().sqrt())
    if size == 0:
        raise DataError(f"all {len(points)} points are the same; expected data that vary")
    centre = geometric_median(points)
    distances, _ = _about(points, centre)
    radius = float(distances.square().mean().sqrt())
    # A point at the centre has no direction; it takes no part in the moments of the rescaled data.
    apart = distances > 0
    scaled = (points[apart] - centre) * (radius / distances[apart]).unsqueeze(1)
    return Departure(
        offset=float(mean.norm()) / size,
        spread=float(about_mean.std(correction=0)) / size,
        imbalance=float(units.norm()),
        shift=float((centre - mean).norm()) / size,
        moved=float((distances - radius).square().mean().sqrt()) / size,
        eigenvalue=_largest(points, mean),
        normalised=_largest(scaled, torch.zeros_like(mean)),
        radius=radius,
        dim=points.shape[1],
        count=len(points),
    )


def geometric_median(points: Tensor, tolerance: float = 1e-12, steps: int = 500) -> Tensor:
    """The point (d,) in float64 whose mean distance to points (N, d) is least.

    Args:
        points: at least one.
        tolerance: of the last step, in units of the root mean square distance to the mean.
        steps: passes over the points at most.
    """
    start = points.double().mean(0)
    distances, _ = _about(points, start)
    size = float(distances.square().mean().sqrt())

    def weiszfeld(c: Tensor) -> Tensor:
        weight, total, pull = 0.0, torch.zeros_like(c[0]), torch.zeros_like(c[0])
        here = 0
        for part in points.split(_BLOCK):
            away = part.double() - c
            lengths = away.norm(dim=1)
            apart = lengths > 1e-12 * size
            inverse = torch.where(apart, 1 / lengths.clamp(min=1e-300), 0.0)
            weight += float(inverse.sum())
            total = total + inverse @ part.double()
            pull = pull + inverse @ away
            here += int((~apart).sum())
        if weight == 0:
            return c
        # At a data point only what pulls harder than the point itself moves on (Vardi & Zhang 2000).
        held = min(1.0, here / max(float(pull.norm()), 1e-300)) if here else 0.0
        return (1 - held) * (total / weight).unsqueeze(0) + held * c

    return anderson(weiszfeld, start.unsqueeze(0), tolerance=max(tolerance * size, 1e-300), steps=steps).x[0]


def _checked(data: Tensor) -> Tensor:
    if data.ndim < 2 or len(data) < 2:
        raise ArgumentError(f"data has shape {tuple(data.shape)}; expected (N, *event) with at least two points")
    return data.detach().flatten(1).double()


def _about(points: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (N,) from a centre, and the mean (d,) of the unit vectors."""
    lengths, total = [], torch.zeros_like(centre)
    for part in points.split(_BLOCK):
        away = part.double() - centre
        size = away.norm(dim=1)
        total = total + (away / size.clamp(min=1e-300).unsqueeze(1)).sum(0)
        lengths.append(size)
    return torch.cat(lengths), total / len(points)


def _rescaled(raw: Tensor, centre: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    away = raw.detach().double() - centre.double().to(raw.device)
    lengths = away.flatten(1).norm(dim=1)
    if not bool((lengths > 0).all()):
        raise DataError("a point lies at the centre and has no direction; expected points apart from it")
    return (away * (radius / lengths).view(-1, *(1,) * (raw.ndim - 1))).to(raw.dtype), lengths


def _largest(points: Tensor, centre: Tensor) -> float:
    """The largest eigenvalue of the second moments about a centre."""
    x = points - centre
    start = random_start((1, 1, x.shape[1]), device=x.device)
    return float(leading_eigenpairs(lambda v: (v @ x.T) @ x / len(x), start, tolerance=1e-10).values)
