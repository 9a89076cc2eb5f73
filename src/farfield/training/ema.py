"""The exponential moving average of weights, its half-life counted in images (Karras et al. 2022, appendix F.2)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from farfield.training.config import EMAConfig


def ema_decay(config: EMAConfig, images: int, batch_size: int) -> float:
    """The factor by which the average is kept at one step.

    ``0.5^(batch / h)`` with the half-life ``h = min(half_life, ramp · images)`` in images.

    Args:
        config: half-life and ramp.
        images: images seen before the step.
        batch_size: images of the step.
    """
    half_life = config.half_life
    if config.ramp is not None:
        half_life = min(half_life, config.ramp * images)
    return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0


class EMA:
    """A copy of a model whose weights follow the original's.

    Args:
        model: the model that is trained.
        config: half-life and ramp.
    """

    def __init__(self, model: nn.Module, config: EMAConfig) -> None:
        self.config = config
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._source, self._buffers = model, list(model.buffers())
        self._average: list[Tensor] = list(self.model.parameters())

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Move the average towards the model's present weights; buffers are copied."""
        decay = ema_decay(self.config, images, batch_size)
        torch._foreach_lerp_(self._average, [p.detach() for p in self._source.parameters()], 1 - decay)
        for target, source in zip(self.model.buffers(), self._buffers, strict=True):
            target.copy_(source)
