"""The leading eigenpairs of a covariance, by the cheapest of three ways.

- *dense*: the d×d matrix, decomposed;
- *Gram*: for fewer points than coordinates the N×N matrix of their products, whose eigenvalues are the same;
- *Krylov*: above 4096 coordinates a block Krylov space (Musco & Musco 2015), which forms neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.errors import ArgumentError, DataError
from farfield.numerics.covariance import add_products, as_tensor, block_size, blocks, eigenpairs, mirror
from farfield.numerics.spectrum import Spectrum, Tail

#: Above this many coordinates a d×d matrix in float64 passes 128 MB and its eigendecomposition a minute.
DENSE_LIMIT = 4096


@dataclass(frozen=True)
class Leading:
    """Leading eigenpairs of a covariance, with the sums over all of them.

    Attributes:
        values: (r,) float64, descending.
        basis: (d, r), orthonormal columns.
        trace: the sum of all eigenvalues.
        squares: the sum of their squares.
        complete: whether all eigenvalues beyond ``values`` are zero.
        fourth: ``E‖x − μ‖⁴``, where it is known.
    """

    values: Tensor
    basis: Tensor
    trace: float
    squares: float
    complete: bool
    fourth: float | None = None

    def spectrum(self, rank: int | float | None, tail: Tail, factor: float = 1.0, level: float = 0.0) -> Spectrum:
        """The covariance with eigenvalues ``factor λ + level``, cut to a rank.

        Args:
            rank: eigenvalues to keep, or the fraction of the variance that they must keep; all by default.
            tail: what stands for the eigenvalues left out, their mean or zero.
            factor: see :class:`~farfield.numerics.shrinkage.Regulariser`.
            level: the same.
        """
        d, found = self.basis.shape
        values, trace = factor * self.values + level, factor * self.trace + d * level
        if self.complete:
            whole = Spectrum("basis", d, values, level if found < d else 0.0, self.basis)
            return whole if rank is None else whole.truncate(kept(rank, values, trace), tail)
        keep = kept(found if rank is None else rank, values, trace)
        values = values[:keep].clone()
        rest = max(trace - float(values.sum()), 0.0) / (d - keep) if tail == "mean" and keep < d else 0.0
        return Spectrum("basis", d, values, rest, self.basis[:, :keep].contiguous())


def check_rank(rank: int | float | None) -> int | float | None:
    """A rank as Python's own number; refused where it is neither a number of eigenvalues nor a fraction of the variance.

    Raises:
        ArgumentError: for a negative integer, a fraction outside (0, 1), or anything else.
    """
    if rank is None:
        return None
    whole = isinstance(rank, Integral) and not isinstance(rank, bool)
    if not (rank >= 0 if whole else isinstance(rank, float) and 0 < rank < 1):
        raise ArgumentError(
            f"rank = {rank}; expected a whole number of at least 0, or a fraction of the variance between 0 and 1"
        )
    return int(rank) if whole else float(rank)


def kept(rank: int | float, values: Tensor, trace: float) -> int:
    """How many of the leading ``values`` (r,) a rank or a fraction of the variance ``trace`` asks for, at most r."""
    if isinstance(rank, int):
        return min(rank, values.shape[0])
    # Sums of the same numbers in another order differ in the last digits.
    enough = values.cumsum(0) >= rank * trace * (1 - 1e-12)
    return min(int((~enough).sum()) + 1, values.shape[0])


def dense(covariance: Tensor, rank: int | float | None, fourth: float | None = None) -> Leading:
    """The eigenpairs of a covariance (d, d) in float64, which may be overwritten; a known rank below d/2 costs less."""
    trace, squares = float(covariance.trace()), float(covariance.square().sum())
    keep = min(rank, len(covariance)) if isinstance(rank, int) else None
    values, basis = eigenpairs(covariance, keep)
    return Leading(values, basis, trace, squares, basis.shape[1] == len(covariance), fourth)


def gram(points: Tensor | np.ndarray, mean: Tensor, rank: int | float | None, scale: Tensor | None = None) -> Leading:
    """The eigenpairs from the N×N products of points (N, d) less their mean; at most ``rank`` where it is a number.

    Coordinates are taken in blocks, so that nothing of N×d is made but the basis.

    Args:
        points: (N, d), an array or tensor.
        mean: (d,) float64.
        rank: see :meth:`Leading.spectrum`.
        scale: (N,) float64 factors whose squares weight the points and sum to 1; ``1/√N`` by default.
    """
    n, d = points.shape
    step = block_size(n, 1 << 20)

    def columns() -> Iterator[tuple[int, Tensor]]:
        for j in range(0, d, step):
            y = torch.sub(as_tensor(points[:, j : j + step]), mean[j : j + step])
            yield j, y if scale is None else y.mul_(scale.unsqueeze(1))

    products = torch.zeros(n, n, dtype=torch.float64, device=mean.device)
    for _, y in columns():
        add_products(products, y.T)
    mirror(products)
    fourth = None
    if scale is None:
        fourth = float(products.diagonal().square().mean())
        products /= n
    trace, squares = float(products.trace()), float(products.square().sum())
    if not math.isfinite(trace):
        raise DataError("the data hold values that are not finite")
    values, vectors = torch.linalg.eigh(products)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    found = int((values > 1e-12 * float(values[0])).sum())
    keep = min(rank, found) if isinstance(rank, int) else found
    values, vectors = values[:keep], vectors[:, :keep].contiguous()
    if not keep:
        return Leading(values, mean.new_zeros(d, 0), trace, squares, not found, fourth)
    basis = torch.cat([y.T @ vectors for _, y in columns()])
    # Small directions come out of the product slightly oblique; QR in descending order squares them up.
    return Leading(values, torch.linalg.qr(basis)[0], trace, squares, keep == found, fourth)


def krylov(data: Tensor | Iterable[Any], mean: Tensor, rank: int | float, scale: Tensor | None = None) -> Leading:
    """The leading ``rank`` eigenpairs from a block Krylov space: five passes over the data, no d×d matrix.

    A fraction of the variance is sought with 64 eigenpairs, then with twice as many, until they hold enough of it.
    ``squares`` counts the eigenvalues left out at their mean.

    Args:
        data: (N, *event) or blocks of it, which can be read several times.
        mean: (d,) float64.
        rank: see :meth:`Leading.spectrum`.
        scale: as for :func:`gram`.
    """
    d = mean.shape[0]
    if not isinstance(rank, int):
        keep = 64
        found = krylov(data, mean, min(keep, d), scale)
        while keep < d and float(found.values.sum()) < rank * found.trace:
            keep *= 2
            found = krylov(data, mean, min(keep, d), scale)
        return found
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(d, rank + 8, generator=generator, dtype=torch.float64).to(mean.device)
    space = [torch.linalg.qr(start)[0]]
    weight, trace, fourth = 0.0, mean.new_zeros(()), mean.new_zeros(())

    def product(q: Tensor) -> Tensor:
        result = torch.zeros_like(q)
        for y in centred(data, mean, scale):
            result.addmm_(y.T, y @ q)
        return result

    for y in centred(data, mean, scale):
        norms = torch.linalg.vector_norm(y, dim=1).square()
        weight, trace, fourth = weight + len(y), trace + norms.sum(), fourth + norms @ norms
    weight = weight if scale is None else 1.0
    for _ in range(3):
        space.append(torch.linalg.qr(product(space[-1]))[0])
    basis = torch.linalg.qr(torch.cat(space, 1))[0][:, :d]
    small = basis.T @ product(basis) / weight
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    values, vectors = values.flip(0)[:rank].clamp(min=0), basis @ vectors.flip(1)[:, :rank]
    total = float(trace) / weight
    rest = max(total - float(values.sum()), 0.0)
    squares = float(values.square().sum()) + rest**2 / max(d - rank, 1)
    known = float(fourth) / weight if scale is None else None
    return Leading(values, vectors.contiguous(), total, squares, values.shape[0] == d, known)


def centred(data: Tensor | Iterable[Any], mean: Tensor, scale: Tensor | None = None) -> Iterator[Tensor]:
    """Points less a mean (d,), times their factors: (n, d) float64 block by block."""
    start = 0
    for part in blocks(data):
        y = torch.sub(part.detach().flatten(1), mean)
        if scale is not None:
            y *= scale[start : start + len(y)].unsqueeze(1)
        start += len(y)
        yield y


def weighted_mean(points: Tensor | np.ndarray, weights: Tensor) -> Tensor:
    """The mean (d,) of points (n, d) with weights (n,) ≥ 0, in float64."""
    n, d = points.shape
    share = weights / weights.sum()
    centre = as_tensor(points[:1]).to(torch.float64).flatten()
    mean = torch.zeros_like(centre)
    for i in range(0, n, block_size(d)):
        y = torch.sub(as_tensor(points[i : i + block_size(d)]), centre)
        mean += share[i : i + len(y)] @ y
    return mean + centre


def weighted(points: Tensor | np.ndarray, weights: Tensor, rank: int | float | None) -> tuple[Tensor, Leading]:
    """Mean (d,) and leading eigenpairs of points (n, d) with weights (n,) ≥ 0, float64: the divisor is their sum.

    Raises:
        ArgumentError: if more than 4096 coordinates and as many points come without a rank.
    """
    n, d = points.shape
    mean = weighted_mean(points, weights)
    scale = (weights / weights.sum()).sqrt()
    if n < d and n <= DENSE_LIMIT:
        return mean, gram(points, mean, rank, scale)
    if d <= DENSE_LIMIT:
        second = torch.zeros(d, d, dtype=torch.float64, device=mean.device)
        for y in centred(points, mean, scale):
            add_products(second, y)
        return mean, dense(mirror(second), rank)
    if rank is None:
        raise ArgumentError(
            f"the data have {d} coordinates, and a full covariance is formed up to {DENSE_LIMIT}: give rank"
        )
    return mean, krylov(points, mean, rank, scale)
