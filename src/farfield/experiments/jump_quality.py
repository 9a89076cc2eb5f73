"""Is the denoiser's output better than the state, and how early? Fréchet distance along both curves on the bundled models."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farfield.analysis.entrants import BASELINE_LEVELS, sigma_range
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.analysis.tables import Cell, Table
from farfield.analysis.trajectory_quality import QualityBench, features_for, trajectory_qualities
from farfield.analysis.trajectory_quality_result import MARGIN
from farfield.data import load
from farfield.denoiser import Denoiser
from farfield.errors import unknown_name
from farfield.experiments.base import Outcome, Settings, Verdict, available, experiment, figure_name
from farfield.interop import load as load_model
from farfield.metrics.features import PCAFeatures
from farfield.networks.files import read_json, write_json
from farfield.sampling import Sampler, karras
from farfield.version import __version__

#: Samples of each seed, by data set; few, so that the experiment takes a coffee and not a night.
SAMPLES: Mapping[str, int] = {"digits": 300, "cifar10": 100}
SOLVERS = ("heun", "dpmpp_2m")
#: Evaluations at which a jump out of the long run is set beside a finished run of fewer steps; for the first solver and seed.
BUDGETS = (9, 19)
#: Levels from below that count as the very end, where both curves are the finished sample.
END = 2
#: A state that has kept this share of its first distance is still noise, and its output still the data's mean.
FAR = 0.9


@dataclass(frozen=True)
class PublishedRow:
    """One row of the published figures: both distances at one level, for three data sets.

    Attributes:
        n: level from below on N = 40 steps of Heun; the state costs 2(40 − n) evaluations, the jump one more.
        sigma: the level, which follows from the grid.
        states, jumps: FID of LSUN Cat, LSUN Bedroom and ImageNet-64.
    """

    n: int
    sigma: float
    states: tuple[float, float, float]
    jumps: tuple[float, float, float]


PUBLISHED_SOURCE = "Chen et al., A geometric perspective on diffusion models, figures 26-28"
PUBLISHED_DATA = ("LSUN Cat", "LSUN Bedroom", "ImageNet-64")
PUBLISHED = (
    PublishedRow(36, 44.630, (442.00, 402.72, 422.25), (374.11, 296.75, 292.81)),
    PublishedRow(31, 19.946, (440.82, 401.66, 422.10), (219.66, 238.35, 212.79)),
    PublishedRow(26, 8.0265, (433.89, 395.07, 420.91), (73.62, 98.79, 143.97)),
    PublishedRow(21, 2.8184, (387.40, 346.96, 408.82), (35.26, 28.37, 59.95)),
    PublishedRow(16, 0.82294, (175.27, 206.85, 244.25), (29.84, 15.30, 19.63)),
    PublishedRow(11, 0.18459, (34.82, 50.98, 55.10), (19.30, 10.04, 7.77)),
    PublishedRow(6, 0.027525, (14.93, 11.67, 8.25), (7.93, 4.19, 3.25)),
    PublishedRow(1, 0.002, (6.63, 3.51, 2.52), (6.72, 3.50, 2.48)),
)


@dataclass(frozen=True)
class Curve:
    """Both curves of one solver on one data set, over the seeds.

    Attributes:
        data, solver, features: their names.
        runs: what :meth:`TrajectoryQuality.to_dict` says, seed by seed.
    """

    data: str
    solver: str
    features: str
    runs: tuple[Mapping[str, Any], ...]

    def column(self, name: str) -> list[list[float]]:
        """One value of every row, (rows, seeds)."""
        return [
            list(values)
            for values in zip(*([float(row[name]) for row in run["rows"]] for run in self.runs), strict=True)
        ]

    @property
    def gains(self) -> list[tuple[float, float]]:
        """Mean of ``log(state/jump)`` over the seeds at each level, and its standard error (0 for a single seed)."""
        found = []
        for states, jumps in zip(self.column("state"), self.column("denoised"), strict=True):
            logs = [math.log(a / b) for a, b in zip(states, jumps, strict=True)]
            error = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
            found.append((statistics.mean(logs), error))
        return found

    @property
    def means(self) -> list[tuple[int, float, int, float, int, float]]:
        """``(n, σ, NFE, distance of the state, NFE of the jump, its distance)``, means over the seeds."""
        states, jumps = ([statistics.mean(v) for v in self.column(name)] for name in ("state", "denoised"))
        rows = self.runs[0]["rows"]
        return [
            (row["n"], row["sigma"], row["nfe"], a, row["jump_nfe"], b)
            for row, a, b in zip(rows, states, jumps, strict=True)
        ]

    @property
    def final(self) -> float:
        """Distance of the finished samples."""
        return statistics.mean(run["final"] for run in self.runs)

    def behind(self) -> dict[str, list[float]]:
        """Levels where the jump is worse by more than 2 % and its error: still noise, on the way, at the very end."""
        top, found = self.means[0][3], {"noise": list[float](), "way": list[float](), "end": list[float]()}
        for (n, sigma, _, state, _, _), (gain, error) in zip(self.means, self.gains, strict=True):
            if gain + error < -math.log1p(MARGIN):
                found["end" if n <= END else "noise" if state > FAR * top else "way"].append(sigma)
        return found

    def soon(self, share: float = 0.1) -> tuple[int, int, float]:
        """Evaluations after which the jump, and the state, are within a share of the finished samples; the jump's level."""
        limit, rows = self.final * (1 + share), self.means
        jump = next((row for row in rows if row[5] <= limit), rows[-1])
        state = next((row[2] for row in rows if row[3] <= limit), self.runs[0]["final_nfe"])
        return jump[4], state, jump[1]


