"""How good states and denoiser outputs are along a run: the Fréchet distance to the data by evaluations spent.

A run x_N … x_0 passes its denoiser outputs r_N … r_1 at no cost (Chen et al., A geometric perspective on diffusion models,
section 3.2, F.5 and figures 26-28). Stopping at level n costs the evaluations spent to reach x_n, and one more for the jump to
r_n; the output is far closer to the data than the state, except at the very end, where both are the finished sample.

For data N(μ, diag(s_i²)) and the exact flow the squared Fréchet distances to the data are

    x_t:  Σ (√(s_i² + t²) − s_i)²,        r_t:  Σ s_i²/(s_i² + t²) · (√(s_i² + t²) − s_i)²

so the output is better by ``1 + t²/s_i²`` in each direction.

**Finite samples.** A distance measured with n samples lies above that of the law by about ``floor(n)``, even for perfect
samples (:mod:`farfield.metrics.finite_sample`). All rows use the same n, so they compare with each other; the table is given
with the floor and with what held-out data of the same number would show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.entrants import BASELINE_LEVELS, sigma_range
from farfield.analysis.images import is_image
from farfield.analysis.trajectory_quality_result import BudgetRow, QualityRow, TrajectoryQuality
from farfield.data.progress import track
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.metrics import FrechetReference, bundled_features, corrected_frechet, load_features, pca_features
from farfield.metrics.features import Features, PCAFeatures, identify
from farfield.metrics.finite_sample import frechet_floor
from farfield.metrics.statistics import FeatureStatistics
from farfield.numerics import streams
from farfield.sampling import Sampler, Step, karras

#: Samples drawn at once by default; it bounds memory and changes no sample.
BATCH = 256
COMPONENTS = 40
#: At most so many of the data are the reference; more cost features and change little.
REFERENCE = 4000


def features_for(data: Tensor, name: str = "") -> Features:
    """The features that ``farfield evaluate`` puts first: the bundled classifier of that name, else principal components.

    Args:
        data: (N, *event), to which principal components are fitted.
        name: of the data set.
    """
    if name in bundled_features():
        found = load_features(name, data.device)
        if found.fits(data.shape[1:]):
            return found
    return pca_features(data, min(COMPONENTS, data[0].numel()))


def gaussian_quality(gaussian: Gaussian, sigmas: Sequence[float]) -> list[tuple[float, float]]:
    """The exact squared Fréchet distances of states and outputs to Gaussian data, at each level of the exact flow.

    Args:
        gaussian: the law of the data.
        sigmas: levels ≥ 0.

    Returns:
        ``(of x_t, of r_t)`` at each level; see the head of this module.
    """
    spectrum = gaussian.spectrum
    values = torch.cat((spectrum.values.cpu(), torch.full((spectrum.tail_dim,), spectrum.tail, dtype=torch.float64)))
    found = []
    for t in map(float, sigmas):
        gap = ((values + t * t).sqrt() - values.sqrt()).square()
        # A direction without variance has no output either, and 0/0 at t = 0.
        share = torch.where(values > 0, values / (values + t * t).clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        found.append((float(gap.sum()), float((share * gap).sum())))
    return found


@dataclass(frozen=True, eq=False)
class QualityBench:
    """Data in features, made ready to measure runs against.

    Attributes:
        features: the feature map.
        reference: the data's moments, factorised; ``train``: their features.
        heldout: features of held-out data, or None.
        clip: whether values are cut to [−1, 1] before the features, as they are when shown.
    """

    features: Features
    reference: FrechetReference
    train: Tensor
    heldout: Tensor | None
    clip: bool

    @classmethod
    def of(
        cls,
        data: Tensor,
        features: Features,
        heldout: Tensor | None = None,
        clip: bool | None = None,
        limit: int = REFERENCE,
        seed: int = 0,
    ) -> QualityBench:
        """Of data (N, *event), or a random part of them where they are more than ``limit``.

        By default values are cut to [−1, 1] for networks that look at images, which know no others, and left as they are for
        principal components, where the closed forms hold.
        """
        if len(data) > limit:
            data = data[streams.permutation(seed, len(data), purpose="quality")[:limit].to(data.device)]
        train = features(data)
        held = features(heldout) if heldout is not None and len(heldout) >= 8 else None
        shown = is_image(tuple(data.shape[1:])) and not isinstance(features, PCAFeatures) if clip is None else clip
        return cls(features, FrechetReference.of(train), train, held, shown)

    def seen(self, x: Tensor) -> Tensor:
        """Features of states, outputs or samples."""
        return self.features(x.clamp(-1, 1) if self.clip else x)

    def floor(self, n: int) -> float:
        """What n samples of a Gaussian with the data's moments would show, to leading order."""
        return frechet_floor(self.train, n)

    def heldout_distance(self, n: int, seed: int = 0) -> float | None:
        """The held-out data's distance, read off at n samples; None without any."""
        return None if self.heldout is None else corrected_frechet(self.heldout, self.train, n, seed=seed).value


