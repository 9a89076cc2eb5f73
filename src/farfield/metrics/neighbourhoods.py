"""Precision, recall, density and coverage: do samples lie where data are, and data where samples are?

The support of a set is taken to be the union of balls about its members, each with the distance to the member's k-th
nearest neighbour in the set as radius.

    precision  fraction of samples in the support of the data     (Kynkäänniemi et al. 2019)
    recall     fraction of data in the support of the samples
    density    mean number of data balls that hold a sample, over k     (Naeem et al. 2020)
    coverage   fraction of data balls that hold a sample

Precision can be had by a model that draws one good image again and again, and recall by one outlier with a large ball;
density and coverage use the balls of the data alone and are robust to that. For samples of the data's own law density
has mean 1, and coverage

    1 − Π_{j<k} (N − 1 − j)/(N + M − 1 − j),    which tends to 1 − (N/(N + M))^k,

whatever the law, for M samples and N data: the k nearest of all the others must be data for a ball to be empty.
Precision and density do not depend on M in the mean; recall and coverage do, and all on N and k.

Distances are Euclidean in feature space, in float64 and in blocks, so memory is O(N · 1024).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.metrics.memorisation import nearest_distances

_BLOCK = 1024
#: Rounding of |x|² − 2 x·y + |y|² in float64, in units of the squared lengths: points this near a ball's edge are inside.
_SLACK = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Neighbourhoods:
    """The four figures; see the head of this module.

    Args:
        precision, recall, coverage: in [0, 1].
        density: ≥ 0; 1 for samples of the data's law, more for samples in its densest parts.
        k_support: neighbours of precision and recall; ``k_density``, of density and coverage.
        n, n_data: numbers of samples and data.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k_support: int
    k_density: int
    n: int
    n_data: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def expected_coverage(n: int, n_data: int, k: int) -> float:
    """The mean coverage of ``n`` samples of the data's own law; see the head of this module."""
    empty = 1.0
    for j in range(k):
        empty *= max(n_data - 1 - j, 0) / (n_data + n - 1 - j)
    return 1 - empty


@dataclass(frozen=True, eq=False)
class Balls:
    """A set of points with the distances to their k-th nearest neighbours: the support of the set.

    Args:
        centres: (N, d) float64.
        radii: (N,) float64.
        k: the neighbour's number, the point itself not counted.
    """

    centres: Tensor
    radii: Tensor
    k: int

    @classmethod
    def of(cls, features: Tensor, ks: tuple[int, ...]) -> tuple[Balls, ...]:
        """The balls of features (N, d) for several k, from one search.

        Raises:
            ArgumentError: for a k outside 1 to N − 1.
        """
        if features.ndim != 2:
            raise ArgumentError(f"features have shape {tuple(features.shape)}; expected (n, d)")
        if not (ks and min(ks) >= 1 and max(ks) < len(features)):
            raise ArgumentError(f"k = {max(ks, default=0)}; expected 1 to {len(features) - 1}, the number of others")
        # The nearest row is the point itself, or a duplicate of it, at distance 0 either way.
        distances, _ = nearest_distances(features, features, max(ks) + 1)
        return tuple(cls(features.double(), distances[:, k].contiguous(), k) for k in ks)

    def hits(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """How many balls hold each point, (M,) int64, and whether each ball holds any point, (N,) bool.

        Raises:
            ArgumentError: for another number of features.
        """
        if points.ndim != 2 or points.shape[1] != self.centres.shape[1]:
            raise ArgumentError(f"points have shape {tuple(points.shape)}; expected (m, {self.centres.shape[1]})")
        origin = self.centres.mean(0)  # short vectors lose fewer digits in the product
        centres = self.centres - origin
        lengths, limits = centres.square().sum(1), self.radii.square()
        filled = torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
        counts = []
        for block in points.split(_BLOCK):
            x = block.to(centres) - origin
            own = x.square().sum(1, keepdim=True)
            total = own + lengths
            inside = total - 2 * (x @ centres.T) <= limits + _SLACK * total
            counts.append(inside.sum(1))
            filled |= inside.any(0)
        return torch.cat(counts), filled


def neighbourhoods(samples: Tensor, data: Tensor, k_support: int = 3, k_density: int = 5) -> Neighbourhoods:
    """Precision, recall, density and coverage of samples; see the head of this module.

    Args:
        samples, data: features (M, d) and (N, d).
        k_support: neighbours for precision and recall, 3 as published.
        k_density: neighbours for density and coverage, 5 as published.

    Raises:
        ArgumentError: for shapes that do not fit, or a k not below the number of points.
    """
    return measure_neighbourhoods(samples, Balls.of(data, (k_support, k_density)))


def measure_neighbourhoods(samples: Tensor, data: tuple[Balls, ...]) -> Neighbourhoods:
    """:func:`neighbourhoods` with the balls of the data at hand: those of precision, then those of density."""
    support, density = data
    if len(samples) <= support.k:
        raise ArgumentError(f"samples has {len(samples)} rows; more than k = {support.k} are needed")
    (own,) = Balls.of(samples, (support.k,))
    within, _ = support.hits(samples)
    recalled, _ = own.hits(support.centres)
    held, filled = density.hits(samples)
    return Neighbourhoods(
        float((within > 0).double().mean()),
        float((recalled > 0).double().mean()),
        float(held.double().mean()) / density.k,
        float(filled.double().mean()),
        support.k,
        density.k,
        len(samples),
        len(support.centres),
    )
