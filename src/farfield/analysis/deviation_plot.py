"""Figures of paired paths and samples: curves with bands, and strips of samples from the same noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, label_ends

if TYPE_CHECKING:
    from farfield.analysis.deviation import TrajectoryDeviation
    from farfield.analysis.diagnosis_curves import Band

#: Colours of the laws, the same in every figure; others take what is left.
COLOURS = {"isotropic": 5, "gaussian": 0, "classes": 4, "mixture": 2, "empirical": 1}

#: Below this a mean square is rounding.
_FLOOR = 1e-9


def law_colour(name: str, place: int = 0) -> str:
    """A law's colour; ``place`` chooses for names that have none of their own."""
    spare = (3, 6, 7)
    return PALETTE[COLOURS[name]] if name in COLOURS else PALETTE[spare[place % len(spare)]]


def law_label(name: str) -> str:
    """A law's name as figures write it."""
    kind, colon, size = name.partition(":")
    return {"gaussian": "Gaussian", "classes": "per class"}.get(kind, kind) + (f", {size}" if colon else "")


def law_words(name: str) -> str:
    """A law's name as sentences write it."""
    kind, colon, size = name.partition(":")
    words = {"gaussian": "Gaussian", "mixture": "mixture", "classes": "per-class law"}.get(kind, f"{kind} law")
    return words + (f" of {size}" if colon else "")


def tiled(images: Tensor, gap: int = 1, fill: float = 1.0) -> Tensor:
    """Images (n, C, H, W) in [−1, 1] side by side, (H, n·(W + gap) − gap, 3) in [0, 1]."""
    n, _, height, width = images.shape
    canvas = torch.full((height, n * (width + gap) - gap, 3), fill)
    shown = ((images.float().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    for k, image in enumerate(shown):
        canvas[:, k * (width + gap) : k * (width + gap) + width] = image
    return canvas


def draw_strips(axes: Any, rows: Mapping[str, Tensor], title: str = "") -> None:
    """One row of images for each name, (n, C, H, W) each, the name to the left."""
    strips = [tiled(images) for images in rows.values()]
    height, width = strips[0].shape[:2]
    blank = torch.ones(1, width, 3)
    canvas = torch.cat([part for strip in strips for part in (strip, blank)][:-1])
    axes.imshow(canvas.numpy(), interpolation="nearest", aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([k * (height + 1) + (height - 1) / 2 for k in range(len(strips))], list(rows))
    axes.tick_params(colors=INK, labelsize=9, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if title:
        axes.set_title(title, color=INK, fontsize=11, loc="left")


def strips(rows: Mapping[str, Tensor], title: str = "") -> Any:
    """:func:`draw_strips` on a figure of its own."""
    from matplotlib.figure import Figure

    count, _, height, width = next(iter(rows.values())).shape
    wide = min(8.4, 0.62 * count + 1.2)
    tall = (wide - 1.2) / count * height / width * len(rows) + 0.35
    figure = Figure(figsize=(wide, tall), layout="constrained")
    draw_strips(figure.subplots(), rows, title)
    return figure


def _panel(
    axes: Any, sigmas: list[float], bands: Mapping[str, Band], threshold: float | None
) -> list[tuple[float, str, str]]:
    """The curves of one panel; returns their ends, as ``label_ends`` takes them."""
    ends, values = [], []
    for place, (name, band) in enumerate(bands.items()):
        colour = law_colour(name, place)
        kept = [k for k in range(min(len(sigmas), len(band.mean))) if band.mean[k] > _FLOOR]
        if not kept:
            continue
        s = [sigmas[k] for k in kept]
        mean = [band.mean[k] for k in kept]
        low, high = ([max(v[k], _FLOOR) for k in kept] for v in (band.low, band.high))
        axes.fill_between(s, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(s, mean, color=colour, linewidth=2)
        values += mean
        ends.append((mean[-1], law_label(name), colour))
    axes.set_xlim(sigmas[0], sigmas[-1])
    if threshold is not None:
        axes.axhline(threshold, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate(
            f"{threshold:g}", (sigmas[0], threshold), xytext=(3, 2), textcoords="offset points", fontsize=8, color=INK,
            alpha=0.75,
        )  # fmt: skip
    lowest, highest = min(values, default=1e-4), max(values, default=1.0)
    axes.set_ylim(max(lowest / 2, _FLOOR, highest * 1e-7), highest * 3)
    return ends


def labelled(pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Samples of the model and the laws under their names in figures, those that there are."""
    return {("model" if name == "model" else law_label(name)): p for name, p in pictures.items() if len(p)}


def draw_deviation(found: TrajectoryDeviation, threshold: float, ax: Any = None) -> Any:
    """States and denoiser outputs against σ, and the samples below where there are some; returns the figure."""
    sigmas = [s for s in found.sigmas if s > 0]
    pictures = labelled(found.pictures)
    if ax is None and pictures:
        from matplotlib.figure import Figure

        count, _, height, width = next(iter(pictures.values())).shape
        strip = 0.55 * len(pictures) * height / width + 0.4
        figure = Figure(figsize=(9.6, 3.9 + strip), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=[3.9, strip])
        left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        draw_strips(figure.add_subplot(grid[1, :]), pictures, f"samples from the same noise, starts 0 to {count - 1}")
    else:
        left, right = axes_for(ax, 2, width=9.6, height=3.9)
    for axes, title in ((left, "state x"), (right, "denoiser output D(x, σ)")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        dress(axes, "noise level σ  (sampling runs to the right)", "mean squared deviation", title)
    _panel(left, sigmas, {name: law.state for name, law in found.laws.items()}, threshold)
    # Both panels have the same curves; their names stand once, at the right.
    label_ends(right, _panel(right, sigmas, {name: law.denoised for name, law in found.laws.items()}, None))
    return left.figure
