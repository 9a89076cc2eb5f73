"""How much of the model's score the simple laws explain."""

from __future__ import annotations

from farfield.analysis import ScoreFidelity
from farfield.analysis.fidelity_plot import draw, label
from farfield.analysis.fidelity_result import Quantity
from farfield.analysis.plotting import axes_for
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section


def _memory(found: ScoreFidelity) -> str:
    """What happens below: does the model follow its training samples, or something smoother?"""
    below = [k for k, v in enumerate(found.laws["gaussian"].fuv) if v >= 0.1]
    if not below:
        return ""
    k = below[0]
    left = {name: found.laws[name].fuv[k] for name in ("gaussian", "mixture", "empirical") if name in found.laws}
    leaves = ", ".join(f"{100 * value:.2g} % by the {label(name)} law" for name, value in left.items())
    last = found.laws["empirical"].fuv[-1]
    if max(found.laws["empirical"].fuv) < 0.05:
        memory = "Down to the lowest noise it follows the empirical law: it reproduces its training samples."
    elif last > 0.5:
        memory = (
            "Towards the lowest noise the empirical law explains nothing of it: it has not learnt its training samples "
            "one by one."
        )
    else:
        memory = f"At the lowest noise the empirical law leaves {100 * last:.2g} % unexplained."
    return f"Below, it knows more; left unexplained at σ = {found.sigmas[k]:.2g}: {leaves}. {memory}"


def _at_one(found: ScoreFidelity) -> list[str]:
    """What the Gaussian leaves at σ = 1, where that is among the levels."""
    score, denoiser = found.unexplained_at(1.0), found.unexplained_at(1.0, quantity="denoiser")
    if score is None or denoiser is None:
        return []
    return [
        f"At σ = 1 it leaves {100 * score:.2g} % of the score and {100 * denoiser:.2g} % of the denoiser unexplained."
    ]


def _reach(sigma: float | None) -> str:
    return "nowhere" if sigma is None else blocks.number(sigma, 2)


def _panel(found: ScoreFidelity, quantity: Quantity) -> str:
    (axes,) = axes_for(None, width=6.4, height=4.2)
    draw(found, axes, quantity)
    return blocks.svg(axes.figure, f"Unexplained fraction of the {quantity} against noise level, by law")


@section("fidelity", "What the model knows at each noise level", order=30)
def fidelity(context: ReportContext) -> Section:
    """The unexplained fraction of the score by law and level."""
    found = context.fidelity
    until, low = found.gaussian_until, found.sigmas[-1]
    out = []
    if context.class_remark is not None:
        out.append(blocks.note(context.class_remark))
    if until is None:
        out.append(
            blocks.text(
                "At no noise level does the Gaussian with the data's mean and covariance explain 99 % of the score."
            )
        )
    elif until <= low:
        out.append(
            blocks.text(
                "At every noise level the Gaussian with the data's mean and covariance explains 99 % of the score."
            )
        )
    else:
        out.append(
            blocks.text(
                f"Above σ = {until:.2g} the model does no more than the Gaussian with the data's mean and covariance:",
                "that law explains over 99 % of its score, and a teleport or the whitened solver can use it.",
                *_at_one(found),
                _memory(found),
            )
        )
    if found.mismatch is not None:
        out.append(blocks.warning(found.mismatch))
    score = (
        "Unexplained fraction of the score by law, E‖s_model − s_law‖² / E‖s_model‖² (Wang & Vastola 2024, Eq. 28). Lower is "
        "better; 1 is as bad as no law at all. At high noise every score is almost −x/σ², and even the mean explains it."
    )
    denoiser = (
        "The same of the denoiser, E‖D_model − D_law‖² / E‖D_model‖²: what a law knows of the data themselves. Bands: 95 %, "
        "from a bootstrap over the queries. Ticks at the bottom: standard deviations of the data along its leading components."
    )
    out.append(
        blocks.figures(
            blocks.figure(_panel(found, "score"), score), blocks.figure(_panel(found, "denoiser"), denoiser)
        )
    )  # fmt: skip
    out.append(
        blocks.note(
            f"Ratios of means over {found.queries} queries x = training sample + σz. isotropic: mean only. Gaussian: mean and",
            f"covariance. mixture: {found.components} k-means clusters with their own covariances. empirical: the",
            f"{found.count:,} training samples as points, the optimum of the training loss; it sees each query's own point.",
        )
    )
    shares = (0.01, 0.1, 0.5)
    reach = [[label(name), *(_reach(found.explained_until(name, u)) for u in shares)] for name in found.laws]
    heads = [f"explains {100 * (1 - u):.0f} % down to σ =" for u in shares]
    out.append(blocks.table(["law", *heads], reach, "How far down from high noise each law explains the score."))
    step = max(1, len(found.sigmas) // 8)
    shown = sorted({*range(0, len(found.sigmas), step), len(found.sigmas) - 1})
    gaussian = found.laws["gaussian"]
    rows = [
        [
            blocks.number(found.sigmas[k]),
            *(curve.fuv[k] for curve in found.laws.values()),
            f"{blocks.number(gaussian.low[k])} – {blocks.number(gaussian.high[k])}",
            gaussian.denoiser.fuv[k],
        ]
        for k in shown
    ]
    heads = ["σ", *found.laws, "gaussian, 95 % band", "gaussian, denoiser"]
    numbers = blocks.table(
        heads, rows, "Unexplained fraction of the score, and last of the denoiser (no unit)", right=True
    )
    out.append(blocks.details("The numbers", numbers))
    return Section(out, {**found.to_dict(), "lowest_sigma": low})
