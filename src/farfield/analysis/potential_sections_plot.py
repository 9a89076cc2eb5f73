"""Figures of the potential between samples."""

from __future__ import annotations

import math
from typing import Any

from farfield.analysis.plotting import INK, PALETTE, dress, label_ends, marker_line
from farfield.analysis.potential_sections_result import SampleSections

_COLOURS = {"model": PALETTE[0], "data": PALETTE[1]}
_LINES: dict[str, Any] = {"model": "-", "data": (0, (5, 2))}


def draw_sections(found: SampleSections, columns: int = 3) -> Any:
    """One panel for each time, the average less its minimum with a band of one standard error, and the panel of the splits."""
    from matplotlib.figure import Figure

    count = len(found.times) + 1
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.3 * columns + 0.4, 2.7 * rows + 0.2), layout="constrained")
    degrees = [math.degrees(a) for a in found.angles.tolist()]
    for k, t in enumerate(found.times):
        axes = figure.add_subplot(rows, columns, k + 1)
        for name, law in found.laws.items():
            colour = _COLOURS[name]
            mean = law.mean[k] - law.mean[k].min()
            error = law.error[k]
            axes.fill_between(degrees, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
            axes.plot(degrees, mean, color=colour, linewidth=1.8, linestyle=_LINES[name], label=name)
        axes.set_xticks([0, 45, 90], ["x₁", "45°", "x₂"])
        dress(axes, "angle α along the path", "u/g²" if k % columns == 0 else "")
        axes.set_title(f"s = {t:.3g}, α = {found.thetas[k]:.2g}", fontsize=10, loc="left", color=INK)
        for place in (0, 90):
            axes.axvline(place, color=INK, alpha=0.3, linewidth=0.8, linestyle=(0, (1, 2)))
        if k == 0 and len(found.laws) > 1:
            axes.legend(frameon=False, fontsize=8)
    draw_splits(found, figure.add_subplot(rows, columns, count))
    return figure


def draw_splits(found: SampleSections, axes: Any) -> None:
    """The share of pairs whose section has split against forward time, with the average's split and the critical time."""
    finite = [v for law in found.laws.values() for v in law.splits.tolist() if math.isfinite(v)]
    top = max([*finite, found.critical or 0.0, max(found.times)]) * 1.05
    grid = [top * k / 200 for k in range(201)]
    ends = []
    for name, law in found.laws.items():
        shares = [law.split_by(t) if t > 0 else 1 - float(law.splits.isnan().double().mean()) for t in grid]
        axes.plot(grid, shares, color=_COLOURS[name], linewidth=1.8, linestyle=_LINES[name])
        ends.append((shares[0], name, _COLOURS[name]))
        if math.isfinite(law.split):
            axes.plot([law.split], [law.split_by(law.split)], "o", color=_COLOURS[name], markersize=5)
    axes.set_xlim(top, 0)
    axes.set_ylim(-0.03, 1.03)
    if found.critical is not None:
        marker_line(axes, found.critical, f"critical s = {found.critical:.2f}")
    dress(axes, "forward time s (generation →)", "pairs that have split")
    axes.set_title("dot: the average section", fontsize=9, loc="left", color=INK)
    if len(found.laws) > 1:
        label_ends(axes, ends)
