"""The shape of the model's sampling trajectories, and the few directions that hold one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from farfield.analysis.entrants import baseline
from farfield.analysis.shape import ShapeSums
from farfield.analysis.shape_result import TrajectoryShape, percent
from farfield.analysis.trajectory_view import TrajectoryView, trajectory_view
from farfield.errors import ArgumentError
from farfield.report import blocks
from farfield.report.context import BATCH, ReportContext
from farfield.report.registry import Section, section
from farfield.sampling import Trajectory

#: Trajectories whose components are looked at; they are the first of those that are measured.
VIEWED = 32


def _measure(context: ReportContext) -> tuple[TrajectoryShape, TrajectoryView | None]:
    """Shape of all trajectories and view of the first ones, from the same runs."""
    sampler, n = baseline(context.model), context.sizes.trajectories
    sums, view = ShapeSums(), None
    for first in range(0, n, BATCH):
        count = min(BATCH, n - first)
        run = sampler(context.model, count, context.seed, first=first, trajectory=True).trajectory
        assert run is not None
        sums.update(run)
        if first == 0:
            try:
                view = trajectory_view(_first(run), components=2)
            except ArgumentError:  # data on a line have no plane
                view = None
    return sums.result(), view


def _first(run: Trajectory) -> Trajectory:
    return replace(run, states=run.states[:, :VIEWED], denoised=run.denoised[:, :VIEWED])


def _figure(view: TrajectoryView) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.7))
    # Known margins: to find them takes longer than all of the rest.
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.985, top=0.91, bottom=0.14, wspace=0.22)
    return blocks.svg(view.plot(list(panels)), "Trajectories in principal components, and the variance that is left")


def _bands(shape: TrajectoryShape) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.8))
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.985, top=0.91, bottom=0.14, wspace=0.2)
    return shape.plot(list(panels))


@section("trajectories", "How samples travel", order=40)
def trajectories(context: ReportContext) -> Section:
    """Deviation from the straight line and distance to the end, of states and denoiser outputs; and their components."""
    shape, view = _measure(context)
    yes = {True: "yes", False: "no"}
    intervals = [
        f"{blocks.number(low)} – {blocks.number(high)}"
        for low, high in (shape.straightness_interval, shape.denoised_straightness_interval)
    ]
    table = blocks.table(
        ["", "state x", "denoiser output D(x, σ)"],
        [
            ["largest deviation ÷ distance between the ends", shape.straightness, shape.denoised_straightness],
            ["95 % interval", *intervals],
            ["largest mean deviation (distance)", max(shape.deviation.mean), max(shape.denoised_deviation.mean)],
            ["at noise level σ", shape.turning_point, shape.denoised_turning_point],
            ["distance between the ends", shape.endpoint, shape.denoised_endpoint],
            ["comes closer to its end at every step, on average", yes[shape.monotone], yes[shape.denoised_monotone]],
            ["single trajectories that do", f"{percent(shape.closer)} %", f"{percent(shape.denoised_closer)} %"],
        ],
        f"Means over {shape.samples} trajectories of Heun on 18 Karras levels ({shape.nfe} evaluations), seed {context.seed}; "
        "distances are Euclidean, in the units of the data.",
        right=True,
    )
    text = blocks.text(
        f"The states leave the straight line from noise to sample by at most {100 * shape.straightness:.2g} % of its length,",
        f"the denoiser's outputs theirs by {100 * shape.denoised_straightness:.2g} %: sampling looks straight from afar.",
        _turning(shape),
        "The denoiser's output is "
        + (
            "closer to its end than the state at every level."
            if shape.denoised_ahead
            else "not always closer to its end."
        ),
    )
    picture = blocks.svg(_bands(shape), "Deviation from the straight line and distance to the end against noise level")
    caption = (
        "Left: distance of the state (blue) and of the denoiser's output (orange) from the straight line between the first and "
        "the last of their kind. Right: distance to the last. Lines are means, dark bands their 95 % intervals, light bands "
        "one standard deviation over trajectories. (Chen et al., A geometric perspective on diffusion models, section 3; on "
        "CIFAR-10 the ratios are 0.0036 and 0.27.)"
    )
    angle = blocks.note(
        f"The direction of a step and the direction to the final sample enclose a cosine of at least {shape.lowest_cosine:.4f} "
        "on average. With exact steps no deviation can exceed (1 − σ/σ_max) times the farthest that outputs were from the "
        f"sample; here the largest reached {percent(shape.tightness)} % of that, which does not grow with the noise: this is "
        "why paths look straight."
    )
    remark = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    parts = [*remark, text, blocks.figure(picture, caption)]
    if view is not None:
        parts += [blocks.text(view.summary()), blocks.figure(_figure(view), _about(view))]
    values = shape.to_dict() | {"view": None if view is None else view.to_dict()}
    return Section([*parts, table, angle], values)


def _turning(shape: TrajectoryShape) -> str:
    """Where the states are farthest from the line, and where the path turns: not there, but on the way down from there."""
    place = shape.sigmas.index(shape.turning_point)
    here, below = shape.bending.mean[place : place + 1], shape.bending.mean[place + 1 :]
    farthest = f"The states are farthest from the line at σ = {shape.turning_point:.2g}"
    if not (here and below):
        return f"{farthest}."
    return (
        f"{farthest}, where their direction turns by {here[0]:.2g}° for each factor e in σ; below it turns by up to "
        f"{max(below):.2g}°."
    )


def _about(view: TrajectoryView) -> str:
    return (
        "Left: eight trajectories, each in the plane of its own two principal components; the second axis is stretched. "
        "The states (blue) come from the far right, the denoiser's outputs (orange) move beside them to the sample (dot). "
        "Right: the share of the variance that k components leave, of single trajectories with their own components and of all "
        f"states of {len(view.needed)} trajectories together, which start anywhere on a sphere of noise."
    )
