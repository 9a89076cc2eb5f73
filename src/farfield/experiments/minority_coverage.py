"""Few steps starve the minority, and a Gaussian late start feeds it: an exact mixture, and the digits by their classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from farfield.analysis.label_diversity import mode_masses
from farfield.analysis.late_start_exact import late_mode_mass
from farfield.analysis.late_start_result import NAMES, LateStartSweep, interval
from farfield.analysis.late_start_sweep import Task, late_start_sweep
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.analysis.tables import Table
from farfield.distributions import Gaussian, GaussianMixture
from farfield.experiments.base import Outcome, Settings, Verdict, experiment, figure_name
from farfield.experiments.late_start import about, metrics_of
from farfield.experiments.teleport_cells import Bench, benches
from farfield.sampling.late import Kind, late_sampler, sigma_of, vanilla_start

MINORITY, WIDTH = 0.1, 0.05
QUANTILES = 20_000
STARTS = (300, 400, 500, 600)
SAMPLES: Mapping[str, int] = {"digits": 600}
#: Steps and start of the digits; the default start beside it.
STEPS, START = 5, 400


def toy(weight: float = MINORITY, width: float = WIDTH) -> tuple[GaussianMixture, Gaussian]:
    """Two modes at −1 and 1 of which the left one is the minority, and the Gaussian with the same moments."""
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    mixture = GaussianMixture([weight, 1 - weight], means, torch.full((2, 1, 1), width**2, dtype=torch.float64))
    mean = 1 - 2 * weight
    variance = torch.tensor([[width**2 + 1 - mean**2]], dtype=torch.float64)
    return mixture, Gaussian(torch.tensor([mean], dtype=torch.float64), variance)


def toy_mass(n: int, start: int | None, law: Gaussian | None, kind: Kind = "ddim", count: int = QUANTILES) -> float:
    """The minority's share of the samples of n steps, from normal quantiles in place of random draws.

    Args:
        n: steps.
        start: the index; None is the vanilla start.
        law: the Gaussian, or None for N(0, I).
        kind: a sampler without noise.
        count: quantiles.
    """
    mixture, _ = toy()
    z = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    sampler = late_sampler(kind, n, start, law)
    x = sampler.run(mixture, sampler.start.state(z, sampler.grid.levels[0], mixture.process)).x
    return mode_masses(x, torch.tensor([[-1.0], [1.0]], dtype=torch.float64)).masses[0]


def toy_table() -> Table:
    """Minority mass of DDIM by steps and start (the source's effect, on a law whose truth is known)."""
    _, law = toy()
    rows: list[tuple[Any, ...]] = []
    for n in (3, 5, 10):
        # The source's diversity study starts three steps at 666, its tables at 700.
        default = 666 if n == 3 else vanilla_start(n)
        masses = [toy_mass(n, start, law) for start in STARTS]
        rows.append((f"DDIM, {n} steps", toy_mass(n, default, None), *masses, toy_mass(n, 400, None)))
    sigmas = [sigma_of(s) for s in STARTS]
    weights, means, widths = (MINORITY, 1 - MINORITY), (-1.0, 1.0), (WIDTH, WIDTH)
    exact = [late_mode_mass(weights, means, widths, s, MINORITY) for s in sigmas]
    top = late_mode_mass(weights, means, widths, sigma_of(vanilla_start(10)), MINORITY, gaussian=False)
    late = late_mode_mass(weights, means, widths, sigma_of(400), MINORITY, gaussian=False)
    rows.append(("exact solver", top, *exact, late))
    columns = ("", "default start", *(f"Gaussian @{s}" for s in STARTS), "N(0, I) @400")
    return Table(f"minority mass of a mixture, {MINORITY:g} in truth", columns, tuple(rows))


@experiment(
    "minority-coverage",
    claim="With few deterministic steps the minority gets less than its share; a Gaussian late start gives most of it back, "
    "and the entropy over classes rises",
    source="Raya & Ambrogioni 2023, section 5.1 (race entropy of CelebA 64 at 3, 5 and 10 steps of DDIM: 0.51, 0.76 and 1.12; "
    "1.17, 1.19 and 1.30 from the Gaussian; 1.55 in the data)",
    cost="about two minutes on one CPU core; resumes where it was stopped if it has a folder",
)
def minority_coverage(settings: Settings) -> Outcome:
    """Minority mass on the exact toy, label entropy on the digits at 5 steps."""
    return coverage(settings, SAMPLES)


def coverage(settings: Settings, samples: Mapping[str, int]) -> Outcome:
    """The experiment with other numbers of samples."""
    table = toy_table()
    tables, words, figures = [table], [], {"minority": _figure(table)}
    five = table.rows[1]
    checks = [bool(five[1] < five[3] < MINORITY and row[1] < row[3]) for row in table.rows[:3]]  # type: ignore[operator]
    words.append(f"mixture, 5 steps: {five[1]:.4f} from the default start, {five[2]:.4f} from the Gaussian at 300")
    found = benches(settings, samples)
    for bench in found:
        swept = _digits(bench, settings)
        reference = entropy_of(bench)
        tables.append(_entropy_table(bench.name, swept, reference))
        figures[figure_name("entropy", bench.name)] = _entropies(bench.name, swept, reference)
        plain, gls = (swept.curve("ddim", STEPS, law, "label entropy") for law in ("plain", "gls"))
        checks.append(gls.values[0] > plain.values[0])
        words.append(
            f"{bench.name}, DDIM with {STEPS} steps: label entropy {plain.values[0]:.3f} from {plain.starts[0]:.0f}, "
            f"{gls.values[0]:.3f} from the Gaussian at {gls.starts[0]:.0f}, {reference:.3f} in the data"
        )
    verdict: Verdict = "holds" if all(checks) else "holds in part" if any(checks) else "does not hold"
    told = {"samples": {b.name: b.n for b in found}, "seeds": [settings.seed + k for k in range(settings.seeds)]}
    return Outcome(verdict, "; ".join(words), tuple(tables), figures, told)


def entropy_of(bench: Bench) -> float:
    """The classifier's label entropy of the training images."""
    return metrics_of(bench)["label entropy"](bench.data.train.images)


def _digits(bench: Bench, settings: Settings) -> LateStartSweep:
    kinds: tuple[Kind, ...] = ("ddpm", "ddim", "pndm")
    cells = [("plain", vanilla_start(STEPS)), ("gls", START)]
    seeds = [settings.seed + k for k in range(settings.seeds)]
    return late_start_sweep(
        bench.model,
        laws={"plain": None, "gls": bench.gaussian},
        metric=metrics_of(bench),
        tasks=[Task(kind, STEPS, law, start, seed) for kind in kinds for law, start in cells for seed in seeds],
        count=bench.n,
        folder=None if settings.out is None else settings.out / bench.name,
        about=about(bench),
        progress=settings.progress,
    )


def _entropy_table(name: str, swept: LateStartSweep, reference: float) -> Table:
    rows: list[tuple[Any, ...]] = []
    for kind, n in swept.kinds:
        for law in swept.laws:
            entropy, quality = (swept.curve(kind, n, law, metric) for metric in ("label entropy", swept.metric))
            half = interval(entropy.runs[0])
            row = (NAMES[kind], n, entropy.nfe, law, entropy.starts[0], entropy.values[0], half, quality.values[0])
            rows.append(row)
    columns = ("sampler", "steps", "NFE", "law", "start", "label entropy, nats", "± 95 %", swept.metric)
    title = f"{name}: entropy of the classifier's labels, {reference:.4g} in the data"
    return Table(title, columns, tuple(rows))


def _figure(table: Table) -> Any:
    (axes,) = axes_for(None, width=6.8, height=4.0)
    shown = [*table.columns[1:]]
    for k, row in enumerate(table.rows):
        axes.plot(range(len(shown)), row[1:], color=PALETTE[k], marker="o", linewidth=0, markersize=7, label=row[0])
    axes.axhline(MINORITY, color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set_xticks(range(len(shown)), [c.replace(" @", "\n@").replace("default ", "default\n") for c in shown])
    axes.set_ylim(bottom=0)
    dress(axes, "start", "minority mass", "two modes, minority by start; dotted: the truth")
    axes.legend(frameon=False, fontsize=8)
    return axes.figure


def _entropies(name: str, swept: LateStartSweep, reference: float) -> Any:
    (axes,) = axes_for(None, width=6.0, height=4.0)
    for k, (law, label) in enumerate((("plain", "default start"), ("gls", "Gaussian late start"))):
        found = [swept.curve(kind, n, law, "label entropy") for kind, n in swept.kinds]
        places = [i + 0.15 * (2 * k - 1) for i in range(len(found))]
        errors = [interval(c.runs[0]) for c in found]
        axes.errorbar(
            places, [c.values[0] for c in found], yerr=errors, fmt="o", color=PALETTE[k], capsize=3, label=label
        )
    axes.axhline(reference, color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set_xticks(range(len(swept.kinds)), [NAMES[kind] for kind, _ in swept.kinds])
    dress(axes, "sampler", "label entropy, nats", f"{name}, {STEPS} steps; dotted: the data")
    axes.legend(frameon=False, fontsize=9)
    return axes.figure
