"""Simulation of the reverse SDE in its own coordinates by Euler and Maruyama's rule, for exact laws and networks.

    X ← X − ∇u(X, s) Δs + g(s) sqrt(Δs) z,      s from s₀ down to 0 in equal steps

with every coefficient at the noisy end of the step, so that s = 0, where an exact law has no density, is never evaluated; the
last step adds no noise (Raya & Ambrogioni 2023, section 3.1). The probability-flow ODE is the same without noise. Sample i
draws its own numbers (:mod:`farfield.numerics.streams`), whatever the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.analysis.critical_field import Dynamics
from farfield.analysis.potential import Potential
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.processes import VP, TimeMap


@dataclass(frozen=True, eq=False)
class Simulation:
    """Paths of a reverse process.

    Attributes:
        times: (k,) forward times of the states kept, descending; the last is that of ``x``.
        states: (k, n, *event) native states ``α (y − o) + s z`` at those times.
        x: (n, *event), the final states, in data coordinates.
        evaluations: of the denoiser, for each path.
    """

    times: Tensor
    states: Tensor
    x: Tensor
    evaluations: int


def simulate_reverse(
    denoiser: Denoiser,
    n: int,
    process: TimeMap | None = None,
    *,
    dynamics: Dynamics = "sde",
    steps: int = 1000,
    start: float | None = None,
    initial: Tensor | None = None,
    origin: Tensor | None = None,
    keep: Sequence[int] = (),
    seed: int = 0,
    batch_size: int = 1 << 16,
    dtype: torch.dtype = torch.float64,
) -> Simulation:
    """Simulate n paths from noise to data.

    Args:
        denoiser: any denoiser.
        n: how many paths.
        process: the time map, :class:`VP` by default. Its scale must be 1 at time 0.
        dynamics: ``"sde"`` or ``"ode"``.
        steps: equal steps from ``start`` to 0.
        start: forward time s₀ at which the paths begin, ``t_max`` by default.
        initial: (n, *event) native states there; by default normal ones with the variance ``α² + s²`` of data of variance 1:
            N(0, I) for a variance-preserving process at any time, which is what a late start draws.
        origin: the point towards which the process contracts.
        keep: numbers of steps before which the states are kept, 0 for the initial ones; the final ones are always kept.
        seed: of the noise.
        batch_size: paths simulated at once; the result does not depend on it.
        dtype: of the states.

    Raises:
        ArgumentError: for arguments out of range.
    """
    process = process if process is not None else VP()
    potential = Potential(denoiser, process, dynamics, origin)
    if dynamics == "langevin":
        raise ArgumentError("dynamics = 'langevin' does not move in time; expected 'sde' or 'ode'")
    if n < 1 or steps < 1 or batch_size < 1:
        raise ArgumentError(f"n = {n}, steps = {steps}, batch_size = {batch_size}; expected at least 1 of each")
    begin = process.t_max if start is None else float(start)
    if not 0 < begin <= process.t_max:
        raise ArgumentError(f"start = {start}; expected a time in (0, {process.t_max:g}]")
    shape = (n, *denoiser.event_shape)
    if initial is not None and tuple(initial.shape) != shape:
        raise ArgumentError(f"initial has shape {tuple(initial.shape)}; expected {shape}")
    wanted = sorted(set(keep))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < steps:
        raise ArgumentError(f"keep = {list(keep)}; expected numbers of steps, 0 to {steps - 1}")
    times = [begin * (steps - k) / steps for k in range(steps + 1)]
    kept: list[list[Tensor]] = [[] for _ in (*wanted, None)]
    for part in torch.arange(n).split(batch_size):
        x = _initial(denoiser, process, begin, part, initial, seed, dtype)
        for k in range(steps):
            if k in wanted:
                kept[wanted.index(k)].append(x)
            s, width = times[k], times[k] - times[k + 1]
            x = x + potential.drift(x, s) * width
            if dynamics == "sde" and k < steps - 1:
                z = streams.normal(seed, part, denoiser.event_shape, purpose="reverse sde", step=k, dtype=dtype)
                x = x + math.sqrt(width) * process.diffusion(s) * z.to(x.device)
        kept[-1].append(x)
    states = torch.stack([torch.cat(parts) for parts in kept])
    final = states[-1] if origin is None else states[-1] + origin.to(states)
    at = torch.tensor([*(times[k] for k in wanted), 0.0], dtype=torch.float64)
    return Simulation(at, states, final, steps)


def _initial(
    denoiser: Denoiser,
    process: TimeMap,
    begin: float,
    part: Tensor,
    initial: Tensor | None,
    seed: int,
    dtype: torch.dtype,
) -> Tensor:
    if initial is not None:
        return initial[part.to(initial.device)].to(dtype)
    z = streams.normal(seed, part, denoiser.event_shape, purpose="reverse sde start", dtype=dtype)
    return z * math.hypot(process.alpha(begin), process.std(begin))
