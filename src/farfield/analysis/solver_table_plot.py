"""Figures of solver comparisons: error, and Fréchet distance, against evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, label_ends

if TYPE_CHECKING:
    from farfield.analysis.solver_comparison import SolverComparison
    from farfield.analysis.solver_table import SolverTable

#: Families that have a colour of their own in every figure.
_COLOURS = {
    "Euler (DDIM)": 7, "Heun": 2, "DPM-Solver++(2M)": 3, "exponential": 4,
    "teleport + Heun": 6, "teleport + DPM++(2M)": 5, "whitened": 0, "teleport + whitened": 1,
}  # fmt: skip

#: More lines than this are not told apart: the others are drawn in grey, without a name.
_LINES = 8
_LEAST = 1e-12


def draw_errors(table: SolverTable, ax: Any = None) -> Any:
    """Error against evaluations, both logarithmic: the best member of each family. Returns the figure.

    Up to eight families have a name; of more, the whitened ones, Euler and Heun, and the best at the middle budget, the
    others in grey.
    """
    (axes,) = axes_for(ax, width=7.6, height=4.6)
    named = highlighted(table)
    lines = {family: [(row.nfe, row.error) for row in table.envelope(family)] for family in table.families}
    base = table.baseline
    _draw(axes, lines, named, table.budgets, (base.error,))
    axes.axhline(base.error, color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.annotate(
        f"Heun at {base.nfe} evaluations", (min(row.nfe for row in table.rows), base.error), xytext=(2, 3),
        textcoords="offset points", fontsize=8, color=INK, alpha=0.8,
    )  # fmt: skip
    dress(axes, "denoiser evaluations for each sample", "end-point error (rms)")
    label_ends(axes, _ends(lines, named))
    return axes.figure


def draw_comparison(found: SolverComparison, ax: Any = None) -> Any:
    """Two panels: the error, and the Fréchet distance where there is one. Returns the figure."""
    panels = axes_for(ax, 2 if found.frechet else 1, width=15.0 if found.frechet else 8.4, height=5.0)
    table, named = found.table, highlighted(found.table)
    lines = {family: [(row.nfe, row.error) for row in table.envelope(family)] for family in table.families}
    left = panels[0]
    _draw(left, lines, named, table.budgets)
    dress(
        left, "denoiser evaluations for each sample", "end-point error (rms)", "error to the model's own ODE solution"
    )
    label_ends(left, _ends(lines, named))
    if found.frechet is None or len(panels) < 2:
        return left.figure
    right, distances = panels[1], found.frechet
    lines = {family: distances.curve(family) for family in distances.families}
    _draw(right, lines, named, distances.budgets, (distances.baseline,))
    right.axhline(distances.baseline, color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (1, 2)))
    right.annotate(
        f"Heun at {distances.baseline_nfe} evaluations", (distances.budgets[0], distances.baseline), xytext=(2, -10),
        textcoords="offset points", fontsize=8, color=INK, alpha=0.8,
    )  # fmt: skip
    title = f"Fréchet distance of {distances.n} samples to the data"
    dress(right, "denoiser evaluations for each sample", "squared Fréchet distance", title)
    label_ends(right, _ends(lines, named))
    return right.figure


def highlighted(table: SolverTable) -> dict[str, str]:
    """The colour of each family that is drawn with its name."""
    families = list(table.families)
    if len(families) <= _LINES:
        return {family: PALETTE[_COLOURS.get(family, k % len(PALETTE))] for k, family in enumerate(families)}
    budget = min(table.budgets, key=lambda b: abs(b - 10))
    best = {family: row.error for family in families if (row := table.best_of(family, budget)) is not None}
    always = [f for f in ("whitened", "teleport + whitened", "Heun", "Euler (DDIM)") if f in families]
    chosen = [*always, *(f for f in sorted(best, key=best.__getitem__) if f not in always)][:_LINES]
    free = [c for c in range(len(PALETTE)) if c not in {_COLOURS[f] for f in chosen if f in _COLOURS}]
    return {f: PALETTE[_COLOURS[f] if f in _COLOURS else free.pop(0)] for f in families if f in chosen}


def _draw(
    axes: Any,
    lines: Mapping[str, Sequence[tuple[int, float]]],
    named: Mapping[str, str],
    ticks: Sequence[int],
    also: Sequence[float] = (),
) -> None:
    """All lines on logarithmic axes, the unnamed ones in grey behind the others."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    for family, points in sorted(lines.items(), key=lambda line: line[0] in named):
        if not points:
            continue
        own, colour = "whitened" in family, named.get(family, INK)
        axes.plot(
            [nfe for nfe, _ in points], [max(value, _LEAST) for _, value in points], color=colour, marker="o",
            linewidth=2.4 if own else 1.6 if family in named else 0.8, markersize=4 if family in named else 2,
            alpha=1.0 if family in named else 0.25, linestyle="-" if own or family not in named else (0, (5, 1.5)),
        )  # fmt: skip
    drawn = [value for points in lines.values() for _, value in points] + list(also)
    spent = [nfe for points in lines.values() for nfe, _ in points]
    axes.set_xlim(max(min(spent), 0.7 * min(ticks)) * 0.96, max(spent) * 1.03)
    # A rule that has not begun to converge, thousands off, would squeeze all others into one line.
    top = min(max(drawn) * 1.5, 4 * float(np.quantile(drawn, 0.9)))
    axes.set_ylim(max(min(drawn) / 1.6, _LEAST), max(top, 2 * _LEAST))
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(ticks))))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _ends(lines: Mapping[str, Sequence[tuple[int, float]]], named: Mapping[str, str]) -> list[tuple[float, str, str]]:
    """Last value, name and colour of the named lines."""
    return [(max(lines[f][-1][1], _LEAST), f, colour) for f, colour in named.items() if lines.get(f)]
