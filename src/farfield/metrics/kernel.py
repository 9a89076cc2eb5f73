"""The kernel distance (KID): an unbiased distance between two sets of features.

    MMD²(P, Q) = E k(x, x') + E k(y, y') − 2 E k(x, y),    k(x, y) = (x·y/d + 1)³

(Gretton et al. 2012, eq. 3; as a score of generative models with this kernel: Bińkowski et al. 2018). The kernel is a
polynomial, so the distance compares moments up to the third and nothing else:

    MMD² = 3/d |Δ E x|² + 3/d² |Δ E x⊗x|² + 1/d³ |Δ E x⊗x⊗x|².

Unlike the Fréchet distance its estimate has no bias at any number of samples, so figures of unlike numbers compare.

It is measured on blocks of each set, cut from random orders of it. Blocks of one order share no sample, so their
spread gives an honest standard error; the error divides by the number of such independent blocks and not by the number
of all, which can be drawn at will.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics import streams


@dataclass(frozen=True)
class KernelDistance:
    """An estimate of the kernel distance.

    Args:
        value: mean over the blocks; may fall below 0 by noise.
        standard_error: of the value, ≥ 0; see the head of this module.
        n_a, n_b: sizes of the sets.
        block: samples of each set in a block; ``blocks``, their number.
        seed: of the orders.
    """

    value: float
    standard_error: float
    n_a: int
    n_b: int
    block: int
    blocks: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def polynomial_mmd2(a: Tensor, b: Tensor) -> float:
    """The unbiased estimate of MMD² with the kernel ``(x·y/d + 1)³`` (Gretton et al. 2012, eq. 3).

    Args:
        a, b: (n, d) and (m, d), n, m ≥ 2; computed in float64, and with O(n m) memory.

    Raises:
        ArgumentError: for shapes that do not fit, or fewer than two rows.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ArgumentError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (n, d), (m, d), >= 2"
        )
    a, b = a.double(), b.double()

    def within(x: Tensor) -> Tensor:
        n = len(x)
        total = _kernel_sum(x, x) - (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
        return total / (n * (n - 1))

    return float(within(a) + within(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    """Σ k(x, y) over all pairs: of s = x·y/d + 1, the inner product of s² with s."""
    s = torch.addmm(torch.ones((), dtype=x.dtype, device=x.device), x, y.T, alpha=1 / x.shape[1]).flatten()
    return s.square() @ s


def kernel_distance(
    a: Tensor, b: Tensor, seed: int = 0, *, block: int | None = None, blocks: int = 100
) -> KernelDistance:
    """The kernel distance between two sets of features; see the head of this module.

    Args:
        a, b: (n, d) and (m, d).
        seed: of the orders ``streams.permutation(seed, n, purpose="kernel a" | "kernel b", epoch)``, each of which is
            cut into blocks.
        block: samples of each set in a block, from 2; by default 1,000, or a quarter of the smaller set if that is less.
        blocks: number of blocks, ≥ 2.

    Raises:
        ArgumentError: for shapes that do not fit or a number out of range.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ArgumentError(f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (n, d) and (m, d)")
    least = min(len(a), len(b))
    size = min(1000, max(2, least // 4)) if block is None else block
    if not 2 <= size <= least:
        raise ArgumentError(f"block = {size}; expected 2 to {least}, the size of the smaller set")
    if blocks < 2:
        raise ArgumentError(f"blocks = {blocks}; expected at least 2")
    values = torch.tensor(
        [
            polynomial_mmd2(a[_block(seed, "kernel a", k, len(a), size)], b[_block(seed, "kernel b", k, len(b), size)])
            for k in range(blocks)
        ],
        dtype=torch.float64,
    )
    independent = min(blocks, least // size)
    error = float(values.std()) / math.sqrt(independent)
    return KernelDistance(float(values.mean()), error, len(a), len(b), size, blocks, seed)


def _block(seed: int, purpose: str, k: int, n: int, size: int) -> Tensor:
    """The rows of block k: the orders follow each other, each cut into ⌊n/size⌋ blocks."""
    epoch, place = divmod(k, n // size)
    return streams.permutation(seed, n, purpose=purpose, epoch=epoch)[place * size : (place + 1) * size]
