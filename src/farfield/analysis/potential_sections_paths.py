"""States of generated samples at many times, and the time at which the sections between them split.

The section between two samples has one well at high noise and two or more near the data. Its split is looked for from the
data upwards: the first time at which it is whole again, for each pair, and for the average over pairs. Whole can mean

    wells       fewer than two minima along the whole section;
    curvature   ``ũ''(π/4) > 0``, two evaluations a pair instead of a section.

Between two points alone both say the same (a pitchfork). Among many samples half way between two of them may lie in the
basin of a third, where the curvature is positive again; wells are counted then as well. At very high noise, where u is
almost ``g² ‖x‖²/4`` and the path keeps the norm, a single pair's section is left to chance; the search never gets there
unless the section stays split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from farfield.analysis.potential import Potential
from farfield.analysis.potential_sections import (
    both_ways,
    default_rule,
    device_of,
    interior_minima,
    section_angles,
    section_curvature,
    section_values,
)
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.processes import VP, TimeMap
from farfield.sampling import Ancestral, Sampler
from farfield.sampling.results import Step

#: ``"sde"``: the ancestral sampler of DDPM; ``"ode"``: the probability-flow ODE.
Which = Literal["sde", "ode"]


@dataclass(frozen=True, eq=False)
class GeneratedPaths:
    """Native states of samples on their way.

    Attributes:
        times: (K,) forward times, decreasing from noise to data, float64.
        states: (K, n, *event), about the origin of the process.
        samples: (n, *event) where the paths end, in data space.
        process: the time map.
        which: the dynamics that made them.
        seed: of the noise.
        nfe: denoiser evaluations a sample.
    """

    times: Tensor
    states: Tensor
    samples: Tensor
    process: TimeMap
    which: Which
    seed: int
    nfe: int

    def nearest(self, t: float | Tensor) -> Tensor:
        """The index of the kept time nearest to t, () or (P,)."""
        times = torch.as_tensor(t, dtype=torch.float64)
        return (times.unsqueeze(-1) - self.times).abs().argmin(-1)

    def at(self, t: float) -> tuple[float, Tensor]:
        """The kept time nearest to t, and all states there (n, *event)."""
        k = int(self.nearest(t))
        return float(self.times[k]), self.states[k]

    @property
    def spacing(self) -> float:
        """The largest distance of two neighbouring times: how well a split can be located."""
        return float((self.times[:-1] - self.times[1:]).max())


def generated_paths(
    denoiser: Denoiser,
    n: int = 20,
    *,
    process: TimeMap | None = None,
    which: Which = "sde",
    steps: int = 200,
    origin: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> GeneratedPaths:
    """Sample with evenly spaced times of the process and keep every state.

    Args:
        denoiser: the model.
        n: samples.
        process: the time map, :class:`VP` by default; its times are cut to the denoiser's range.
        which: ``"sde"`` or ``"ode"`` (DPM-Solver++(2M)).
        steps: how many times.
        origin: see :class:`Potential`.
        seed: of the noise; sample i is the same for any n and batch size.
        batch_size: samples evaluated at once.

    Raises:
        ArgumentError: for an unknown ``which``, fewer than two samples or steps, or a range without noise levels.
    """
    if which not in ("sde", "ode"):
        raise ArgumentError(f"which = {which!r}; expected 'sde' or 'ode'")
    if n < 2 or steps < 2:
        raise ArgumentError(f"n = {n}, steps = {steps}; expected at least 2 of each")
    process = process if process is not None else VP()
    high, low = process.sigma(process.t_max), max(process.sigma(process.t_min), denoiser.sigma_min)
    top, bottom = min(high, denoiser.sigma_max), low
    if not 0 < bottom < top:
        raise ArgumentError(f"the denoiser's range [{denoiser.sigma_min:g}, {denoiser.sigma_max:g}] has no level in it")
    times = torch.linspace(process.time(top), process.time(bottom), steps, dtype=torch.float64)
    levels = [min(max(s, bottom), top) for s in process.sigma(times).tolist()]
    device = device_of(denoiser)
    states = torch.empty((steps, n, *denoiser.event_shape), device=device)
    scale = process.alpha(times).tolist()

    def keep(step: Step) -> None:
        if step.index < steps:
            clean = step.x if origin is None else step.x - origin.to(step.x)
            states[step.index, step.first : step.first + len(step.x)] = scale[step.index] * clean

    solver, noise = ("euler", Ancestral(1.0)) if which == "sde" else ("dpmpp_2m", None)
    out = Sampler(solver, levels, noise=noise)(denoiser, n, seed, batch_size=batch_size, callback=keep)
    return GeneratedPaths(times, states, out.x, process, which, seed, out.nfe)


#: One time for each pair (P,), or one for all (1,), to whether the section is whole, (P,).
Whole = Callable[[Tensor], Tensor]


def split_times(whole: Whole, times: Sequence[float], tolerance: float = 1e-4) -> Tensor:
    """The time at which each section splits: the first at which it is whole, seen from the data.

    Args:
        whole: :func:`wells_whole`, :func:`curvature_whole`, :func:`average_whole` or any other predicate.
        times: where to look first, increasing from data to noise, at least two; the search stops once all are whole.
        tolerance: how narrow to make the bracket, in time.

    Returns:
        (P,) in float64: NaN for a section that is whole already at the first time, infinite for one that is split at the last
        time too.

    Raises:
        ArgumentError: unless the times increase and the tolerance is positive.
    """
    grid = torch.as_tensor(list(times), dtype=torch.float64)
    if len(grid) < 2 or not bool((grid[1:] > grid[:-1]).all()) or not tolerance > 0:
        raise ArgumentError(
            f"times = {grid.tolist()}, tolerance = {tolerance}; expected two or more, increasing, and > 0"
        )
    seen = whole(grid[:1])
    always, done = seen.clone(), seen.clone()
    low, high = grid[0].expand(len(seen)).clone(), grid[0].expand(len(seen)).clone()
    for before, t in pairwise(grid):
        if bool(done.all()):
            break
        new = whole(t.reshape(1)) & ~done
        low, high = torch.where(new, before, low), torch.where(new, t, high)
        done = done | new
    widest = float((high - low).max())
    for _ in range(math.ceil(math.log2(widest / tolerance)) if widest > tolerance else 0):
        middle = (low + high) / 2
        up = whole(middle)
        high, low = torch.where(up, middle, high), torch.where(up, low, middle)
    found = (low + high) / 2
    found[~done] = math.inf
    found[always] = math.nan
    return found


def _moments(paths: GeneratedPaths, pairs: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The states of both sides of each pair at the kept times nearest to t, and those times (P,)."""
    index = paths.nearest(t).expand(len(pairs))
    place = index.to(paths.states.device)
    sides = [paths.states[place, pairs[:, side].to(place.device)] for side in (0, 1)]
    return sides[0], sides[1], paths.times[index].to(place.device)


