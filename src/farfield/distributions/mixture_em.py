"""Expectation maximisation for mixtures of probabilistic principal components (Tipping & Bishop 1999).

A fit by k-means assigns every point to one cluster. Expectation maximisation shares it out, and no iteration lowers the
likelihood. With responsibilities w of the points and ``N_i = Σ_n w_ni``,

    π_i = N_i / N,    μ_i = Σ_n w_ni x_n / N_i,    S_i = Σ_n w_ni (x_n − μ_i)(x_n − μ_i)ᵀ / N_i,

and Σ_i keeps the leading eigenpairs of S_i, as many as before, with the mean of the other eigenvalues in their place:
the maximum of the likelihood under that form. A floor under the eigenvalues keeps components from collapsing on a point;
eigenvalues below it are raised, which is the maximum under that condition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farfield.data.progress import track
from farfield.distributions.gaussian import Gaussian
from farfield.distributions.mixture import GaussianMixture
from farfield.distributions.mixture_fit import Parts, is_wide, rows
from farfield.distributions.stacking import floored
from farfield.errors import ArgumentError, DataError
from farfield.numerics.covariance import as_tensor
from farfield.numerics.covariance_leading import centred, weighted, weighted_mean
from farfield.numerics.spectrum import Spectrum

#: The floor under the eigenvalues where none is given, as a fraction of the mean variance of a coordinate.
FLOOR = 1e-6
#: Responsibilities below this are left out of the next means and covariances.
_SMALL = 1e-12
#: Coefficients B·K·r of a batch.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Refinement:
    """A refined mixture and the way there.

    Attributes:
        mixture: the last one.
        log_likelihood: mean ``log p`` of the data in nats, before the first iteration and after each.
    """

    mixture: GaussianMixture
    log_likelihood: tuple[float, ...]


def refine(
    law: GaussianMixture,
    data: Tensor | np.ndarray,
    iterations: int = 10,
    floor: float | None = None,
    tolerance: float = 0.0,
    shared_basis: bool = False,
) -> Refinement:
    """Improve a mixture by expectation maximisation on data (N, *event).

    Components keep their ranks; the directions outside get their mean variance, which is never zero, so that every point
    has a density. Time: an iteration costs the mixture's log-density of all points and one decomposition a component.
    Memory: one responsibility for each point and component that matters to it.

    Args:
        law: where to start, e.g. ``GaussianMixture.fit(data, K, rank)``.
        data: the points.
        iterations: at most this many.
        floor: no eigenvalue is smaller; by default a millionth of the data's mean variance.
        tolerance: stop when the mean log-likelihood rises by less, in nats a point.
        shared_basis: keep the first component's basis for all of them and estimate variances along it only.

    Raises:
        ArgumentError: for a bad number, or data of another shape than the mixture's.
        DataError: if the data hold values that are not finite.
    """
    if tuple(data.shape[1:]) != law.event_shape:
        raise ArgumentError(f"data has events of shape {tuple(data.shape[1:])}; expected {law.event_shape}")
    own = [law.mask[k] > 0 for k in range(law.components)]
    spectra = [
        Spectrum.low_rank(law.bases[k][:, own[k]], law.values[k][own[k]], float(law.tails[k]))
        for k in range(law.components)
    ]
    parts = (law.weights_.tolist(), law.means, spectra)
    found, history = refined(parts, data, iterations, floor or 0.0, tolerance, shared_basis)
    return Refinement(GaussianMixture(*found), history)


@torch.no_grad()
def refined(
    parts: Parts,
    data: Tensor | np.ndarray,
    iterations: int,
    floor: float = 0.0,
    tolerance: float = 0.0,
    shared_basis: bool = False,
) -> tuple[Parts, tuple[float, ...]]:
    """:func:`refine` on what a mixture is made of; returns that and the mean log-likelihoods."""
    if iterations < 0 or not tolerance >= 0 or not (math.isfinite(floor) and floor >= 0):
        raise ArgumentError(
            f"iterations = {iterations}, tolerance = {tolerance}, floor = {floor}; expected numbers of at least 0"
        )
    count = data.shape[0]
    flat = data.reshape(count, -1)
    floor = floor or FLOOR * _variance(parts)
    if not floor:
        raise ArgumentError("the mixture has no variance at all; give a floor")
    device = data.device if isinstance(data, Tensor) else torch.device("cpu")
    ranks = [s.rank for s in parts[2]]
    parts = (parts[0], parts[1].to(device), [floored(s, floor).to(device) for s in parts[2]])
    history = list[float]()
    for i in range(iterations + 1):
        shares, level = _expectation(parts, data)
        history.append(level)
        if not math.isfinite(level):
            raise DataError("the data hold values that are not finite")
        if i == iterations or (i and history[-1] - history[-2] < tolerance):
            break
        parts, ranks = _maximisation(parts, ranks, flat, shares, floor, shared_basis)
    return parts, tuple(history)


def _variance(parts: Parts) -> float:
    """The mean variance of a coordinate under a mixture."""
    weights, means, spectra = parts
    pi = torch.tensor(weights, dtype=torch.float64, device=means.device)
    pi = pi / pi.sum()
    points = means.double().flatten(1)
    spread = (points - pi @ points).square().sum(1) + pi.new_tensor([s.trace for s in spectra])
    return float(pi @ spread) / points.shape[1]


@dataclass(frozen=True)
class _Shares:
    """Responsibilities that matter, grouped by component: points ``members[i]`` with weights ``weights[i]``."""

    members: list[Tensor]
    weights: list[Tensor]


def _expectation(parts: Parts, data: Tensor | np.ndarray) -> tuple[_Shares, float]:
    """Responsibilities of all points, and the mean log-likelihood."""
    weights, means, spectra = parts
    law = GaussianMixture(weights, means, spectra)
    size = max(16, _CHUNK // max(1, law.components * max(law.rank, 1)))
    point, component, share = list[Tensor](), list[Tensor](), list[Tensor]()
    best = means.new_empty(data.shape[0], dtype=torch.float64)
    choice = torch.empty(data.shape[0], dtype=torch.int64, device=means.device)
    starts = range(0, data.shape[0], size)
    for i in track(starts, len(starts), "responsibilities", threshold=20):
        w = law.weights(as_tensor(data[i : i + size]).to(means), 0.0)
        row, column = torch.nonzero(w > _SMALL, as_tuple=True)
        point.append(row + i)
        component.append(column)
        share.append(w[row, column])
        best[i : i + len(w)], choice[i : i + len(w)] = w.max(1)
    order = torch.argsort(torch.cat(component), stable=True)
    counts = torch.bincount(torch.cat(component), minlength=law.components).tolist()
    shares = _Shares(list(torch.cat(point)[order].split(counts)), list(torch.cat(share)[order].split(counts)))
    # log p = log π_i N_i − log w_i for any component i: that of the largest share costs one component a point.
    total = law.log_weights[choice] - best.log()
    for k in range(law.components):
        own = torch.nonzero(choice == k).squeeze(1)
        single = Gaussian(means[k], spectra[k])
        for ids in own.split(size * law.components):
            if len(ids):
                total[ids] += single.log_prob(as_tensor(rows(data, ids)).to(means))
    return shares, float(total.mean())


def _maximisation(
    parts: Parts, ranks: list[int], flat: Tensor | np.ndarray, shares: _Shares, floor: float, shared_basis: bool
) -> tuple[Parts, list[int]]:
    """The mixture of largest likelihood for given shares and ranks, and the ranks of the components that are left."""
    weights, means, spectra = list[float](), list[Tensor](), list[Spectrum]()
    # A component that explains less than a thousandth of a point has no mean of its own any more.
    left = [k for k, share in enumerate(shares.weights) if float(share.sum()) >= 1e-3]
    for k in track(left, len(left), "covariances", threshold=100):
        points, share = rows(flat, shares.members[k]), shares.weights[k]
        if shared_basis:
            basis = parts[2][0].basis
            assert basis is not None
            mean, spectrum = _along(points, share, basis)
        else:
            mean, found = weighted(points, share, ranks[k])
            spectrum = found.spectrum(ranks[k], "mean")
        weights.append(float(share.sum()))
        means.append(mean.view(parts[1].shape[1:]))
        spectra.append(floored(spectrum if is_wide(flat) else spectrum.float(), floor))
    return (weights, torch.stack(means).to(parts[1].dtype), spectra), [ranks[k] for k in left]


def _along(points: Tensor | np.ndarray, share: Tensor, basis: Tensor) -> tuple[Tensor, Spectrum]:
    """Weighted mean and the covariance that is diagonal in a basis (d, r)."""
    d, r = basis.shape
    mean = weighted_mean(points, share)
    total, along, wide = mean.new_zeros(()), mean.new_zeros(r), basis.double()
    for y in centred(points, mean, (share / share.sum()).sqrt()):
        total += y.square().sum()
        along += (y @ wide).square().sum(0)
    rest = (total - along.sum()).clamp(min=0) / max(d - r, 1)
    return mean, Spectrum.low_rank(basis, along, float(rest) if r < d else 0.0)
