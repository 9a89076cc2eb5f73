"""How the model learned what it knows, where its training run kept a record."""

from __future__ import annotations

from pathlib import Path

from farfield.analysis.learning_curves import LearningCurves
from farfield.analysis.learning_record import RECORD, learning_curves, read_record
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section


def record_of(context: ReportContext) -> Path | None:
    """The record beside the model, if it was read from a folder that has one."""
    source = Path(context.source if context.source is not None else context.name)
    path = (source.parent if source.is_file() else source) / RECORD
    return path if path.is_file() else None


@section("learning", "In which order it learned", order=75)
def learning(context: ReportContext) -> Section:
    """Unexplained fractions by law along the training; nothing for a model without a record of it."""
    path = record_of(context)
    if path is None:
        return Section([])
    found = learning_curves(read_record(path), str(path))
    caption = (
        "Fraction of the score's variance that each law leaves unexplained after so many training steps (Wang & Vastola 2024, "
        f"section 5), ratio of means over {found.queries} queries x = training sample + σz, the same at every look; lower is "
        "nearer to the law. A dot marks where the network is nearest to a law that it then leaves behind. mixture:K: K k-means "
        f"clusters with their own covariances. {_weights(found)}"
    )
    if any(found.rank_correlation(s) is not None for s in found.selective):
        caption += (
            " Right: the step at which 63 % of a principal component's gain (slope of the denoiser's coordinate on the noisy "
            "one) is learned, against the component's variance; dashed, the dependence 1/(λ + σ²) of a linear denoiser."
        )
    picture = blocks.svg(
        found.plot(), "Unexplained fraction of the score against training step, by law and noise level", 64
    )
    tables = [blocks.table(part.columns, part.rows, part.title) for part in found.tables()]
    parts = [
        blocks.text(found.summary()),
        blocks.figure(picture, caption),
        blocks.details("The numbers", "".join(tables)),
    ]
    if context.class_remark is not None:
        parts.insert(0, blocks.note(context.class_remark))
    return Section(parts, found.to_dict())


def _weights(found: LearningCurves) -> str:
    """Which weights were looked at."""
    if found.weights == "raw":
        return "Measured on the weights in training, not on their average."
    return "Measured on the averaged weights." if found.weights == "average" else ""
