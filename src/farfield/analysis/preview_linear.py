"""The linear preview: what a seed's sample will look like, before the model is asked.

    x₀ = μ + U sqrt(λ/(σ_max² + λ)) Uᵀ (σ_max z − μ)

is the end of the Gaussian flow from the seed's own noise z (Wang & Vastola 2024, Eqs. 14-17). It costs two matrix products
and no evaluation, and it shows layout and colours; the rest is what the model knows beyond mean and covariance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics import streams


def linear_preview(
    gaussian: Gaussian,
    n: int,
    seed: int = 0,
    *,
    first: int = 0,
    sigma_max: float = 80.0,
    sigma: float = 0.0,
    batch_size: int = 1024,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The end of the Gaussian flow for samples ``first … first + n − 1`` of a seed.

    The noise is the sampler's: preview i belongs to sample i of the same seed, whatever the batch.

    Args:
        gaussian: the law of the data, e.g. ``Gaussian.fit(data.images)``.
        n: how many.
        seed: names the noise.
        first: number of the first.
        sigma_max: the level at which the sampler's grid starts.
        sigma: the level of the result; 0 for samples.
        batch_size: previews made at once.
        dtype: of the noise and the result.

    Returns:
        (n, *event), on the Gaussian's device.

    Raises:
        ArgumentError: for numbers out of range.
    """
    if n < 1 or first < 0 or batch_size < 1:
        raise ArgumentError(f"n = {n}, first = {first}, batch_size = {batch_size}; expected at least 1, 0 and 1")
    if not 0 < sigma_max < math.inf or not 0 <= sigma <= sigma_max:
        raise ArgumentError(f"sigma_max = {sigma_max}, sigma = {sigma}; expected 0 <= sigma <= sigma_max, finite")
    parts = []
    for low in range(first, first + n, batch_size):
        ids = torch.arange(low, min(low + batch_size, first + n), device=gaussian.mean.device)
        z = streams.normal(seed, ids, gaussian.event_shape, purpose="start", dtype=dtype)
        parts.append(gaussian.flow(sigma_max * z, sigma_max, sigma))
    return torch.cat(parts)
