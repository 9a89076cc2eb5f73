"""Curves of unexplained fractions against the noise level."""

from __future__ import annotations

import math
from typing import Any

from farfield.analysis.fidelity_result import Quantity, ScoreFidelity
from farfield.analysis.plotting import INK, PALETTE, dress, label_ends, marker_line

#: Above 1 a law is worse than none at all; how much worse is of no interest.
_TOP = 10.0
_FLOOR = 1e-12


def label(law: str) -> str:
    """A law's name as a reader sees it."""
    return "Gaussian" if law == "gaussian" else law


def draw(found: ScoreFidelity, axes: Any, quantity: Quantity = "score") -> None:
    """One panel: a curve for each law with its 95 % band, both axes logarithmic.

    A dotted line marks 1 %, ticks at the foot the square roots of the largest eigenvalues, thin lines ``sqrt(tr Σ)`` and the
    level down to which the Gaussian explains 99 %.
    """
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = []
    curves = {law: found.curve(law, quantity) for law in found.laws}
    for k, (law, curve) in enumerate(curves.items()):
        colour = PALETTE[k % len(PALETTE)]
        shown = [max(v, 1e-16) for v in curve.fuv]
        low, high = ([max(min(v, 1e16), 1e-16) for v in edge] for edge in (curve.low, curve.high))
        axes.fill_between(found.sigmas, low, high, color=colour, alpha=0.22, linewidth=0)
        axes.plot(found.sigmas, shown, color=colour, linewidth=1.8, label=label(law))
        ends.append((shown[0], label(law), colour))
    lowest = min(min(c.fuv) for c in curves.values())
    axes.set_ylim(min(max(lowest / 3, _FLOOR), 1e-4), _TOP)
    axes.set_xlim(found.sigmas[-1], found.sigmas[0])
    axes.axhline(0.01, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate(
        "1 %", (found.sigmas[-1], 0.01), xytext=(3, 2), textcoords="offset points", fontsize=8, color=INK, alpha=0.75
    )
    _markers(found, axes, quantity)
    dress(axes, "noise level σ", f"unexplained fraction of the {quantity}, FUV")
    label_ends(axes, ends)


def _markers(found: ScoreFidelity, axes: Any, quantity: Quantity) -> None:
    low, high = found.sigmas[-1], found.sigmas[0]
    if low < found.total_scale < high:
        marker_line(axes, found.total_scale, "√tr Σ")
    until = found.explained_until("gaussian", 0.01, quantity) if "gaussian" in found.laws else None
    if until is not None and low < until < high:
        # Where the two lines are close their names must not be.
        near = found.total_scale > 0 and abs(math.log(until / found.total_scale)) < 0.05 * math.log(high / low)
        marker_line(axes, until, f"Gaussian until σ = {until:.2g}", foot=0.3 if near else 0.06)
    from matplotlib.transforms import blended_transform_factory

    blended = blended_transform_factory(axes.transData, axes.transAxes)
    for scale in found.scales:
        if low < scale < high:
            axes.plot([scale, scale], [0, 0.03], color=INK, alpha=0.6, linewidth=0.8, transform=blended)
