"""The score on a plane through three training samples."""

from __future__ import annotations

import re

from farfield.analysis.field import default_levels, score_field
from farfield.analysis.images import grid_png, is_image
from farfield.analysis.plane import choose_images, plane_through
from farfield.errors import ArgumentError
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section

LAWS = ("empirical", "mixture", "gaussian")

#: Points along either side of the grid.
FULL, QUICK = 25, 13


@section("field", "The score on a plane", order=46)
def field(context: ReportContext) -> Section:
    """Arrows and norm of the score of the model and the laws, on the plane through three training samples."""
    try:
        images = choose_images(context.train, context.train_set.labels, seed=context.seed)
        plane = plane_through(context.train[list(images)], images)
    except ArgumentError as error:
        return Section([blocks.note(f"There is no plane to show the score on: {error}.")])
    names = ("empirical", "gaussian") if context.quick else LAWS
    laws = {name: context.laws[name] for name in names if name in context.laws}
    levels = default_levels(context.model, plane)
    levels = tuple(dict.fromkeys((levels[0], *(() if context.quick else levels[1:2]), levels[-1])))
    found = score_field(context.model, laws, plane, sigmas=levels, grid=QUICK if context.quick else FULL)
    remark = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    caption = (
        "The score s = (D − x)/σ² on the plane through three training samples a, b, c (numbers "
        f"{', '.join(map(str, images))}). Colour: its norm in all coordinates, one scale for each noise level. Arrows: its "
        "part in the plane, their length by the square root of its size. Lengths are Euclidean, in the units of the data. At "
        "high noise all fields point to one centre; at low noise the training set's own score (empirical) pulls to the nearest "
        "sample, and a model that has learnt more than its samples is calmer between them (Wang & Vastola 2024, Fig. 11)."
    )
    picture = _shortened(
        blocks.svg(
            found.plot(corners=False),
            "Arrows and norm of the score on a plane, by noise level (down) and law (across)",
            60,
        )
    )
    out = [*remark, blocks.text(found.summary()), blocks.figure(picture, caption)]
    if is_image(context.data.event_shape):
        data, width = grid_png(context.train[list(images)], 3, 72)
        out.append(blocks.figure(blocks.png(data, "The three training samples", width), "The samples a, b and c."))
    (numbers,) = found.tables()
    out.append(blocks.details("The numbers", blocks.table(numbers.columns, numbers.rows, numbers.title)))
    return Section(out, found.to_dict(maps=False))


def _shortened(svg: str) -> str:
    """The drawing with coordinates to a hundredth of a point: half the size, and nobody sees it."""
    return re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), svg)
