"""One look for all figures: quiet axes, a colour-blind-safe palette, labels at the ends of the lines they name.

Figures are built on ``matplotlib.figure.Figure`` alone; no global state of pyplot is touched, so they can be drawn in any
thread and without a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: The colour of text and axes; the report replaces it by the page's own, so that figures follow light and dark pages.
INK = "#20242b"

#: Okabe & Ito's palette, in an order whose neighbours differ most; each is readable on white and on near-black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")


def axes_for(ax: Any, count: int = 1, width: float = 7.2, height: float = 4.0, sharex: bool = False) -> list[Any]:
    """The axes to draw on: those given, or new ones on a new figure.

    Args:
        ax: one axes, a sequence of ``count`` axes, or None.
        count: panels, side by side.
        width, height: of a new figure, in inches.
        sharex: whether new panels share their horizontal axis.
    """
    if ax is None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(1, count, squeeze=False, sharex=sharex)
        return list(grid[0])
    given = list(ax) if isinstance(ax, Sequence) or hasattr(ax, "__len__") else [ax]
    return given[:count]


def dress(ax: Any, xlabel: str, ylabel: str, title: str = "") -> None:
    """Labels, a light grid, and no frame on the top and right."""
    ax.set_xlabel(xlabel, color=INK, fontsize=10)
    ax.set_ylabel(ylabel, color=INK, fontsize=10)
    if title:
        ax.set_title(title, color=INK, fontsize=11, loc="left")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(INK)
        ax.spines[side].set_alpha(0.5)
    ax.tick_params(colors=INK, labelsize=9, which="both")
    ax.grid(True, which="major", color=INK, alpha=0.12, linewidth=0.6)
    ax.set_axisbelow(True)


def label_ends(ax: Any, ends: Sequence[tuple[float, str, str]], size: float = 9.0) -> None:
    """Write each line's name at the right edge, at the height of its last value, pushed apart where they would collide.

    Args:
        ax: axes whose limits and scales are final.
        ends: (last value, name, colour) of each line.
        size: of the text, in points.
    """
    if not ends:
        return
    if ax.figure.get_layout_engine() is not None:
        ax.figure.draw_without_rendering()  # settles the layout, on which the room between two names depends
    ax.get_ylim()  # settles the limits, on which the heights do
    box = ax.get_position()
    points = max(box.height * ax.figure.get_size_inches()[1] * 72, 1.0)
    gap = 1.25 * size / points
    to_axes = ax.transAxes.inverted()
    right = ax.get_xlim()[1]
    heights = [float(to_axes.transform(ax.transData.transform((right, value)))[1]) for value, _, _ in ends]
    order = sorted(range(len(ends)), key=heights.__getitem__)
    spread = _spread([min(max(heights[k], 0.0), 1.0) for k in order], gap)
    for height, k in zip(spread, order, strict=True):
        _, name, colour = ends[k]
        ax.annotate(
            name, (1.0, height), xytext=(6, 0), xycoords="axes fraction", textcoords="offset points",
            color=colour, fontsize=size, va="center", ha="left", annotation_clip=False,
        )  # fmt: skip


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as possible so that neighbours are ``gap`` apart: pool what collides."""
    groups: list[tuple[float, int]] = []  # (mean of height − own place in the group, members)
    for height in heights:
        groups.append((height, 1))
        while len(groups) > 1:
            (low, n), (high, m) = groups[-2], groups[-1]
            if low + n * gap <= high:
                break
            groups[-2:] = [((n * low + m * (high - n * gap)) / (n + m), n + m)]
    return [start + k * gap for start, n in groups for k in range(n)]


def marker_line(ax: Any, x: float, text: str, foot: float = 0.06) -> None:
    """A thin vertical line at x with a small name beside it, read from below."""
    ax.axvline(x, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.annotate(
        text, (x, foot), xytext=(-4, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
        rotation=90, fontsize=8, color=INK, alpha=0.75, va="bottom", ha="right",
    )  # fmt: skip
