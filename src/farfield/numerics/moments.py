"""Means and covariances of data that need not fit in memory twice: the passes behind every fit.

The sums themselves, which can be merged and kept in files, are :class:`MomentSums`. The divisor is N, so that a mixture
made of cluster statistics has exactly the covariance of its data (law of total covariance).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.errors import ArgumentError, DataError
from farfield.numerics.covariance import block_size, blocks
from farfield.numerics.covariance_leading import DENSE_LIMIT, Leading, check_rank, dense, gram, kept, krylov
from farfield.numerics.covariance_sums import Moments, MomentSums, Shifted
from farfield.numerics.dct import apply_axes, dct_matrix, layout
from farfield.numerics.shrinkage import PLAIN, Regulariser
from farfield.numerics.spectrum import Spectrum, Tail

__all__ = [
    "DENSE_LIMIT",
    "MomentSums",
    "Moments",
    "TransformMoments",
    "block_size",
    "blocks",
    "dct_moments",
    "mean_of",
    "moments",
    "principal",
    "transformed",
]


@dataclass(frozen=True)
class TransformMoments:
    """Variances in the cosine transform: ``values`` (d,), after the channels are rotated by ``channel_basis``."""

    count: int
    mean: Tensor
    values: Tensor
    channel_basis: Tensor | None


def moments(data: Tensor | Iterable[Any]) -> Moments:
    """Mean and covariance in one pass: float64, divisor N. Memory: one block and one d×d matrix.

    Args:
        data: (N, *event) tensor or array (which may be memory-mapped), or an iterable of such blocks.

    Raises:
        DataError: if the data are empty, change shape, or hold values that are not finite.
    """
    return MomentSums().update(data).finish()


def mean_of(data: Tensor | Iterable[Any]) -> tuple[int, Tensor]:
    """Count and mean in one pass: N and (*event) in float64."""
    run = Shifted()
    for _ in run.rows(data):
        pass
    return run.count, run.mean


def dct_moments(data: Tensor | Iterable[Any]) -> TransformMoments:
    """Mean and variances in the orthonormal DCT over space after a rotation of the channels: one pass, O(C d) memory.

    The rotation diagonalises the covariance of the channels averaged over frequencies.
    """
    run = Shifted()
    second, matrices = torch.zeros(0), list[Tensor]()
    channels, space = 1, tuple[int, ...]()

    def transform(y: Tensor) -> Tensor:
        """(n, d) to (frequencies, n, channels)."""
        return apply_axes(y.view(-1, channels, *space), matrices, 2).flatten(2).permute(2, 0, 1)

    for y in run.rows(data):
        if not second.numel():
            channels, space = layout(run.event)
            matrices = [dct_matrix(n).to(y.device) for n in space]
            second = torch.zeros(math.prod(space), channels, channels, dtype=torch.float64, device=y.device)
        c = transform(y)
        second += c.transpose(1, 2) @ c
    run.check()
    offset = transform((run.total / run.count).unsqueeze(0))
    second = second / run.count - offset.transpose(1, 2) @ offset
    if channels == 1:
        return TransformMoments(run.count, run.mean, second.flatten().clamp(min=0), None)
    rotation = torch.linalg.eigh(second.sum(0))[1].flip(1)
    values = torch.einsum("fij,ic,jc->cf", second, rotation, rotation)
    return TransformMoments(run.count, run.mean, values.flatten().clamp(min=0), rotation)


def principal(
    data: Tensor | Iterable[Any] | MomentSums,
    rank: int | float | None = None,
    tail: Tail = "mean",
    regulariser: Regulariser = PLAIN,
) -> tuple[Tensor, Spectrum]:
    """Mean (*event) and spectrum of the covariance, all of it or its leading part.

    Up to 4096 coordinates the covariance is decomposed exactly, and so is the matrix of products of up to 4096 points
    that are fewer than their coordinates; otherwise the leading eigenpairs come from a block Krylov space (Musco &
    Musco 2015) in six passes, and the covariance is never formed.

    Args:
        data: (N, *event), an iterable of such blocks, or sums of it.
        rank: eigenvalues to keep, or the fraction of the variance that they must keep; all by default.
        tail: what stands for the eigenvalues left out, their mean or zero.
        regulariser: what is done to the eigenvalues before the covariance is cut to its rank.

    Raises:
        ArgumentError: for a bad rank, or if more than 4096 coordinates come without a rank, or as data
            that can be read only once.
    """
    rank = check_rank(rank)
    if isinstance(data, MomentSums):
        mean, own = data.mean, data.spectrum()
        assert own.basis is not None
        found = Leading(own.values, own.basis, own.trace, float(own.values.square().sum()), True, data.fourth)
        return _finish(mean, data.count, found, rank, tail, regulariser, data.dtype == torch.float64)
    once = False
    if not isinstance(data, Tensor | np.ndarray):
        # The first block tells the shape; an iterator gets it back.
        once = iter(data) is data
        source = iter(data)
        first = next(source, None)
        if first is None:
            raise DataError("the data are empty")
        shape, wide = tuple(first.shape[1:]), str(first.dtype).endswith("float64")
        data = itertools.chain([first], source) if once else data
    else:
        shape, wide = tuple(data.shape[1:]), str(data.dtype).endswith("float64")
        if 0 < data.shape[0] < math.prod(shape) and data.shape[0] <= DENSE_LIMIT:
            count, mean = mean_of(data)
            points = data.detach() if isinstance(data, Tensor) else data
            found = gram(points.reshape(count, -1), mean.flatten(), rank)
            return _finish(mean, count, found, rank, tail, regulariser, wide)
    if math.prod(shape) <= DENSE_LIMIT:
        sums = MomentSums().update(data)
        sums.check()
        fourth = sums.fourth if regulariser.shrinkage == "ledoit_wolf" else None
        stats = sums.finish()
        return _finish(stats.mean, stats.count, dense(stats.covariance, rank, fourth), rank, tail, regulariser, wide)
    if rank is None or once:
        need = "give rank" if rank is None else "give data that can be read several times"
        raise ArgumentError(
            f"the data have {math.prod(shape)} coordinates, and a full covariance is formed up to {DENSE_LIMIT}: "
            f"{need}, or basis='dct'"
        )
    count, mean = mean_of(data)
    rank = min(rank, math.prod(shape)) if isinstance(rank, int) else rank
    return _finish(mean, count, krylov(data, mean.flatten(), rank), rank, tail, regulariser, wide)


def _finish(
    mean: Tensor,
    count: int,
    found: Leading,
    rank: int | float | None,
    tail: Tail,
    regulariser: Regulariser,
    wide: bool,
) -> tuple[Tensor, Spectrum]:
    line = regulariser.line(count, mean.numel(), found.trace, found.squares, found.fourth)
    spectrum = found.spectrum(rank, tail, *line)
    return mean, spectrum if wide else spectrum.float()


def transformed(
    data: Tensor | Iterable[Any] | MomentSums,
    rank: int | float | None = None,
    tail: Tail = "mean",
    regulariser: Regulariser = PLAIN,
) -> tuple[Tensor, Spectrum]:
    """Mean (*event) and a covariance that is diagonal in the cosine transform, in one pass with O(C d) memory.

    Arguments as for :func:`principal`, but the intensity of shrinkage has to be a number: its estimates are about the
    d(d + 1)/2 entries of a full covariance, and here are only d.

    Raises:
        ArgumentError: for a bad rank, an estimated intensity, or sums in place of data.
    """
    rank = check_rank(rank)
    if isinstance(data, MomentSums):
        raise ArgumentError("sums hold a full covariance; with basis='dct' give the data themselves")
    if isinstance(regulariser.shrinkage, str):
        raise ArgumentError(
            f"shrinkage = {regulariser.shrinkage!r} is for a full covariance; with basis='dct' give a number"
        )
    stats = dct_moments(data)
    factor, level = regulariser.line(stats.count, len(stats.values), float(stats.values.sum()))
    values = factor * stats.values + level
    spectrum = Spectrum.dct(tuple(stats.mean.shape), values, stats.channel_basis)
    if rank is not None:
        spectrum = spectrum.truncate(kept(rank, values.sort(descending=True).values, float(values.sum())), tail)
    return stats.mean, spectrum
