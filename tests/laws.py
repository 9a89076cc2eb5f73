"""Small exact laws that several test files share, written out independently of the library's own classes."""

from __future__ import annotations

import torch
from torch import Tensor

from farfield.denoiser import FunctionDenoiser

#: The toy T1 of the geometry facts: three points in the plane.
T1 = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], dtype=torch.float64)


def points(data: Tensor) -> FunctionDenoiser:
    """The posterior mean of a few points, by the textbook formula."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        distance = (x[:, None] - data).square().flatten(2).sum(-1)
        return torch.softmax(-distance / (2 * sigma * sigma), dim=1) @ data.to(x)

    return FunctionDenoiser(denoise, tuple(data.shape[1:]))


def mixture(means: Tensor, variances: Tensor, weights: Tensor) -> FunctionDenoiser:
    """The posterior mean of a mixture of isotropic Gaussians: means (K, d), variances (K,), weights (K,)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        spread = variances + sigma * sigma
        distance = (x[:, None] - means).square().sum(-1)
        logits = weights.log() - distance / (2 * spread) - means.shape[1] / 2 * spread.log()
        own = means + (variances / spread)[:, None] * (x[:, None] - means)
        return (torch.softmax(logits, 1)[:, :, None] * own).sum(1)

    return FunctionDenoiser(denoise, (means.shape[1],))


def smooth_mixture() -> FunctionDenoiser:
    """Three overlapping components in the plane, gentle enough for order tests at moderate step counts."""
    return mixture(
        torch.tensor([[1.0, 0.0], [-0.5, 1.2], [-0.8, -1.0]], dtype=torch.float64),
        torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    )
