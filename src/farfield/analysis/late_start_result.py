"""What a sweep over the start time returns: curves, gains over the default start with their errors, table and figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from farfield.analysis.late_start_choice import StartChoice
from farfield.analysis.late_start_curve import StartCurve
from farfield.analysis.plotting import PALETTE, axes_for, dress, label_ends, marker_line
from farfield.analysis.tables import Table
from farfield.errors import ArgumentError
from farfield.sampling.late import Kind, vanilla_start

#: How the samplers and laws are called on a page.
NAMES = {"ddpm": "DDPM", "ddim": "DDIM", "pndm": "PNDM", "ancestral": "DDPM, all indices"}
LAWS = {"plain": "from N(0, I)", "gls": "from the data's Gaussian", "sampled": "from sampled moments"}


@dataclass(frozen=True)
class Cell:
    """One run of one seed.

    Attributes:
        sampler, n, law, start, seed: what was run.
        nfe: evaluations for each sample.
        values: the metrics, by name.
    """

    sampler: Kind
    n: int
    law: str
    start: float
    seed: int
    nfe: int
    values: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def interval(values: Sequence[float], level: float = 0.95) -> float:
    """Half the width of Student's confidence interval of a mean; 0 for one value."""
    if len(values) < 2:
        return 0.0
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class Gain:
    """The three controls of a sampler and number of steps, at the same number of evaluations.

    Attributes:
        sampler, n, nfe: what was run.
        default: the mean value at the vanilla start, from N(0, I), and half its 95 % interval.
        default_start: its index.
        tuned: the same at the best start from N(0, I).
        tuned_start: that start.
        gaussian: the same at the best start from the Gaussian.
        gaussian_start: that start.
        ratio: default over gaussian, the gain; the geometric mean over the seeds.
        ratio_low, ratio_high: its 95 % interval, from the paired logarithms of the seeds.
    """

    sampler: Kind
    n: int
    nfe: int
    default: tuple[float, float]
    default_start: float
    tuned: tuple[float, float]
    tuned_start: float
    gaussian: tuple[float, float]
    gaussian_start: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def wins(self) -> bool:
        """Whether the Gaussian late start beats the default start on average."""
        return self.gaussian[0] < self.default[0]

    @property
    def wins_tuned(self) -> bool:
        """Whether it beats the tuned start from N(0, I) as well."""
        return self.gaussian[0] < self.tuned[0]


