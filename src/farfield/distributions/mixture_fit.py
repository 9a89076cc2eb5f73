"""Mixtures from data: clusters or classes, each with its own mean, covariance and frequency (Wang & Vastola 2024, A.5).

A cluster of fewer points than coordinates is decomposed through their products, so that no d×d matrix is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from farfield.data.progress import track
from farfield.distributions.mixture_clusters import clusters
from farfield.distributions.stacking import floored
from farfield.errors import ArgumentError
from farfield.numerics import moments
from farfield.numerics.covariance import as_tensor, block_size
from farfield.numerics.covariance_leading import centred
from farfield.numerics.shrinkage import PLAIN, Regulariser
from farfield.numerics.spectrum import Spectrum, Tail

#: Weights, means and spectra: what ``GaussianMixture`` is made of.
Parts = tuple[list[float], Tensor, list[Spectrum]]


def fit(
    data: Tensor | np.ndarray,
    components: int,
    rank: int | float | None,
    seed: int,
    tail: Tail,
    floor: float,
    regulariser: Regulariser = PLAIN,
    shared_basis: bool = False,
    refine: int = 0,
) -> Parts:
    """The parts of ``GaussianMixture.fit``."""
    if refine and rank is not None and tail != "mean":
        raise ArgumentError(
            f"tail = {tail!r} with refine = {refine}: points off a subspace have no density; use 'mean'"
        )
    labels = clusters(data, components, seed)
    if shared_basis:
        parts = shared(data, labels, rank, regulariser).parts(None, tail, floor)
    else:
        parts = per_class(data, labels, rank, tail, floor, regulariser)
    if refine:
        from farfield.distributions.mixture_em import refined

        return refined(parts, data, refine, floor, shared_basis=shared_basis)[0]
    return parts


def per_class(
    data: Tensor | np.ndarray,
    labels: Tensor | Sequence[int],
    rank: int | float | None,
    tail: Tail,
    floor: float,
    regulariser: Regulariser = PLAIN,
    minimum: int = 0,
) -> Parts:
    """The parts of ``GaussianMixture.per_class``."""
    groups = grouped(data, labels)
    short = [len(members) < minimum for members in groups]
    weights, means, spectra = [], list[Tensor](), list[Spectrum | None]()
    for members, few in track(zip(groups, short, strict=True), len(groups), "covariances", threshold=100):
        subset = rows(data, members)
        if few:
            mean, spectrum = moments.mean_of(subset)[1], None
        else:
            mean, spectrum = moments.principal(subset, rank, tail, regulariser)
        weights.append(float(len(members)))
        means.append(mean)
        spectra.append(spectrum)
    stacked = torch.stack(means)
    pooled = within(data, groups, stacked, rank, tail, regulariser) if any(short) else None
    final = []
    for own in spectra:
        chosen = pooled if own is None else own
        assert chosen is not None
        final.append(floored(chosen, floor))
    return weights, stacked if is_wide(data) else stacked.float(), final


def is_wide(data: Tensor | np.ndarray) -> bool:
    """Whether the law is to be kept in float64: when the data are."""
    return str(data.dtype).endswith("float64")


def grouped(data: Tensor | np.ndarray, labels: Tensor | Sequence[int]) -> list[Tensor]:
    """The row numbers of every label that occurs, in ascending order of the labels.

    Raises:
        ArgumentError: if there is not one label for each point.
    """
    ids = torch.as_tensor(labels).cpu()
    if ids.shape != (data.shape[0],):
        raise ArgumentError(f"labels has shape {tuple(ids.shape)}; expected ({data.shape[0]},)")
    counts = torch.unique(ids, return_counts=True)[1]
    return list(torch.argsort(ids, stable=True).split(counts.tolist()))


def rows(data: Tensor | np.ndarray, members: Tensor) -> Tensor | np.ndarray:
    """The given rows, as a copy where the data are."""
    return data[members.to(data.device)] if isinstance(data, Tensor) else data[members.numpy()]


class _Residuals:
    """Points less the mean of their class, in blocks, as often as they are read."""

    def __init__(self, data: Tensor | np.ndarray, groups: Sequence[Tensor], means: Tensor) -> None:
        self.data, self.groups, self.means = data, groups, means

    def __iter__(self) -> Iterator[Tensor]:
        for members, mean in zip(self.groups, self.means, strict=True):
            for part in members.split(block_size(mean.numel())):
                yield torch.sub(as_tensor(rows(self.data, part)), mean)


def within(
    data: Tensor | np.ndarray,
    groups: Sequence[Tensor],
    means: Tensor,
    rank: int | float | None = None,
    tail: Tail = "mean",
    regulariser: Regulariser = PLAIN,
) -> Spectrum:
    """The covariance within the groups, ``Σ_i N_i Σ_i / N``: what all have in common once their means (K, *event) go."""
    spectrum = moments.principal(_Residuals(data, groups, means), rank, tail, regulariser)[1]
    return spectrum if is_wide(data) else spectrum.float()


# -- one basis for all ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """Components that are diagonal in one basis, in its order.

    Attributes:
        weights: number of points of each, K.
        means: (K, *event).
        basis: (d, r).
        variances: (K, r) along the basis.
        rests: (K,) mean variance in the d − r directions outside of it.
    """

    weights: list[float]
    means: Tensor
    basis: Tensor
    variances: Tensor
    rests: Tensor

    def parts(self, rank: int | None, tail: Tail, floor: float) -> Parts:
        """The mixture with the first ``rank`` directions of the basis (all by default)."""
        d, found = self.basis.shape
        keep = found if rank is None else min(rank, found)
        rests = torch.zeros_like(self.rests)
        if tail == "mean" and keep < d:
            rests = (self.variances[:, keep:].sum(1) + (d - found) * self.rests) / (d - keep)
        spectra = [
            floored(Spectrum.low_rank(self.basis[:, :keep], v[:keep], float(rest)), floor)
            for v, rest in zip(self.variances, rests, strict=True)
        ]
        return self.weights, self.means, spectra


def shared(
    data: Tensor | np.ndarray,
    labels: Tensor | Sequence[int],
    rank: int | float | None,
    regulariser: Regulariser = PLAIN,
    basis: Tensor | None = None,
) -> Shared:
    """Components diagonal in the principal axes of the whole set, or in any orthonormal ``basis`` (d, r).

    One decomposition serves all of them. Σ_i loses its correlations between the axes, so that only the variance along
    each axis is that of the data.
    """
    if isinstance(regulariser.shrinkage, str):
        raise ArgumentError(
            f"shrinkage = {regulariser.shrinkage!r} is for full covariances; with shared_basis give a number"
        )
    groups = grouped(data, labels)
    if basis is None:
        spectrum = moments.principal(data, rank)[1]
        assert spectrum.basis is not None
        basis = spectrum.basis
    wide = basis.double()
    d, r = basis.shape
    weights, means, variances, rests = [], [], [], []
    for members in track(groups, len(groups), "variances", threshold=100):
        subset = rows(data, members)
        count, mean = moments.mean_of(subset)
        total, along = wide.new_zeros(()), wide.new_zeros(r)
        for y in centred(subset, mean.flatten()):
            total += y.square().sum()
            along += (y @ wide).square().sum(0)
        rest = total - along.sum()
        # A cluster inside the span has nothing outside of it but rounding.
        rest = torch.where(rest > 1e-12 * total, rest, 0.0) / max(d - r, 1)
        factor, level = regulariser.line(count, d, float(total) / count)
        weights.append(float(count))
        means.append(mean)
        variances.append(factor * along / count + level)
        rests.append(factor * rest / count + level)
    stacked = torch.stack(means)
    v, rest = torch.stack(variances), torch.stack(rests)
    return Shared(weights, stacked if is_wide(data) else stacked.float(), basis, v, rest)
