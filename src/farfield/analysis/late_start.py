"""The start-time curve of a model: quality by start from N(0, I) and from the data's Gaussian, beside the critical time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.critical_times import critical_times
from farfield.analysis.images import is_image
from farfield.analysis.late_start_choice import StartChoice, choose_start
from farfield.analysis.late_start_mismatch import law_mismatch
from farfield.analysis.late_start_result import LateStartSweep
from farfield.analysis.late_start_sweep import STARTS, Metric, late_start_sweep
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.metrics import FrechetReference, bundled_features, load_features, pca_features
from farfield.numerics import streams
from farfield.processes import DDPM
from farfield.sampling.late import Kind
from farfield.sampling.late_moments import Backend, late_gaussian

_COMPONENTS = 40
#: Images of the data that samples are compared with.
_REFERENCE = 4000


def frechet_metric(data: Tensor, name: str = "", limit: int = _REFERENCE, seed: int = 0) -> Metric:
    """The Fréchet distance of samples from data, on the bundled classifier of that name where it takes them.

    Args:
        data: (N, *event), N ≥ 2.
        name: of the data set; any other name means principal components.
        limit: at most so many of the data, a random choice, are the reference.
        seed: of that choice.
    """
    if len(data) > limit:
        data = data[streams.permutation(seed, len(data), purpose="late start reference")[:limit].to(data.device)]
    if name in bundled_features() and load_features(name).fits(data.shape[1:]):
        features = load_features(name, data.device)
    else:
        features = pca_features(data, min(_COMPONENTS, math.prod(data.shape[1:])))  # type: ignore[assignment]
    reference = FrechetReference.of(features(data))
    return lambda x: reference.distance(features(x))


def starts_within(denoiser: Denoiser, starts: Sequence[int], table: DDPM | None = None) -> tuple[int, ...]:
    """The indices whose noise level lies in a model's range."""
    schedule = table if table is not None else DDPM()
    return tuple(s for s in starts if schedule.sigma(float(s)) <= denoiser.sigma_max)


@dataclass(frozen=True)
class LateStartOptions:
    """Options of the analysis.

    Attributes:
        samplers: of ddpm, ddim and pndm.
        steps: numbers of steps.
        starts: indices of the DDPM schedule, 0 to 999.
        n: samples of each cell.
        seeds: sets of noise.
        backend: how the Gaussian's covariance is held: full, low_rank or dct.
        points: of the data, in the exact law whose critical time is marked; 0 leaves it out.
        queries: draws at each level for the divergence from the Gaussian.
    """

    samplers: tuple[Kind, ...] = ("ddim",)
    steps: tuple[int, ...] = (5, 10)
    starts: tuple[int, ...] = STARTS
    n: int = 200
    seeds: int = 1
    backend: Backend = "full"
    points: int = 5000
    queries: int = 64


@analysis(
    "late-start", about="quality by start index, from N(0, I) and from the data's Gaussian", options=LateStartOptions
)
def analyze_late_start(subject: Subject, options: LateStartOptions) -> LateStartSweep:
    """The sweep of a subject, with its critical time and the starts that would be chosen without one."""
    if options.n < 2 or options.seeds < 1 or options.points < 0 or not (options.samplers and options.steps):
        raise ArgumentError(
            f"n = {options.n}, seeds = {options.seeds}, points = {options.points}, samplers = {list(options.samplers)}, "
            f"steps = {list(options.steps)}; expected n >= 2, seeds >= 1, points >= 0, at least one sampler and step count"
        )
    critical = None
    if options.points:
        points = subject.data[: options.points]
        centre = points.double().mean(0)
        first = critical_times(Empirical(points), DDPM(), origin=centre, check=False, seed=subject.seed).first
        critical = None if first is None else DDPM().time(first.sigma)
    return measure_late_start(subject, options, critical)


def measure_late_start(
    subject: Subject, options: LateStartOptions, critical: float | None, gaussian: Gaussian | None = None
) -> LateStartSweep:
    """The analysis with a critical index, and possibly a Gaussian, that are known already."""
    gaussian = late_gaussian(subject.data, options.backend) if gaussian is None else gaussian
    swept = late_start_sweep(
        subject.model,
        options.samplers,
        starts_within(subject.model, options.starts),
        options.steps,
        {"plain": None, "gls": gaussian},
        {"Fréchet distance": frechet_metric(subject.data, subject.name)},
        range(subject.seed, subject.seed + options.seeds),
        count=options.n,
        clip=is_image(subject.data.shape[1:]),
        progress=subject.progress,
    )
    return replace(swept, critical=critical, choices=_choices(subject, gaussian, options, critical))


def _choices(
    subject: Subject, gaussian: Gaussian, options: LateStartOptions, critical: float | None
) -> tuple[StartChoice, ...]:
    if options.queries < 1:
        return ()
    gap = law_mismatch(subject.model, gaussian, subject.data, queries=options.queries, seed=subject.seed)
    return tuple(choose_start(n, critical=critical, mismatch=gap) for n in options.steps)
