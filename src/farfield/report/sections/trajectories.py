"""The shape of the model's sampling trajectories."""

from __future__ import annotations

from farfield.analysis import shape_statistics
from farfield.analysis.entrants import baseline
from farfield.report import blocks
from farfield.report.context import BATCH, ReportContext
from farfield.report.registry import Section, section


@section("trajectories", "How samples travel", order=40)
def trajectories(context: ReportContext) -> Section:
    """Deviation from the straight line and distance to the end, of states and denoiser outputs."""
    sampler = baseline(context.model)
    shape = shape_statistics(context.model, sampler, context.sizes.trajectories, context.seed, batch_size=BATCH)
    yes = {True: "yes", False: "no"}
    table = blocks.table(
        ["", "state x", "denoiser output D(x, σ)"],
        [
            ["largest deviation ÷ distance between the ends", shape.straightness, shape.denoised_straightness],
            ["largest mean deviation (distance)", max(shape.deviation.mean), max(shape.denoised_deviation.mean)],
            ["at noise level σ", shape.turning_point, shape.denoised_turning_point],
            ["distance between the ends", shape.endpoint, shape.denoised_endpoint],
            ["comes closer to its end at every step", yes[shape.monotone], yes[shape.denoised_monotone]],
        ],
        f"Means over {shape.samples} trajectories of Heun on 18 Karras levels ({shape.nfe} evaluations), seed {context.seed}; "
        "distances are Euclidean, in the units of the data.",
        right=True,
    )
    text = blocks.text(
        f"The states leave the straight line from noise to sample by at most {100 * shape.straightness:.2g} % of its length,",
        f"the denoiser's outputs theirs by {100 * shape.denoised_straightness:.2g} %: sampling looks straight from afar and",
        f"bends near σ = {shape.turning_point:.2g}, where a grid of few steps should have them.",
        "The denoiser's output is "
        + (
            "closer to its end than the state at every level."
            if shape.denoised_ahead
            else "not always closer to its end."
        ),
    )
    picture = blocks.svg(shape.plot(), "Deviation from the straight line and distance to the end against noise level")
    caption = (
        "Left: distance of the state (blue) and of the denoiser's output (orange) from the straight line between the first and "
        "the last of their kind. Right: distance to the last. Lines are means, bands one standard deviation over trajectories. "
        "(Chen et al., A geometric perspective on diffusion models, section 3; on CIFAR-10 the ratios are 0.0036 and 0.27.)"
    )
    angle = blocks.note(
        f"The direction of a step and the direction to the final sample enclose a cosine of at least {shape.lowest_cosine:.4f} "
        "on average."
    )
    remark = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    return Section([*remark, text, blocks.figure(picture, caption), table, angle], shape.to_dict())
