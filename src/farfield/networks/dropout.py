"""Dropout (Srivastava et al. 2014) whose mask belongs to the sample: batch size and number of processes do not change it.

Element e of sample b in layer k is kept if the 32-bit word ``w(2w + 1) mod 2³²``, ``w = a E(e) + c``, is below
``(1 − p) 2³²``. E is a fixed bijective hash of the element's number; a (odd) and c are 32 bits each, two hashes of
(seed of b, k). The word is uniform because c is, two elements or two samples differ in a random multiple, and the
quadratic permutation (Rivest et al. 1998, RC6) breaks what is left of the linear law. Made in place for the whole batch
by five integer operations, it costs about as much as drawing the mask from a generator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from farfield.errors import ArgumentError

_MASK = 0xFFFFFFFF


def _signed(words: Tensor) -> Tensor:
    """32-bit words held in int64 as int32, shifted by 2³¹ so that their order stays."""
    return (words - 2**31).to(torch.int32)


def _scramble(x: Tensor) -> Tensor:
    """A bijection of 32-bit words, held in int64, that leaves no trace of their order.

    Two multiplications between xors with shifts, as in MurmurHash. The factors are below 2³¹, so that no product
    overflows: compiled code may take the bits of a signed overflow for anything.
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x46AC12F5) & _MASK
    return x ^ (x >> 16)


def _hash(seed: Tensor, layer: Tensor, salt: int) -> Tensor:
    """A 32-bit word for each seed (B, 1) of 64 bits and each layer (1, K): (B, K), held in int64."""
    word = _scramble((seed & _MASK) ^ salt)
    word = _scramble(word ^ ((seed >> 32) & _MASK))
    return _scramble((word + layer * 0x9E3779B1) & _MASK)


class SampleMasks:
    """The dropout masks of one batch in all layers of a network.

    Args:
        seed: (B,) int64, one number for each sample; equal numbers give equal masks.
        layers: how many layers will ask for a mask.

    Raises:
        ArgumentError: if ``seed`` is not a vector of int64.
    """

    def __init__(self, seed: Tensor, layers: int) -> None:
        if seed.ndim != 1 or seed.dtype != torch.int64:
            raise ArgumentError(
                f"dropout_seed is {seed.dtype} of shape {tuple(seed.shape)}; expected int64, one number a sample"
            )
        seed = seed[:, None]
        layer = torch.arange(1, layers + 1, dtype=torch.int64, device=seed.device)[None]
        self._factor = _signed(_hash(seed, layer, 0x64726F70) | 1)  # (B, layers)
        self._shift = _signed(_hash(seed, layer, 0x2F6D61B5))
        self._elements: dict[tuple[object, ...], Tensor] = {}

    def _hashes(self, x: Tensor) -> Tensor:
        """E of the elements of one sample, numbered by channel, row and column, laid out in memory like ``x``."""
        last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        key = (*x.shape[1:], last)
        if key not in self._elements:
            number = torch.arange(x[:1].numel(), dtype=torch.int64, device=x.device)
            table = _signed(_scramble(number)).view(1, *x.shape[1:])
            self._elements[key] = table.contiguous(memory_format=torch.channels_last) if last else table
        return self._elements[key]

    def keep(self, x: Tensor, layer: int, p: float) -> Tensor:
        """Which elements of ``x`` (B, …) stay, each with probability 1 − p: bool, the shape of ``x``."""
        if x.shape[0] != len(self._factor):
            raise ArgumentError(f"dropout_seed has {len(self._factor)} numbers; expected {x.shape[0]}, one a sample")
        shape = (-1, *(1,) * (x.ndim - 1))
        word = self._hashes(x) * self._factor[:, layer].view(shape)
        word += self._shift[:, layer].view(shape)
        word *= word.add(word).add_(1)
        # Signed words start at −2³¹; the largest threshold that int32 holds keeps all but one of 2³².
        return word < min(round((1 - p) * 2**32) - 2**31, 2**31 - 1)


def masks_of(seed: Tensor | None, layers: int, training: bool, *rates: float) -> SampleMasks | None:
    """The masks of a batch that is named by ``seed``, or None where nothing is dropped or torch's generator decides."""
    return SampleMasks(seed, layers) if seed is not None and training and max(rates) > 0 else None


def dropout(x: Tensor, p: float, training: bool, masks: SampleMasks | None, layer: int) -> Tensor:
    """Zero each element with probability p and divide the rest by 1 − p, in training only.

    Args:
        x: (B, …).
        p: probability in [0, 1).
        training: whether to drop at all; else, and for p = 0, ``x`` is returned.
        masks: the samples' own masks, or None for masks from torch's generator.
        layer: the number of this layer in its network, for ``masks``.
    """
    if not training or p == 0:
        return x
    if masks is None:
        return F.dropout(x, p, True)
    return x * masks.keep(x, layer, p) * (1 / (1 - p))


def hide_labels(labels: Tensor, p: float, training: bool, batch: int, masks: SampleMasks | None, layer: int) -> Tensor:
    """In training, zero each sample's label row with probability p; as :func:`dropout`, without the division.

    Args:
        labels: (B or 1, label_dim).
        p: probability in [0, 1].
        training: whether to hide anything.
        batch: B.
        masks: the samples' own masks, or None for torch's generator.
        layer: the number that stands for the labels in ``masks``.
    """
    if not training or p == 0:
        return labels
    rows = labels[:1, :1].expand(batch, 1)
    keep = torch.rand(rows.shape, device=rows.device) >= p if masks is None else masks.keep(rows, layer, p)
    return labels * keep
