"""Calibration: how large a model's own linear part is, measured in each direction of the data's covariance.

Fine runs of the model's sampling ODE give states z and outputs D in the coordinates of the covariance, at every noise level.
The regression of D on z has the slope ``g_k(σ) = Cov(z_k, D_k)/Var(z_k)``; the ideal Gaussian denoiser's is
``λ_k/(λ_k + σ²)``. The whitened solver integrates the measured slope exactly
(:class:`~farfield.sampling.solvers.gains.GainTable`), and what is left for it to interpolate is uncorrelated with the state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum
from farfield.sampling.batches import cut_rows, device_of
from farfield.sampling.grids import log_snr
from farfield.sampling.results import Step
from farfield.sampling.sampler import Sampler
from farfield.sampling.solvers.base import on_device
from farfield.sampling.solvers.gains import GainTable
from farfield.sampling.solvers.whitened import Whitened
from farfield.sampling.starts import Prior


@torch.no_grad()
def calibrate(
    denoiser: Denoiser,
    gaussian: Gaussian,
    n: int = 64,
    seed: int = 0,
    *,
    levels: int = 25,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    caution: float = 1.0,
    batch_size: int | None = None,
    **condition: Any,
) -> GainTable:
    """The model's gains, for ``Whitened(gains=...)``.

    A slope has a standard error s; its deviation δ from the Gaussian slope is drawn towards 0, to
    ``δ max(0, 1 − (caution · s/δ)²)``, so that a batch of any size does little harm where the Gaussian is right. Directions
    outside of the covariance's basis share one slope.

    The runs start from noise of their own, which no sampler draws whatever its seed.

    Args:
        denoiser: the model.
        gaussian: the covariance that the sampler will be given.
        n: fine runs; the cost is ``n · levels`` evaluations of one sample, once for a model.
        seed: names their noise.
        levels: of each run, uniform in log σ.
        sigma_min, sigma_max: the range; by default 0.002 to 80, or less where the model's is.
        caution: how many standard errors a deviation has to have to count; 0 takes every one as it is.
        batch_size: runs at once; all by default.
        **condition: passed to the denoiser.

    Returns:
        A table that knows its cost.

    Raises:
        ArgumentError: for fewer than 4 runs or 2 levels, or a Gaussian of another shape than the model's.
    """
    if n < 4 or levels < 2 or (batch_size is not None and batch_size < 1) or not caution >= 0:
        raise ArgumentError(
            f"n = {n}, levels = {levels}, batch_size = {batch_size}, caution = {caution}; "
            "expected n >= 4, levels >= 2, batch_size >= 1, caution >= 0"
        )
    if gaussian.event_shape != denoiser.event_shape:
        raise ArgumentError(f"the Gaussian has shape {gaussian.event_shape}; the model's is {denoiser.event_shape}")
    low = max(0.002, denoiser.sigma_min) if sigma_min is None else sigma_min
    high = min(80.0, denoiser.sigma_max) if sigma_max is None else sigma_max
    device = device_of(denoiser)
    law = on_device(gaussian, device)
    spectrum, mean = law.spectrum, law.mean.flatten().double()
    sampler = Sampler(Whitened(3), log_snr(levels, low, high), covariance=law)
    sums = torch.zeros(levels, 5, spectrum.rank + 1, dtype=torch.float64, device=device)

    def add(step: Step) -> None:
        sums[step.index] += _sums(spectrum, step.x.flatten(1) - mean, step.denoised.flatten(1) - mean, step.sigma)

    start = Prior()
    for first in range(0, n, batch_size or n):
        last = min(first + (batch_size or n), n)
        ids = torch.arange(first, last, device=device)
        bound = {key: cut_rows(value, first, last, n, ids - first) for key, value in condition.items()}
        noise = streams.normal(seed, ids, denoiser.event_shape, purpose="calibration")
        x = start.state(noise, high, denoiser.process, bound, ())
        sampler.run(denoiser, x, first=first, callback=add, **bound)
    counts = torch.full((spectrum.rank + 1,), float(n), dtype=torch.float64)
    counts[-1] *= max(spectrum.tail_dim, 1)
    return GainTable(sampler.levels[:levels], _slopes(sums.cpu(), counts, caution), n * levels)


def _sums(spectrum: Spectrum, y: Tensor, e: Tensor, sigma: float) -> Tensor:
    """Over the batch Σ z, Σ R, Σ z², Σ zR, Σ R² (5, r + 1) for each mode and, last and summed, the other directions."""
    z, p = spectrum.project(y), spectrum.project(e)
    lam = spectrum.values
    r = p - lam / (lam + sigma * sigma) * z
    rows = torch.zeros(5, spectrum.rank + 1, dtype=torch.float64, device=y.device)
    for k, value in enumerate((z, r, z * z, z * r, r * r)):
        rows[k, :-1] = value.sum(0)
    if spectrum.tail_dim:
        # Outside of the basis sums of squares are what is left of the whole; the mean there is the Gaussian's.
        yy, ye, ee = ((a * b).sum() - (c * d).sum() for a, b, c, d in ((y, y, z, z), (y, e, z, p), (e, e, p, p)))
        share = spectrum.tail / (spectrum.tail + sigma * sigma)
        rows[2:, -1] = torch.stack((yy, ye - share * yy, ee - 2 * share * ye + share * share * yy))
    return rows


def _slopes(sums: Tensor, counts: Tensor, caution: float) -> Tensor:
    """δ (K, r + 1) from the sums (K, 5, r + 1)."""
    z, r, zz, zr, rr = sums.unbind(1)
    var, cov, left = zz - z * z / counts, zr - z * r / counts, rr - r * r / counts
    tiny = torch.finfo(torch.float64).tiny
    # A direction without any spread, beyond rounding, has no slope.
    known = var > 1e-12 * zz.clamp(min=tiny)
    slope = torch.where(known, cov / var.clamp(min=tiny), 0.0)
    error2 = (left - slope * cov).clamp(min=0) / (counts - 2) / var.clamp(min=tiny)
    return slope * (1 - caution * caution * error2 / slope.square().clamp(min=tiny)).clamp(min=0)
