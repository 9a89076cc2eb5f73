"""A learned weighting of noise levels: ``L/exp(u(σ)) + u(σ)``, whose minimum over u is ``exp(u) = E[L | σ]``.

(Karras, Aittala, Lehtinen, Hellsten, Aila, Laine 2024, "Analyzing and improving the training dynamics of diffusion
models"; after Kendall, Gal, Cipolla 2018.) Every noise level then contributes a loss of one, whatever
its λ, and the optimum of the denoiser at each σ is what it was: u depends on σ alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from farfield.errors import ArgumentError
from farfield.numerics import streams


class Uncertainty(nn.Module):
    """``u(σ)``: one linear layer on Fourier features of ``ln(σ)/4``, zero at the start.

    The features are ``sqrt(2/C) cos(2π(f_k ln(σ)/4 + φ_k))`` with f standard normal and φ uniform; both are the same for
    every model, so that they need not be stored and making one draws no random number of the caller's.

    Args:
        channels: C, the number of features, ≥ 1.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        if channels < 1:
            raise ArgumentError(f"channels = {channels}; expected at least 1")
        index = range(channels)
        self.register_buffer("frequencies", streams.normal(0, index, purpose="uncertainty"), persistent=False)
        self.register_buffer("phases", streams.uniform(0, index, purpose="uncertainty"), persistent=False)
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, sigma: Tensor) -> Tensor:
        """``u(σ)``, (B,), for noise levels σ > 0 (B,)."""
        # Outside autocast: bfloat16 would round ln σ, and with it the weight of a level, to three digits.
        with torch.autocast(sigma.device.type, enabled=False):
            angle = torch.outer(sigma.to(self.weight.dtype).log() / 4, self.frequencies) + self.phases
            features = torch.cos(2 * math.pi * angle) * math.sqrt(2 / len(self.phases))
            return features @ self.weight + self.bias
