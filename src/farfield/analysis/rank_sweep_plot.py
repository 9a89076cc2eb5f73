"""Pictures of the trade-off between the number of components and their rank."""

from __future__ import annotations

import math
from typing import Any

from farfield.analysis.plotting import INK, PALETTE, dress, label_ends
from farfield.analysis.rank_sweep_result import ENOUGH, RankSweep


def _chosen(count: int, most: int) -> list[int]:
    """At most so many of ``count`` places, the first and the last among them: more curves cannot be told apart."""
    if count <= most:
        return list(range(count))
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})


def _plain_ticks(axes: Any) -> None:
    """Ranks as plain numbers along a logarithmic axis."""
    low, high = axes.get_ylim()
    ticks = [m * 10**n for n in range(5) for m in (1, 2, 5) if low <= m * 10**n <= high]
    axes.set_yticks(ticks, [f"{t:,}" for t in ticks])
    axes.minorticks_off()


def draw_components(found: RankSweep, axes: Any) -> None:
    """FUV at full rank against K, relative to K = 1 so that all levels show their U; the lowest point marked."""
    axes.set_xscale("log")
    ends, first = [], found.components[0]
    for n, k in enumerate(_chosen(len(found.sigmas), 7)):
        full = found.full(k)
        base = full[0] if full[0] > 0 else 1.0
        values = [v / base for v in full]
        errors = [2 * e / base for e in (row[0] for row in found.differences[k])]
        colour = PALETTE[n % len(PALETTE)]
        low, high = ([v + s * e for v, e in zip(values, errors, strict=True)] for s in (-1, 1))
        axes.fill_between(found.components, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(found.components, values, color=colour, linewidth=1.8)
        best = full.index(min(full))
        axes.plot(found.components[best], values[best], "o", color=colour, markersize=5)
        ends.append((values[-1], f"σ = {found.sigmas[k]:.3g}", colour))
    axes.axhline(1, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_xlim(found.components[0], max(found.components[-1], found.components[0] + 1))
    top = max(value for value, _, _ in ends)
    axes.set_ylim(0, min(max(1.15, 1.05 * top), 4))
    axes.set_xticks(found.components, [str(c) for c in found.components])
    axes.minorticks_off()
    dress(axes, "components K, full rank", f"FUV / FUV of K = {first}", "what more components explain")
    label_ends(axes, ends)


def draw_ranks(found: RankSweep, axes: Any) -> None:
    """The rank that suffices against σ for some K, and the closed form for K = 1."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    levels = range(len(found.sigmas))
    ends = []
    for n, place in enumerate(_chosen(len(found.components), 4)):
        size = found.components[place]
        values = [max(found.minimal_rank(k, size), 0.5) for k in levels]
        colour = PALETTE[n % len(PALETTE)]
        axes.plot(found.sigmas, values, color=colour, linewidth=1.8, marker="o", markersize=3)
        ends.append((values[-1], f"K = {size}", colour))
    if found.predicted is not None:
        predicted = [max(found.predicted_rank(k) or 0, 0.5) for k in levels]
        axes.plot(found.sigmas, predicted, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        ends.append((predicted[-1], "K = 1, predicted", INK))
    if len(found.sigmas) > 1:
        axes.set_xlim(found.sigmas[0], found.sigmas[-1])
    _plain_ticks(axes)
    dress(axes, "noise level σ, falling", f"smallest rank within {ENOUGH:g} × full rank", "the rank that suffices")
    label_ends(axes, ends)


def draw_trade_off(found: RankSweep, axes: Any) -> None:
    """Lines of equal FUV in the plane of K and r, at the level nearest to 0.1 on a logarithmic scale."""
    level = found.nearest(0.1)
    title = f"unexplained fraction at σ = {found.sigmas[level]:.3g}"
    places = [j for j, rank in enumerate(found.ranks) if rank > 0]
    ranks = [found.ranks[j] for j in places]
    axes.set_xscale("log")
    axes.set_yscale("log")
    dress(axes, "components K", "rank r of each", title)
    if len(found.components) < 2 or len(ranks) < 2:
        axes.text(0.5, 0.5, "needs two K and two ranks", transform=axes.transAxes, ha="center", color=INK, fontsize=9)
        return
    table = [[math.log10(max(found.fuv[level][i][j], 1e-16)) for i in range(len(found.components))] for j in places]
    flat = [value for row in table for value in row]
    # Beyond 1 a law is worse than none.
    low, high = min(flat), max(min(max(flat), 0.0), min(flat) + 0.3)
    lines = [low + (high - low) * (n + 0.3) / 6 for n in range(6)]
    axes.contourf(
        found.components, ranks, table, levels=[low, *lines, high], cmap="viridis_r", alpha=0.35, extend="both"
    )
    drawn = axes.contour(
        found.components, ranks, table, levels=lines, colors=INK, linewidths=0.9, linestyles="solid", alpha=0.8
    )
    axes.clabel(drawn, fmt=lambda value: f"{10**value:.2g}", fontsize=8)
    # Above the rank that clusters of this size have, nothing changes.
    axes.plot(
        found.components, found.largest, color=PALETTE[1], linewidth=1.4, linestyle=(0, (4, 3)),
        label="highest rank of a cluster",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8, loc="lower left", labelcolor=INK)
    worthless = [rank for rank, row in zip(ranks, table, strict=True) if min(row) >= high]
    axes.set_ylim(max(worthless, default=ranks[0]) if len(worthless) < len(ranks) - 1 else ranks[0], ranks[-1])
    axes.set_xticks(found.components, [str(c) for c in found.components])
    _plain_ticks(axes)
