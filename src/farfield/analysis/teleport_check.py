"""A plan held against samples that had no part in it: what a teleport does to them, beside what was predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.teleport_result import SkipCheck, TeleportPlan
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.numerics import streams
from farfield.sampling import AtLastLevel, Sampler, karras
from farfield.sampling.solvers import Whitened

#: Levels of the fine solutions between two nodes of the grid.
_FINE = 3


def check_skips(
    denoiser: Denoiser,
    gaussian: Gaussian,
    sampler: Sampler,
    plan: TeleportPlan,
    n: int,
    *,
    seed: int,
    batch_size: int,
    dtype: torch.dtype,
    condition: Mapping[str, Any],
) -> tuple[SkipCheck, ...]:
    """The chosen level, the node above it and the node below, on other noise.

    The model's own state at each level comes from a fine solution from the top. From there and from the teleported state the
    same fine solver goes on to zero noise, so that its own error cancels.

    Args:
        denoiser, gaussian, sampler: as for the plan.
        plan: whose predictions are checked.
        n: samples.
        seed, batch_size, dtype, condition: as for the plan.
    """
    nodes = sampler.grid.levels
    at = plan.at(plan.sigma)
    levels = [s for s in plan.sigmas[max(at - 1, 1) : at + 2] if nodes[-1] < s < nodes[0]]
    device = gaussian.mean.device
    z = streams.normal(seed, range(n), denoiser.event_shape, purpose="teleport check", dtype=dtype, device=device)
    count = _FINE * len(nodes)

    def solve(x: Tensor, high: float, low: float | None) -> Tensor:
        """From one level to another, or to zero noise where there is none."""
        bottom = nodes[-1] if low is None else low
        share = math.log(high / bottom) / math.log(nodes[0] / nodes[-1])
        grid = karras(max(8, round(count * share)), bottom, high)
        run = Sampler(Whitened(3), grid, covariance=gaussian, guidance=sampler.parts)
        if low is not None:
            run = Sampler(Whitened(3), grid, covariance=gaussian, guidance=sampler.parts, finish=AtLastLevel())
        return torch.cat([run.run(denoiser, part, **condition).x for part in x.split(batch_size)])

    found: list[SkipCheck] = []
    state, high = nodes[0] * z, nodes[0]
    for sigma in levels:
        state, high = solve(state, high, sigma), sigma
        carried = gaussian.flow(nodes[0] * z, nodes[0], sigma)
        own = (solve(carried, sigma, None) - solve(state, sigma, None)).double().flatten(1).square().mean(1)
        k = plan.at(sigma)
        found.append(
            SkipCheck(
                skip=sum(s > sigma * (1 + 1e-9) for s in nodes),
                sigma=sigma,
                state=float((carried - state).double().square().mean().sqrt()),
                predicted_state=plan.state_error[k],
                end=float(own.mean().sqrt()),
                predicted_end=plan.end_error[k],
                median=float(own.sqrt().median()),
            )
        )
    return tuple(found)
