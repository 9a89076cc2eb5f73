"""The order in which training meets the data, as a function of (seed, step) alone.

The stream of samples is the concatenation of epochs, each a fresh permutation; step k takes the positions
k·B … (k+1)·B − 1 of the stream, across the border of an epoch where it falls inside. Nothing is carried from one step
to the next, so a run that resumes at step k sees exactly what the uninterrupted run would have seen.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics import streams


@lru_cache(maxsize=6)
def _epoch(n: int, seed: int, epoch: int, purpose: str = "batches") -> Tensor:
    return streams.permutation(seed, n, purpose=purpose, epoch=epoch)


def batch_indices(n: int, batch_size: int, step: int, seed: int = 0) -> Tensor:
    """The samples of one training step: (batch_size,) int64 in [0, n).

    Args:
        n: number of samples in the data set, ≥ 1.
        batch_size: samples a step, ≥ 1; may exceed ``n``.
        step: number of the step, from 0.
        seed: names the order.

    Raises:
        ArgumentError: for a count below 1 or a negative step.
    """
    for name, value, least in (("n", n, 1), ("batch_size", batch_size, 1), ("step", step, 0)):
        if value < least:
            raise ArgumentError(f"{name} = {value}; expected at least {least}")
    position, stop = step * batch_size, (step + 1) * batch_size
    pieces = []
    while position < stop:
        epoch, offset = divmod(position, n)
        take = min(stop - position, n - offset)
        pieces.append(_epoch(n, seed, epoch)[offset : offset + take])
        position += take
    return torch.cat(pieces)  # a copy: the cached permutation is never handed out


def first_places(rows: Tensor) -> Tensor:
    """Where the value of each entry of a list (B,) occurs first: (B,) int64."""
    values, inverse = torch.unique(rows, return_inverse=True)
    place = torch.arange(len(rows), device=rows.device)
    return torch.full_like(values, len(rows)).scatter_reduce_(0, inverse, place, "amin")[inverse]


def reference_indices(n: int, batch_rows: Tensor, count: int, step: int, seed: int = 0) -> Tensor:
    """A reference batch that contains the mini-batch: ``count`` distinct samples, all ``n`` of them if that is fewer.

    The others come from a shuffled stream of their own, of which step k reads on from position k·count, so that they
    depend on (seed, step) and the mini-batch alone. Given its rows in the mini-batch, every set of others is equally
    likely: targets over the reference are unbiased.

    Args:
        n: number of samples in the data set, ≥ 1.
        batch_rows: (B,) int64 in [0, n), on the CPU; a sample may occur twice.
        count: size of the reference, ≥ 1.
        step: number of the step, from 0.
        seed: names the order.

    Returns:
        int64: the distinct rows of the mini-batch in their order, then the others.

    Raises:
        ArgumentError: for a count below 1, a negative step, or a count that the mini-batch alone exceeds.
    """
    for name, value, least in (("n", n, 1), ("count", count, 1), ("step", step, 0)):
        if value < least:
            raise ArgumentError(f"{name} = {value}; expected at least {least}")
    own = batch_rows[first_places(batch_rows) == torch.arange(len(batch_rows))]
    if len(own) > count:
        raise ArgumentError(f"count = {count}; expected at least the {len(own)} samples of the mini-batch")
    taken = torch.zeros(n, dtype=torch.bool)
    taken[own] = True
    missing, position = min(count, n) - len(own), step * count
    pieces = [own]
    while missing > 0:
        epoch, offset = divmod(position, n)
        piece = _epoch(n, seed, epoch, "references")[offset : offset + count]
        position += len(piece)
        piece = piece[~taken[piece]][:missing]
        taken[piece] = True
        missing -= len(piece)
        pieces.append(piece)
    return torch.cat(pieces)
