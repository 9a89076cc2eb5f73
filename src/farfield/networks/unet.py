"""The U-Net of the DDPM++ family with the parameter names and shapes of the published EDM networks.

Written from the description of SongUNet in Karras, Aittala, Aila, Laine 2022 (appendix F.1, table 7) and Song et al.
2021: residual blocks with group normalisation, the noise level added to every channel, attention at chosen
resolutions, nearest-neighbour and mean resampling inside the blocks, and a skip connection from every encoder layer
to the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farfield.errors import ArgumentError
from farfield.networks.layers import ResampleConv, attend, group_norm, positional_embedding, xavier_

_EPS = 1e-6
_GAIN = math.sqrt(0.5)


@dataclass(frozen=True)
class SongUNetConfig:
    """Sizes of a :class:`SongUNet`; the defaults are those of the published code.

    Args:
        model_channels: width of the first layer.
        channel_mult: width of each resolution, from fine to coarse, in multiples of ``model_channels``.
        channel_mult_emb: width of the noise embedding, in the same multiples.
        num_blocks: residual blocks at each resolution (one more in the decoder).
        attn_resolutions: resolutions whose blocks attend; the coarsest always does, once.
        dropout: probability inside the residual blocks, in training.
        label_dim: number of classes; 0 is unconditional.
        augment_dim: number of augmentation labels; 0 is none.
    """

    kind: Literal["song_unet"] = "song_unet"
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    label_dim: int = 0
    augment_dim: int = 0

    def __post_init__(self) -> None:
        # Upper bounds keep a hostile or mistyped model card from asking for an absurd network.
        bounds = {
            "model_channels": (self.model_channels, 4, 4096),
            "channel_mult_emb": (self.channel_mult_emb, 1, 64),
            "num_blocks": (self.num_blocks, 1, 64),
            "len(channel_mult)": (len(self.channel_mult), 1, 12),
            "label_dim": (self.label_dim, 0, 1_000_000),
            "augment_dim": (self.augment_dim, 0, 1000),
            "len(attn_resolutions)": (len(self.attn_resolutions), 0, 32),
        }
        bounds |= {f"channel_mult[{i}]": (m, 1, 64) for i, m in enumerate(self.channel_mult[:12])}
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise ArgumentError(f"network.{name} = {value}; expected a value from {low} to {high}")
        if self.model_channels % 4:
            raise ArgumentError(f"network.model_channels = {self.model_channels}; expected a multiple of 4")
        if not 0 <= self.dropout < 1:
            raise ArgumentError(f"network.dropout = {self.dropout}; expected a probability in [0, 1)")


class UNetBlock(nn.Module):
    """A residual block: ``h = conv1(drop(silu(norm1(conv0(silu(norm0(x))) + affine(emb)))))``.

    Then ``h = (h + skip(x))/√2`` and, with attention, ``h = (proj(attend(qkv(norm2(h)))) + h)/√2``.

    Args:
        in_channels, out_channels: widths.
        emb_channels: width of the noise embedding.
        resample: ``"up"``, ``"down"`` or None.
        attention: whether to attend (one head).
        dropout: probability, in training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        resample: str | None = None,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm0 = group_norm(in_channels, _EPS)
        self.conv0: nn.Module = (
            ResampleConv(in_channels, out_channels, 3, resample)
            if resample
            else nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.affine = nn.Linear(emb_channels, out_channels)
        self.norm1 = group_norm(out_channels, _EPS)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip: nn.Module | None = None
        if resample:
            self.skip = ResampleConv(in_channels, out_channels, 1, resample)
        elif in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1)
        self.attention = attention
        if attention:
            self.norm2 = group_norm(out_channels, _EPS)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = nn.Conv2d(out_channels, out_channels, 1)
        for name, layer in self.named_children():
            if isinstance(layer, nn.Linear | nn.Conv2d | ResampleConv):
                # The last layer of each branch starts at almost nothing: the network starts as its skips.
                xavier_(layer, {"conv1": 1e-5, "proj": 1e-5, "qkv": math.sqrt(0.2)}.get(name, 1.0))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C_in, H, W) and (B or 1, E) to (B, C_out, H', W')."""
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        h = (h + (x if self.skip is None else self.skip(x))) * _GAIN
        if self.attention:
            h = (self.proj(attend(self.qkv(self.norm2(h)), heads=1)) + h) * _GAIN
        return h


class SongUNet(nn.Module):
    """``F(x, c_noise)``: (B, C, R, R) to (B, out_channels, R, R).

    Args:
        config: the sizes.
        event_shape: (channels, R, R); R must be divisible by 2 for each resolution below the first.
        out_channels: channels of the output, by default those of the input.
    """

    def __init__(self, config: SongUNetConfig, event_shape: tuple[int, ...], out_channels: int | None = None) -> None:
        super().__init__()
        levels = len(config.channel_mult)
        if len(event_shape) != 3 or event_shape[1] != event_shape[2] or event_shape[1] % 2 ** (levels - 1):
            raise ArgumentError(
                f"a song_unet of {levels} resolutions takes (channels, R, R), R divisible by {2 ** (levels - 1)}; "
                f"got event_shape {event_shape}"
            )
        self.config = config
        channels, resolution = event_shape[0], event_shape[1]
        width, emb = config.model_channels, config.model_channels * config.channel_mult_emb
        self.map_label = nn.Linear(config.label_dim, width) if config.label_dim else None
        self.map_augment = nn.Linear(config.augment_dim, width, bias=False) if config.augment_dim else None
        self.map_layer0 = nn.Linear(width, emb)
        self.map_layer1 = nn.Linear(emb, emb)

        def block(c_in: int, c_out: int, resample: str | None = None, attention: bool = False) -> UNetBlock:
            return UNetBlock(c_in, c_out, emb, resample, attention, config.dropout)

        self.enc = nn.ModuleDict()
        skips: list[int] = []
        current = width
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
                attention = i == config.num_blocks and r in config.attn_resolutions
                self.dec[f"{r}x{r}_block{i}"] = block(current + skips.pop(), width * mult, None, attention)
                current = width * mult
        # The head's names and place in the decoder are the published ones; forward() runs it after the blocks.
        self.dec[f"{resolution}x{resolution}_aux_norm"] = group_norm(current, _EPS)
        self.dec[f"{resolution}x{resolution}_aux_conv"] = nn.Conv2d(current, out_channels or channels, 3, padding=1)
        for layer in (self.map_label, self.map_augment, self.map_layer0, self.map_layer1):
            if layer is not None:
                xavier_(layer)
        for name, module in (*self.enc.items(), *self.dec.items()):
            if isinstance(module, nn.Conv2d):
                xavier_(module, 1e-5 if name.endswith("aux_conv") else 1.0)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """The noise embedding (B or 1, E), with labels and augmentation labels where the network has them."""
        cos, sin = positional_embedding(c_noise, self.config.model_channels).chunk(2, dim=1)
        e = torch.cat((sin, cos), dim=1)  # this network has the sines first
        if self.map_label is not None and labels is not None:
            e = e + self.map_label(labels * math.sqrt(self.config.label_dim))
        if self.map_augment is not None and augment is not None:
            e = e + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(e))))

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """The raw network.

        Args:
            x: (B, C, R, R).
            c_noise: (B,) or (1,).
            labels: (B or 1, label_dim) one-hot rows, zeros for "no class".
            augment: (B or 1, augment_dim).
        """
        emb = self.embed(c_noise, labels, augment)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if isinstance(layer, UNetBlock):
                x = layer(torch.cat((x, skips.pop()), dim=1) if "_block" in name else x, emb)
            else:
                x = F.silu(layer(x)) if name.endswith("aux_norm") else layer(x)
        return x
