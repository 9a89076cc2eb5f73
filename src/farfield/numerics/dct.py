"""The orthonormal type-II discrete cosine transform, as separable matrix products.

``C[k, n] = s_k cos(π k (2n + 1) / 2N)`` with ``s_0 = sqrt(1/N)`` and ``s_k = sqrt(2/N)``, so that ``C Cᵀ = I`` (Ahmed,
Natarajan & Rao 1974). For the sizes images have, two small matrix products beat a fast transform and run anywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II matrix (n, n) in float64; row k is frequency k."""
    frequency = torch.arange(n, dtype=torch.float64).unsqueeze(1)
    place = torch.arange(n, dtype=torch.float64).unsqueeze(0)
    matrix = torch.cos(math.pi * frequency * (2 * place + 1) / (2 * n)) * math.sqrt(2 / n)
    matrix[0] = math.sqrt(1 / n)
    return matrix


def layout(event_shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """(channels, spatial axes) of an event shape: with three axes or more the first is the channel axis."""
    if len(event_shape) >= 3:
        return event_shape[0], tuple(event_shape[1:])
    return 1, tuple(event_shape)


def apply_axes(y: Tensor, matrices: list[Tensor], first_axis: int) -> Tensor:
    """Multiply axis ``first_axis + i`` of ``y`` by ``matrices[i]``, in turn."""
    for i, matrix in enumerate(matrices):
        axis = first_axis + i
        if axis == y.ndim - 1:
            y = y @ matrix.T
        elif axis == y.ndim - 2:
            y = matrix @ y
        else:
            y = (y.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return y
