"""Figures of the score-deviation diagnosis and of the replay audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from farfield.analysis.deviation_plot import draw_strips, labelled
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, label_ends, marker_line

if TYPE_CHECKING:
    from farfield.analysis.diagnosis_curves import Regions
    from farfield.analysis.diagnosis_findings import DeviationFindings
    from farfield.analysis.diagnosis_result import ScoreDeviation
    from farfield.analysis.replay import ReplayAudit

LEVELS = "noise level σ  (sampling runs to the right)"
OPTIMAL, OWN = PALETTE[0], PALETTE[1]


def strip_height(rows: Mapping[str, Tensor], tile: float = 0.75) -> float:
    """Inches for a strip of images for each name, with a title, in a figure 9.6 inches wide."""
    count, _, height, width = next(iter(rows.values())).shape
    return min(tile, 8.0 / count) * len(rows) * height / width + 0.4


def with_strips(rows: Mapping[str, Tensor], title: str) -> tuple[Any, Any]:
    """Two new axes for curves, and below them a drawn strip for each name; returns both axes."""
    from matplotlib.figure import Figure

    strip = strip_height(rows)
    figure = Figure(figsize=(9.6, 3.9 + strip), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[3.9, strip])
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    draw_strips(figure.add_subplot(grid[1, :]), rows, title)
    return left, right


def draw_diagnosis(found: ScoreDeviation, ax: Any = None) -> Any:
    """Deviation with its regions (left) and locked starts (right) against σ; returns the figure."""
    pictures = {k: p for k, p in found.pictures.items() if len(p)}
    if ax is None and pictures:
        count = len(next(iter(pictures.values())))
        left, right = with_strips(pictures, f"samples from the same start, starts 0 to {count - 1}")
    else:
        left, right = axes_for(ax, 2, width=9.6, height=3.9)
    draw_gaps(found, left)
    draw_locks(found.sigmas, found.lead_share, found.lock_share, right)
    return left.figure


def draw_findings(found: DeviationFindings, ax: Any = None) -> Any:
    """The comparison with the laws above, the one with the training set below, strips of samples under each."""
    upper, lower = labelled(found.laws.pictures), {k: p for k, p in found.training_set.pictures.items() if len(p)}
    if ax is not None or not (upper and lower):
        first, second, third, fourth = axes_for(ax, 4, width=19.2, height=3.9)
    else:
        from matplotlib.figure import Figure

        heights = (3.9, strip_height(upper, 0.55), 3.9, strip_height(lower))
        figure = Figure(figsize=(9.6, sum(heights)), layout="constrained")
        grid = figure.add_gridspec(4, 2, height_ratios=heights)
        first, second, third, fourth = (figure.add_subplot(grid[row, k]) for row in (0, 2) for k in (0, 1))
        for row, rows in ((1, upper), (3, lower)):
            count = len(next(iter(rows.values())))
            draw_strips(figure.add_subplot(grid[row, :]), rows, f"samples from the same noise, starts 0 to {count - 1}")
    found.laws.plot([first, second])
    found.training_set.plot([third, fourth])
    return first.figure


def draw_gaps(found: ScoreDeviation, axes: Any) -> None:
    """``‖r_θ − r*‖`` along both paths with the middle half of the starts, the regions behind them."""
    sigmas = list(found.sigmas)
    axes.set_xscale("log")
    axes.set_yscale("log")
    dress(axes, LEVELS, "distance of the denoisers' outputs", "model against optimal denoiser")
    curves = (("optimal path", found.along_optimal, OPTIMAL), ("own path", found.along_own, OWN))
    top = max(max(part.high) for _, part, _ in curves)
    floor = max(top * 1e-6, 1e-12)
    least, ends = top, []
    for name, part, colour in curves:
        kept = [k for k, v in enumerate(part.mean) if v > floor]
        if not kept:
            continue
        s = [sigmas[k] for k in kept]
        axes.fill_between(
            s,
            [max(part.low[k], floor) for k in kept],
            [part.high[k] for k in kept],
            color=colour,
            alpha=0.16,
            linewidth=0,
        )
        axes.plot(s, [part.mean[k] for k in kept], color=colour, linewidth=2)
        out = [k for k in kept if sigmas[k] in found.outliers]
        axes.plot([sigmas[k] for k in out], [part.mean[k] for k in out], "x", color=INK, markersize=8)
        least = min(least, *(part.mean[k] for k in kept))
        ends.append((part.mean[kept[-1]], name, colour))
    axes.set_xlim(sigmas[0], sigmas[-1])
    if top > 0:
        axes.set_ylim(max(least / 2, floor), top * 4)
    if found.regions is not None and found.regions.falls:
        _shade(axes, found.regions, sigmas[0], sigmas[-1])
    label_ends(axes, ends)


def _shade(axes: Any, found: Regions, high: float, low: float) -> None:
    """The three regions as background, their names at the top."""
    edges = (high, found.rising, found.falling, low)
    for k, name in enumerate(("negligible" if found.negligible else "before", "rising", "falling")):
        a, b = edges[k], edges[k + 1]
        if a <= b * 1.2:  # no room for a name
            continue
        if k == 1:
            axes.axvspan(a, b, color=INK, alpha=0.07, linewidth=0)
        axes.annotate(
            name, ((a * b) ** 0.5, 0.975), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8,
            color=INK, alpha=0.75,
        )  # fmt: skip


def draw_locks(sigmas: Sequence[float], leading: Sequence[float], locked: Sequence[float], axes: Any) -> None:
    """The shares of starts whose nearest data point is the one nearest to ``r*(x_n)``, and is ``r*(x_n)``."""
    axes.set_xscale("log")
    dress(axes, LEVELS, "share of the starts", "the sample's nearest data point, on the way")
    axes.plot(sigmas, leading, color=PALETTE[4], linewidth=2, label="nearest to the\noptimal output")
    axes.plot(sigmas, locked, color=OWN, linewidth=2, label="equal to it")
    axes.set_xlim(sigmas[0], sigmas[-1])
    axes.set_ylim(-0.02, 1.05)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    marker_line(axes, sigmas[len(sigmas) // 2], "half of the steps", foot=0.6)


def draw_replay(found: ReplayAudit, ax: Any = None) -> Any:
    """Distances to the data (left) and locked starts (right), the panel of samples and neighbours below."""
    pictures = {k: p for k, p in found.pictures.items() if len(p)}
    if ax is None and pictures:
        count = len(next(iter(pictures.values())))
        left, right = with_strips(pictures, f"starts 0 to {count - 1}: samples, and the data nearest to the model's")
    else:
        left, right = axes_for(ax, 2, width=9.6, height=3.9)
    dress(left, "distance to the nearest training point", "share of the samples", "how close the samples come")
    curves = [("optimal denoiser", found.optimal.distance, OPTIMAL), ("model", found.model.distance, OWN)]
    if found.model.heldout_distance is not None:
        curves.append(("held-out data", found.model.heldout_distance, PALETTE[2]))
    for name, values, colour in curves:
        ordered = sorted(values.tolist())
        steps = [(k + 1) / len(ordered) for k in range(len(ordered))]
        left.step([ordered[0], *ordered], [0.0, *steps], where="post", color=colour, linewidth=2, label=name)
    left.set_ylim(-0.02, 1.05)
    left.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center right" if len(curves) == 2 else "best")
    draw_locks(found.sigmas, found.lead_share, found.lock_share, right)
    return left.figure
