"""The figure of the likelihood ordering: what each move gains against noise level, and the ratio of the premise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress

if TYPE_CHECKING:
    from farfield.analysis.likelihood_order import LikelihoodOrder


def draw_order(found: LikelihoodOrder, ax: Any = None) -> Any:
    """Gains with bounds (left) and premise ratio (right); returns the figure.

    Gains are shown per coordinate, on an axis that is linear about 0 where some are negative, so that losses are seen.
    """
    left, right = axes_for(ax, 2, width=9.6, height=3.9)
    s, d = found.sigmas, found.dim
    moves = ((found.denoised, "D(xₙ)", PALETTE[0]), (found.following, "the next state", PALETTE[1]))
    lowest, highest = 0.0, 1e-12
    for move, name, colour in moves:
        mean, low, high, bound = ([v / d for v in part] for part in (
            move.gain.mean, move.gain.low, move.gain.high, move.bound.mean,
        ))  # fmt: skip
        left.fill_between(s, low, high, color=colour, alpha=0.12, linewidth=0)
        left.plot(s, mean, color=colour, linewidth=2, marker="o", markersize=3, label=f"{name}, gain")
        left.plot(s, bound, color=colour, linewidth=1.2, linestyle=(0, (4, 2)), label=f"{name}, lower bound")
        lowest, highest = min([lowest, *low, *mean, *bound]), max([highest, *mean, *high])
    left.set_xscale("log")
    positive = [v / d for move, _, _ in moves for v in (*move.gain.low, *move.bound.mean) if v > 0]
    if lowest < 0 or not positive:
        left.set_yscale("symlog", linthresh=max(1e-3 * highest, 1e-9))
        left.axhline(0, color=INK, alpha=0.5, linewidth=0.8)
    else:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        left.yaxis.set_minor_formatter(NullFormatter())
    kind = "at the level's own bandwidth" if found.own_bandwidth else f"at bandwidth {found.bandwidths[0]:.3g}"
    dress(left, "noise level σ  (sampling runs to the right)", "gain in log p per coordinate, nats", f"density {kind}")
    left.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")
    for move, name, colour in moves:
        right.fill_between(s, move.ratio.low, move.ratio.high, color=colour, alpha=0.12, linewidth=0)
        label = "D(xₙ): the premise" if move is found.denoised else name
        right.plot(s, move.ratio.mean, color=colour, linewidth=2, marker="o", markersize=3, label=label)
    right.axhline(1, color=INK, alpha=0.6, linewidth=0.9, linestyle=(0, (4, 3)))
    right.annotate(
        "above: no claim", (s[0], 1), xytext=(3, 3), textcoords="offset points", fontsize=8, color=INK, alpha=0.75
    )
    right.set_xscale("log")
    top = max(1.0, *found.denoised.ratio.high, *found.following.ratio.high)
    right.set_ylim(0, 1.15 * min(top, 5.0))
    dress(right, "noise level σ", "‖D* − y‖ / ‖D* − xₙ‖", "distance to the optimal output, relative")
    right.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")
    for axes in (left, right):
        if s[0] > s[-1]:
            axes.set_xlim(s[0], s[-1])
    return left.figure
