"""Building blocks of the convolutional networks: resampling convolutions, attention, noise embeddings.

Everything is made of operations that have forward-mode and second derivatives, so that Jacobian products, divergences
and gradients of scores work through a network. Fused attention kernels have neither: such derivatives are taken under
``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``, as ``Denoiser.jvp`` does. Parameter names and shapes are those of
the published EDM networks (Karras, Aittala, Aila, Laine 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farfield.errors import ArgumentError


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation in ``min(32, C // 4)`` groups.

    Raises:
        ArgumentError: if the channels cannot be divided into that number of groups.
    """
    groups = min(32, channels // 4)
    if groups < 1 or channels % groups:
        raise ArgumentError(
            f"{channels} channels cannot be normalised in min(32, C // 4) = {groups} equal groups; "
            "choose model_channels and channel_mult so that every width is a multiple of 32, or of 4 and at most 128"
        )
    return nn.GroupNorm(groups, channels, eps=eps)


def xavier_(layer: nn.Linear | nn.Conv2d | ResampleConv, gain: float = 1.0) -> None:
    """Xavier-uniform weights times ``gain`` and zero biases, in place (Glorot & Bengio 2010)."""
    if layer.weight is not None:
        nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def kaiming_(layer: nn.Linear | nn.Conv2d | ResampleConv, gain: float = 1.0) -> None:
    """Weights and biases uniform on ±gain·√(3/fan_in), in place (He et al. 2015)."""
    if layer.weight is not None:
        bound = gain * math.sqrt(3 / layer.weight[0].numel())
        nn.init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            nn.init.uniform_(layer.bias, -bound, bound)


def check_taps(name: str, taps: Sequence[float]) -> None:
    """Raise ``ArgumentError`` unless ``taps`` is a filter that halves and doubles sizes: even length, non-zero sum."""
    if len(taps) % 2 or not 2 <= len(taps) <= 16 or not all(abs(t) <= 1e6 for t in taps) or abs(sum(taps)) < 1e-6:
        raise ArgumentError(f"{name} = {list(taps)}; expected an even number of taps, 2 to 16, whose sum is not 0")


class ResampleConv(nn.Module):
    """A depthwise resampling filter by a factor of two and a k×k convolution; ``kernel = 0`` only resamples.

    Args:
        in_channels, out_channels: widths; equal where ``kernel`` is 0.
        kernel: size of the convolution, odd, or 0 for none.
        direction: ``"up"`` or ``"down"``.
        taps: the one-dimensional filter; [1, 1] is the 2×2 mean down and repetition up.
        convolve_first: convolve at the full size, with the padding of both, and then filter down.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        direction: Literal["up", "down"],
        taps: Sequence[float] = (1, 1),
        convolve_first: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.direction, self.convolve_first = kernel, direction, convolve_first
        self.box = list(taps) == [1, 1]
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(out_channels)) if kernel else None
        line = torch.tensor(list(taps), dtype=torch.float32)
        self.register_buffer("resample_filter", (torch.outer(line, line) / line.sum() ** 2)[None, None])

    @property
    def padding(self) -> int:
        """What the filter needs at each border so that sizes halve or double exactly."""
        return (self.resample_filter.shape[-1] - 1) // 2

    def resample(self, x: Tensor, padding: int) -> Tensor:
        """The filter alone: (B, C, H, W) to (B, C, 2H, 2W) or (B, C, H/2, W/2)."""
        up = self.direction == "up"
        if self.box:  # the same numbers as below, without a depthwise convolution
            return x.repeat_interleave(2, -2).repeat_interleave(2, -1) if up else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        weight = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if up:
            return F.conv_transpose2d(x, 4 * weight, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, weight, stride=2, padding=padding, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Resample, then convolve; or the other way round, the bias last."""
        if self.weight is None:
            return self.resample(x, self.padding)
        if self.convolve_first:
            x = self.resample(F.conv2d(x, self.weight, padding=self.kernel // 2 + self.padding), 0)
            assert self.bias is not None
            return x + self.bias.to(x.dtype).view(-1, 1, 1)
        return F.conv2d(self.resample(x, self.padding), self.weight, self.bias, padding=self.kernel // 2)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention over all pixels.

    Args:
        qkv: (B, 3C, H, W); channel ``h·3C/heads + 3c + j`` is query (j = 0), key (1) or value (2) of head h.
        heads: number of heads.

    Returns:
        (B, C, H, W), channels ordered (head, c).
    """
    b, channels, height, width = qkv.shape
    # (B, heads, pixels, C/heads) for query, key and value; the fused kernels want the channels last.
    q, k, v = qkv.reshape(b, heads, channels // (3 * heads), 3, height * width).permute(3, 0, 1, 4, 2).unbind(0)
    if qkv.is_cuda:  # where the fused kernels take nothing else, and fall back to plain products in silence
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(-1, -2).reshape(b, channels // 3, height, width).contiguous()


def positional_embedding(c: Tensor, size: int, endpoint: bool = True) -> Tensor:
    """``[cos(c fᵢ), sin(c fᵢ)]`` with ``fᵢ = 10000^(−i/(n/2 − e))``, e = 1 with ``endpoint``: (B,) to (B, size)."""
    half = size // 2
    ramp = torch.arange(half, dtype=torch.float32, device=c.device) / max(half - (1 if endpoint else 0), 1)
    angle = torch.outer(c, (1e-4**ramp).to(c.dtype))
    return torch.cat((angle.cos(), angle.sin()), dim=1)


class FourierEmbedding(nn.Module):
    """``[cos(2π fᵢ c), sin(2π fᵢ c)]`` with frequencies ``fᵢ ~ N(0, scale²)`` drawn once (Tancik et al. 2020)."""

    freqs: Tensor

    def __init__(self, size: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(size // 2) * scale)

    def forward(self, c: Tensor) -> Tensor:
        """(B,) to (B, size)."""
        angle = torch.outer(c, 2 * math.pi * self.freqs.to(c.dtype))
        return torch.cat((angle.cos(), angle.sin()), dim=1)
