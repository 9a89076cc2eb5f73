"""Random numbers addressed by counter, so that a draw depends on *what* it is for and not on *when* it is made.

A stream is named by ``(seed, purpose)``; inside it, sample ``i`` at step ``k`` owns its own block of numbers. Sample 17 of
seed 7 is the same tensor in a batch of 256, in a batch of 1, on any number of processes and after any interruption.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"), evaluated
for whole tensors at once. Uniforms carry 53 bits and normals are made in float64 by the Box-Muller transform before they
are rounded to the type asked for, so that the last bit of a vectorised ``log`` or ``cos`` does not show.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def philox4x32(
    counter: Sequence[Tensor], key: tuple[int, int], rounds: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32: four 32-bit words of a counter to four random 32-bit words, held in int64 tensors.

    Args:
        counter: four broadcastable int64 tensors with values in [0, 2³²).
        key: two integers in [0, 2³²).
        rounds: 10 in the published generator.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # The 64-bit product wraps around in int64; its bits are those of the unsigned product all the same.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def derive(seed: int, *names: object) -> int:
    """A 64-bit integer from a seed and any names: the key of a stream, or the seed of a ``torch.Generator``."""
    text = repr((int(seed), *map(str, names))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _words(seed: int, purpose: str, index: Tensor, count: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words for each of ``count`` blocks of each sample: tensors (B, count)."""
    key = derive(seed, purpose)
    index = index.to(torch.int64).reshape(-1, 1)
    block = torch.arange(count, device=index.device, dtype=torch.int64).reshape(1, -1)
    counter = (block & _MASK, index & _MASK, (index >> 32) & _MASK, torch.full_like(block, step & _MASK))
    return philox4x32(counter, (key & _MASK, key >> 32))


def _unit(high: Tensor, low: Tensor) -> Tensor:
    """Two 32-bit words to a float64 in the open interval (0, 1): from 2⁻⁵⁴ to 1 − 2⁻⁵³."""
    # The largest of the 53-bit integers plus a half rounds up to 2⁵³, which would be 1; no other value is clamped.
    return (((high << 21 | low >> 11).to(torch.float64) + 0.5) * 2.0**-53).clamp_(max=1 - 2.0**-53)


def _as_index(index: Tensor | Sequence[int] | range, device: torch.device | str | None) -> Tensor:
    return torch.as_tensor(index if isinstance(index, Tensor) else list(index), dtype=torch.int64, device=device)


def uniform(
    seed: int,
    index: Tensor | Sequence[int] | range,
    shape: Sequence[int] = (),
    *,
    purpose: str = "uniform",
    step: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1), one independent block for each sample: (B, *shape).

    Args:
        seed: the user's seed.
        index: (B,) the samples' global numbers, ≥ 0.
        shape: the shape of one sample's block.
        purpose: names the stream; different purposes are independent.
        step: a further address within the sample, e.g. the number of the solver step, in [0, 2³²).
        dtype: floating type of the result.
        device: where to make the numbers; by default where ``index`` is.
    """
    ids = _as_index(index, device)
    size = math.prod(shape)
    w0, w1, w2, w3 = _words(seed, purpose, ids, (size + 1) // 2, step)
    pair = torch.stack((_unit(w0, w1), _unit(w2, w3)), dim=-1).flatten(1)[:, :size]
    # Rounding to a narrower type may reach 1; the interval is half-open.
    return pair.to(dtype).clamp_(max=1 - torch.finfo(dtype).eps / 2).reshape(len(ids), *shape)


def normal(
    seed: int,
    index: Tensor | Sequence[int] | range,
    shape: Sequence[int] = (),
    *,
    purpose: str = "normal",
    step: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal numbers, one independent block for each sample: (B, *shape). Arguments as for :func:`uniform`."""
    ids = _as_index(index, device)
    size = math.prod(shape)
    w0, w1, w2, w3 = _words(seed, purpose, ids, (size + 1) // 2, step)
    radius = torch.sqrt(-2 * torch.log(_unit(w0, w1)))
    angle = 2 * math.pi * _unit(w2, w3)
    pair = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(1)[:, :size]
    return pair.to(dtype).reshape(len(ids), *shape)


def permutation(seed: int, n: int, *, purpose: str = "order", epoch: int = 0) -> Tensor:
    """A random order of ``range(n)`` that depends on seed, purpose and epoch alone: (n,) int64 on the CPU."""
    generator = torch.Generator().manual_seed(derive(seed, purpose, epoch) >> 1)
    return torch.randperm(n, generator=generator)
