"""Mixtures of many sizes and ranks from the same data, each clustering and each covariance made once.

A sweep over the number of components K and the rank r (Wang & Vastola 2024, section 4.4) asks for every pair. The
clusters do not depend on r, and the covariance of rank r is the beginning of that of a larger rank. So a family clusters
once for each K and decomposes once for each component, at the largest rank that will be asked for, and cuts from that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.distributions.mixture import GaussianMixture
from farfield.distributions.mixture_clusters import Clusters, check_components, coordinates, kmeans
from farfield.distributions.mixture_fit import Parts, Shared, per_class, rows, shared
from farfield.distributions.stacking import floored
from farfield.errors import ArgumentError, DataError
from farfield.numerics import moments, streams
from farfield.numerics.covariance import blocks
from farfield.numerics.covariance_leading import check_rank
from farfield.numerics.shrinkage import Regulariser, Shrinkage
from farfield.numerics.spectrum import Tail


class MixtureFamily:
    """``family.mixture(K, r)`` for any K and r, computed when it is first asked for.

    The mixture is the one that ``GaussianMixture.fit(data, K, r)`` makes, unless K is in ``warm``.

    Memory: for each K the means and ``min(N_i, d, rank)·d`` numbers of the data's type for every component, at most as
    much as the data themselves where all clusters have fewer points than coordinates; :meth:`held` says how much and
    :meth:`release` frees it. The data are not copied.

    Args:
        data: (N, *event), which may be memory-mapped.
        rank: the largest rank that will be asked for; all eigenvalues by default.
        seed: of the clustering.
        tail: what stands for the eigenvalues left out, their mean or zero.
        floor: no eigenvalue is smaller than this.
        shrinkage: as for :meth:`GaussianMixture.fit`.
        shared_basis: make all components of all sizes diagonal in the principal axes of the whole set, found once.
        warm: sizes that are clustered one after the other in ascending order, each from the centres of the one before
            and new ones far from those: about a third of the time at large K, with as close a fit. Others
            start from k-means++, as the published protocol does.
        correction: as for :meth:`GaussianMixture.fit`.
        jitter: the same.
    """

    def __init__(
        self,
        data: Tensor | np.ndarray,
        rank: int | None = None,
        seed: int = 0,
        tail: Tail = "mean",
        floor: float = 0.0,
        shrinkage: Shrinkage = None,
        shared_basis: bool = False,
        warm: Sequence[int] = (),
        correction: int = 0,
        jitter: float = 0.0,
    ) -> None:
        largest = check_rank(rank)
        if isinstance(largest, float):
            raise ArgumentError(f"rank = {rank}; a family needs a number of eigenvalues")
        for size in warm:
            check_components(size, data.shape[0])
        self.data, self.rank, self.seed, self.tail, self.floor = data, largest, seed, tail, floor
        self.shared_basis, self.warm = shared_basis, tuple(sorted(set(warm)))
        self.regulariser = Regulariser(shrinkage, correction, jitter)
        self._clusters: dict[int, Clusters] = {}
        self._parts: dict[int, Parts] = {}
        self._shared: dict[int, Shared] = {}
        self._basis: Tensor | None = None
        self._points: np.ndarray | None = None

    def labels(self, components: int) -> Tensor:
        """The cluster (N,) of every point for ``components`` clusters, some of which may be empty.

        Raises:
            ArgumentError: if ``components`` is not between 1 and N.
        """
        return self._clustering(components).labels

    def _clustering(self, components: int) -> Clusters:
        if components not in self._clusters:
            check_components(components, self.data.shape[0])
            if components not in self.warm:
                points = coordinates(self.data, components, self.seed)
                self._clusters[components] = kmeans(points, components, self.seed)
                return self._clusters[components]
            # All sizes of a chain have to be clustered in the same coordinates.
            if self._points is None:
                self._points = coordinates(self.data, self.warm[-1], self.seed)
            before = self.warm.index(components) - 1
            start = self._clustering(self.warm[before]).centres if before >= 0 else None
            self._clusters[components] = kmeans(self._points, components, self.seed, start)
            if all(size in self._clusters for size in self.warm):
                self._points = None
        return self._clusters[components]

    def mixture(self, components: int, rank: int | None = None) -> GaussianMixture:
        """The mixture of ``components`` clusters with ``rank`` eigenvalues each, by default the family's rank.

        Raises:
            ArgumentError: if ``components`` is not between 1 and N, or ``rank`` not between 0 and the family's.
        """
        own = check_rank(rank)
        if rank is not None and (isinstance(own, float) or (self.rank is not None and rank > self.rank)):
            raise ArgumentError(
                f"rank = {rank}; expected a number of eigenvalues, at most that of the family, {self.rank}"
            )
        if self.shared_basis:
            return GaussianMixture(*self._common(components).parts(rank, self.tail, self.floor))
        weights, means, spectra = self._whole(components)
        if rank is not None:
            spectra = [s.truncate(min(rank, s.rank), self.tail) for s in spectra]
        return GaussianMixture(weights, means, [floored(s, self.floor) for s in spectra])

    def _whole(self, components: int) -> Parts:
        if components not in self._parts:
            labels = self.labels(components)
            self._parts[components] = per_class(self.data, labels, self.rank, self.tail, 0.0, self.regulariser)
        return self._parts[components]

    def _common(self, components: int) -> Shared:
        if components not in self._shared:
            if self._basis is None:
                self._basis = moments.principal(self.data, self.rank)[1].basis
            labels = self.labels(components)
            self._shared[components] = shared(self.data, labels, None, self.regulariser, self._basis)
        return self._shared[components]

    def sweep(
        self, components: Iterable[int], ranks: Iterable[int | None] = (None,)
    ) -> Iterator[tuple[int, int | None, GaussianMixture]]:
        """All pairs ``(K, r, mixture)``, one after the other, with the ranks of one K together.

        What is held for a size is released after its last rank, unless it was there before.
        """
        chosen = list(ranks)
        for size in components:
            before = size in self._parts or size in self._shared
            for rank in chosen:
                yield size, rank, self.mixture(size, rank)
            if not before:
                self.release(size)

    def held(self) -> int:
        """Bytes of the covariances and labels held at the moment."""
        tensors = [c.labels for c in self._clusters.values()] + ([] if self._basis is None else [self._basis])
        for _, means, spectra in self._parts.values():
            tensors += [means, *(t for s in spectra for t in (s.values, s.basis) if t is not None)]
        tensors += [t for s in self._shared.values() for t in (s.means, s.variances, s.rests)]
        arrays = [c.centres for c in self._clusters.values()] + ([] if self._points is None else [self._points])
        return sum(t.numel() * t.element_size() for t in tensors) + sum(a.nbytes for a in arrays)

    def release(self, components: int | None = None) -> None:
        """Free the covariances of one size or of all; the labels stay."""
        for store in (self._parts, self._shared):
            if components is None:
                store.clear()
            else:
                store.pop(components, None)


# -- the choice of a size ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComponentScore:
    """One candidate: mean held-out ``log p`` in nats a point, and how far below the best, with its standard error."""

    components: int
    rank: int | None
    log_likelihood: float
    deficit: float
    deficit_error: float


@dataclass(frozen=True)
class ComponentChoice:
    """The outcome of :func:`choose_components`: the best size and rank, and the scores of all candidates at level σ."""

    components: int
    rank: int | None
    sigma: float
    scores: tuple[ComponentScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)


def choose_components(
    data: Tensor | np.ndarray | MixtureFamily,
    candidates: Sequence[int],
    rank: int | Sequence[int | None] | None = None,
    heldout: Tensor | np.ndarray | float = 0.1,
    sigma: float = 0.1,
    seed: int = 0,
) -> ComponentChoice:
    """The number of components, and the rank, whose mixture gives held-out data the largest likelihood at level σ.

    The held-out points get noise of level σ once, and every mixture fitted to the others its mean ``log p(x + σz; σ)``.
    At a level of the data's own scale few components are enough; more are worth their points only at small σ.

    Args:
        data: (N, *event) points to fit to, or a family of such.
        candidates: numbers of components.
        rank: of all covariances, or several to choose from.
        heldout: other points (M, *event); or the fraction of the data to hold out, chosen by the seed.
        sigma: noise level, > 0, in units of the data.
        seed: of the clustering, the noise and the choice of held-out points.

    Raises:
        ArgumentError: for a bad σ or fraction, no candidates, or a fraction together with a family.
    """
    ranks = list(rank) if isinstance(rank, Sequence) else [rank]
    if not candidates or not ranks:
        raise ArgumentError("candidates or rank is empty; expected at least one of each")
    if not (np.isfinite(sigma) and sigma > 0):
        raise ArgumentError(f"sigma = {sigma}; expected a positive number")
    if isinstance(heldout, float):
        if isinstance(data, MixtureFamily) or not 0 < heldout < 1:
            raise ArgumentError(f"heldout = {heldout}; expected points, or a fraction between 0 and 1 of an array")
        order = streams.permutation(seed, data.shape[0], purpose="held-out points")
        count = min(max(1, round(heldout * data.shape[0])), data.shape[0] - 1)
        heldout = rows(data, order[:count].sort().values)
        data = rows(data, order[count:].sort().values)
    if not heldout.shape[0]:
        raise DataError("the held-out data are empty")
    whole = all(r is not None for r in ranks)
    largest = max(r for r in ranks if r is not None) if whole else None
    family = data if isinstance(data, MixtureFamily) else MixtureFamily(data, largest, seed)
    found = list[tuple[int, int | None, Tensor]]()
    for size, own, law in family.sweep(candidates, ranks):
        values, start = list[Tensor](), 0
        for part in blocks(heldout, 256):
            x = part.to(law.means)
            index = torch.arange(start, start + len(x), device=x.device)
            noise = streams.normal(seed, index, law.event_shape, purpose="held-out noise", dtype=x.dtype)
            values.append(law.log_prob(x + sigma * noise, sigma).cpu())
            start += len(x)
        found.append((size, own, torch.cat(values)))
    best = max(found, key=lambda item: float(item[2].mean()))
    scores = []
    for size, own, value in found:
        gap = best[2] - value
        error = float(gap.std()) / len(gap) ** 0.5 if len(gap) > 1 else 0.0
        scores.append(ComponentScore(size, own, float(value.mean()), float(gap.mean()), error))
    return ComponentChoice(best[0], best[1], float(sigma), tuple(scores))
