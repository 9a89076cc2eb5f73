"""Where the modes of the data split as noise falls, and whether the model's denoiser leads to the same ones."""

from __future__ import annotations

from typing import Any

import torch

from farfield.analysis.images import grid_png
from farfield.analysis.mean_shift_plot import picture_rows
from farfield.analysis.modes import mode_structure
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section

#: Points, bandwidths, training images that the model is iterated from, and iterations.
FULL, QUICK = (500, 10, 12, 40), (200, 7, 6, 20)


@section("modes", "Where the modes split", order=47)
def modes(context: ReportContext) -> Section:
    """Number of modes by bandwidth, their tree, and the model's own modes beside them."""
    points, levels, n, steps = QUICK if context.quick else FULL
    found = mode_structure(
        context.model, context.train, points=points, levels=levels, n=n, steps=steps, seed=context.seed
    )
    part = "all" if found.points == found.total else f"{found.points:,} of the {found.total:,}"
    caption = (
        f"Modes of the kernel density of {part} training samples, whose optimal denoiser at level σ = h leads to them by "
        "x ← D(x, h). Left: their number, and the points in the largest basin; dashed: the largest standard deviation of the "
        "data, where the one mode of well separated groups would split, and half the typical distance to the nearest "
        "neighbour. Right: how modes split as the bandwidth falls, wider where they gather more of the points."
    )
    remark = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    alt = "Number of modes and size of the largest basin against bandwidth, and the tree of modes"
    out = [*remark, blocks.text(found.summary()), blocks.figure(blocks.svg(found.plot(_axes()), alt), caption)]
    rows = picture_rows(found)
    if rows:
        columns = len(rows[0][1])
        data, width = grid_png(torch.cat([row for _, row in rows]), columns, 40)
        names = "; ".join(name for name, _ in rows)
        out.append(
            blocks.figure(
                blocks.png(data, "Modes of the largest basins, their nearest training images, and the model's", width),
                f"The modes of the largest basins. Rows from the top: {names}.",
            )
        )
    if any(level.model is not None for level in found.levels):
        out.append(
            blocks.table(
                ["σ = h", "modes of the data", "ends of the model", "same mode", "RMS distance to it"],
                [
                    [blocks.number(v.bandwidth), v.count, v.model.count, f"{v.model.same:.0%}", v.model.distance]
                    for v in found.levels
                    if v.model is not None
                ],
                f"The model's denoiser iterated from {found.starts} training samples until it rests.",
                right=True,
            )
        )
        words = [
            "A clean image at a large level is not what the model was trained on; where it ends in the data's mode all the "
            "same, it has learnt the density on that scale. At small levels only a model that copies does."
        ]
        if found.points < found.total:
            words.append(
                "The model has seen all training samples and not only these, which lowers the share at small levels; "
                f"farfield analyze {context.source or context.name} --what modes uses up to 2,000."
            )
        out.append(blocks.note(*words))
    return Section(out, found.to_dict())


def _axes() -> list[Any]:
    """Two panels without the pictures, which are an image of their own here."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9))
    panels = figure.subplots(1, 2)
    # Known margins: to find them takes longer than all of the rest.
    figure.subplots_adjust(left=0.075, right=0.98, top=0.95, bottom=0.135, wspace=0.22)
    return list(panels)
