"""The residual block that both published U-Nets are made of, and what differs between them as a :class:`BlockStyle`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from farfield.errors import ArgumentError
from farfield.networks.dropout import SampleMasks, dropout
from farfield.networks.layers import ResampleConv, attend, group_norm


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of one network have in common.

    Args:
        emb_channels: width of the noise embedding.
        dropout: probability, in training.
        skip_scale: factor of the sum with the skip connection, and again of the sum with the attention.
        eps: of the group normalisations.
        init: gives a fresh layer its values; called with the layer and its name in the block.
        adaptive: the embedding scales and shifts the normalised activations; else it is added before them.
        resample_proj: a resampling skip connection has a 1×1 convolution even where the width stays.
        num_heads: attention heads; None takes ``C // channels_per_head``, which may be none.
        channels_per_head: see ``num_heads``.
        taps: the resampling filter.
    """

    emb_channels: int
    dropout: float
    skip_scale: float
    eps: float
    init: Callable[[nn.Linear | nn.Conv2d | ResampleConv, str], None]
    adaptive: bool = False
    resample_proj: bool = False
    num_heads: int | None = None
    channels_per_head: int = 64
    taps: tuple[float, ...] = (1, 1)


class UNetBlock(nn.Module):
    """``h = conv1(drop(silu(norm1(conv0(silu(norm0(x))) + affine(emb)))))``, g(h + skip(x)), then attention.

    With an adaptive scale, ``h = conv1(drop(silu(t + norm1(conv0(…))·(1 + s))))`` and ``(s, t) = affine(emb)``. Where
    the block attends, ``h = g(proj(attend(qkv(norm2(h)))) + h)``. g is the style's ``skip_scale``.

    Args:
        style: what the blocks of the network share.
        in_channels, out_channels: widths.
        number: of this block in its network, which tells its dropout masks from those of the others.
        resample: ``"up"``, ``"down"`` or None.
        attention: whether to attend.

    Raises:
        ArgumentError: widths that cannot be normalised, or divided among the heads.
    """

    def __init__(
        self,
        style: BlockStyle,
        in_channels: int,
        out_channels: int,
        number: int,
        resample: Literal["up", "down"] | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.number, self.dropout, self.adaptive, self.gain = number, style.dropout, style.adaptive, style.skip_scale
        self.norm0 = group_norm(in_channels, style.eps)
        self.conv0: nn.Module = (
            ResampleConv(in_channels, out_channels, 3, resample, style.taps)
            if resample
            else nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.affine = nn.Linear(style.emb_channels, out_channels * (2 if style.adaptive else 1))
        self.norm1 = group_norm(out_channels, style.eps)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip: nn.Module | None = None
        if resample:
            kernel = 1 if style.resample_proj or in_channels != out_channels else 0
            self.skip = ResampleConv(in_channels, out_channels, kernel, resample, style.taps)
        elif in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1)
        heads = out_channels // style.channels_per_head if style.num_heads is None else style.num_heads
        self.heads = heads if attention else 0
        if self.heads:
            if out_channels % self.heads:
                raise ArgumentError(f"{out_channels} channels cannot be divided among {self.heads} attention heads")
            self.norm2 = group_norm(out_channels, style.eps)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = nn.Conv2d(out_channels, out_channels, 1)
        for name, layer in self.named_children():
            if isinstance(layer, nn.Linear | nn.Conv2d | ResampleConv):
                style.init(layer, name)

    def forward(self, x: Tensor, emb: Tensor, masks: SampleMasks | None = None) -> Tensor:
        """(B, C_in, H, W) and (B or 1, E) to (B, C_out, H', W'); ``masks`` as for :func:`dropout`."""
        h = self.conv0(F.silu(self.norm0(x)))
        told = self.affine(emb)[:, :, None, None]
        if self.adaptive:
            scale, shift = told.chunk(2, dim=1)
            h = F.silu(shift + self.norm1(h) * (1 + scale))
        else:
            h = F.silu(self.norm1(h + told))
        h = self.conv1(dropout(h, self.dropout, self.training, masks, self.number))
        h = (h + (x if self.skip is None else self.skip(x))) * self.gain
        if self.heads:
            h = (self.proj(attend(self.qkv(self.norm2(h)), self.heads)) + h) * self.gain
        return h
