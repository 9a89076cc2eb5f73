"""A residual network for vectors: ``h ← h + W₂ silu(W₁ norm(h) + A e(c))``, e a smooth embedding of the noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farfield.errors import ArgumentError
from farfield.networks.dropout import SampleMasks, dropout, masks_of
from farfield.networks.structure import check_bounds


@dataclass(frozen=True)
class MLPConfig:
    """Sizes of an :class:`MLP`.

    Args:
        width: hidden units.
        depth: residual blocks.
        frequencies: number of Fourier frequencies of the noise embedding.
        dropout: probability inside the blocks, in training.
        label_dim: number of classes; 0 is unconditional.
        augment_dim: number of augmentation labels; 0 is none.
    """

    kind: Literal["mlp"] = "mlp"
    width: int = 128
    depth: int = 4
    frequencies: int = 16
    dropout: float = 0.0
    label_dim: int = 0
    augment_dim: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "width": (self.width, 1, 65_536),
            "depth": (self.depth, 0, 256),
            "frequencies": (self.frequencies, 1, 4096),
            "label_dim": (self.label_dim, 0, 1_000_000),
            "augment_dim": (self.augment_dim, 0, 1000),
        }
        check_bounds(bounds)
        if not 0 <= self.dropout < 1:
            raise ArgumentError(f"network.dropout = {self.dropout}; expected a probability in [0, 1)")


class ResidualBlock(nn.Module):
    """``h + W₂ silu(W₁ norm(h) + A emb)``; W₂ starts at zero, so a new block is the identity."""

    def __init__(self, width: int, dropout: float, number: int) -> None:
        super().__init__()
        self.number = number
        self.norm = nn.LayerNorm(width)
        self.linear0 = nn.Linear(width, width)
        self.affine = nn.Linear(width, width)
        self.linear1 = nn.Linear(width, width)
        self.dropout = dropout
        nn.init.zeros_(self.linear1.weight)
        nn.init.zeros_(self.linear1.bias)

    def forward(self, h: Tensor, emb: Tensor, masks: SampleMasks | None = None) -> Tensor:
        """(B, W) and (B or 1, W) to (B, W); ``masks`` as for :func:`farfield.networks.dropout.dropout`."""
        y = F.silu(self.linear0(self.norm(h)) + self.affine(emb))
        return h + self.linear1(dropout(y, self.dropout, self.training, masks, self.number))


class MLP(nn.Module):
    """``F(x, c_noise)`` for events of any shape, taken as vectors: (B, *event) to (B, *event).

    Args:
        config: the sizes.
        event_shape: the shape of one sample.
        out_channels: size of the output's first axis, by default that of the input.
    """

    frequencies: Tensor

    def __init__(self, config: MLPConfig, event_shape: tuple[int, ...], out_channels: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.out_shape = (out_channels or event_shape[0], *event_shape[1:])
        dim, width = math.prod(event_shape), config.width
        # c = ln(σ)/4 spans about three units from σ = 0.002 to 80: an eighth of a period to four periods a unit.
        ramp = torch.linspace(math.log(0.125), math.log(4.0), config.frequencies)
        self.register_buffer("frequencies", 2 * math.pi * ramp.exp())
        self.map_noise = nn.Linear(2 * config.frequencies, width)
        self.map_label = nn.Linear(config.label_dim, width, bias=False) if config.label_dim else None
        self.map_augment = nn.Linear(config.augment_dim, width, bias=False) if config.augment_dim else None
        self.map_layer = nn.Linear(width, width)
        self.first = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, config.dropout, k) for k in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, math.prod(self.out_shape))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
        dropout_seed: Tensor | None = None,
    ) -> Tensor:
        """The raw network; arguments as for :meth:`SongUNet.forward`, ``x`` (B, *event)."""
        masks = masks_of(dropout_seed, len(self.blocks), self.training, self.config.dropout)
        angle = torch.outer(c_noise, self.frequencies)
        e = self.map_noise(torch.cat((angle.sin(), angle.cos()), dim=1).to(self.map_noise.weight.dtype))
        if self.map_label is not None and labels is not None:
            e = e + self.map_label(labels * math.sqrt(self.config.label_dim))
        if self.map_augment is not None and augment is not None:
            e = e + self.map_augment(augment)
        emb = F.silu(self.map_layer(F.silu(e)))
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb, masks)
        return self.last(F.silu(self.norm(h))).view(len(x), *self.out_shape)