@experiment(
    "jump-quality",
    claim="At every step but the very last ones the denoiser's output is closer to the data than the state that it is made "
    "from, so a run may jump to it long before its end",
    source="Chen et al., A geometric perspective on diffusion models, observation 3, section 3.2 and figures 26-28",
    cost="about 3 minutes on one CPU core; resumes where it was stopped if it has a folder",
    repeats=True,
)
def jump_quality(settings: Settings) -> Outcome:
    """Both curves by solver and data set."""
    return measure(settings, SAMPLES)


def measure(settings: Settings, samples: Mapping[str, int], solvers: Sequence[str] = SOLVERS) -> Outcome:
    """The experiment with other numbers of samples.

    Args:
        settings: ``seeds`` sets of samples are drawn.
        samples: of each seed, for each data set.
        solvers: by name.

    Raises:
        ArgumentError: for a data set that has no model here.
    """
    chosen = settings.data or tuple(samples)
    for name in chosen:
        if name not in samples:
            raise unknown_name("data set of this experiment", name, samples)
    tables, figures, words, checks = [], {}, [], []
    for name in available(chosen, settings.progress):
        model = load_model(name)
        curves = _curves(settings, name, model, samples[name], solvers)
        for curve in curves:
            tables.append(_table(curve))
            behind = curve.behind()
            checks.append((not behind["way"], not behind["noise"]))
            words.append(_words(curve, behind))
            tables += _budgets(curve)
        for features in dict.fromkeys(curve.features for curve in curves):
            shown = [curve for curve in curves if curve.features == features]
            figures[figure_name("jump", f"{name}-{features}")] = _figure(f"{name}, {features}", shown)
    tables.append(_published())
    on_the_way, everywhere = all(a for a, _ in checks), all(b for _, b in checks)
    verdict: Verdict = "holds" if on_the_way and everywhere else "holds in part" if on_the_way else "does not hold"
    told = {"samples": {k: v for k, v in samples.items() if k in chosen}, "levels": BASELINE_LEVELS}
    seeds = [settings.seed + k for k in range(settings.seeds)]
    return Outcome(
        verdict, "; ".join(words), tuple(tables), figures, {**told, "seeds": seeds, "solvers": list(solvers)}
    )


def _curves(settings: Settings, name: str, model: Denoiser, n: int, solvers: Sequence[str]) -> list[Curve]:
    """All runs of a data set; what is on file in the settings' folder already is not drawn again."""
    data = load(name, size=(model.event_shape[-2], model.event_shape[-1]))
    features = features_for(data.train.images, name)
    images = data.train.images
    maps = [features, *([] if isinstance(features, PCAFeatures) else [features_for(images)])]
    benches = [QualityBench.of(images, f, data.validation.images) for f in maps]
    low, high = sigma_range(model)
    found = []
    for solver in solvers:
        plan, runs = Sampler(solver, karras(BASELINE_LEVELS, low, high)), []
        for seed in range(settings.seed, settings.seed + settings.seeds):
            budgets = BUDGETS if solver == solvers[0] and seed == settings.seed else ()
            key = {
                "farfield": __version__, "data": data.digest, "features": [f.digest for f in maps], "n": n, "seed": seed,
                "budgets": list(budgets), "sampler": hashlib.sha256(plan.to_json().encode()).hexdigest(),
            }  # fmt: skip
            path = None if settings.out is None else settings.out / "cells" / f"{name}-{solver}-{seed}.json"
            kept = _kept(path, key)
            if kept is None:
                measured = trajectory_qualities(
                    model, benches, plan, n, seed, budgets=budgets, progress=settings.progress
                )
                kept = [quality.to_dict() for quality in measured]
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(path, {"key": key, "qualities": kept})
            runs.append(kept)
        found += [Curve(name, solver, f.name, tuple(run[k] for run in runs)) for k, f in enumerate(maps)]
    return found


