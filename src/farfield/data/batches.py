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


@lru_cache(maxsize=4)
def _epoch(n: int, seed: int, epoch: int) -> Tensor:
    return streams.permutation(seed, n, purpose="batches", epoch=epoch)


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
