"""A noise grid from the data's spectrum: steps where the data's structure is decided.

A direction of variance λ goes from undetermined to determined around σ = sqrt(λ): its Gaussian shrinkage
``λ/(λ + σ²)`` is a logistic curve in log σ² with slope proportional to ``λσ²/(λ + σ²)²`` (Wang & Vastola 2024, section 3.3).
That is also where what is not Gaussian in it shows, the residual that a whitened solver has to follow. The grid puts levels
in log σ with the density

    p(log σ) ∝ w(log σ)/max w + floor,      w = Σ_k λ_k^q · λ_k σ²/(λ_k + σ²)².
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from farfield.errors import ArgumentError
from farfield.sampling.grids import GRIDS, Grid, check_range

if TYPE_CHECKING:
    from farfield.distributions import Gaussian

_BINS = 48
_POINTS = 4001


@dataclass(frozen=True, eq=True)
class Spectral(Grid):
    """Levels with a density that follows the data's spectrum; see :func:`spectral`.

    Args:
        n: number of positive levels.
        variances: distinct eigenvalues of the data's covariance, > 0.
        counts: how many directions have each.
        sigma_min, sigma_max: the ends.
        exponent: q, the weight of a direction by its variance: 1/2 counts amplitudes, 1 variances.
        floor: density far from any structure, against 1 where there is most.
    """

    n: int
    variances: tuple[float, ...]
    counts: tuple[float, ...]
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    exponent: float = 0.75
    floor: float = 0.3
    name: ClassVar[str] = "spectral"

    def __post_init__(self) -> None:
        check_range(self.sigma_min, self.sigma_max, self.n)
        object.__setattr__(self, "variances", tuple(float(v) for v in self.variances))
        object.__setattr__(self, "counts", tuple(float(c) for c in self.counts))
        if not self.variances or len(self.variances) != len(self.counts):
            raise ArgumentError(
                f"{len(self.variances)} variances with {len(self.counts)} counts; expected as many, at least 1"
            )
        if not all(0 < v < math.inf for v in (*self.variances, *self.counts)):
            raise ArgumentError("variances and counts of a spectral grid must be positive and finite")
        if not 0 < self.floor < math.inf or not 0 <= self.exponent <= 4:
            raise ArgumentError(
                f"floor = {self.floor}, exponent = {self.exponent}; expected floor > 0, exponent in [0, 4]"
            )

    @cached_property
    def levels(self) -> tuple[float, ...]:  # type: ignore[override]
        """Quantiles of the density; the two ends are exact."""
        if self.n == 1:
            return (self.sigma_max,)
        log_s = np.linspace(math.log(self.sigma_min), math.log(self.sigma_max), _POINTS)
        lam, count = np.asarray(self.variances), np.asarray(self.counts)
        # λσ²/(λ + σ²)² = sech²/4 of the distance in log σ, which neither overflows nor cancels.
        distance = log_s[:, None] - 0.5 * np.log(lam)
        slope = 1 / np.cosh(np.clip(distance, -300, 300)) ** 2
        density = slope @ (count * (lam / lam.max()) ** self.exponent)
        density = density / density.max() + self.floor
        mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        inner = np.exp(np.interp(np.linspace(mass[-1], 0, self.n)[1:-1], mass, log_s))
        return (self.sigma_max, *map(float, inner), self.sigma_min)

    def starting_at(self, sigma: float) -> Self:
        """The same with ``sigma_max = sigma``."""
        return replace(self, sigma_max=float(sigma))


def spectral(n: int, gaussian: Gaussian, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Spectral:
    """n levels that follow the spectrum of the data, then 0.

    Args:
        n: number of positive levels.
        gaussian: the data's Gaussian; its eigenvalues are gathered in bins of equal width in log λ.
        sigma_min, sigma_max: the ends.

    Raises:
        ArgumentError: if the covariance is zero.
    """
    spectrum = gaussian.spectrum
    values = spectrum.values.double().cpu().numpy()
    counts = np.ones_like(values)
    if spectrum.tail_dim:
        values, counts = np.append(values, spectrum.tail), np.append(counts, spectrum.tail_dim)
    # Directions without variance are decided at no level; rounding leaves them tiny values.
    keep = values > 1e-10 * values.max(initial=0)
    values, counts = values[keep], counts[keep]
    if not len(values):
        raise ArgumentError("a spectral grid needs a covariance that is not zero")
    logs = np.log(values)
    edges = np.linspace(logs.min(), logs.max() + 1e-9, _BINS + 1)
    place = np.clip(np.digitize(logs, edges) - 1, 0, _BINS - 1)
    total = np.bincount(place, counts, _BINS)
    middle = np.bincount(place, counts * logs, _BINS)[total > 0] / total[total > 0]
    # Six digits: the grid is a rule of thumb, and short numbers keep a stored sampler short.
    variances = tuple(float(f"{v:.6g}") for v in np.exp(middle))
    return Spectral(n, variances, tuple(float(c) for c in total[total > 0]), sigma_min, sigma_max)


GRIDS[Spectral.name] = Spectral
