"""The potential between a model's samples beside that of its data: ``farfield analyze MODEL --what potential``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.critical_times import critical_times
from farfield.analysis.potential import Potential
from farfield.analysis.potential_sections import all_pairs, potential_sections
from farfield.analysis.potential_sections_paths import (
    Which,
    average_whole,
    generated_paths,
    split_times,
    wells_whole,
)
from farfield.analysis.potential_sections_result import LawSections, SampleSections, law_sections
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.processes import VP, TimeMap

#: Fractions of the horizon at which sections are shown, and at which a sign change of their curvature is first looked for.
_SHOWN = (0.7, 0.5, 0.3, 0.15, 0.05)
_SCAN = 16
#: Angles of the sections whose wells are counted.
_SPLIT_ANGLES = 33


def sample_sections(
    denoiser: Denoiser,
    data: Tensor | None = None,
    *,
    process: TimeMap | None = None,
    times: Sequence[float] | None = None,
    n: int = 16,
    pairs: int = 40,
    angles: int = 65,
    which: Which = "sde",
    steps: int = 150,
    critical: float | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> SampleSections:
    """Generate samples, and measure sections and split times between pairs of them.

    Args:
        denoiser: the model.
        data: (N, *event), whose exact law is measured between the same states; None for the model alone.
        process: the time map, :class:`VP` by default.
        times: forward times of the sections; by default fractions of the horizon.
        n: samples; ``pairs`` of them, all if there are no more (the source averages the 190 pairs of 20 samples).
        angles: of each section; split times need none.
        which: dynamics of the samples. The potential is that of the reverse SDE, as in the source.
        steps: of the sampler, and times at which a split can be located.
        critical: forward time to compare with.
        seed: of samples and pairs.
        batch_size: rows of one call.

    Raises:
        ArgumentError: for arguments out of range.
    """
    process = process if process is not None else VP()
    paths = generated_paths(denoiser, n, process=process, which=which, steps=steps, seed=seed, batch_size=batch_size)
    low, high = float(paths.times[-1]), float(paths.times[0])
    wanted = [process.t_max * f for f in _SHOWN] if times is None else [float(t) for t in times]
    if not wanted or any(not process.t_min <= t <= process.t_max for t in wanted):
        raise ArgumentError(f"times = {wanted}; expected forward times from {process.t_min:g} to {process.t_max:g}")
    chosen = all_pairs(n, pairs, seed)
    moments = [paths.at(t) for t in sorted(wanted, reverse=True)]
    laws: dict[str, Denoiser] = {"model": denoiser}
    if data is not None:
        laws["data"] = Empirical(data)
    scan = [low + (high - low) * k / _SCAN for k in range(_SCAN + 1)]
    found: dict[str, LawSections] = {}
    turns = torch.empty(0)
    for name, law in laws.items():
        potential = Potential(law, process)
        tables = []
        for t, states in moments:
            first, second = states[chosen[:, 0]], states[chosen[:, 1]]
            section = potential_sections(potential, first, second, t, angles=angles, batch_size=batch_size)
            tables.append(section.values)
            turns = section.angles
        memory: dict[float, Tensor] = {}  # the scan of the pairs serves the average too
        pieces = (potential, paths, chosen, _SPLIT_ANGLES, batch_size, memory)
        splits = split_times(wells_whole(*pieces), scan, paths.spacing)
        mean = split_times(average_whole(*pieces), scan, paths.spacing)
        found[name] = law_sections(turns, tables, splits, float(mean))
    return SampleSections(
        laws=found,
        times=tuple(t for t, _ in moments),
        thetas=tuple(float(process.alpha(t)) for t, _ in moments),
        sigmas=tuple(float(process.sigma(t)) for t, _ in moments),
        angles=turns,
        which=which,
        n=n,
        pairs=len(chosen),
        steps=steps,
        seed=seed,
        resolution=paths.spacing,
        critical=critical,
    )


@dataclass(frozen=True)
class PotentialOptions:
    """Options of the analysis; see :func:`sample_sections`.

    Attributes:
        points: data points of the exact law and of the critical time beside; the first so many.
        exact: whether the data's exact law is measured as well.
        critical: whether the data's first critical time is computed.
    """

    times: tuple[float, ...] | None = None
    n: int = 16
    pairs: int = 40
    angles: int = 65
    which: Which = "sde"
    steps: int = 150
    points: int = 5000
    exact: bool = True
    critical: bool = True


def first_critical_time(data: Tensor, process: TimeMap | None = None, seed: int = 0) -> float | None:
    """The forward time of the first instability of the data's exact law about its mean, or None if there is none.

    It is the noiseless value of the analysis ``criticality``. The reverse process is the same whether it is written about the
    mean or about 0, a shift by ``α(s)`` times the mean; but read at a frozen time only the former has a centre that stays with
    the data, and only to that does the theory of normalised data apply.
    """
    found = critical_times(Empirical(data), process, origin=data.double().mean(0), check=False, seed=seed).first
    return None if found is None else found.time


@analysis("potential", about="the potential between samples: convex or double well, and when", options=PotentialOptions)
def analyze_potential(subject: Subject, options: PotentialOptions) -> SampleSections:
    """:func:`sample_sections` of a subject."""
    if options.points < 1:
        raise ArgumentError(f"points = {options.points}; expected at least 1")
    data = subject.data[: options.points]
    return sample_sections(
        subject.model,
        data if options.exact else None,
        times=options.times,
        n=options.n,
        pairs=options.pairs,
        angles=options.angles,
        which=options.which,
        steps=options.steps,
        critical=first_critical_time(data, seed=subject.seed) if options.critical else None,
        seed=subject.seed,
    )