class _Levels:
    """Streaming moments of the features at each step; nothing of the images is kept."""

    def __init__(self, benches: Sequence[QualityBench]) -> None:
        self.benches = benches
        self.states: list[dict[int, FeatureStatistics]] = [{} for _ in benches]
        self.outputs: list[dict[int, FeatureStatistics]] = [{} for _ in benches]
        self.levels: dict[int, float] = {}
        self.nfe: dict[int, int] = {}

    def _take(self, tables: list[dict[int, FeatureStatistics]], k: int, x: Tensor) -> None:
        for bench, table in zip(self.benches, tables, strict=True):
            found = bench.seen(x)
            table.setdefault(k, FeatureStatistics(found.shape[1])).update(found)

    def step(self, step: Step) -> None:
        self._take(self.states, step.index, step.x)
        self._take(self.outputs, step.index, step.denoised)
        self.levels[step.index], self.nfe[step.index] = step.sigma, step.nfe

    def end(self, x: Tensor) -> None:
        self._take(self.states, len(self.levels), x)


def trajectory_quality(
    denoiser: Denoiser,
    bench: QualityBench,
    sampler: Sampler,
    n: int = 500,
    seed: int = 0,
    *,
    budgets: Sequence[int] = (),
    batch_size: int = BATCH,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> TrajectoryQuality:
    """Measure both curves of one run, and full runs of fewer steps beside its jumps.

    Args:
        denoiser: the model.
        bench: the data in features.
        sampler: the run; its own finish is what the last row shows.
        n: samples, at least 4; more than twice the number of features is advised.
        seed: of the samples.
        budgets: numbers of evaluations at which the run's best jump is set beside the sampler's own shorter plan.
        batch_size: samples at once.
        dtype: of the states.
        progress: show a bar on standard error.

    Raises:
        ArgumentError: for fewer than 4 samples, no step to look at, or a budget that no plan meets.
    """
    return trajectory_qualities(
        denoiser, [bench], sampler, n, seed, budgets=budgets, batch_size=batch_size, dtype=dtype, progress=progress
    )[0]


def trajectory_qualities(
    denoiser: Denoiser,
    benches: Sequence[QualityBench],
    sampler: Sampler,
    n: int = 500,
    seed: int = 0,
    *,
    budgets: Sequence[int] = (),
    batch_size: int = BATCH,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> list[TrajectoryQuality]:
    """:func:`trajectory_quality` of the same run on several kinds of features, one result for each."""
    if n < 4 or batch_size < 1:
        raise ArgumentError(f"n = {n}, batch_size = {batch_size}; expected at least 4 and 1")
    if budgets and min(budgets) < 1:
        raise ArgumentError(f"budget = {min(budgets)}; expected at least the 1 evaluation of the first jump")
    plans = [sampler.with_nfe(budget) for budget in budgets]  # refuses before anything is drawn
    seen, final = _Levels(benches), 0
    starts = range(0, n, batch_size)
    for low in track(starts, len(starts), "quality of trajectories", threshold=1 if progress else len(starts) + 1):
        out = sampler(denoiser, min(batch_size, n - low), seed, first=low, callback=seen.step, dtype=dtype)
        seen.end(out.x)
        final = max(final, out.nfe)
    if not seen.levels:
        raise ArgumentError(f"sampler visits {len(sampler.levels)} level; expected at least one step")
    if budgets and min(budgets) < seen.nfe[0]:
        raise ArgumentError(f"budget = {min(budgets)}; the first jump costs {seen.nfe[0]} evaluations")
    finished = [plan(denoiser, n, seed, batch_size=batch_size, dtype=dtype).x for plan in plans]
    count, results = len(seen.levels), []
    for bench, states, outputs in zip(benches, seen.states, seen.outputs, strict=True):
        rows = [
            QualityRow(
                count - k,
                seen.levels[k],
                seen.nfe[k] - 1 - _guidance(sampler, seen.levels[k]),
                bench.reference.distance(states[k]),
                seen.nfe[k],
                bench.reference.distance(outputs[k]),
            )
            for k in range(count)
        ]
        shorter = []
        for budget, plan, x in zip(budgets, plans, finished, strict=True):
            jump = [row for row in rows if row.jump_nfe <= budget][-1]
            away = _distance(bench, x, batch_size)
            shorter.append(BudgetRow(budget, jump.n, jump.sigma, jump.denoised, plan.nfe, away))
        results.append(
            TrajectoryQuality(
                rows=tuple(rows),
                final=bench.reference.distance(states[count]),
                final_nfe=final,
                budgets=tuple(shorter),
                floor=bench.floor(n),
                heldout=bench.heldout_distance(n, seed),
                features=identify(bench.features),
                samples=n,
                points=len(bench.train),
                sampler=sampler.rule.name,
                seed=seed,
            )
        )
    return results


def _guidance(sampler: Sampler, sigma: float) -> int:
    """Evaluations that guidance adds to one answer of the denoiser."""
    return sum(part.evaluations(sigma) for part in sampler.parts)


def _distance(bench: QualityBench, x: Tensor, batch_size: int) -> float:
    statistics = FeatureStatistics(bench.train.shape[1])
    for part in x.split(batch_size):
        statistics.update(bench.seen(part))
    return bench.reference.distance(statistics)


@dataclass(frozen=True)
class QualityOptions:
    """Options of the analysis; see :func:`trajectory_quality`.

    Attributes:
        solver: by name.
        levels: of the Karras grid over the model's range.
        n: samples.
        budgets: evaluations at which the jump is set beside a shorter plan of the same solver.
        batch_size: samples at once.
    """

    solver: str = "heun"
    levels: int = BASELINE_LEVELS
    n: int = 500
    budgets: tuple[int, ...] = ()
    batch_size: int = BATCH


@analysis(
    "quality",
    about="Fréchet distance of states and denoiser outputs along a run, by evaluations",
    options=QualityOptions,
)
def analyze_quality(subject: Subject, options: QualityOptions) -> TrajectoryQuality:
    """:func:`trajectory_quality` of a subject, on the features of its data set."""
    low, high = sigma_range(subject.model)
    features = features_for(subject.data, subject.name)
    bench = QualityBench.of(subject.data, features, subject.heldout, seed=subject.seed)
    found = trajectory_quality(
        subject.model,
        bench,
        Sampler(options.solver, karras(options.levels, low, high)),
        options.n,
        subject.seed,
        budgets=options.budgets,
        batch_size=options.batch_size,
        progress=subject.progress,
    )
    law = subject.model
    if isinstance(law, Gaussian) and isinstance(features, PCAFeatures) and features.components == law.dim:
        return replace(found, exact=tuple(gaussian_quality(law, [row.sigma for row in found.rows])))
    return found