def curvature_whole(potential: Potential, paths: GeneratedPaths, pairs: Tensor, batch_size: int = 512) -> Whole:
    """Whether ``ũ''(π/4) > 0`` for pairs (P, 2) of paths, at the kept time nearest to the one asked for.

    The potential has the paths' process and origin, but not necessarily the denoiser that made them.
    """

    def whole(t: Tensor) -> Tensor:
        return section_curvature(potential, *_moments(paths, pairs, t), batch_size=batch_size) > 0

    return whole


def wells_whole(
    potential: Potential,
    paths: GeneratedPaths,
    pairs: Tensor,
    angles: int = 33,
    batch_size: int = 512,
    memory: dict[float, Tensor] | None = None,
) -> Whole:
    """Whether the sections of pairs (P, 2) of paths have fewer than two minima; else as :func:`curvature_whole`.

    Args:
        memory: keeps the sections (P, A) of times common to all pairs, by time, so that averages need not repeat them.
    """
    turns, rule, kept = section_angles(angles), default_rule(potential), {} if memory is None else memory

    def values(t: Tensor) -> Tensor:
        first, second, when = _moments(paths, pairs, t)
        if len(t) == 1 and float(when[0]) in kept:
            return kept[float(when[0])]
        found = section_values(potential, first, second, when, turns, rule=rule, batch_size=batch_size)
        if len(t) == 1:
            kept[float(when[0])] = found
        return found

    def whole(t: Tensor) -> Tensor:
        return interior_minima(values(t)) < 2

    return whole


def average_whole(
    potential: Potential,
    paths: GeneratedPaths,
    pairs: Tensor,
    angles: int = 33,
    batch_size: int = 512,
    memory: dict[float, Tensor] | None = None,
) -> Whole:
    """Whether the average over the pairs, each in both orders, has fewer than two minima: (1,) for one time (1,)."""
    kept: dict[float, Tensor] = {} if memory is None else memory
    each = wells_whole(potential, paths, pairs, angles, batch_size, kept)

    def whole(t: Tensor) -> Tensor:
        each(t)
        when = float(paths.times[int(paths.nearest(float(t)))])
        return interior_minima(both_ways(kept[when]).mean(0, keepdim=True)) < 2

    return whole
