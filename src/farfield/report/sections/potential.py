"""The potential between the model's samples, and when it splits into wells."""

from __future__ import annotations

from farfield.analysis.potential_sections_analysis import first_critical_time, sample_sections
from farfield.analysis.potential_sections_result import SampleSections
from farfield.errors import FarfieldError
from farfield.report import blocks
from farfield.report.context import BATCH, ReportContext
from farfield.report.registry import Section, section

#: Points of the exact law beside; one evaluation at all of a large set's would cost more than the model's.
POINTS, QUICK_POINTS = 5000, 1000


def _measure(context: ReportContext) -> SampleSections:
    data = context.train[: QUICK_POINTS if context.quick else POINTS]
    quick = context.quick
    return sample_sections(
        context.model,
        data,
        n=8 if quick else 10,
        pairs=10 if quick else 16,
        angles=33 if quick else 41,
        steps=48 if quick else 60,
        critical=context.once("first critical time", lambda: first_critical_time(data, seed=context.seed)),
        seed=context.seed,
        batch_size=BATCH,
    )


@section("potential", "When two samples part", order=52)
def potential(context: ReportContext) -> Section:
    """Sections of the potential along circles between pairs of samples, and their split times."""
    try:
        found = context.once("potential sections", lambda: _measure(context))
    except FarfieldError as error:
        return Section([blocks.note(f"Sections of the potential could not be measured: {error}.")])
    out = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    out.append(blocks.text(found.summary()))
    caption = (
        "Potential of the reverse process, in units of g², along the circle through two samples' states at the same time "
        "(Raya & Ambrogioni 2023, section 4.2). Lines: average over the pairs in both orders, with bands of one standard "
        "error; at high noise little but chance. Blue: the model; orange, dashed: the exact law of the data. One well: both "
        "samples still lie in one basin; two: the choice between them is made. Last panel: the share of pairs that have split."
    )
    out.append(
        blocks.figure(blocks.svg(found.plot(), "Sections of the potential at several times, and split times"), caption)
    )
    splits = found.tables()[1]
    rows = [list(row) for row in splits.rows]
    out.append(
        blocks.table(splits.columns, rows, "Forward time s of a variance-preserving process at which sections split")
    )
    out.append(
        blocks.note(
            f"{found.pairs} pairs among {found.n} samples of the ancestral sampler with {found.steps} steps,",
            f"seed {found.seed};",
            f"{len(context.train[: QUICK_POINTS if context.quick else POINTS]):,} data points in the exact law.",
            "A section splits where it first has two wells or more; the time is found from the data upwards.",
        )
    )
    return Section(out, found.to_dict())
