"""What all denoising objectives share: ``E λ(σ) ‖D(y + σ z, σ) − target‖²``, with σ and z given from outside.

They differ in the law of the training noise levels and in the weight λ. The minimiser is the posterior mean
``E[y | x; σ]`` whichever they are, so long as no level is left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.processes.base import expand


class Objective(ABC):
    """A law of noise levels and a weight; subclasses write :meth:`sigma` and :meth:`weight`."""

    @abstractmethod
    def sigma(self, z: Tensor) -> Tensor:
        """Noise levels from standard normal numbers, (B,) to (B,) of the same type, on the same device."""

    def weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """``λ(σ) = 1/σ²``, the shape of σ."""
        return 1 / (sigma * sigma)

    def __call__(
        self,
        denoiser: Denoiser,
        images: Tensor,
        sigma: Tensor,
        noise: Tensor,
        sigma_data: float,
        target: Tensor | None = None,
        **condition: Any,
    ) -> Tensor:
        """The loss of each sample, (B,): the weighted square error, averaged over the coordinates.

        Args:
            denoiser: D(x, σ).
            images: clean samples y (B, *event).
            sigma: noise levels (B,).
            noise: standard normal numbers z, the shape of ``images``.
            sigma_data: σ_d of the weight.
            target: clean samples to regress on, the shape of ``images``; None is the images themselves (denoising
                score matching), and a stable target has the same expectation given the noisy sample.
            **condition: what the denoiser takes besides.
        """
        goal = images if target is None else target
        error = denoiser(images + expand(sigma, images) * noise, sigma, **condition) - goal
        return self.weight(sigma, sigma_data) * (error * error).flatten(1).mean(1)


def uniform(z: Tensor) -> Tensor:
    """Standard normal numbers as uniform ones in [0, 1], ``Φ(z)``, in float64."""
    return torch.special.ndtr(z.double())
