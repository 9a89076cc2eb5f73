"""The figure of an emergence analysis: curves of the first components, and pictures of all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from farfield.analysis.images import is_image
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress

if TYPE_CHECKING:
    from farfield.analysis.emergence import Emergence

_SHOWN = 4


def draw(found: Emergence, ax: Any) -> Any:
    """Shrinkage and committed variance against σ (left), and the components themselves (right)."""
    left, right = axes_for(ax, 2, width=10.4, height=4.2)
    _curves(found, left)
    if is_image(tuple(found.vectors.shape[1:])):
        _gallery(found, right)
    else:
        _ladder(found, right)
    return left.figure


def _curves(found: Emergence, axes: Any) -> None:
    axes.set_xscale("log")
    axes.set_xlim(found.sigmas[0], found.sigmas[-1])
    axes.set_ylim(-0.03, 1.06)
    high, low = found.sigmas[0], found.sigmas[-1]
    fine = [high * (low / high) ** (k / 100) for k in range(101)]
    # A handful of components from first to last, evenly spaced in rank.
    count = len(found.components)
    picked = sorted({round(k * (count - 1) / max(min(_SHOWN, count) - 1, 1)) for k in range(min(_SHOWN, count))})
    for colour, i in zip(PALETTE, picked, strict=False):
        number, variance = found.components[i].number, found.components[i].variance
        curve = [variance / (variance + s * s) for s in fine]
        axes.plot(fine, curve, color=colour, linewidth=1.8, label=f"component {number}")
        axes.plot([found.components[i].critical] * 2, [-0.03, 0.02], color=colour, linewidth=2)
        if found.measured is not None:
            values = [min(max(v, -0.02), 1.05) for v in found.measured[i].slope]
            axes.plot(found.sigmas, values, "o", color=colour, markersize=4)
            committed = [min(v, 1.05) for v in found.measured[i].committed]
            axes.plot(found.sigmas, committed, "_", color=colour, markersize=8, markeredgewidth=1.4)
    half = "" if found.half is None else f", half at σ = {found.half:.2g}"
    axes.plot(found.sigmas, found.committed, color=INK, linewidth=2.2, linestyle=(0, (4, 2)), label=f"variance{half}")
    if found.measured is not None:
        axes.plot([], [], "o", color=INK, markersize=4, label="model: slope")
        axes.plot([], [], "_", color=INK, markersize=8, markeredgewidth=1.4, label="model: committed")
    dress(
        axes, "noise level σ  (sampling runs to the right)", "believed part λ/(λ + σ²)", "when components are decided"
    )
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")


def tiles(vectors: Tensor, columns: int) -> Tensor:
    """Components (k, C, H, W), each scaled to [0, 1] about a middle grey, as one picture (height, width, 3)."""
    k, _, height, width = vectors.shape
    rows = math.ceil(k / columns)
    canvas = torch.ones(rows * (height + 1) - 1, columns * (width + 1) - 1, 3)
    for i, v in enumerate(vectors.float()):
        picture = (v / v.abs().amax().clamp(min=1e-12) + 1) / 2
        y, x = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[y : y + height, x : x + width] = picture.expand(3, height, width).permute(1, 2, 0)
    return canvas


def _gallery(found: Emergence, axes: Any) -> None:
    count = len(found.components)
    columns = min(4, count)
    height, width = found.vectors.shape[-2:]
    axes.imshow(tiles(found.vectors, columns).numpy(), interpolation="nearest")
    for i, component in enumerate(found.components):
        place = ((i % columns) * (width + 1) - 0.5, (i // columns) * (height + 1) - 0.5)
        axes.annotate(
            f"{component.number}: σ = {component.critical:.2g}", place, xytext=(2, -2), textcoords="offset points",
            fontsize=7.5, color="#ffffff", va="top", ha="left",
            bbox={"boxstyle": "square,pad=0.12", "facecolor": "#20242b", "edgecolor": "none", "alpha": 0.7},
        )  # fmt: skip
    axes.set_axis_off()
    axes.set_title("components in order of emergence, with their critical σ", color=INK, fontsize=11, loc="left")


def _ladder(found: Emergence, axes: Any) -> None:
    """For data that are no pictures: each component's range of levels."""
    axes.set_xscale("log")
    for i, component in enumerate(found.components):
        colour = PALETTE[i % len(PALETTE)]
        axes.plot([component.begins, component.settled], [component.number] * 2, color=colour, linewidth=3, alpha=0.5)
        axes.plot([component.critical], [component.number], "o", color=colour, markersize=6)
    numbers = [c.number for c in found.components]
    axes.set_xlim(max(c.begins for c in found.components) * 1.3, min(c.settled for c in found.components) / 1.3)
    axes.set_ylim(numbers[-1] + 0.6, 0.4)
    axes.set_yticks(numbers if len(numbers) <= 12 else numbers[::4])
    dress(axes, "noise level σ", "component", "critical σ, with the range from 10 to 90 %")
