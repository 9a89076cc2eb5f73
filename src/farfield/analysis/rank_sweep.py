"""How many components, and of what rank, a mixture needs to explain a model's score: the trade-off of K and r.

For each K the data are clustered and the covariance of each cluster is decomposed once; every rank and level then follows
from the same coefficients (:mod:`farfield.analysis.rank_gaps`). Eigenvalues beyond the rank are zero, so a truncated
component pulls states onto its own plane: the fewer directions it has, the higher the noise at which that shows
(Wang & Vastola 2024, 4.4, A.5, figures 9 and 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.fidelity import check_denoiser, descending, draw_queries
from farfield.analysis.fidelity_closed_forms import truncation_error
from farfield.analysis.rank_gaps import rank_gaps
from farfield.analysis.rank_sweep_result import RankSweep
from farfield.data.progress import track
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.distributions.mixture_fit import fit
from farfield.errors import ArgumentError
from farfield.numerics import streams

#: Numbers of components and ranks of the source, and some of its levels.
COMPONENTS = (1, 2, 5, 10, 20, 50, 100, 200)
RANKS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
SIGMAS = (20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.01)
#: Up to this many coordinates vectors are lifted in float64.
_WIDE = 256


def rank_sweep(
    denoiser: Denoiser,
    data: Tensor,
    *,
    components: Sequence[int] = COMPONENTS,
    ranks: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    queries: int = 256,
    seed: int = 0,
    batch_size: int = 128,
    progress: bool = False,
) -> RankSweep:
    """Measure what k-means mixtures of K components and rank r leave unexplained of a model's score.

    Queries are noised data points, those of :func:`~farfield.analysis.fidelity.score_fidelity` with the same seed.

    Args:
        denoiser: the model, network or exact law.
        data: (N, *event) its training samples.
        components: numbers of clusters K; those above N are left out.
        ranks: numbers of eigenvalues r; those from d on are left out and d, all of them, is added. By default powers of
            two and some between.
        sigmas: noise levels; by default ten from 20 to 0.01, as far as they are in the model's range.
        queries: query points at each level, ≥ 2.
        seed: names the queries and the clustering.
        batch_size: queries given to the model at once.
        progress: show a bar on the standard error where a person watches it.

    Raises:
        ArgumentError: for shapes that do not fit, an argument out of range, or a model whose process has no score.
    """
    check_denoiser(denoiser, data=data)
    sizes = tuple(sorted({int(k) for k in components if k <= len(data)}))
    if not sizes or sizes[0] < 1:
        raise ArgumentError(f"components = {list(components)}; expected numbers from 1 to {len(data)}, the data points")
    dim = denoiser.dim
    kept = (*sorted({int(r) for r in (RANKS if ranks is None else ranks) if r < dim}), dim)
    if kept[0] < 0:
        raise ArgumentError(f"ranks = {list(ranks or ())}; expected numbers from 0")
    if queries < 2 or batch_size < 1:
        raise ArgumentError(f"queries = {queries}, batch_size = {batch_size}; expected at least 2 and 1")
    inside = [s for s in SIGMAS if denoiser.sigma_min <= s <= denoiser.sigma_max]
    levels = descending(sigmas if sigmas is not None else inside)

    y, z = draw_queries(data, queries, "noised", seed, torch.float64 if dim <= _WIDE else torch.float32)
    assert y is not None
    targets = torch.empty(len(levels), *y.shape, dtype=y.dtype, device=y.device)
    norms = torch.empty(len(levels), queries, dtype=torch.float64, device=y.device)
    with torch.no_grad():
        for k, sigma in track(
            enumerate(levels), len(levels), "the model", threshold=1 if progress else len(levels) + 1
        ):
            for i in range(0, queries, batch_size):
                part = slice(i, i + batch_size)
                x = y[part] + sigma * z[part]
                targets[k, part] = denoiser(x, sigma).to(y.dtype)
                norms[k, part] = (targets[k, part].double() - x.double()).flatten(1).square().sum(1)
        gaps, largest = [], []
        predicted: Tensor | None = None
        kmeans = streams.derive(seed, "kmeans") % 2**32  # that of the reference laws
        for size in track(sizes, len(sizes), "mixtures", threshold=1 if progress else len(sizes) + 1):
            weights, means, spectra = fit(data, size, None, kmeans, "zero", 0.0)
            parts = [Gaussian(mean, spectrum) for mean, spectrum in zip(means, spectra, strict=True)]
            largest.append(max(spectrum.rank for spectrum in spectra))
            gaps.append(rank_gaps(weights, parts, targets, levels, kept, y, z))
            if size == 1:
                own = norms.mean(1) * torch.tensor(levels, dtype=torch.float64, device=norms.device) ** -4
                errors = torch.stack([truncation_error(spectra[0], s)[list(kept)] for s in levels]).to(own.device)
                predicted = (gaps[-1][-1].mean(1) / norms.mean(1)).unsqueeze(1) + errors / own.unsqueeze(1)
    # (K, R, L, Q) to (L, K, R, Q)
    return _result(
        torch.stack(gaps).permute(2, 0, 1, 3), norms, predicted, levels, sizes, kept, len(data), seed, largest
    )


def _result(
    gaps: Tensor,
    norms: Tensor,
    predicted: Tensor | None,
    levels: tuple[float, ...],
    sizes: tuple[int, ...],
    ranks: tuple[int, ...],
    count: int,
    seed: int,
    largest: list[int],
) -> RankSweep:
    queries, dim = norms.shape[1], ranks[-1]
    means = norms.mean(1)[:, None, None]
    fuv = gaps.mean(-1) / means
    error = (gaps - fuv.unsqueeze(-1) * norms[:, None, None]).std(-1) / (means * queries**0.5)
    full = gaps[:, :, -1]
    apart = full[:, :, None] - full[:, None]  # (L, K, K', Q)
    centred = apart - (apart.mean(-1) / means)[..., None] * norms[:, None, None]
    return RankSweep(
        sigmas=levels,
        components=sizes,
        ranks=ranks,
        fuv=_nested(fuv),
        mean_ratio=_nested((gaps / norms[:, None, None]).mean(-1)),
        standard_error=_nested(error),
        differences=_nested(centred.std(-1) / (means * queries**0.5)),
        predicted=None if predicted is None else _nested(predicted),
        queries=queries,
        seed=seed,
        count=count,
        dim=dim,
        largest=tuple(largest),
    )


def _nested(values: Tensor) -> tuple:  # type: ignore[type-arg]
    """A tensor as nested tuples of floats."""

    def freeze(value: list | float) -> tuple | float:  # type: ignore[type-arg]
        return tuple(map(freeze, value)) if isinstance(value, list) else value

    return tuple(map(freeze, values.tolist()))


@dataclass(frozen=True)
class RankOptions:
    """Options of the analysis; see :func:`rank_sweep`."""

    components: tuple[int, ...] = COMPONENTS
    ranks: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    queries: int = 256


@analysis("rank", about="how many components and eigenvalues a mixture needs at each noise level", options=RankOptions)
def analyze_rank(subject: Subject, options: RankOptions) -> RankSweep:
    """:func:`rank_sweep` of a subject."""
    return rank_sweep(
        subject.model,
        subject.data,
        components=options.components,
        ranks=options.ranks,
        sigmas=options.sigmas,
        queries=options.queries,
        seed=subject.seed,
        progress=subject.progress,
    )
