"""How well the points of a data set determine its critical time, and what a model makes of the same variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from farfield.analysis.critical_field import AveragedField, noise_about
from farfield.analysis.critical_path import project
from farfield.analysis.critical_result import Crossing
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError

#: Parts of the data whose spread tells the error of their crossing.
_GROUPS = 8


def sampling_error(
    data: Tensor, crossing: Crossing, *, noise: int = 0, seed: int = 0, groups: int = _GROUPS, batch_size: int = 256
) -> float:
    """Standard error of a data set's crossing over its points, in σ: from how parts of the data differ at the crossing.

    Args:
        data: (N, *event), in no particular order.
        crossing: of the exact law of all of them.
        noise, seed: as it was found with.
        groups: parts, at least 2; of fewer points each is one.
        batch_size: states evaluated at once.
    """
    if groups < 2:
        raise ArgumentError(f"groups = {groups}; expected at least 2")
    groups = min(groups, len(data))
    if groups == 1:
        return 0.0
    values = [
        variance_along(Empirical(data[k::groups]), crossing, noise=noise, seed=seed, batch_size=batch_size)
        for k in range(groups)
    ]
    spread = torch.tensor(values, dtype=torch.float64)
    relative = float(spread.std() / spread.mean()) / math.sqrt(groups)
    return crossing.sigma * relative / max(abs(crossing.slope), 1e-6)


def variance_along(
    denoiser: Denoiser, crossing: Crossing, *, noise: int = 0, seed: int = 0, batch_size: int = 256
) -> float:
    """``vᵀ Cov(x₀|x) v`` of any denoiser at a crossing's centre, level and direction, averaged over its noise draws."""
    v = crossing.direction.unsqueeze(0)
    device = next((t.device for t in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
    z = noise_about(noise, denoiser.event_shape, seed, v.dtype, device)
    if z is not None:
        z = z - project(z, v.to(device))
    field = AveragedField(denoiser, crossing.sigma, z, batch_size=batch_size)
    x = crossing.centre.unsqueeze(0).to(device)
    moved = field.products_at(x, v.unsqueeze(0).to(x), field.transposed)[0, :, 0].double().mean(0)
    return float((moved * v[0].to(moved)).sum()) * crossing.sigma**2
