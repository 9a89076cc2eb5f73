"""The figure of learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress

if TYPE_CHECKING:
    from farfield.analysis.learning_curves import LearningCurves

#: Panels of curves.
_PANELS = 4


def draw(found: LearningCurves, ax: Any = None) -> Any:
    """Score curves by law at up to four levels, and learning steps against variance.

    Args:
        found: the curves.
        ax: as many axes as there are panels, or None.

    Returns:
        The figure.
    """
    shown = _spread_out(found.sigmas)
    directions = [s for s in found.selective if found.rank_correlation(s) is not None]
    panels = axes_for(ax, len(shown) + bool(directions), width=3.3 * (len(shown) + bool(directions)), height=3.5)
    for axes, sigma in zip(panels, shown, strict=False):
        _curves(axes, found, sigma)
    for axes in panels[1 : len(shown)]:
        axes.set_ylabel("")
    panels[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    if directions and len(panels) > len(shown):
        _directions(panels[len(shown)], found, _spread_out(directions))
    return panels[0].figure


def _spread_out(values: Sequence[float]) -> list[float]:
    """At most four of them, first and last included."""
    places = np.unique(np.linspace(0, len(values) - 1, min(_PANELS, len(values))).round().astype(int))
    return [values[k] for k in places]


def _curves(axes: Any, found: LearningCurves, sigma: float) -> None:
    level = found.sigmas.index(sigma)
    for k, (name, law) in enumerate(found.laws.items()):
        colour = PALETTE[k % len(PALETTE)]
        curve = [max(v, 1e-16) for v in law.score[level]]
        label = "Gaussian" if name == "gaussian" else name
        axes.plot(found.steps, curve, color=colour, linewidth=1.8, label=label)
        if name in found.passed(sigma):
            course = found.course(name, sigma)
            axes.plot([course.step], [max(course.least, 1e-16)], color=colour, marker="o", markersize=4, zorder=5)
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis)
    _step_axis(axes, found.steps)
    dress(axes, "training step", "unexplained fraction of the score", f"σ = {sigma:g}")


def _step_axis(axes: Any, steps: Sequence[int]) -> None:
    """Logarithmic, with room for step 0."""
    if steps[0] > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
    axes.set_xlim(steps[0], steps[-1])


def _plain_ticks(axis: Any) -> None:
    """Plain numbers at 1, 2 and 5 of each decade where there are few decades, powers of ten elsewhere."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_minor_formatter(NullFormatter())
    low, high = axis.get_view_interval()
    if high < 200 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _directions(axes: Any, found: LearningCurves, sigmas: Sequence[float]) -> None:
    """Learning steps of the components, and what linear theory, ∝ 1/(λ + σ²), would make of them."""
    for k, sigma in enumerate(sigmas):
        colour = PALETTE[k % len(PALETTE)]
        pairs = [(v, t) for v, t in zip(found.variances, found.learning_steps(sigma), strict=True) if t is not None]
        variances, times = (np.array(column) for column in zip(*pairs, strict=True))
        times = times.clip(min=0.5)
        axes.plot(variances, times, color=colour, marker="o", markersize=3.5, linestyle="", label=f"σ = {sigma:g}")
        rate = float(np.median(times * (variances + sigma**2)))
        line = np.geomspace(variances.min(), variances.max(), 40)
        axes.plot(line, rate / (line + sigma**2), color=colour, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
    dress(axes, "variance λ of the component", "step at which 63 % is learned", "linear theory dashed")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1)
