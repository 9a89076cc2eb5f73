"""Samples of the recommended sampler beside training samples."""

from __future__ import annotations

from farfield.analysis.entrants import in_words
from farfield.analysis.images import grid_png, is_image, scatter
from farfield.numerics import streams
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section

#: Pixels of one picture: two grids of eight columns fill the page.
TILE = 56


@section("samples", "Samples", order=10, needs=("solvers",))
def samples(context: ReportContext) -> Section:
    """The first samples of the report's seed, unselected, and as many training samples."""
    count, sampler = context.sizes.shown, context.sampler
    drawn = context.samples
    words = in_words(sampler)
    data = {"n": count, "seed": context.seed, "nfe": sampler.nfe, "sampler": words}
    origin = f"seed {context.seed}, {sampler.nfe} evaluations each, {words}"
    if not is_image(context.data.event_shape):
        shown = drawn[: min(len(drawn), 2000)]
        picture = blocks.svg(
            scatter(shown.cpu(), context.train.cpu()), f"Scatter plot of samples of {context.name} over data", width=32
        )
        caption = (
            f"{len(shown):,} samples (blue; {origin}) over {min(len(context.train), 2000):,} training points (grey)."
        )
        return Section([blocks.figure(picture, caption)], {**data, "n": len(shown)})
    order = streams.permutation(context.seed, len(context.train), purpose="report")[:count]
    columns = 8 if count >= 16 else 4
    ours, width = grid_png(drawn[:count], columns, TILE)
    theirs, _ = grid_png(context.train[order.to(context.train.device)], columns, TILE)
    return Section(
        [
            blocks.figures(
                blocks.figure(
                    blocks.png(ours, f"A grid of {count} images sampled from {context.name}", width),
                    f"Sampled: the first {count} of {origin}. Not selected.",
                ),
                blocks.figure(
                    blocks.png(theirs, f"A grid of {len(order)} training images of {context.data.name}", width),
                    f"Training data: {len(order)} images of {context.data.name} drawn at random.",
                ),
            )
        ],
        data,
    )
