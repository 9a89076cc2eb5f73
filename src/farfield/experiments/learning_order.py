"""In which order a network learns: the simple laws before the detailed ones, and the wide directions before the narrow."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farfield.analysis.learning_curves import LearningCurves
from farfield.analysis.learning_record import RECORD, learning_curves, read_record
from farfield.analysis.tables import Table
from farfield.errors import unknown_name
from farfield.experiments.base import Outcome, Settings, Verdict, available, experiment
from farfield.training import TrainConfig, from_dict, train

#: What is trained: the bundled models' networks, for as many steps as it takes to leave the Gaussian behind.
RUNS: dict[str, dict[str, Any]] = {
    "digits": {
        "data": {"source": "digits"},
        "network": {"kind": "song_unet", "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1,
                    "attn_resolutions": [4], "dropout": 0.1},
        "objective": {"kind": "edm", "p_mean": -0.8, "p_std": 1.2},
        "steps": 700,
    },
    "cifar10": {
        "data": {"source": "cifar10", "size": 16},
        "network": {"kind": "song_unet", "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1,
                    "attn_resolutions": [8], "dropout": 0.0},
        "objective": {"kind": "edm", "p_mean": -1.2, "p_std": 1.2},
        "precision": "bf16",
        "steps": 1500,
    },
}  # fmt: skip
#: Levels at which the claim says something: at most 1.5, and at least 10.
LOW, HIGH = (0.1, 0.3, 1.0, 1.5), (10.0, 30.0)
LAWS = ("gaussian", "mixture:2", "mixture:5", "empirical")
#: Below this the order of the components counts as that of their variances.
_ORDERED = -0.5


def configuration(name: str, seed: int, steps: int | None) -> TrainConfig:
    """The run of one data set and seed."""
    base = RUNS[name]
    total = steps if steps is not None else int(base["steps"])
    return from_dict(
        {
            **base,
            "optimizer": {"lr": 2e-3, "warmup_steps": min(100, total // 4), "decay": "cosine", "clip": 1.0},
            "ema": {"half_life": 30_000, "ramp": 0.05},
            "probe": {
                "every": max(total // 20, 1), "per_decade": 10, "sigmas": [*LOW, *HIGH], "laws": list(LAWS),
                "queries": 192, "components": 16,
            },
            "batch_size": 64,
            "steps": total,
            "seed": seed,
            "threads": 1,
            "checkpoint_every": max(total // 7, 1),
            "log_every": max(total // 7, 1),
            "keep": 1,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class _Check:
    """A part of the claim: in how many cases it holds."""

    words: str
    held: int
    cases: int

    def __str__(self) -> str:
        return f"{self.words} in {self.held} of {self.cases} cases"


@experiment(
    "learning-order",
    claim="A network learns simple structure first: at σ ≤ 1.5 what the Gaussian leaves unexplained of its score falls and "
    "then rises again, mixtures of a few components are left behind later and the training samples are approached to the "
    "end; at σ ≥ 10 all laws are approached together; principal components are learned in the order of their variance",
    source="Wang & Vastola 2024, section 5, figures 12 and 13; the order of components is that of a linear denoiser",
    cost="about 6 minutes on one CPU core for three seeds on digits; resumes where it was stopped if it has a folder",
    trains=True,
)
def learning_order(settings: Settings) -> Outcome:
    """Unexplained fractions by law along training, for each seed."""
    chosen = settings.data or ("digits",)
    for name in chosen:
        if name not in RUNS:
            raise unknown_name("data set of this experiment", name, RUNS)
    names = available(chosen, settings.progress)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    tables, figures, words = [], {}, []
    checks: list[_Check] = []
    with ExitStack() as stack:
        root = settings.out if settings.out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in names:
            runs = [_run(root / f"{name}-{seed}", name, seed, settings) for seed in seeds]
            found = _judge(runs)
            checks += found
            tables += _tables(name, runs)
            figures[f"learning-{name}"] = runs[0].plot()
            words.append(f"{name}: {'; '.join(map(str, found))}")
    whole = [check.held == check.cases for check in checks]
    verdict: Verdict = "holds" if all(whole) else "holds in part" if any(whole) else "does not hold"
    about = {"seeds": list(seeds), "laws": list(LAWS), "runs": {name: RUNS[name] for name in names}}
    return Outcome(verdict, ". ".join(words), tuple(tables), figures, about)


def _run(folder: Path, name: str, seed: int, settings: Settings) -> LearningCurves:
    train(configuration(name, seed, settings.steps), folder, progress=settings.progress)
    return learning_curves(read_record(folder / RECORD), str(folder / RECORD))


def _judge(runs: Sequence[LearningCurves]) -> list[_Check]:
    """The parts of the claim, each counted over levels and seeds."""

    def count(words: str, levels: Sequence[float], test: Callable[[LearningCurves, float], bool]) -> _Check:
        cases = [test(run, s) for run in runs for s in levels]
        return _Check(words, sum(cases), len(cases))

    def turns(run: LearningCurves, s: float) -> bool:
        return run.course("gaussian", s).kind == "dip and rise"

    def later(run: LearningCurves, s: float) -> bool:
        gaussian, *mixtures = (run.course(law, s).step for law in LAWS[:-1])
        return all(step > gaussian for step in mixtures)

    def ordered(run: LearningCurves, s: float) -> bool:
        rank = run.rank_correlation(s)
        return rank is not None and rank < _ORDERED

    def approached(run: LearningCurves, s: float) -> bool:
        return run.course("empirical", s).kind == "monotone"

    def together(run: LearningCurves, s: float) -> bool:
        return all(run.course(law, s).kind == "monotone" for law in LAWS)

    low = [s for s in runs[0].selective if s <= max(LOW)]
    return [
        count("the Gaussian's curve dips and rises at σ ≤ 1.5", LOW, turns),
        count("both mixtures are left behind after the Gaussian", LOW, later),
        count("the empirical law's curve falls to the end", LOW, approached),
        count("all curves fall to the end at σ ≥ 10", HIGH, together),
        count(f"components are learned in order (rank correlation under {_ORDERED}) at σ ≤ √λ₁", low, ordered),
    ]


def _tables(name: str, runs: Sequence[LearningCurves]) -> list[Table]:
    """Means over the seeds of each curve's course, and of the rank correlations."""
    rows: list[tuple[Any, ...]] = []
    for s in runs[0].sigmas:
        for law in runs[0].laws:
            courses = [run.course(law, s) for run in runs]
            mean = [statistics.mean(getattr(c, part) for c in courses) for part in ("first", "least", "step", "last")]
            turned = sum(c.kind == "dip and rise" for c in courses)
            denoiser = statistics.mean(run.course(law, s, "denoiser").overshoot for run in runs)
            rows.append((s, law, *mean, mean[3] / mean[1], f"{turned} of {len(runs)}", denoiser))
    heads = ("σ", "law", "start", "least", "at step", "end", "end ÷ least", "dip and rise", "end ÷ least, denoiser")
    curves = Table(f"{name}: unexplained fraction of the score, means over {len(runs)} seeds", heads, tuple(rows))
    ranks: list[tuple[Any, ...]] = []
    for s in runs[0].selective:
        found = [rank for run in runs if (rank := run.rank_correlation(s)) is not None]
        spread = statistics.stdev(found) if len(found) > 1 else None
        ranks.append((s, statistics.mean(found) if found else None, spread))
    columns = ("σ", "rank correlation", "spread")
    return [curves, Table(f"{name}: learning step of a component against its variance", columns, tuple(ranks))]
