"""Moments for a Gaussian late start: what they cost, and the two ways to get them.

Noised data have mean ``θ μ`` and covariance ``θ² Σ + (1 − θ²) I``, so one fit to the clean data serves every start; in
variance-exploding coordinates that is ``N(μ, Σ + σ² I)`` and :class:`~farfield.sampling.LateStart` needs nothing else. The
source noises each image once and fits the result at every start: :func:`noised_moments`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics import streams

Backend = Literal["full", "low_rank", "dct"]

#: Above so many bytes of covariance a full fit is refused unless more is allowed.
MEMORY = 2 * 1024**3
_BLOCK = 1024


def moments_memory(dim: int, backend: Backend = "full", rank: int = 64) -> int:
    """Bytes that the fitted covariance takes in float32, mean included.

    Args:
        dim: number of coordinates D.
        backend: ``"full"`` (D², 2.5 MB for 28×28, 37.7 MB for 32×32×3, 604 MB for 64×64×3, 154.6 GB for 256×256×3),
            ``"low_rank"`` (D × rank) or ``"dct"`` (D).
        rank: of the low-rank covariance.

    Raises:
        ArgumentError: for another backend, or numbers below 1.
    """
    if backend not in ("full", "low_rank", "dct"):
        raise ArgumentError(f"backend = {backend!r}; expected 'full', 'low_rank' or 'dct'")
    if dim < 1 or rank < 1:
        raise ArgumentError(f"dim = {dim}, rank = {rank}; expected both at least 1")
    columns = {"full": dim, "low_rank": min(rank, dim), "dct": 1}[backend]
    return 4 * dim * (columns + 1)


def late_gaussian(
    data: Tensor, backend: Backend = "full", rank: int = 64, ridge: float = 0.0, memory: int = MEMORY
) -> Gaussian:
    """The Gaussian of a late start, fitted to clean data (N, *event); the memory is checked before any is taken.

    Args:
        data: the images.
        backend: ``"full"``; ``"low_rank"``, the leading components and the mean of the other variances; or ``"dct"``, one
            variance for each frequency of the cosine transform.
        rank: of ``"low_rank"``.
        ridge: added to every eigenvalue. The source adds 0.1 at high resolution; Σ + σ² I needs none.
        memory: bytes that the covariance may take.

    Raises:
        ArgumentError: for an unknown backend, a negative ridge, or a covariance that would take more memory.
    """
    dim = math.prod(data.shape[1:])
    need = moments_memory(dim, backend, rank)
    if need > memory:
        raise ArgumentError(
            f"backend = {backend!r} takes {need / 1e9:.3g} GB for {dim} coordinates, more than {memory / 1e9:.3g} GB; "
            "use 'low_rank' or 'dct'"
        )
    if backend == "dct":
        return Gaussian.fit(data, basis="dct", jitter=ridge)
    return Gaussian.fit(data, rank=None if backend == "full" else min(rank, dim), jitter=ridge)


@dataclass(frozen=True)
class NoisedData:
    """Data with noise of one level added, image by image from streams of its own: blocks that can be read any number of times.

    Args:
        data: (N, *event).
        sigma: the level.
        seed: of the noise.
        copies: how often each image is noised.
    """

    data: Tensor
    sigma: float
    seed: int = 0
    copies: int = 1

    def __iter__(self) -> Iterator[Tensor]:
        """Blocks ``y + σ z``."""
        total = len(self.data) * self.copies
        for low in range(0, total, _BLOCK):
            ids = torch.arange(low, min(low + _BLOCK, total), device=self.data.device)
            y = self.data[ids % len(self.data)]
            yield y + self.sigma * streams.normal(self.seed, ids, y.shape[1:], purpose="late moments", dtype=y.dtype)


def noised_moments(
    data: Tensor,
    sigma: float,
    *,
    backend: Backend = "full",
    rank: int = 64,
    seed: int = 0,
    copies: int = 1,
    memory: int = MEMORY,
) -> Gaussian:
    """The Gaussian of data noised to a level (divisor M − 1), for :class:`~farfield.sampling.late_starts.NoisedStart`.

    Blocks are merged with their own means counted: centring each block on its own mean, as the source's program does at high
    resolution, would lose the scatter between blocks (Raya & Ambrogioni 2023, section 5).

    Args:
        data: (N, *event).
        sigma: the level, > 0.
        backend, rank, memory: as for :func:`late_gaussian`.
        seed: of the noise.
        copies: how often each image is noised; the source noises it once.

    Raises:
        ArgumentError: for a level that is not positive, or as :func:`late_gaussian`.
    """
    if not 0 < sigma < math.inf or copies < 1:
        raise ArgumentError(f"sigma = {sigma}, copies = {copies}; expected sigma > 0 and at least 1 copy")
    dim = math.prod(data.shape[1:])
    if moments_memory(dim, backend, rank) > memory:
        raise ArgumentError(f"backend = {backend!r} takes more than {memory / 1e9:.3g} GB for {dim} coordinates")
    noised = NoisedData(data, sigma, seed, copies)
    if backend == "dct":
        return Gaussian.fit(noised, basis="dct", correction=1)
    return Gaussian.fit(noised, rank=None if backend == "full" else min(rank, dim), correction=1)
