"""Batches of a few small samples, filled up so that a sample is the same to the bit whatever its batch.

Convolutions and matrix products take other kernels, with other last bits, for a handful of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Fewest rows of a batch, and the largest number of coordinates of a sample for which that is held.
MIN_ROWS = 16
SMALL = 4096


def fill(rows: int, dim: int) -> int:
    """How many rows a batch of ``rows`` samples of ``dim`` coordinates is computed with."""
    return MIN_ROWS if rows < MIN_ROWS and dim <= SMALL else rows


def filled(rows: Tensor, dim: int) -> Tensor:
    """Row numbers (n,), n ≥ 1, the last one repeated until there are enough."""
    extra = fill(len(rows), dim) - len(rows)
    return rows if not extra else torch.cat((rows, rows[-1:].expand(extra)))
