"""How long the model's samples travel with those of the simple laws, and how its score differs from the training set's."""

from __future__ import annotations

from typing import Any

import torch

from farfield.analysis.deviation import TOGETHER, trajectory_deviation
from farfield.analysis.deviation_plot import law_label
from farfield.analysis.diagnosis import score_deviation
from farfield.analysis.images import grid_png
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section

#: The laws of this section, in the order of the rows.
LAWS = ("gaussian", "mixture", "empirical")

#: Starts and levels; fewer in a quick report.
FULL, QUICK = (24, 30), (8, 12)

#: Starts at most for the comparison with the training set.
STARTS = 16


@section("deviation", "How long the model stays with the Gaussian", order=44)
def deviation(context: ReportContext) -> Section:
    """State, denoiser and sample deviation from the same noise."""
    n, steps = QUICK if context.quick else FULL
    laws = {name: context.laws[name] for name in LAWS if name in context.laws}
    found = trajectory_deviation(context.model, laws, n=n, seed=context.seed, steps=steps)
    remark = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    floor = ""
    if found.solver_mse is not None:
        floor = (
            f" Half the steps move the model's own samples by a mean square of {blocks.number(found.solver_mse, 2)}, "
            "below which a deviation would say nothing."
        )
    caption = (
        f"Mean squared difference of the model's path and each law's from the same noise: {found.n} starts, seed {found.seed}, "
        f"{steps} Karras levels. Left: the states. Right: the denoiser outputs, each at its own state. Lines are means, bands "
        f"the middle half of the starts; dotted: {TOGETHER:g}, still together to the eye (Wang & Vastola 2024, section 4.3). "
        "For skipping steps that is far too lax, samples suffer much earlier: see the unexplained fraction of the score above."
        f"{floor}"
    )
    out = [
        *remark,
        blocks.text(found.summary()),
        blocks.figure(
            blocks.svg(
                found.plot(_axes()), "Mean squared deviation of states and denoiser outputs against noise level, by law"
            ),
            caption,
        ),
    ]
    if found.pictures:
        rows = list(found.pictures.values())
        columns = len(rows[0])
        data, width = grid_png(torch.cat(rows), columns, 44)
        names = ", ".join(["the model", *(law_label(name) for name in found.laws)])
        alt = f"Samples of the model and of {len(found.laws)} laws from the same {columns} starts"
        out.append(
            blocks.figure(
                blocks.png(data, alt, width), f"Samples from the same noise, starts 0 to {columns - 1}; rows: {names}."
            )
        )
    ends = [(name, found.end(name)) for name in found.laws]
    out.append(
        blocks.table(
            ["law", "mean squared distance", "95 % interval", f"together (MSE < {TOGETHER:g}) until σ"],
            [
                [
                    law_label(name),
                    blocks.number(end.mean),
                    f"{blocks.number(end.low)} to {blocks.number(end.high)}",
                    blocks.number(found.together_until(name), 2),
                ]
                for name, end in ends
            ],
            "Distance of each law's final samples to the model's, from the same noise.",
            right=True,
        )
    )
    against, record = against_training_set(context, min(n, STARTS))
    return Section([*out, *against], {**found.to_dict(), "training_set": record})


def against_training_set(context: ReportContext, n: int) -> tuple[list[str], dict[str, Any]]:
    """The model beside the optimal denoiser of its training set, along the path of either."""
    found = score_deviation(context.model, context.train, labels=context.labels, n=n, seed=context.seed)
    classes = ", of its start's class" if found.conditional else ""
    caption = (
        f"Left: distance between the outputs of the model and of the optimal denoiser of the training set{classes}, asked at "
        f"the same states, along the optimal denoiser's path and along the model's own: {found.n} starts, seed {found.seed}, "
        f"{found.sampler}. Lines are means, bands the middle half of the starts. Right: the share of starts for which the "
        "optimal denoiser's output on the model's path already is nearest to, and is, the data point next to the finished "
        "sample (Chen et al., A geometric perspective on diffusion models, section 6)."
    )
    out = [
        blocks.heading("Against the training set"),
        blocks.text(found.summary()),
        blocks.figure(
            blocks.svg(
                found.plot(_axes(0.3)),
                "Distance of model and optimal denoiser against noise level along both paths; share of starts decided",
            ),
            caption,
        ),
    ]
    if found.pictures:
        rows = list(found.pictures.values())
        columns = len(rows[0])
        data, width = grid_png(torch.cat(rows), columns, 44)
        alt = f"Samples of the model and of the optimal denoiser from the same {columns} starts, and their nearest data"
        words = (
            f"Samples from the same starts, 0 to {columns - 1}; rows: the model, the optimal denoiser (whose samples are "
            "training images), the training image nearest to the model's sample."
        )
        out.append(blocks.figure(blocks.png(data, alt, width), words))
    return out, found.to_dict()


def _axes(gap: float = 0.22) -> list[Any]:
    """Two panels without the samples, which are a picture of their own here."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9))
    panels = figure.subplots(1, 2)
    # Known margins: to find them takes longer than all of the rest.
    figure.subplots_adjust(left=0.075, right=0.9, top=0.92, bottom=0.135, wspace=gap)
    return list(panels)
