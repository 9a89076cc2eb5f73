"""Late starts on the bundled models: where quality falls, and where the critical time is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.critical_result import CriticalTimes
from farfield.analysis.critical_times import critical_times
from farfield.analysis.late_start_choice import choose_start, critical_index
from farfield.analysis.late_start_mismatch import LawMismatch, law_mismatch
from farfield.analysis.late_start_result import NAMES, LateStartSweep
from farfield.analysis.late_start_sweep import Metric, late_start_sweep
from farfield.analysis.plotting import axes_for
from farfield.analysis.tables import Cell, Table
from farfield.distributions import Empirical, Gaussian
from farfield.experiments.base import Outcome, Settings, Verdict, experiment, figure_name
from farfield.experiments.late_start_published import SOURCE, STARTS_2, TABLE_2
from farfield.experiments.teleport_cells import Bench, benches
from farfield.processes import DDPM
from farfield.version import __version__

#: Samples of each cell.
SAMPLES: Mapping[str, int] = {"digits": 300, "cifar10": 150}
#: Samplers that have enough steps for the start to be what is seen: 20 steps of PNDM are 29 evaluations.
SAMPLERS = (("pndm", 20), ("ddpm", 30))
STARTS = (50, 100, 200, 300, 400, 500, 600, 700, 800, 900)
#: Points of the exact law whose critical time stands beside.
POINTS = 5000
QUERIES = 128


def metrics_of(bench: Bench) -> dict[str, Metric]:
    """Fréchet distance on the classifier's features, and the entropy of its labels."""
    found: dict[str, Metric] = {"Fréchet distance": bench.distance}
    if hasattr(bench.features, "probabilities"):

        def entropy(x: Tensor) -> float:
            labels = bench.features.probabilities(bench.features(x)).argmax(1)
            shares = torch.bincount(labels).double() / len(labels)
            return -float(torch.xlogy(shares, shares).sum())

        found["label entropy"] = entropy
    return found


def about(bench: Bench) -> dict[str, Any]:
    """What tells the cells of one model from those of another."""
    return {"farfield": __version__, "data": bench.data.digest, "features": bench.features.digest, "model": bench.name}


def first_critical(bench: Bench) -> CriticalTimes:
    """The first critical time of the data's exact law about their mean, with a check of what it leads to."""
    points = bench.data.train.images[:POINTS]
    return critical_times(Empirical(points), DDPM(), origin=points.double().mean(0))


def mismatches(bench: Bench, seed: int) -> dict[str, LawMismatch]:
    """The divergence of the noised data from N(0, I) and from their Gaussian."""
    data, mean = bench.data.train.images, bench.gaussian.mean
    laws = {"plain": Gaussian.isotropic(torch.zeros_like(mean), 1.0), "gls": bench.gaussian}
    return {
        name: law_mismatch(bench.model, law, data, queries=QUERIES, seed=seed, batch_size=128)
        for name, law in laws.items()
    }


@experiment(
    "late-start",
    claim="Starting late from N(0, I) costs next to nothing down to a threshold, then quality falls sharply, and the "
    "bend marks the first critical time; from the data's Gaussian the threshold is lower",
    source="Raya & Ambrogioni 2023, section 4.1, figure 4 and table 2",
    cost="about 10 minutes on one CPU core for digits and 35 for cifar10; resumes where it was stopped if it has a folder",
)
def late_start(settings: Settings) -> Outcome:
    """Fréchet distance against the start, with knee, plateau and critical time."""
    return curves(settings, SAMPLES)


def curves(settings: Settings, samples: Mapping[str, int], starts: tuple[int, ...] = STARTS) -> Outcome:
    """The experiment with other numbers of samples, or other starts."""
    tables, figures, words, checks = [], {}, [], []
    found = benches(settings, samples)
    for bench in found:
        critical = first_critical(bench)
        first = critical.first
        index = None if first is None else DDPM().time(first.sigma)
        gaps = mismatches(bench, settings.seed)
        parts = [_sweep(bench, kind, n, starts, settings, index) for kind, n in SAMPLERS]
        sweep = replace(parts[0], cells=tuple(c for part in parts for c in part.cells))
        tables += [replace(t, title=f"{bench.name}: {t.title}") for t in sweep.tables()[: len(SAMPLERS)]]
        tables.append(_features(bench, sweep, critical, gaps))
        figures[figure_name("late-start", bench.name)] = _figure(sweep)
        plain, gls = (sweep.curve("pndm", SAMPLERS[0][1], law) for law in ("plain", "gls"))
        loss = [plain.values[0] / plain.best[1], plain.values[-1] / plain.best[1]]
        # A plateau that spans some of the starts, a fall below it, a lower threshold from the Gaussian; the bend within a step
        # of the sweep from the critical time.
        checks += [loss[0] > 2 and plain.plateau < plain.starts[-1], gls.plateau < plain.plateau]
        checks.append(index is not None and plain.knee is not None and abs(plain.knee - index) <= 100)
        told = "no critical time" if index is None else f"critical time at index {index:.0f}"
        told += "" if first is None else f" ({first.kind})"
        words.append(
            f"{bench.name}: {told}; PNDM from N(0, I) bends at {plain.knee:.0f}, plateau down to {plain.plateau:.0f}; "
            f"from the Gaussian down to {gls.plateau:.0f}"
        )
    tables.append(_published())
    verdict: Verdict = "holds" if all(checks) else "holds in part" if any(checks) else "does not hold"
    told_about = {"samples": {b.name: b.n for b in found}, "seed": settings.seed, "starts": list(starts)}
    return Outcome(verdict, "; ".join(words), tuple(tables), figures, told_about)


def _sweep(
    bench: Bench, kind: Any, n: int, starts: tuple[int, ...], settings: Settings, index: float | None
) -> LateStartSweep:
    swept = late_start_sweep(
        bench.model, (kind,), starts, (n,), {"plain": None, "gls": bench.gaussian}, metrics_of(bench), (settings.seed,),
        count=bench.n, folder=None if settings.out is None else settings.out / f"{bench.name}-{kind}-{n}",
        about=about(bench), progress=settings.progress,
    )  # fmt: skip
    return replace(swept, critical=index)


def _features(bench: Bench, sweep: LateStartSweep, critical: CriticalTimes, gaps: Mapping[str, LawMismatch]) -> Table:
    rows = []
    bound = critical_index(critical)
    for kind, n in sweep.kinds:
        for law in sweep.laws:
            curve, gap = sweep.curve(kind, n, law), gaps[law]
            prior = choose_start(n, critical=critical, mismatch=gap).start
            at = gap.at(DDPM().sigma(curve.plateau))
            rows.append((NAMES[kind], n, law, curve.knee, curve.plateau, curve.best[0], prior, bound, at))
    columns = (
        "sampler",
        "steps",
        "start",
        "knee",
        "plateau from",
        "best",
        "prior",
        "critical",
        "KL at the plateau, nats",
    )
    return Table(f"{bench.name}: features of the curves, indices of DDPM", columns, tuple(rows))


def _published() -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple((name, *values) for name, values in TABLE_2.items())
    return Table(f"published, DDPM-1000 from N(0, I) ({SOURCE})", ("data", *map(str, STARTS_2)), rows)


def _figure(sweep: LateStartSweep) -> Any:
    panels = axes_for(None, len(sweep.kinds), 1.2 + 4.2 * len(sweep.kinds), 4.2)
    for axes, (kind, n) in zip(panels, sweep.kinds, strict=True):
        sweep.draw(axes, kind, n)
    return panels[0].figure
