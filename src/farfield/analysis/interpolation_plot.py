"""Pictures of interpolations: a row of frames for each mode, their nearest data below, and the norms of the latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.deviation_plot import draw_strips
from farfield.analysis.images import is_image
from farfield.analysis.interpolation_diagnostics import LatentDiagnostics, plot_norms
from farfield.analysis.plotting import PALETTE, axes_for, dress
from farfield.sampling.interpolation import MODES


def draw_interpolation(
    frames: Mapping[str, Tensor],
    norms: Mapping[str, LatentDiagnostics],
    neighbours: Mapping[str, Tensor] | None = None,
    data: Tensor | None = None,
    title: str = "",
) -> Any:
    """The frames of each mode above the norms of their latents. Returns the figure.

    Args:
        frames: by mode, (F, *event); images in [−1, 1], or vectors, which become paths in the plane.
        norms: by mode, diagnostics of the latents with their α.
        neighbours: further rows of images, by name, (F, *event) each.
        data: (N, *event) points to draw vectors over.
        title: above the rows.
    """
    from matplotlib.figure import Figure

    first = next(iter(frames.values()))
    if not is_image(tuple(first.shape[1:])):
        left, right = axes_for(None, 2, width=10.4, height=4.2)
        _paths(left, frames, data, title)
        plot_norms(norms, right)
        return left.figure
    rows = {**frames, **(neighbours or {})}
    count, _, height, width = first.shape
    wide = min(9.6, 0.75 * count + 1.6)
    strip = (wide - 1.6) / count * height / width * len(rows) + 0.35
    figure = Figure(figsize=(wide, strip + 2.9), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[strip, 2.9])
    draw_strips(top, {name: x.cpu() for name, x in rows.items()}, title)
    plot_norms(norms, bottom)
    return figure


def _paths(axes: Any, frames: Mapping[str, Tensor], data: Tensor | None, title: str) -> None:
    """Decoded vectors of each mode as a path, in the plane of the data's first two principal components above d = 2."""
    flat = {name: x.double().flatten(1).cpu() for name, x in frames.items()}
    base = torch.cat(list(flat.values())) if data is None else data[:4096].double().flatten(1).cpu()
    names = ("x₁", "x₂")
    turn, centre = torch.eye(base.shape[1], dtype=torch.float64), torch.zeros(base.shape[1], dtype=torch.float64)
    if base.shape[1] > 2:
        centre = base.mean(0)
        turn = torch.linalg.svd(base - centre, full_matrices=False).Vh[:2].T
        names = ("first principal component", "second principal component")
    if base.shape[1] == 1:  # a line has room for the frames' order beside it
        count = len(next(iter(flat.values())))
        order = torch.linspace(0, 1, count, dtype=torch.float64).unsqueeze(1)
        flat = {name: torch.cat((x, order), 1) for name, x in flat.items()}
        names, data = ("x", "α"), None
        turn, centre = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    if data is not None:
        shown = (base[:2000] - centre) @ turn
        axes.scatter(shown[:, 0], shown[:, 1], s=4, color=PALETTE[7], alpha=0.4, linewidths=0, label="data")
    for name, x in flat.items():
        path = (x - centre) @ turn
        colour = PALETTE[MODES.index(name) if name in MODES else 5]  # type: ignore[arg-type]
        axes.plot(path[:, 0], path[:, 1], ".-", color=colour, linewidth=1.4, markersize=5, label=name)
    dress(axes, *names, title)
    axes.legend(frameon=False, fontsize=8)