def _kept(path: Path | None, key: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    if path is None or not path.exists():
        return None
    stored = read_json(path)
    qualities = stored.get("qualities")
    return qualities if stored.get("key") == key and isinstance(qualities, list) else None


def _words(curve: Curve, behind: Mapping[str, Sequence[float]]) -> str:
    best = max(range(len(curve.gains)), key=lambda k: curve.gains[k][0])
    most, where = math.exp(curve.gains[best][0]), curve.means[best][1]
    jump, state, sigma = curve.soon()
    text = (
        f"{curve.data}, {curve.solver} on {curve.features}: up to {most:.2g} times closer (σ = {where:.2g}); "
        f"within 10 % of the finished samples after {jump} evaluations by a jump at σ = {sigma:.2g}, {state} without"
    )
    if behind["noise"]:
        text += (
            f"; behind at σ = {min(behind['noise']):.3g} and above, where states are still noise and the outputs, all close to "
            "the data's mean, lack its variety"
        )
    if behind["way"]:
        text += f"; behind on the way at σ = {', '.join(f'{s:.2g}' for s in behind['way'])}"
    close = min((k for k, row in enumerate(curve.means) if row[0] > 1), key=lambda k: curve.gains[k][0])
    if not behind["noise"] and not behind["way"] and curve.gains[close][0] < 0:
        text += f"; nowhere behind by more than {100 * (math.exp(-curve.gains[close][0]) - 1):.1g} %"
    if behind["end"]:
        text += f"; behind at the very end, σ = {', '.join(f'{s:.2g}' for s in behind['end'])}"
    return text


def _table(curve: Curve) -> Table:
    run = curve.runs[0]
    rows: list[tuple[Cell, ...]] = [
        (*row, math.exp(gain), math.exp(gain) * error)
        for row, (gain, error) in zip(curve.means, curve.gains, strict=True)
    ]
    rows.append((0, 0.0, run["final_nfe"], curve.final, None, None, None, None))
    held = "" if run["heldout"] is None else f", held-out data {run['heldout']:.3g}"
    title = (
        f"{curve.data}, {curve.solver}: Fréchet distance of {run['samples']} samples on {run['features']['name']}, mean over "
        f"{len(curve.runs)} seeds (as many of a perfect model about {run['floor']:.3g}{held})"
    )
    columns = ("n", "σ", "NFE", "state", "NFE of jump", "jump", "state/jump", "± error")
    return Table(title, columns, tuple(rows))


def _budgets(curve: Curve) -> list[Table]:
    rows = tuple(
        (b["budget"], b["sigma"], b["jump"], b["nfe"], b["shorter"], b["shorter"] / b["jump"])
        for b in curve.runs[0]["budgets"]
    )
    title = f"{curve.data}, {curve.solver} on {curve.features}: a jump out of the long run beside a run of fewer steps"
    columns = ("evaluations", "jump at σ", "jump", "NFE of the short run", "short run", "short run/jump")
    return [Table(title, columns, rows)] if rows else []


def _published() -> Table:
    rows: list[tuple[Cell, ...]] = []
    for row in PUBLISHED:
        pairs = [value for pair in zip(row.states, row.jumps, strict=True) for value in pair]
        rows.append((row.n, row.sigma, 2 * (40 - row.n), 2 * (40 - row.n) + 1, *pairs))
    heads = [f"{name} {kind}" for name in PUBLISHED_DATA for kind in ("state", "jump")]
    title = f"published: Heun, 40 steps, FID ({PUBLISHED_SOURCE})"
    return Table(title, ("n", "σ", "NFE", "NFE of jump", *heads), tuple(rows))


def _figure(name: str, curves: Sequence[Curve]) -> Any:
    """Distance against evaluations for each solver, and how many times closer the jump is beside the published figures."""
    left, right = axes_for(None, 2, 11.0, 4.2)
    for k, curve in enumerate(curves):
        rows, colour = curve.means, PALETTE[k]
        ends = [*(row[2] for row in rows), curve.runs[0]["final_nfe"]], [*(row[3] for row in rows), curve.final]
        left.plot(
            *ends, color=colour, linewidth=1.4, linestyle=":", marker="o", markersize=3, label=f"{curve.solver}, state"
        )
        left.plot(
            [row[4] for row in rows], [row[5] for row in rows],
            color=colour, linewidth=1.8, marker="o", markersize=3.5, label=f"{curve.solver}, jump",
        )  # fmt: skip
        right.plot(
            [row[1] for row in rows], [math.exp(gain) for gain, _ in curve.gains],
            color=colour, linewidth=1.8, marker="o", markersize=3.5, label=f"{curve.data}, {curve.solver}",
        )  # fmt: skip
    for k, data in enumerate(PUBLISHED_DATA):
        right.plot(
            [row.sigma for row in PUBLISHED], [row.states[k] / row.jumps[k] for row in PUBLISHED],
            color=PALETTE[7], linewidth=1, linestyle=("-", "--", ":")[k], label=f"{data}, published",
        )  # fmt: skip
    left.axhline(
        curves[0].runs[0]["floor"], color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (4, 3)), label="perfect samples"
    )
    right.axhline(1.0, color=INK, alpha=0.5, linewidth=0.8)
    left.set_yscale("log")
    right.set_yscale("log")
    right.set_xscale("log")
    most = max(math.exp(gain) for curve in curves for gain, _ in curve.gains)
    right.set_ylim(top=max(60, 3 * most))  # room for the legend
    right.invert_xaxis()
    dress(left, "denoiser evaluations for each sample", "Fréchet distance", name)
    dress(right, "noise level σ (sampling →)", "distance of the state ÷ of the jump")
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8)
    return left.figure
