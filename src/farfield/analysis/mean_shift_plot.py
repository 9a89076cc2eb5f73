"""Figures of modes: their number and their tree against bandwidth, and the modes themselves as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from farfield.analysis.deviation_plot import draw_strips
from farfield.analysis.images import is_image
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, marker_line

if TYPE_CHECKING:
    from farfield.analysis.mean_shift_tree import ModeTree
    from farfield.analysis.modes import ModeStructure


def picture_rows(found: ModeStructure) -> list[tuple[str, Tensor]]:
    """Rows of images (width, *event): the modes of each detailed bandwidth, their nearest points, and where the model
    leads from these modes.

    Filled up with white to the same length; none where samples are no images.
    """
    if not is_image(found.event_shape):
        return []
    rows: list[tuple[str, Tensor]] = []
    for level in found.levels:
        rows.append((f"h = {level.bandwidth:.3g}: modes", level.states))
        rows.append(("nearest images", level.nearest))
        if level.model is not None:
            rows.append(("the model from these", level.model.states))
    width = max(len(row) for _, row in rows)
    return [(name, torch.cat((row.float().cpu(), torch.ones(width - len(row), *row.shape[1:])))) for name, row in rows]


def draw_counts(axes: Any, tree: ModeTree, spread: float, spacing: float) -> None:
    """The number of modes, and the size of the largest basin, against the bandwidth."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.plot(tree.bandwidths, tree.counts, color=PALETTE[0], linewidth=2, marker="o", markersize=3, label="modes")
    largest = [int(size.max()) for size in tree.sizes]
    axes.plot(tree.bandwidths, largest, color=PALETTE[1], linewidth=2, marker="o", markersize=3, label="largest basin")
    axes.invert_xaxis()
    dress(axes, "bandwidth h = noise level σ  (sampling runs to the right)", "number of modes, of points")
    marker_line(axes, spread, "largest std of the data", foot=0.2)  # above the curve, which is 1 there
    marker_line(axes, spacing / 2, "half the typical spacing")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center left", bbox_to_anchor=(0, 0.68))
    _plain_ticks(axes)


def _plain_ticks(axes: Any) -> None:
    """Bandwidths as plain numbers: they rarely span more than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def draw_tree(axes: Any, tree: ModeTree) -> None:
    """The tree of modes: each on the first principal component of the smallest bandwidth's modes, as wide as its basin."""
    finest = tree.levels[-1].states.flatten(1).double()
    centre = finest.mean(0)
    axis = torch.linalg.svd(finest[:4096] - centre, full_matrices=False)[2][0]
    places = [((level.states.flatten(1).double() - centre) @ axis).tolist() for level in tree.levels]
    total = int(tree.sizes[0].sum())
    lines, widths = [], []
    for k in range(len(tree.levels) - 1):
        for child, parent in enumerate(tree.parents(k).tolist()):
            lines.append(
                [(tree.bandwidths[k], places[k][parent]), (tree.bandwidths[k + 1], places[k + 1][child])]
            )  # fmt: skip
            widths.append(0.3 + 4 * (int(tree.sizes[k + 1][child]) / total) ** 0.5)
    from matplotlib.collections import LineCollection

    # Thousands of leaves are drawn as pixels, or the page would be megabytes.
    axes.add_collection(LineCollection(lines, linewidths=widths, colors=PALETTE[0], alpha=0.55, rasterized=True))
    axes.set_xscale("log")
    axes.set_xlim(tree.bandwidths[0], tree.bandwidths[-1])
    values = [v for level in places for v in level]
    margin = 0.05 * (max(values) - min(values)) or 1.0
    axes.set_ylim(min(values) - margin, max(values) + margin)
    _plain_ticks(axes)
    dress(axes, "bandwidth h", "mode, on the first principal component")


def draw_modes(found: ModeStructure, ax: Any = None) -> Any:
    """Counts and tree side by side, and the pictures below where there are some; returns the figure."""
    rows = picture_rows(found)
    if ax is None and rows:
        from matplotlib.figure import Figure

        _, _, height, width = rows[0][1].shape
        strip = 0.55 * len(rows) * height / width + 0.4
        figure = Figure(figsize=(9.6, 3.9 + strip), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=[3.9, strip])
        left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        # The names are keys there, so that those which occur again are told apart by invisible blanks.
        draw_strips(
            figure.add_subplot(grid[1, :]),
            {name + "\u200b" * k: row for k, (name, row) in enumerate(rows)},
            "modes of the largest basins",
        )
    else:
        left, right = axes_for(ax, 2, width=9.6, height=3.9)
    draw_counts(left, found.tree, found.spread, found.spacing)
    draw_tree(right, found.tree)
    return left.figure
