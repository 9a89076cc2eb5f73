"""SongUNet, the U-Net of DDPM++ and NCSN++, with the parameter names and shapes of the published EDM networks.

Written from the description in Song et al. 2021 and Karras, Aittala, Aila, Laine 2022 (appendix F.1, table 7): residual
blocks with group normalisation, the noise level added to every channel, attention at chosen resolutions, resampling
inside the blocks, and a skip connection from every encoder layer to the decoder. NCSN++ adds Fourier features of the
noise level, a smoother resampling filter and a second, linear path from the image into every encoder resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farfield.errors import unknown_name
from farfield.networks.dropout import SampleMasks, hide_labels, masks_of
from farfield.networks.layers import (
    FourierEmbedding,
    ResampleConv,
    check_taps,
    group_norm,
    positional_embedding,
    xavier_,
)
from farfield.networks.structure import check_bounds
from farfield.networks.unet_block import BlockStyle, UNetBlock
from farfield.networks.unet_config import UNetConfig, check_images

_EPS = 1e-6
#: The last layer of each branch starts at almost nothing: the network starts as its skips.
_GAINS = {"conv1": 1e-5, "proj": 1e-5, "qkv": math.sqrt(0.2)}


@dataclass(frozen=True)
class SongUNetConfig(UNetConfig):
    """Sizes of a :class:`SongUNet`; names and defaults are those of the published code.

    DDPM++ is the default; NCSN++ is ``embedding_type = "fourier"``, ``encoder_type = "residual"``,
    ``channel_mult_noise = 2`` and ``resample_filter = (1, 3, 3, 1)``.

    Args:
        model_channels: width of the first layer.
        channel_mult: width of each resolution, from fine to coarse, in multiples of ``model_channels``.
        channel_mult_emb: width of the noise embedding after its layers, in the same multiples.
        num_blocks: residual blocks at each resolution (one more in the decoder).
        attn_resolutions: resolutions whose blocks attend; the coarsest always does, once.
        dropout: probability inside the residual blocks, in training.
        label_dim: number of classes; 0 is unconditional.
        augment_dim: number of augmentation labels; 0 is none.
        label_dropout: probability that a sample's label is hidden, in training.
        embedding_type: of the noise level, ``positional`` or ``fourier`` (random frequencies).
        channel_mult_noise: width of the noise embedding before its layers, in the same multiples.
        encoder_type: ``standard``; ``skip`` adds the image, downsampled, at each resolution; ``residual`` adds a
            chain of convolutions of it.
        decoder_type: ``standard``; ``skip`` sums an image from each resolution.
        resample_filter: taps of the resampling filter.
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
    label_dropout: float = 0.0
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[float, ...] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds({"channel_mult_noise": (self.channel_mult_noise, 1, 64)})
        check_taps("network.resample_filter", self.resample_filter)
        choices = {
            "embedding_type": ("positional", "fourier"),
            "encoder_type": ("standard", "skip", "residual"),
            "decoder_type": ("standard", "skip"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown_name(f"network.{name}", getattr(self, name), known)


def _init(layer: nn.Linear | nn.Conv2d | ResampleConv, name: str) -> None:
    xavier_(layer, _GAINS.get(name, 1.0))


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
        check_images(config.kind, event_shape, levels)
        self.config = config
        channels, resolution = event_shape[0], event_shape[1]
        out_channels = out_channels or channels
        width, emb = config.model_channels, config.model_channels * config.channel_mult_emb
        taps = config.resample_filter
        self.noise_channels = width * config.channel_mult_noise
        self.map_noise = FourierEmbedding(self.noise_channels) if config.embedding_type == "fourier" else None
        self.map_label = nn.Linear(config.label_dim, self.noise_channels) if config.label_dim else None
        self.map_augment = (
            nn.Linear(config.augment_dim, self.noise_channels, bias=False) if config.augment_dim else None
        )
        self.map_layer0 = nn.Linear(self.noise_channels, emb)
        self.map_layer1 = nn.Linear(emb, emb)
        style = BlockStyle(emb, config.dropout, math.sqrt(0.5), _EPS, _init, resample_proj=True, num_heads=1, taps=taps)
        self.blocks = 0

        def block(
            c_in: int, c_out: int, resample: Literal["up", "down"] | None = None, attention: bool = False
        ) -> UNetBlock:
            self.blocks += 1
            return UNetBlock(style, c_in, c_out, self.blocks - 1, resample, attention)

        self.enc = nn.ModuleDict()
        skips: list[int] = []
        current, aux = width, channels
        for level, mult in enumerate(config.channel_mult):
            r = resolution >> level
            if level == 0:
                self.enc[f"{r}x{r}_conv"] = nn.Conv2d(channels, current, 3, padding=1)
            else:
                self.enc[f"{r}x{r}_down"] = block(current, current, "down")
                if config.encoder_type == "skip":
                    self.enc[f"{r}x{r}_aux_down"] = ResampleConv(aux, aux, 0, "down", taps)
                    self.enc[f"{r}x{r}_aux_skip"] = nn.Conv2d(aux, current, 1)
                elif config.encoder_type == "residual":
                    self.enc[f"{r}x{r}_aux_residual"] = ResampleConv(aux, current, 3, "down", taps, convolve_first=True)
                    aux = current
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
            if config.decoder_type == "skip" or level == 0:
                if config.decoder_type == "skip" and level < levels - 1:
                    self.dec[f"{r}x{r}_aux_up"] = ResampleConv(out_channels, out_channels, 0, "up", taps)
                self.dec[f"{r}x{r}_aux_norm"] = group_norm(current, _EPS)
                self.dec[f"{r}x{r}_aux_conv"] = nn.Conv2d(current, out_channels, 3, padding=1)
        for layer in (self.map_label, self.map_augment, self.map_layer0, self.map_layer1):
            if layer is not None:
                xavier_(layer)
        for name, module in (*self.enc.items(), *self.dec.items()):
            if isinstance(module, nn.Conv2d | ResampleConv):
                xavier_(module, 1e-5 if name.endswith("aux_conv") else 1.0)

    def embed(
        self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None, batch: int, masks: SampleMasks | None
    ) -> Tensor:
        """The noise embedding (B or 1, E), with labels and augmentation labels where the network has them."""
        c = self.config
        both = self.map_noise(c_noise) if self.map_noise else positional_embedding(c_noise, self.noise_channels)
        cos, sin = both.to(self.map_layer0.weight.dtype).chunk(2, dim=1)
        e = torch.cat((sin, cos), dim=1)  # this network has the sines first
        if self.map_label is not None and labels is not None:
            labels = hide_labels(labels, c.label_dropout, self.training, batch, masks, self.blocks)
            e = e + self.map_label(labels * math.sqrt(c.label_dim))
        if self.map_augment is not None and augment is not None:
            e = e + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(e))))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
        dropout_seed: Tensor | None = None,
    ) -> Tensor:
        """The raw network.

        Args:
            x: (B, C, R, R).
            c_noise: (B,) or (1,).
            labels: (B or 1, label_dim) one-hot rows, zeros for "no class".
            augment: (B or 1, augment_dim).
            dropout_seed: (B,) int64, numbers that fix the dropout masks of each sample (:mod:`.dropout`); by default
                the masks come from torch's generator.
        """
        c = self.config
        masks = masks_of(dropout_seed, self.blocks + 1, self.training, c.dropout, c.label_dropout)
        emb = self.embed(c_noise, labels, augment, len(x), masks)
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                aux = layer(aux)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(aux)
            elif name.endswith("aux_residual"):
                x = skips[-1] = aux = (x + layer(aux)) / math.sqrt(2)
            else:
                x = layer(x, emb, masks) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        out: Tensor | None = None
        head = x
        for name, layer in self.dec.items():
            if isinstance(layer, UNetBlock):
                x = layer(torch.cat((x, skips.pop()), dim=1) if "_block" in name else x, emb, masks)
            elif name.endswith("aux_up"):
                out = layer(out)
            elif name.endswith("aux_norm"):
                head = F.silu(layer(x))
            else:
                out = layer(head) if out is None else out + layer(head)
        assert out is not None
        return out
