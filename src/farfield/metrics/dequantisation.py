"""From probabilities of lattice points to densities: noise that takes data off their lattice, and what it costs.

For values on a lattice of step Δ and a density p, with d coordinates,

    uniform   x̃ = x + Δ(u − ½)     ln P(x) ≥ E_u ln p(x̃) + d ln Δ                              (Theis et al. 2016)
    noise     x̃ = x + σ z          ln P(x) ≥ E_z [ln p(x̃; σ) − ln N(x̃; x, σ²) + ln q(x | x̃)]

The first is the usual convention, and asks a model for densities at points far from all that it has been trained on where σ_min
is small against Δ. The second asks for them where a diffusion model is at home, at its own noise level σ. It is the variational
bound with x̃ as latent; q picks the lattice point coordinate by coordinate, ``∝ exp(−(x̃ − x)²/2σ²)``, and costs next to nothing
for σ ≤ Δ/4 (the reconstruction term of Kingma et al. 2021, section 3).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics import streams

Dequantisation = Literal["uniform", "noise"]

#: The step of 8-bit values in [−1, 1].
EIGHT_BITS = 2 / 255


def dequantise(
    x: Tensor,
    step: float,
    dequantisation: Dequantisation = "uniform",
    sigma: float = 0.0,
    seed: int = 0,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Samples off their lattice, and what has to be added to their log-density to bound the log-probability.

    Sample ``first + i`` gets its own noise, whatever the batch.

    Args:
        x: (B, *event) on a lattice.
        step: Δ > 0.
        dequantisation: the convention.
        sigma: of the noise, > 0; without effect on the uniform convention.
        seed, first: name the noise.

    Returns:
        (B, *event) in the type of x, and (B,) nats in float64.

    Raises:
        ArgumentError: for an unknown convention, or a step or level that is not positive.
    """
    if not 0 < step < math.inf:
        raise ArgumentError(f"step = {step}; expected the positive step of a lattice, e.g. 2/255")
    if dequantisation not in ("uniform", "noise"):
        raise ArgumentError(f"dequantisation = {dequantisation!r}; expected 'uniform' or 'noise'")
    ids = torch.arange(first, first + len(x), device=x.device)
    shape, dim = tuple(x.shape[1:]), math.prod(x.shape[1:])
    if dequantisation == "uniform":
        u = streams.uniform(seed, ids, shape, purpose="dequantise", dtype=torch.float64)
        moved = x.double() + step * (u - 0.5)
        return moved.to(x.dtype), torch.full((len(x),), dim * math.log(step), dtype=torch.float64, device=x.device)
    if not 0 < sigma < math.inf:
        raise ArgumentError(f"sigma = {sigma}; expected a positive noise level")
    z = streams.normal(seed, ids, shape, purpose="dequantise", dtype=torch.float64)
    entropy = 0.5 * z.square() + 0.5 * math.log(2 * math.pi * sigma**2)
    # The lattice points that a Gaussian of this width can be taken for, in units of it, nearest first.
    reach = math.ceil(8 * sigma / step) + 1
    places = torch.arange(-reach, reach + 1, dtype=torch.float64, device=x.device) * (step / sigma)
    total = torch.full_like(z, -math.inf)
    for place in places:
        total = torch.logaddexp(total, -0.5 * (z - place).square())
    picked = -0.5 * z.square() - total
    correction = (entropy + picked).flatten(1).sum(1)
    return (x.double() + sigma * z).to(x.dtype), correction
