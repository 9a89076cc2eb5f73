"""Samples to their latents and back: what is lost on the way, and what changed latents decode to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.sampling.encoding import How, Latents, Lift, decode, encode, in_batches, rms
from farfield.sampling.results import Samples
from farfield.sampling.run import Evaluations
from farfield.sampling.sampler import Sampler
from farfield.sampling.solvers import Solver


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """Samples encoded and decoded again.

    Attributes:
        latents: what they were encoded to.
        x: (B, *event) what came back, at zero noise.
        lowest: (B, *event) the states that came back to the lowest level.
        error: (B,) root mean square of x − x₀ over the coordinates, float64.
        path_error: (B,) the same at the lowest level: what the two integrations alone have lost.
        floor: (B,) root mean square of ``D(x, σ_min) − x₀`` at the states the encoding started from: what the step to zero
            noise does without any path.
        nfe: evaluations for each sample, there and back.
    """

    latents: Latents
    x: Tensor
    lowest: Tensor
    error: Tensor
    path_error: Tensor
    floor: Tensor
    nfe: int


def round_trip(
    denoiser: Denoiser,
    x0: Tensor,
    how: How,
    *,
    solver: Solver | str | None = None,
    covariance: Gaussian | None = None,
    lift: Lift = "clean",
    seed: int = 0,
    batch_size: int | None = None,
    **condition: Any,
) -> RoundTrip:
    """Encode and decode with the same rule on the same levels, and say what was lost and where.

    Arguments as for :func:`encode`. The error falls with the grid until ``floor`` is left, the change that the step to zero
    noise makes by itself.
    """
    options: dict[str, Any] = {"solver": solver, "covariance": covariance, "batch_size": batch_size, **condition}
    latents = encode(denoiser, x0, how, lift=lift, estimate=False, seed=seed, **options)
    lowest = decode(denoiser, latents.z, how, to="lowest", **options)
    evaluate = Evaluations(denoiser, {}, how.parts if isinstance(how, Sampler) else ())
    ends = []
    with torch.no_grad():
        for start in (lowest.x, latents.lowest):
            rows = []
            for x, bound, count in in_batches(denoiser, start, condition, batch_size):
                evaluate.condition = bound
                rows.append(evaluate(x, latents.sigma_low)[:count])
            ends.append(torch.cat(rows))
    return RoundTrip(
        latents,
        ends[0],
        lowest.x,
        rms(ends[0] - x0),
        rms(lowest.x - latents.lowest),
        rms(ends[1] - x0),
        latents.nfe + lowest.nfe + 1,
    )


def edit(
    denoiser: Denoiser,
    x0: Tensor,
    change: Callable[[Tensor], Tensor],
    how: How,
    *,
    solver: Solver | str | None = None,
    covariance: Gaussian | None = None,
    lift: Lift = "clean",
    seed: int = 0,
    batch_size: int | None = None,
    **condition: Any,
) -> Samples:
    """Encode, change the latents, decode.

    Args:
        change: a function of the latents (B, *event) at the highest level; it may return another number of rows.
        denoiser, x0, how, solver, covariance, lift, seed, batch_size: as for :func:`encode`.
        **condition: as for :func:`encode`.

    Raises:
        ArgumentError: where ``change`` returns another number of rows and a condition has one row for each sample.
    """
    options: dict[str, Any] = {"solver": solver, "covariance": covariance, "batch_size": batch_size}
    latents = encode(denoiser, x0, how, lift=lift, estimate=False, seed=seed, **options, **condition)
    z = change(latents.z)
    held = [
        k
        for k, v in condition.items()
        if len(z) != len(x0) and isinstance(v, Tensor) and v.ndim > 0 and len(v) == len(x0)
    ]
    if held:
        raise ArgumentError(
            f"change returned {len(z)} latents for {len(x0)} samples, and {held[0]} has a row for each sample: "
            "call encode and decode with their own"
        )
    found = decode(denoiser, z, how, **options, **condition)
    return Samples(found.x, found.nfe + latents.nfe)
