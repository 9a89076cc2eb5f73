"""At which noise level the components of the data are decided, and how far the model follows."""

from __future__ import annotations

from farfield.analysis.emergence import EmergenceOptions, analyze_emergence
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section


@section("emergence", "When features appear", order=42)
def emergence(context: ReportContext) -> Section:
    """Shrinkage of the leading principal components by noise level: the Gaussian's in closed form, the model's measured."""
    queries = 128 if context.quick else 256
    found = analyze_emergence(context.subject, EmergenceOptions(queries=queries))
    caption = (
        "Left: the part of a principal component's coordinate that the denoiser believes, against the noise level. Lines: the "
        "Gaussian's λ/(λ + σ²), λ the component's variance; ½ at the critical level σ = √λ (marks at the bottom). Dots: the "
        f"model's, as the slope of its answer on the noisy coordinate over {queries} noised training samples; for the exact "
        "denoiser of any data the slope is the Gaussian's, so a dot off its line is an error of the model. Bars: the share of "
        "the component's variance that the model's answers have; above the line where the data are not Gaussian. Dashed: the "
        "share of all variance. Right: the components. (Wang & Vastola 2024, section 3.3.)"
    )
    remark = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    picture = blocks.svg(found.plot(), "Believed part of each principal component against noise level", 64)
    tables = "".join(blocks.table(part.columns, part.rows, part.title) for part in found.tables())
    out = [
        *remark,
        blocks.text(found.summary()),
        blocks.figure(picture, caption),
        blocks.details("The numbers", tables),
    ]
    return Section(out, found.to_dict())