@dataclass(frozen=True)
class LateStartSweep:
    """All cells of a sweep.

    Attributes:
        cells: one for each run.
        metric: the name of the metric that it is about.
        count: samples of a cell.
        critical: the first critical index, to be marked; None where it is not known.
        choices: the starts that would be chosen without sampling, one for each number of steps.
    """

    cells: tuple[Cell, ...]
    metric: str
    count: int
    critical: float | None = None
    choices: tuple[StartChoice, ...] = ()

    @property
    def kinds(self) -> tuple[tuple[Kind, int], ...]:
        """Samplers and numbers of steps, in the order they were run."""
        return tuple(dict.fromkeys((c.sampler, c.n) for c in self.cells))

    @property
    def laws(self) -> tuple[str, ...]:
        """The laws, likewise."""
        return tuple(dict.fromkeys(c.law for c in self.cells))

    def curve(self, sampler: str, n: int, law: str = "plain", metric: str | None = None) -> StartCurve:
        """The mean over the seeds against the start.

        Raises:
            ArgumentError: for a combination that was not run, or starts that not all seeds have.
        """
        name = self.metric if metric is None else metric
        rows = [c for c in self.cells if (c.sampler, c.n, c.law) == (sampler, n, law)]
        if not rows:
            raise ArgumentError(f"{sampler} with n = {n} and law {law!r} was not run")
        starts = sorted({c.start for c in rows})
        runs = [tuple(c.values[name] for c in sorted(rows, key=lambda c: c.seed) if c.start == s) for s in starts]
        if len({len(run) for run in runs}) > 1:
            raise ArgumentError(f"{sampler} with n = {n} and law {law!r}: not every seed has every start")
        means = tuple(statistics.fmean(run) for run in runs)
        return StartCurve(sampler, n, law, rows[0].nfe, tuple(starts), means, tuple(runs))

    def gain(
        self,
        sampler: Kind,
        n: int,
        metric: str | None = None,
        tuned_start: float | None = None,
        gaussian_start: float | None = None,
    ) -> Gain:
        """The Gaussian late start against the default start and the tuned one, seed by seed.

        Args:
            sampler, n, metric: which.
            tuned_start, gaussian_start: the tuned starts, chosen elsewhere; by default the best of these very runs, whose
                values are then a little too good.

        Raises:
            ArgumentError: if one of them was not run, or they cost different numbers of evaluations.
        """
        plain, gls = self.curve(sampler, n, "plain", metric), self.curve(sampler, n, "gls", metric)
        if plain.nfe != gls.nfe:
            raise ArgumentError(f"{plain.nfe} evaluations on one side, {gls.nfe} on the other")
        first = plain.at(vanilla_start(n))
        tuned = plain.at(plain.best[0] if tuned_start is None else tuned_start)
        ours = gls.at(gls.best[0] if gaussian_start is None else gaussian_start)

        def mean(curve: StartCurve, k: int) -> tuple[float, float]:
            return curve.values[k], interval(curve.runs[k])

        logs = [
            math.log(max(a, 1e-300) / max(b, 1e-300)) for a, b in zip(plain.runs[first], gls.runs[ours], strict=True)
        ]
        centre, half = statistics.fmean(logs), interval(logs)
        return Gain(
            sampler,
            n,
            gls.nfe,
            mean(plain, first),
            plain.starts[first],
            mean(plain, tuned),
            plain.starts[tuned],
            mean(gls, ours),
            gls.starts[ours],
            math.exp(centre),
            math.exp(centre - half),
            math.exp(centre + half),
        )

    def gains(self) -> list[Gain]:
        """All of them, where both laws and the default start were run."""
        runs = {(c.sampler, c.n, c.law) for c in self.cells if c.law != "plain" or c.start == vanilla_start(c.n)}
        return [self.gain(k, n) for k, n in self.kinds if {(k, n, "plain"), (k, n, "gls")} <= runs]

    def summary(self) -> str:
        """The best start of each curve's sampler, in one sentence, and the gain where there is one."""
        gains = self.gains()
        parts = []
        if gains:
            won = sum(g.wins for g in gains)
            best = max(gains, key=lambda g: g.ratio)
            parts.append(
                f"The Gaussian late start beats the default start in {won} of {len(gains)} cells, and the tuned start from "
                f"N(0, I) in {sum(g.wins_tuned for g in gains)}; the largest gain is {best.ratio:.2f} "
                f"({NAMES[best.sampler]}, {best.n} steps, from index {best.gaussian_start:.0f})."
            )
        for kind, n in self.kinds[:1]:
            curve = self.curve(kind, n, self.laws[0])
            bend = "" if curve.knee is None else f"bends at index {curve.knee:.0f} and "
            parts.append(
                f"{NAMES[kind]} with {n} steps {LAWS.get(curve.law, curve.law)} {bend}is best from {curve.best[0]:.0f}."
            )
        if self.critical is not None:
            parts.append(f"The first critical time is at index {self.critical:.0f}.")
        if self.choices:
            starts = ", ".join(f"{c.start} for {c.n} steps" for c in self.choices)
            parts.append(
                f"Without sampling, by {self.choices[0].by}, the Gaussian late start would be put at {starts}."
            )
        return " ".join(parts)

    def tables(self) -> list[Table]:
        """The curves, and the gains."""
        found = []
        for kind, n in self.kinds:
            curves = [self.curve(kind, n, law) for law in self.laws if self._has(kind, n, law)]
            starts = sorted({s for c in curves for s in c.starts})
            rows = [(s, *(c.values[c.at(s)] if s in c.starts else None for c in curves)) for s in starts]
            names = ("start", *(LAWS.get(c.law, c.law) for c in curves))
            title = f"{self.metric}, {NAMES[kind]} with {n} steps, {curves[0].nfe} evaluations, {self.count} samples"
            found.append(Table(title, names, tuple(rows)))
        gains = self.gains()
        if gains:
            found.append(gain_table(gains, self.metric))
        return found

    def _has(self, sampler: str, n: int, law: str) -> bool:
        return any((c.sampler, c.n, c.law) == (sampler, n, law) for c in self.cells)

    def to_dict(self) -> dict[str, Any]:
        """Cells, curves' features and gains, JSON-safe."""
        curves = [self.curve(k, n, law) for k, n in self.kinds for law in self.laws if self._has(k, n, law)]
        features = [
            {"sampler": c.sampler, "n": c.n, "law": c.law, "knee": c.knee, "plateau": c.plateau, "best": list(c.best)}
            for c in curves
        ]
        return {
            "metric": self.metric,
            "count": self.count,
            "critical": self.critical,
            "cells": [c.to_dict() for c in self.cells],
            "curves": features,
            "gains": [asdict(g) for g in self.gains()],
            "choices": [c.to_dict() for c in self.choices],
        }

    def plot(self, ax: Any = None) -> Any:
        """Quality against the start, a panel for each sampler and number of steps. Returns the figure."""
        kinds = self.kinds
        shown = kinds if len(kinds) <= 3 else kinds[:: max(1, (len(kinds) - 1) // 2)][:3]
        panels = axes_for(ax, len(shown), 1.2 + 3.9 * len(shown), 4.2)
        for axes, (kind, n) in zip(panels, shown, strict=False):
            self.draw(axes, kind, n)
        return panels[0].figure

    def draw(self, axes: Any, sampler: Kind, n: int) -> None:
        """The curves of one sampler and number of steps on given axes."""
        axes.set_yscale("log")
        ends = []
        for k, law in enumerate(self.laws):
            if not self._has(sampler, n, law):
                continue
            curve = self.curve(sampler, n, law)
            colour = PALETTE[k % len(PALETTE)]
            axes.plot(curve.starts, curve.values, color=colour, linewidth=2, marker="o", markersize=4)
            if len(curve.runs[0]) > 1:
                low, high = ([f(run) for run in curve.runs] for f in (min, max))
                axes.fill_between(curve.starts, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(*curve.best, "*", color=colour, markersize=13)
            ends.append((curve.values[-1], {"plain": "N(0, I)", "gls": "Gaussian"}.get(law, law), colour))
        for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            ticks("{x:g}")
        dress(axes, "index of the start", self.metric, f"{NAMES[sampler]}, {n} steps")
        if self.critical is not None:
            marker_line(axes, self.critical, "critical time", 0.6)
        label_ends(axes, ends)


def gain_table(gains: Sequence[Gain], metric: str, title: str = "") -> Table:
    """The three controls and the gain, with 95 % intervals over the seeds."""

    def cell(value: tuple[float, float], start: float) -> str:
        return f"{value[0]:.4g} ± {value[1]:.2g} @{start:.0f}" if value[1] else f"{value[0]:.4g} @{start:.0f}"

    rows = tuple(
        (
            NAMES[g.sampler],
            g.n,
            g.nfe,
            cell(g.default, g.default_start),
            cell(g.tuned, g.tuned_start),
            cell(g.gaussian, g.gaussian_start),
            g.ratio,
            f"{g.ratio_low:.3g} to {g.ratio_high:.3g}",
        )
        for g in gains
    )
    columns = ("sampler", "steps", "NFE", "default start", "tuned, N(0, I)", "tuned, Gaussian", "gain", "95 % interval")
    return Table(title or f"{metric}: default start, best late start, best Gaussian late start", columns, rows)
