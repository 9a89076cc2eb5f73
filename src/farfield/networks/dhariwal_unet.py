"""DhariwalUNet, the U-Net of ADM (Dhariwal & Nichol 2021), with the parameter names and shapes of the published EDM networks.

Against :class:`SongUNet`: the noise level scales and shifts the normalised activations, attention has one head for every
64 channels, the sums with the skip connections are not rescaled, and classes join the embedding after its second layer.
(Karras, Aittala, Aila, Laine 2022, appendix F.2, table 7.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farfield.networks.dropout import SampleMasks, hide_labels, masks_of
from farfield.networks.layers import ResampleConv, group_norm, kaiming_, positional_embedding
from farfield.networks.unet_block import BlockStyle, UNetBlock
from farfield.networks.unet_config import UNetConfig, check_images

_EPS = 1e-5
_GAIN = math.sqrt(1 / 3)


@dataclass(frozen=True)
class DhariwalUNetConfig(UNetConfig):
    """Sizes of a :class:`DhariwalUNet`; names and defaults are those of the published code.

    Args:
        model_channels: width that ``channel_mult`` multiplies, also of the noise embedding before its layers.
        channel_mult: width of each resolution, from fine to coarse, in multiples of ``model_channels``.
        channel_mult_emb: width of the noise embedding after its layers, in the same multiples.
        num_blocks: residual blocks at each resolution (one more in the decoder).
        attn_resolutions: resolutions whose blocks attend, if they have at least 64 channels; the coarsest always
            does, once.
        dropout: probability inside the residual blocks, in training.
        label_dim: number of classes; 0 is unconditional.
        augment_dim: number of augmentation labels; 0 is none.
        label_dropout: probability that a sample's label is hidden, in training.
    """

    kind: Literal["dhariwal_unet"] = "dhariwal_unet"
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.1
    label_dim: int = 0
    augment_dim: int = 0
    label_dropout: float = 0.0


def _init(layer: nn.Linear | nn.Conv2d | ResampleConv, name: str) -> None:
    # The last layer of each branch starts at zero: the network starts as its skips.
    kaiming_(layer, 0.0 if name in ("conv1", "proj", "out_conv") else _GAIN)


class DhariwalUNet(nn.Module):
    """``F(x, c_noise)``: (B, C, R, R) to (B, out_channels, R, R).

    Args:
        config: the sizes.
        event_shape: (channels, R, R); R must be divisible by 2 for each resolution below the first.
        out_channels: channels of the output, by default those of the input.
    """

    def __init__(
        self, config: DhariwalUNetConfig, event_shape: tuple[int, ...], out_channels: int | None = None
    ) -> None:
        super().__init__()
        levels = len(config.channel_mult)
        check_images(config.kind, event_shape, levels)
        self.config = config
        channels, resolution = event_shape[0], event_shape[1]
        width, emb = config.model_channels, config.model_channels * config.channel_mult_emb
        self.map_augment = nn.Linear(config.augment_dim, width, bias=False) if config.augment_dim else None
        self.map_layer0 = nn.Linear(width, emb)
        self.map_layer1 = nn.Linear(emb, emb)
        self.map_label = nn.Linear(config.label_dim, emb, bias=False) if config.label_dim else None
        style = BlockStyle(emb, config.dropout, 1.0, _EPS, _init, adaptive=True)
        self.blocks = 0

        def block(
            c_in: int, c_out: int, resample: Literal["up", "down"] | None = None, attention: bool = False
        ) -> UNetBlock:
            self.blocks += 1
            return UNetBlock(style, c_in, c_out, self.blocks - 1, resample, attention)

        self.enc = nn.ModuleDict()
        skips: list[int] = []
        current = width * config.channel_mult[0]
        for level, mult in enumerate(config.channel_mult):
            r = resolution >> level
            if level == 0:
                self.enc[f"{r}x{r}_conv"] = nn.Conv2d(channels, current, 3, padding=1)
            else:
                self.enc[f"{r}x{r}_down"] = block(current, current, "down")
            skips.append(current)
            for i in range(config.num_blocks):
                self.enc[f"{r}x{r}_block{i}"] = block(current, width * mult, None, r in config.attn_resolutions)
                current = width * mult
                skips.append(current)
        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            r = resolution >> level
            if level == levels - 1:
                self.dec[f"{r}x{r}_in0"] = block(current, current, None, True)
                self.dec[f"{r}x{r}_in1"] = block(current, current)
            else:
                self.dec[f"{r}x{r}_up"] = block(current, current, "up")
            for i in range(config.num_blocks + 1):
                attention = r in config.attn_resolutions
                self.dec[f"{r}x{r}_block{i}"] = block(current + skips.pop(), width * mult, None, attention)
                current = width * mult
        self.out_norm = group_norm(current, _EPS)
        self.out_conv = nn.Conv2d(current, out_channels or channels, 3, padding=1)
        for name, module in (*self.named_children(), *self.enc.items()):
            if isinstance(module, nn.Linear | nn.Conv2d):
                _init(module, name)
        if self.map_augment is not None:
            nn.init.zeros_(self.map_augment.weight)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)  # √(1/label_dim) of its fan times √label_dim

    def embed(
        self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None, batch: int, masks: SampleMasks | None
    ) -> Tensor:
        """The noise embedding (B or 1, E), with labels and augmentation labels where the network has them."""
        e = positional_embedding(c_noise, self.config.model_channels, endpoint=False).to(self.map_layer0.weight.dtype)
        if self.map_augment is not None and augment is not None:
            e = e + self.map_augment(augment)
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if self.map_label is not None and labels is not None:
            labels = hide_labels(labels, self.config.label_dropout, self.training, batch, masks, self.blocks)
            e = e + self.map_label(labels)
        return F.silu(e)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
        dropout_seed: Tensor | None = None,
    ) -> Tensor:
        """The raw network; arguments as for :meth:`SongUNet.forward`."""
        c = self.config
        masks = masks_of(dropout_seed, self.blocks + 1, self.training, c.dropout, c.label_dropout)
        emb = self.embed(c_noise, labels, augment, len(x), masks)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb, masks) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat((x, skips.pop()), dim=1) if "_block" in name else x, emb, masks)
        return self.out_conv(F.silu(self.out_norm(x)))
