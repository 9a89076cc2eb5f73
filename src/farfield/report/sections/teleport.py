"""How many steps the data's Gaussian can stand for, and what that does to the samples."""

from __future__ import annotations

from farfield.analysis.entrants import baseline
from farfield.analysis.teleport import plan_teleport
from farfield.report import blocks
from farfield.report.context import BATCH, ReportContext
from farfield.report.registry import Section, section


@section("teleport", "How much can be skipped", order=45)
def teleport(context: ReportContext) -> Section:
    """The measured deviation along the Gaussian's path, the level it allows, and the error to expect."""
    found = plan_teleport(
        context.model,
        context.gaussian,
        baseline(context.model),
        data=context.train,
        states=64 if context.quick else 96,
        check=0 if context.quick else 12,
        seed=context.seed,
        batch_size=BATCH,
    )
    out = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    out.append(blocks.text(found.summary()))
    if found.far_field:
        out.append(
            blocks.note(
                f"The data alone, by their third cumulant, would suggest σ = {found.far_field:.2g}; what counts is the model."
            )
        )
    checked = (
        f" Squares and triangles: measured on {context.name} from other noise, root mean square and median of the samples."
        if found.checks
        else ""
    )
    caption = (
        f"Left: fraction of the model's score, and of its denoiser's distance from the mean, that the Gaussian leaves "
        f"unexplained at {found.states} states carried along the Gaussian flow (Wang & Vastola 2024, section 6). Right: the "
        "change of the samples that a teleport to each level is predicted to make, the measured residual carried along the "
        f"Gaussian flow to zero noise.{checked} Part of it is the model's own error at high noise, which a teleport removes."
    )
    picture = blocks.svg(found.plot(), "Unexplained fraction and predicted error of a teleport against its noise level")
    out.append(blocks.figure(picture, caption))
    inner = "".join(
        blocks.table(list(table.columns), [list(row) for row in table.rows], table.title) for table in found.tables()
    )
    out.append(blocks.details("The numbers", inner))
    return Section(out, found.to_dict())
