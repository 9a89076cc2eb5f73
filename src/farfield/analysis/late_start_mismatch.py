"""How far the noised data are from their Gaussian: the error of a Gaussian late start, before any sample is drawn.

The data and their Gaussian are blurred by the same noise, so their relative entropy falls as the noise rises, at a rate that
the two denoisers tell:

    d/dσ KL(p_σ ‖ N_σ) = − E‖D(x, σ) − D_G(x, σ)‖²/σ³,        KL → 0 as σ → ∞

(de Bruijn's identity for two laws; the expectation is over p_σ). Its integral from the top down is the divergence of the law
that a Gaussian late start replaces from the one it draws. An exact sampler can only lose: the total variation between its
samples and the data is at most ``sqrt(KL/2)`` (data processing and Pinsker).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.processes import DDPM
from farfield.sampling.solvers.base import on_device


@dataclass(frozen=True)
class LawMismatch:
    """The divergence of the noised data from their Gaussian, by level.

    Attributes:
        sigmas: noise levels, decreasing.
        divergence: ``KL(p_σ ‖ N_σ)`` in nats, 0 at the top by construction.
        dim: number of coordinates.
        queries: draws at each level.
    """

    sigmas: tuple[float, ...]
    divergence: tuple[float, ...]
    dim: int
    queries: int

    def at(self, sigma: float) -> float:
        """The divergence at a level, linear in log σ between two; that of the lowest level below it."""
        for k in range(1, len(self.sigmas)):
            if sigma >= self.sigmas[k]:
                share = math.log(self.sigmas[k - 1] / max(sigma, 1e-300)) / math.log(
                    self.sigmas[k - 1] / self.sigmas[k]
                )
                before, after = self.divergence[k - 1], self.divergence[k]
                return before + max(share, 0.0) * (after - before)
        return self.divergence[-1]

    def lowest(self, tolerance: float) -> float:
        """The lowest level down to which the divergence stays within ``tolerance`` nats."""
        for k in range(1, len(self.sigmas)):
            before, after = self.divergence[k - 1], self.divergence[k]
            if after > tolerance:
                share = (tolerance - before) / (after - before)
                return math.exp(math.log(self.sigmas[k - 1]) + share * math.log(self.sigmas[k] / self.sigmas[k - 1]))
        return self.sigmas[-1]

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return {
            "sigmas": list(self.sigmas),
            "divergence": list(self.divergence),
            "dim": self.dim,
            "queries": self.queries,
        }


def law_mismatch(
    denoiser: Denoiser,
    gaussian: Gaussian,
    data: Tensor,
    *,
    sigmas: Sequence[float] | None = None,
    queries: int = 128,
    seed: int = 0,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    **condition: Any,
) -> LawMismatch:
    """Measure the divergence on noised data; see the head of this module.

    Args:
        denoiser: the model, or the exact law of the data.
        gaussian: of the clean data.
        data: (N, *event), clean images; each query noises one of them.
        sigmas: levels, decreasing; by default every 50th index of DDPM's schedule within the model's range.
        queries: draws at each level; the same images and noise at all of them.
        seed: of the choice and the noise.
        batch_size: evaluated at once.
        dtype: of the states.

    Raises:
        ArgumentError: for fewer than two levels, or levels that do not decrease.
    """
    if sigmas is None:
        table = DDPM()
        inside = [table.sigma(float(i)) for i in range(950, 49, -50)]
        sigmas = [s for s in inside if denoiser.sigma_min <= s <= denoiser.sigma_max]
    levels = [float(s) for s in sigmas]
    if len(levels) < 2 or any(b >= a for a, b in pairwise(levels)) or levels[-1] <= 0:
        raise ArgumentError(f"sigmas = {levels}; expected at least two decreasing positive levels")
    if queries < 1 or len(data) == 0:
        raise ArgumentError(f"queries = {queries} of {len(data)} images; expected at least 1 of both")
    law, dim = on_device(gaussian, data.device), math.prod(data.shape[1:])
    order = streams.permutation(seed, len(data), purpose="mismatch")
    rows = order.to(data.device)[torch.arange(queries, device=data.device) % len(data)]
    y = data[rows].to(dtype)
    ids = torch.arange(queries, device=data.device)
    z = streams.normal(seed, ids, y.shape[1:], purpose="mismatch", dtype=dtype)
    rates = []
    for sigma in levels:
        x = y + sigma * z
        gap = torch.cat([denoiser(part, sigma, **condition) - law(part, sigma) for part in x.split(batch_size)])
        rates.append(float(gap.double().flatten(1).square().sum(1).mean()) / sigma**2)
    total, found = 0.0, [0.0]
    for k in range(1, len(levels)):
        total += 0.5 * (rates[k - 1] + rates[k]) * math.log(levels[k - 1] / levels[k])
        found.append(total)
    return LawMismatch(tuple(levels), tuple(found), dim, queries)
