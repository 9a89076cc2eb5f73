"""A noise grid from the data's spectrum: steps where the data's structure is decided.

A direction of variance λ goes from undetermined to determined around σ = sqrt(λ): its Gaussian shrinkage
``λ/(λ + σ²)`` is a logistic curve in log σ² with slope proportional to ``λσ²/(λ + σ²)²`` (Wang & Vastola 2024, section 3.3).
That is also where what is not Gaussian in it shows, the residual that a whitened solver has to follow. The grid puts levels
in log σ with the density

    p(log σ) ∝ w(log σ)/max w + floor,      w = Σ_k λ_k^q · λ_k σ²/(λ_k + σ²)².

The step from the lowest level to 0 is a step like the others, not one that costs nothing: with ``closing = 1`` it takes the
same share of the density, and the lowest level lies as far above ``sigma_min`` as the density there asks for. Below the
smallest structure a model is linear, and a step to 0 that is exact for a cluster loses nothing by setting out from there.
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
_EXPONENT = 0.75
#: Floor over the mean of w/max w. On both bundled networks and on mixtures fitted to their data, at 5 to 14 evaluations of
#: the whitened solver, 0.8 had the smallest errors or close to them; a third or twice as much costs up to a half.
_FLOOR = 0.8


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
        closing: share of the step to 0, against 1 for every other: the density between ``sigma_min`` and the lowest level.
            With 0 the lowest level is ``sigma_min``, as in other grids.
    """

    n: int
    variances: tuple[float, ...]
    counts: tuple[float, ...]
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    exponent: float = 0.75
    floor: float = 0.3
    closing: float = 0.0
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
        if not 0 <= self.closing <= 10:
            raise ArgumentError(f"closing = {self.closing}; expected a share in [0, 10]: 1 for a step like the others")

    @cached_property
    def levels(self) -> tuple[float, ...]:  # type: ignore[override]
        """Quantiles of the density; the first is exact, and without a closing share the last."""
        if self.n == 1:
            return (self.sigma_max,)
        log_s = _axis(self.sigma_min, self.sigma_max)
        structure = _structure(log_s, self.variances, self.counts, self.exponent)
        density = structure + self.floor
        mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        shares = 1 - np.arange(1, self.n) / (self.n - 1 + self.closing)
        lower = [float(s) for s in np.exp(np.interp(shares * mass[-1], mass, log_s))]
        if not self.closing:
            lower[-1] = self.sigma_min
        return (self.sigma_max, *lower)

    def starting_at(self, sigma: float) -> Self:
        """The same with ``sigma_max = sigma``."""
        return replace(self, sigma_max=float(sigma))


def _axis(low: float, high: float) -> np.ndarray:
    return np.linspace(math.log(low), math.log(high), _POINTS)


def _structure(
    log_s: np.ndarray, variances: tuple[float, ...], counts: tuple[float, ...], exponent: float
) -> np.ndarray:
    """``w/max w``."""
    lam, count = np.asarray(variances), np.asarray(counts)
    # λσ²/(λ + σ²)² = sech²/4 of the distance in log σ, which neither overflows nor cancels.
    distance = log_s[:, None] - 0.5 * np.log(lam)
    slope = 1 / np.cosh(np.clip(distance, -300, 300)) ** 2
    density = slope @ (count * (lam / lam.max()) ** exponent)
    # Between levels that are far from all structure there is none, and the grid is uniform.
    return np.asarray(density / max(density.max(), 1e-300))


def spectral(n: int, gaussian: Gaussian, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Spectral:
    """n levels that follow the spectrum of the data, then 0.

    Of the levels a fixed part is spread evenly in log σ, whatever the spectrum: the floor is 0.8 of the mean of ``w/max w``
    over the range, four ninths of all density. The step to 0 is one like the others (``closing = 1``), so that with few
    levels the lowest is well above ``sigma_min``.

    Args:
        n: number of positive levels.
        gaussian: the data's Gaussian; its eigenvalues are gathered in bins of equal width in log λ.
        sigma_min, sigma_max: the range; the first level is ``sigma_max``.

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
    sizes = tuple(float(c) for c in total[total > 0])
    check_range(sigma_min, sigma_max, n)
    mean = float(_structure(_axis(sigma_min, sigma_max), variances, sizes, _EXPONENT).mean())
    floor = max(float(f"{_FLOOR * mean:.3g}"), 1e-3)
    return Spectral(n, variances, sizes, sigma_min, sigma_max, _EXPONENT, floor, closing=1.0)


GRIDS[Spectral.name] = Spectral
