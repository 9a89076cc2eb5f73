"""Figures of trajectory shapes: deviation, distance to the end and magnitude against the noise level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.analysis.shape_result import TrajectoryShape
from farfield.analysis.shape_sums import Curve

if TYPE_CHECKING:
    from farfield.analysis.shape_comparison import ForwardMagnitude

_NAMES = ("state x", "denoiser output D(x, σ)")


def _line(
    axes: Any,
    sigmas: Sequence[float],
    curve: Curve,
    levels: Sequence[int],
    colour: str,
    name: str,
    dashed: bool = False,
) -> None:
    s = [sigmas[k] for k in levels]
    if not dashed:
        low = [max(curve.mean[k] - curve.std[k], 0.0) for k in levels]
        axes.fill_between(s, low, [curve.mean[k] + curve.std[k] for k in levels], color=colour, alpha=0.13, linewidth=0)
        inner = [max(curve.low[k], 0.0) for k in levels], [curve.high[k] for k in levels]
        axes.fill_between(s, *inner, color=colour, alpha=0.35, linewidth=0)
    style = (0, (4, 2)) if dashed else "solid"
    axes.plot(s, [curve.mean[k] for k in levels], color=colour, linewidth=1.8, linestyle=style, label=name)


def _both(shape: TrajectoryShape, other: TrajectoryShape | None, name: str) -> list[tuple[TrajectoryShape, str, bool]]:
    """What is drawn: shape, what is added to its names, whether it is dashed."""
    return [(shape, "", False)] + ([(other, f", {name}", True)] if other is not None else [])


def _dress(axes: Any, shape: TrajectoryShape, ylabel: str, title: str) -> None:
    axes.set_xscale("log")
    axes.set_xlim(shape.sigmas[0], min(s for s in shape.sigmas if s > 0))
    dress(axes, "noise level σ  (sampling runs to the right)", ylabel, title)


def _pairs(shape: TrajectoryShape, states: Curve, outputs: Curve) -> tuple[tuple[Curve, list[int], str, str], ...]:
    """Both curves with the positive levels they have, their colours and names."""
    shown = [k for k, s in enumerate(shape.sigmas) if s > 0]
    kept = [k for k in shown if k < len(outputs.mean)]
    return (states, shown, PALETTE[0], _NAMES[0]), (outputs, kept, PALETTE[1], _NAMES[1])


def draw_deviation(
    shape: TrajectoryShape, axes: Any, other: TrajectoryShape | None = None, name: str = "other"
) -> None:
    """Distance from the straight line against σ on given axes; a second model's dashed."""
    for found, suffix, dashed in _both(shape, other, name):
        for curve, levels, colour, label in _pairs(found, found.deviation, found.denoised_deviation):
            _line(axes, found.sigmas, curve, levels, colour, label + suffix, dashed)
    _dress(axes, shape, "Euclidean distance", "distance from the straight line")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def draw(shape: TrajectoryShape, ax: Any = None, other: TrajectoryShape | None = None, name: str = "other") -> Any:
    """Deviation (left) and distance to the end (right): dark bands are intervals of the mean, light ones one deviation.

    Args:
        shape: what was measured.
        ax: two axes, or None for a new figure.
        other: a second model's, dashed.
        name: what the second model is called.
    """
    left, right = axes_for(ax, 2, width=9.2, height=3.8)
    draw_deviation(shape, left, other, name)
    for found, suffix, dashed in _both(shape, other, name):
        for curve, levels, colour, label in _pairs(found, found.distance, found.denoised_distance):
            positive = [k for k in levels if curve.mean[k] > 0]
            _line(right, found.sigmas, curve, positive, colour, label + suffix, dashed)
    _dress(right, shape, "Euclidean distance", "distance to the end")
    right.set_yscale("log")
    floor = min((v for c in (shape.distance, shape.denoised_distance) for v in c.mean if v > 0), default=1e-3)
    right.set_ylim(bottom=max(floor / 2, max(shape.distance.mean) * 1e-6, 1e-12))
    return left.figure


def draw_magnitude(
    shape: TrajectoryShape,
    forward: ForwardMagnitude | None,
    axes: Any,
    other: TrajectoryShape | None = None,
    name: str = "other",
) -> None:
    """Norms of states and outputs on the way, and of noised data, which should lie under those of the states.

    Args:
        shape: what was measured.
        forward: norms of noised data, or None.
        axes: where to draw.
        other: a second model's, dashed.
        name: what the second model is called.
    """
    for found, suffix, dashed in _both(shape, other, name):
        for curve, levels, colour, label in _pairs(found, found.magnitude, found.denoised_magnitude):
            _line(axes, found.sigmas, curve, levels, colour, label + suffix, dashed)
    if forward is not None:
        axes.plot(
            forward.sigmas,
            forward.mean,
            "o",
            color=INK,
            markersize=3.2,
            fillstyle="none",
            label="noised data, ‖y + σz‖",
        )
    _dress(axes, shape, "Euclidean norm", "magnitude")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
