"""The figure of a score field: one panel for each noise level and law."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from farfield.analysis.deviation_plot import law_label
from farfield.analysis.images import is_image
from farfield.analysis.plotting import INK
from farfield.errors import ArgumentError

if TYPE_CHECKING:
    from farfield.analysis.field import Quantity, ScoreField

#: Shades of a map: enough to look smooth, few enough to be drawn as vectors.
_SHADES = 20
_TITLES = {
    "norm": "‖s‖", "in_plane": "‖s‖ in the plane", "off_plane": "‖s‖ off the plane", "mixing": "effective components"
}  # fmt: skip
#: A map spans at most this factor; what is smaller has the darkest colour.
_SPAN = 300.0


def draw_field(field: ScoreField, quantity: Quantity, ax: Any = None, corners: bool = True) -> Any:
    """Panels of arrows over a map of a quantity; arguments as for ``ScoreField.plot``; returns the figure."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import NullFormatter

    names = [n for n, column in field.slices.items() if column[0].quantity(quantity) is not None]
    if not names:
        raise ArgumentError(f"quantity = {quantity!r}; none of the laws has it")
    rows, columns = len(field.sigmas), len(names)
    images = corners and is_image(tuple(field.plane.corners.shape[1:])) and ax is None
    bars: list[Any] = [None] * rows
    if ax is None:
        from matplotlib.figure import Figure

        side = 2.05
        shape = float((field.v[-1] - field.v[0]) / (field.u[-1] - field.u[0]))
        tall = side * min(max(shape, 0.5), 1.5)
        widths = [0.42] * images + [1.0] * columns + [0.05]
        figure = Figure(figsize=(side * sum(widths) + 0.9, tall * rows + 0.75), layout="constrained")
        grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)
        start = int(images)
        panels = [[figure.add_subplot(grid[r, start + c]) for c in range(columns)] for r in range(rows)]
        bars = [figure.add_subplot(grid[r, -1]) for r in range(rows)]
        if images:
            _corners(figure, grid[:, 0], field.plane.corners)
    else:
        given = list(ax) if hasattr(ax, "__len__") else [ax]
        if len(given) != rows * columns:
            raise ArgumentError(f"ax holds {len(given)} axes; expected {rows * columns}")
        panels = [given[r * columns : (r + 1) * columns] for r in range(rows)]
    for r, sigma in enumerate(field.sigmas):
        norm = _scale(field, names, r, quantity)
        for c, name in enumerate(names):
            axes = panels[r][c]
            _panel(axes, field, name, r, quantity, norm)
            if r == 0:
                axes.set_title(law_label(name), color=INK, fontsize=11)
            if c == 0:
                axes.set_ylabel(f"σ = {sigma:g}", color=INK, fontsize=11)
            axes.tick_params(labelbottom=r == rows - 1, labelleft=c == 0)
        if bars[r] is not None:
            bar = panels[r][0].figure.colorbar(ScalarMappable(norm, _shades()), cax=bars[r])
            bar.set_label(_TITLES[quantity], color=INK, fontsize=9)
            bar.ax.tick_params(colors=INK, labelsize=8, which="both")
            bar.outline.set_visible(False)
            if norm.vmax >= 10 * norm.vmin:  # the decades alone are enough, and their parts would not fit
                bar.ax.yaxis.set_minor_formatter(NullFormatter())
    middle = panels[-1][columns // 2]
    middle.set_xlabel("length along ab (units of the data)", color=INK, fontsize=9)
    return panels[0][0].figure


def _shades() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"].resampled(_SHADES)


def _scale(field: ScoreField, names: list[str], row: int, quantity: Quantity) -> Any:
    """One colour scale for a row: all its panels are compared."""
    from matplotlib.colors import LogNorm

    maps = [m for name in names if (m := field.slices[name][row].quantity(quantity)) is not None]
    values = torch.stack(maps).flatten()
    high = float(torch.quantile(values, 0.98))
    positive = values[values > 0]
    low = float(torch.quantile(positive, 0.02)) if len(positive) else high / _SPAN
    high = max(high, 1e-12)
    return LogNorm(max(min(low, high / 1.5), high / _SPAN), high, clip=True)


def _panel(axes: Any, field: ScoreField, name: str, row: int, quantity: Quantity, norm: Any) -> None:
    found = field.slices[name][row]
    values = found.quantity(quantity)
    assert values is not None
    u, v = field.u, field.v
    extent = (float(u[0]), float(u[-1]), float(v[0]), float(v[-1]))
    steps = torch.linspace(math.log(norm.vmin), math.log(norm.vmax), _SHADES + 1, dtype=torch.float64).exp()
    axes.contourf(
        u.numpy(), v.numpy(), values.clamp(norm.vmin, norm.vmax).numpy(), levels=steps.numpy(), cmap=_shades(), norm=norm,
        extend="both",
    )  # fmt: skip
    axes.set_aspect("equal")
    _arrows(axes, field, found.along, max(float(s[row].in_plane.quantile(0.95)) for s in field.slices.values()))
    corners = field.plane.points
    closed = [*corners, corners[0]]
    axes.plot([p[0] for p in closed], [p[1] for p in closed], color="white", linewidth=0.8, linestyle=(0, (3, 2)))
    axes.plot(
        [p[0] for p in corners], [p[1] for p in corners], linestyle="none", marker="o", markersize=4.5, color="white",
        markeredgecolor="black", markeredgewidth=0.8,
    )  # fmt: skip
    for letter, (x, y), (dx, dy) in zip("abc", corners, ((-6, -7), (6, -7), (0, 7)), strict=True):
        axes.annotate(
            letter, (x, y), xytext=(dx, dy), textcoords="offset points", color="white", fontsize=9, ha="center",
            va="center", fontweight="bold",
        )  # fmt: skip
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.tick_params(colors=INK, labelsize=8)
    for side in axes.spines.values():
        side.set_visible(False)


def _arrows(axes: Any, field: ScoreField, along: Tensor, full: float) -> None:
    """About 13 arrows along the longer side, as densely along the other: their length goes by the square root of the size."""
    du, dv = float(field.u[1] - field.u[0]), float(field.v[1] - field.v[0])
    pitch = max(du, dv) * max(1, math.ceil(len(field.u) / 13))
    across, up = (slice(max(1, round(pitch / d)) // 2, None, max(1, round(pitch / d))) for d in (du, dv))
    part = along[up, across]
    size = part.norm(dim=-1, keepdim=True)
    length = (size / max(full, 1e-300)).sqrt().clamp(max=1.0)
    arrows = part / size.clamp(min=1e-300) * length * 0.95 * pitch
    axes.quiver(
        field.u[across].numpy(), field.v[up].numpy(), arrows[..., 0].numpy(), arrows[..., 1].numpy(), angles="xy",
        scale_units="xy", scale=1.0, color="white", width=0.009, headwidth=3.6, headlength=4.2, headaxislength=3.8,
        pivot="mid", alpha=0.9,
    )  # fmt: skip


def _corners(figure: Any, place: Any, corners: Tensor) -> None:
    """The three samples below each other, in a column of their own."""
    grid = place.subgridspec(3, 1)
    for k, letter in enumerate("abc"):
        axes = figure.add_subplot(grid[k])
        picture = ((corners[k].detach().float().cpu().clamp(-1, 1) + 1) / 2).expand(3, -1, -1).permute(1, 2, 0)
        axes.imshow(picture.numpy(), interpolation="nearest")
        axes.set_title(letter, color=INK, fontsize=10, fontweight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
