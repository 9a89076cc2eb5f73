"""How long states are: noise makes data longer, sampling makes them shorter again, and both curves should agree.

For fixed x in d dimensions and z ~ N(0, σ² I) (Chen et al., A geometric perspective on diffusion models, proposition 2):

    E‖x + z‖² = ‖x‖² + σ² d,        Var ‖z‖² = 2 d σ⁴,        E‖z‖ = σ √2 Γ((d+1)/2)/Γ(d/2)   →   σ √d
    P(‖x + z‖ ≤ ‖x‖) = F(‖x‖²/σ²),   F the noncentral χ² law of d degrees and noncentrality ‖x‖²/σ²

The last tends to 0 as d grows, for fixed ‖x‖ and for ‖x‖ ∝ √d. Noise lies in a thin shell: P(|‖z‖ − σ√d| ≥ s) is at most
``2 exp(−c s²/σ²)``; c = 1/4 can be proved, c = 1/2 held wherever it was computed, c = 1 fails (the source's constant without
the σ² is an oversight).

A flow keeps the marginal laws, so the states of a run at level σ are as long as noised data. Where the two curves part, the
model has not reached the law of its data. (The source sees a gap only in the last steps, on large images.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from farfield.analysis.entrants import baseline
from farfield.analysis.magnitude_result import MagnitudeStatistics
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.sampling import Sampler
from farfield.sampling.recording import KeepStatistics

_BLOCK = 1024


def shrink_probability(norm: float, sigma: float, dim: int) -> float:
    """P(‖x + z‖ ≤ ‖x‖) for z ~ N(0, σ² I), exact: the chance that noise makes a point shorter.

    Args:
        norm: ‖x‖ ≥ 0.
        sigma: > 0.
        dim: d ≥ 1.

    Raises:
        ArgumentError: for arguments out of range.
    """
    _check(dim, sigma)
    if not 0 <= norm < math.inf:
        raise ArgumentError(f"norm = {norm}; expected a finite number >= 0")
    ratio = (norm / sigma) ** 2
    return float(stats.ncx2.cdf(ratio, dim, ratio)) if ratio > 0 else 0.0


def shell(dim: int, sigma: float = 1.0) -> tuple[float, float]:
    """Mean and standard deviation of ‖z‖ for z ~ N(0, σ² I_d); the mean is a little below σ√d, the spread tends to σ/√2.

    Raises:
        ArgumentError: for arguments out of range.
    """
    _check(dim, sigma)
    mean = math.sqrt(2) * math.exp(special.gammaln((dim + 1) / 2) - special.gammaln(dim / 2))
    # d − mean² is a difference of large numbers; scipy's own variance is computed likewise, so use the series above d = 100.
    variance = 0.5 - 1 / (8 * dim) - 1 / (16 * dim**2) if dim > 100 else dim - mean * mean
    return sigma * mean, sigma * math.sqrt(variance)


def shell_probability(dim: int, distance: float, sigma: float = 1.0) -> float:
    """P(|‖z‖ − σ√d| ≤ s), exact.

    Args:
        dim: d ≥ 1.
        distance: s ≥ 0.
        sigma: > 0.
    """
    _check(dim, sigma)
    root, s = math.sqrt(dim), distance / sigma
    return float(stats.chi2.cdf((root + s) ** 2, dim) - stats.chi2.cdf(max(root - s, 0.0) ** 2, dim))


def shell_bound(distance: float, sigma: float = 1.0, c: float = 0.25) -> float:
    """The bound ``2 exp(−c s²/σ²)`` on P(|‖z‖ − σ√d| ≥ s), at most 1; see the head of this module for c."""
    _check(1, sigma)
    return min(1.0, 2 * math.exp(-c * (distance / sigma) ** 2))


def _check(dim: int, sigma: float) -> None:
    if dim < 1 or not 0 < sigma < math.inf:
        raise ArgumentError(f"dim = {dim}, sigma = {sigma}; expected dim >= 1 and a positive noise level")


def noised_norms(data: Tensor, sigmas: Sequence[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the data of ‖x_i + σ z_i‖ at each level, (K,) each, float64.

    Each point keeps its own z at all levels, which makes the curves smooth; three numbers a point, ‖x‖², ⟨x, z⟩ and ‖z‖²,
    hold all levels.

    Args:
        data: (N, *event), N ≥ 1.
        sigmas: levels ≥ 0.
        seed: of the noise; point i gets its own.
    """
    levels = torch.tensor([float(s) for s in sigmas], dtype=torch.float64)
    if data.ndim < 2 or len(data) < 1 or not bool((levels >= 0).all()):
        raise ArgumentError(
            f"data {tuple(data.shape)}, sigmas = {list(sigmas)[:3]} …; expected (N, *event), levels >= 0"
        )
    parts = []
    for low in range(0, len(data), _BLOCK):
        x = data[low : low + _BLOCK].double().flatten(1)
        ids = torch.arange(low, low + len(x))
        z = streams.normal(seed, ids, (x.shape[1],), purpose="magnitude", dtype=torch.float64).to(x)
        parts.append(torch.stack((x.square().sum(1), (x * z).sum(1), z.square().sum(1))).cpu())
    own, cross, noise = torch.cat(parts, dim=1)[:, None]  # (1, N) each
    t = levels[:, None]
    norms = (own + 2 * t * cross + t * t * noise).clamp_(min=0).sqrt()
    return norms.mean(1), norms.std(1, correction=min(1, len(data) - 1))


def magnitude_statistics(
    denoiser: Denoiser,
    data: Tensor,
    sampler: Sampler | None = None,
    n: int = 256,
    seed: int = 0,
    *,
    levels: int = 500,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> MagnitudeStatistics:
    """Norms of noised data, of sampled states and of denoiser outputs (Chen et al., figure 2a and ALG 2).

    Args:
        denoiser: the model.
        data: (N, *event), what it was trained on.
        sampler: how to sample; Heun on 18 Karras levels by default.
        n: samples, ≥ 2.
        seed: of samples and noise.
        levels: of the forward curve, evenly spaced from 0 to the first level of the sampler.
        batch_size: samples drawn at once.
        dtype: of the states.

    Raises:
        ArgumentError: for arguments out of range or data of another shape.
    """
    if n < 2 or levels < 2:
        raise ArgumentError(f"n = {n}, levels = {levels}; expected at least 2 of each")
    if tuple(data.shape[1:]) != denoiser.event_shape or len(data) < 2:
        raise ArgumentError(f"data has shape {tuple(data.shape)}; the model takes events {denoiser.event_shape}")
    plan = sampler if sampler is not None else baseline(denoiser)
    run = plan(denoiser, n, seed, trajectory=KeepStatistics(distances=False), batch_size=batch_size, dtype=dtype)
    found = run.statistics
    assert found is not None
    curve = np.linspace(0.0, found.sigmas[0], levels).tolist()
    forward, at_levels = noised_norms(data, curve, seed), noised_norms(data, found.sigmas, seed)
    return MagnitudeStatistics(
        sigmas=found.sigmas,
        states=(tuple(found.norm.mean.tolist()), tuple(found.norm.std.tolist())),
        denoised=(tuple(found.denoised_norm.mean.tolist()), tuple(found.denoised_norm.std.tolist())),
        noised=(tuple(at_levels[0].tolist()), tuple(at_levels[1].tolist())),
        curve_sigmas=tuple(curve),
        curve=(tuple(forward[0].tolist()), tuple(forward[1].tolist())),
        dim=denoiser.dim,
        samples=n,
        points=len(data),
        nfe=run.nfe,
        seed=seed,
    )
