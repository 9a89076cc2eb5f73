"""What a teleport is worth at few evaluations, when all of them are spent below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.analysis.tables import Table
from farfield.distributions import Gaussian
from farfield.experiments.base import Outcome, Settings, Verdict, experiment, figure_name
from farfield.experiments.teleport_cells import SAMPLES, Bench, Cell, about, benches, fill
from farfield.experiments.teleport_published import BUDGETS_SOURCE, PUBLISHED_BUDGETS
from farfield.sampling import Prior, Sampler, Teleport, karras
from farfield.sampling.solvers import Whitened

BUDGETS = (6, 10)
#: Levels of the teleport; None starts from noise at the top.
STARTS = (None, 20.0, 10.0, 5.0)


def cells(gaussian: Gaussian, low: float, high: float) -> list[Cell]:
    """Each solver at each budget from each start, on a Karras grid below it."""
    found = []
    for name in ("heun", "dpmpp_2m", "whitened"):
        for budget in BUDGETS:
            for sigma in STARTS:
                sampler = Sampler(
                    Whitened(3) if name == "whitened" else name,
                    karras(18, low, high),
                    Prior() if sigma is None else Teleport(gaussian, sigma, "regrid"),
                    covariance=gaussian if name == "whitened" else None,
                )
                found.append(Cell(name, sampler.with_nfe(budget)))
    return found


@experiment(
    "teleport-budget",
    claim="At 10 evaluations and fewer, a teleport that spends all of them below it lowers the Fréchet distance of Heun and of "
    "DPM-Solver++",
    source="Wang & Vastola 2024, result tables of the companion code (CIFAR-10: 25.2 to 11.4 at 5 evaluations)",
    cost="about 7 minutes on one CPU core for digits and 30 for cifar10; resumes where it was stopped if it has a folder",
    repeats=True,
)
def budgets(settings: Settings) -> Outcome:
    """Fréchet distance by solver, budget and level of the teleport."""
    return sweep(settings, SAMPLES)


def sweep(settings: Settings, samples: Mapping[str, int]) -> Outcome:
    """The experiment with other numbers of samples; arguments as for the sweep of ``teleport-skip``."""
    found = benches(settings, samples)
    tables, figures, words, held = [], {}, [], []
    for bench in found:
        measured = cells(bench.gaussian, max(0.002, bench.model.sigma_min), min(80.0, bench.model.sigma_max))
        fill(bench, measured, settings)
        tables.append(_table(bench, measured))
        figures[figure_name("budget", bench.name)] = _figure(bench.name, measured)
        for group in _groups(measured):
            base, *others = group
            best = min(others, key=lambda c: c.mean)
            mean, error = best.change(base)
            if base.solver != "whitened":
                held.append(mean + error < 0)
            words.append(
                f"{bench.name}, {base.solver} at {base.sampler.nfe}: {mean:+.0%} ± {error:.0%} from "
                f"σ = {best.sampler.levels[0]:g}"
            )
    tables.append(_published())
    verdict: Verdict = "holds" if all(held) else "holds in part" if any(held) else "does not hold"
    told = {**about(settings, found), "budgets": list(BUDGETS), "starts": list(STARTS)}
    return Outcome(verdict, "; ".join(words), tuple(tables), figures, told)


def _groups(measured: Sequence[Cell]) -> list[Sequence[Cell]]:
    """The cells of one solver and budget; the first starts from noise."""
    return [measured[k : k + len(STARTS)] for k in range(0, len(measured), len(STARTS))]


def _table(bench: Bench, measured: Sequence[Cell]) -> Table:
    rows: list[tuple[Any, ...]] = []
    for group in _groups(measured):
        for cell in group:
            mean, error = cell.change(group[0])
            start = "noise" if cell is group[0] else f"σ = {cell.sampler.levels[0]:.3g}"
            rows.append((cell.solver, cell.sampler.nfe, start, cell.mean, cell.spread, 100 * mean, 100 * error))
    columns = ("solver", "NFE", "start", "distance", "spread", "change, %", "± error")
    return Table(f"{bench.name}: Fréchet distance of {bench.n} samples on {bench.features.name}", columns, tuple(rows))


def _published() -> Table:
    rows: list[tuple[Any, ...]] = [
        (table.solver, "noise" if sigma == 80 else f"σ = {sigma:g}", *values)
        for table in PUBLISHED_BUDGETS
        for sigma, values in table.rows.items()
    ]
    columns = ("solver", "start", *(f"{n} evaluations" for n in PUBLISHED_BUDGETS[0].nfe))
    return Table(f"published: FID, 50,000 samples ({BUDGETS_SOURCE})", columns, tuple(rows))


def _figure(name: str, measured: Sequence[Cell]) -> Any:
    """The change against noise at the top by the level of the teleport, a panel for each budget."""
    from matplotlib.ticker import FixedLocator, NullLocator

    panels = axes_for(None, len(BUDGETS), 9.6, 3.8)
    for axes, budget in zip(panels, BUDGETS, strict=True):
        for k, group in enumerate(_groups(measured)[BUDGETS.index(budget) :: len(BUDGETS)]):
            changes = [c.change(group[0]) for c in group]
            axes.errorbar(
                [c.sampler.levels[0] for c in group], [100 * m for m, _ in changes], [100 * e for _, e in changes],
                color=PALETTE[k], linewidth=1.8, marker="o", markersize=4, capsize=3, label=group[0].solver,
            )  # fmt: skip
        axes.set_xscale("log")
        at = [c.sampler.levels[0] for c in measured[: len(STARTS)]]
        axes.xaxis.set_major_locator(FixedLocator(at))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{s:g}" if k else "noise" for k, s in enumerate(at)])
        axes.axhline(0, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (1, 2)))
        dress(axes, "σ of the teleport", "change of the Fréchet distance, %", f"{name}, up to {budget} evaluations")
        axes.legend(frameon=False, fontsize=9)
    return panels[0].figure
