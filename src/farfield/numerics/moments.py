"""Means and covariances of data that need not fit in memory twice.

Blocks are shifted by the mean of the first block and accumulated in float64, so that a mean far from zero costs no
digits (Chan, Golub & LeVeque 1983): ``Σ = E[y yᵀ] − E[y] E[y]ᵀ`` with ``y = x − shift``. The divisor is N, so that a
mixture made of cluster statistics has exactly the covariance of its data (law of total covariance).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.errors import ArgumentError, DataError
from farfield.numerics.dct import apply_axes, dct_matrix, layout
from farfield.numerics.spectrum import Spectrum, Tail

#: Above this many coordinates a d×d matrix in float64 passes 128 MB and its eigendecomposition a minute.
DENSE_LIMIT = 4096


@dataclass(frozen=True)
class Moments:
    """Sample statistics: ``count`` N, ``mean`` (*event) and ``covariance`` (d, d), float64, divisor N."""

    count: int
    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class TransformMoments:
    """Variances in the cosine transform: ``values`` (d,), after the channels are rotated by ``channel_basis``."""

    count: int
    mean: Tensor
    values: Tensor
    channel_basis: Tensor | None


def block_size(dim: int, limit: int = 4096) -> int:
    """Rows of a block such that its float64 copy stays near 32 MB."""
    return max(1, min(limit, (1 << 22) // max(dim, 1)))


def blocks(data: Tensor | Iterable[Any], size: int | None = None) -> Iterator[Tensor]:
    """The data as tensors (n, *event): slices of a tensor or array, or the blocks of an iterable as they come."""
    if isinstance(data, Tensor | np.ndarray):
        rows = size if size is not None else block_size(math.prod(data.shape[1:]))
        for i in range(0, data.shape[0], rows):
            part = data[i : i + rows]
            # A read-only or memory-mapped slice is copied here, one block at a time.
            yield part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
        return
    for part in data:
        yield part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))


class _Shifted:
    """Shared by the passes: flattens and shifts blocks, counts them, checks them."""

    def __init__(self) -> None:
        self.count = 0
        self.event: tuple[int, ...] = ()
        self.shift = torch.zeros(0)
        self.total = torch.zeros(0)

    def rows(self, data: Tensor | Iterable[Any]) -> Iterator[Tensor]:
        for part in blocks(data):
            if part.ndim < 2 or part.shape[0] == 0:
                if part.ndim < 2:
                    raise DataError(f"a block of data has shape {tuple(part.shape)}; expected (N, *event)")
                continue
            y = part.detach().to(torch.float64).flatten(1)
            if not self.count:
                self.event = tuple(part.shape[1:])
                self.shift = y.mean(0)
                self.total = torch.zeros_like(self.shift)
            elif tuple(part.shape[1:]) != self.event:
                raise DataError(f"a block of data has events of shape {tuple(part.shape[1:])}; expected {self.event}")
            y = y - self.shift
            self.count += y.shape[0]
            self.total += y.sum(0)
            yield y
        if not self.count:
            raise DataError("the data are empty")
        if not bool(torch.isfinite(self.total).all()):
            raise DataError("the data hold values that are not finite")

    @property
    def mean(self) -> Tensor:
        return (self.shift + self.total / self.count).view(self.event)


def moments(data: Tensor | Iterable[Any]) -> Moments:
    """Mean and covariance in one pass: float64, divisor N.

    Args:
        data: (N, *event) tensor or array (which may be memory-mapped), or an iterable of such blocks.

    Raises:
        DataError: if the data are empty, change shape, or hold values that are not finite.
    """
    run = _Shifted()
    second = torch.zeros(0)
    for y in run.rows(data):
        if not second.numel():
            second = torch.zeros(y.shape[1], y.shape[1], dtype=torch.float64, device=y.device)
        second.addmm_(y.T, y)
    offset = run.total / run.count
    covariance = second.div_(run.count).sub_(torch.outer(offset, offset))
    return Moments(run.count, run.mean, (covariance + covariance.T) / 2)


def mean_of(data: Tensor | Iterable[Any]) -> tuple[int, Tensor]:
    """Count and mean in one pass: N and (*event) in float64."""
    run = _Shifted()
    for _ in run.rows(data):
        pass
    return run.count, run.mean


def dct_moments(data: Tensor | Iterable[Any]) -> TransformMoments:
    """Mean and variances in the orthonormal DCT over space after a rotation of the channels: one pass, O(C d) memory.

    The rotation diagonalises the covariance of the channels averaged over frequencies.
    """
    run = _Shifted()
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
    offset = transform((run.total / run.count).unsqueeze(0))
    second = second / run.count - offset.transpose(1, 2) @ offset
    if channels == 1:
        return TransformMoments(run.count, run.mean, second.flatten().clamp(min=0), None)
    rotation = torch.linalg.eigh(second.sum(0))[1].flip(1)
    values = torch.einsum("fij,ic,jc->cf", second, rotation, rotation)
    return TransformMoments(run.count, run.mean, values.flatten().clamp(min=0), rotation)


def principal(data: Tensor | Iterable[Any], rank: int | None = None, tail: Tail = "mean") -> tuple[Tensor, Spectrum]:
    """Mean (*event) and spectrum of the covariance, all of it or the leading ``rank`` eigenpairs.

    Up to 4096 coordinates the covariance is decomposed exactly; above, the leading eigenpairs come from a block Krylov
    space (Musco & Musco 2015) in five passes, and the covariance is never formed.

    Raises:
        ArgumentError: if more than 4096 coordinates come without a rank, or data that can be read only once.
    """
    if rank is not None and rank < 0:
        raise ArgumentError(f"rank = {rank}; expected at least 0")
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
            mean, spectrum = _gram(data)
            if rank is not None:
                spectrum = spectrum.truncate(min(rank, spectrum.rank), tail)
            return mean, spectrum if wide else spectrum.float()
    if math.prod(shape) <= DENSE_LIMIT:
        stats = moments(data)
        spectrum = Spectrum.from_covariance(stats.covariance)
        if rank is not None:
            spectrum = spectrum.truncate(min(rank, spectrum.rank), tail)
        return stats.mean, spectrum if wide else spectrum.float()
    if rank is None or once:
        need = "give rank" if rank is None else "give data that can be read several times"
        raise ArgumentError(
            f"the data have {math.prod(shape)} coordinates, and a full covariance is formed up to {DENSE_LIMIT}: "
            f"{need}, or basis='dct'"
        )
    return _krylov(data, min(rank, math.prod(shape)), tail)


def _gram(data: Tensor | np.ndarray) -> tuple[Tensor, Spectrum]:
    """The spectrum from the N×N products of fewer points than coordinates; its rank is that of the data."""
    _, mean = mean_of(data)
    points = torch.as_tensor(np.array(data) if isinstance(data, np.ndarray) else data).to(torch.float64).flatten(1)
    points = points - mean.flatten()
    values, vectors = torch.linalg.eigh(points @ points.T / points.shape[0])
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    keep = values > 1e-12 * float(values[0])
    values, vectors = values[keep], vectors[:, keep]
    # Small directions come out of the product slightly oblique; QR in descending order squares them up.
    basis = torch.linalg.qr(points.T @ vectors)[0] if values.numel() else points.new_zeros(points.shape[1], 0)
    return mean, Spectrum.low_rank(basis, values, 0.0)


def _krylov(data: Tensor | Iterable[Any], rank: int, tail: Tail) -> tuple[Tensor, Spectrum]:
    _, mean = mean_of(data)
    centre = mean.flatten()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(centre.shape[0], rank + 8, generator=generator, dtype=torch.float64).to(centre.device)
    space = [torch.linalg.qr(start)[0]]
    total, count = torch.zeros((), dtype=torch.float64, device=centre.device), 0

    def product(q: Tensor) -> Tensor:
        """``N Σ q``, one pass over the data."""
        result = torch.zeros_like(q)
        for part in blocks(data):
            y = part.to(torch.float64).flatten(1) - centre
            result.addmm_(y.T, y @ q)
        return result

    for part in blocks(data):
        total += (part.to(torch.float64).flatten(1) - centre).square().sum()
        count += part.shape[0]
    for _ in range(3):
        space.append(torch.linalg.qr(product(space[-1]))[0])
    basis = torch.linalg.qr(torch.cat(space, 1))[0][:, : centre.shape[0]]
    small = basis.T @ product(basis) / count
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    values, vectors = values.flip(0)[:rank].clamp(min=0), basis @ vectors.flip(1)[:, :rank]
    rest = (float(total) / count - float(values.sum())) / max(centre.shape[0] - rank, 1)
    level = max(rest, 0.0) if tail == "mean" and rank < centre.shape[0] else 0.0
    return mean, Spectrum.low_rank(vectors.float(), values, level)
