"""How late a sampler of few steps may start, beside the first critical time."""

from __future__ import annotations

from farfield.analysis.catalogue import Subject
from farfield.analysis.late_start import LateStartOptions, measure_late_start
from farfield.analysis.late_start_result import LateStartSweep
from farfield.analysis.potential_sections_analysis import first_critical_time
from farfield.errors import FarfieldError
from farfield.processes import DDPM, VP
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section

#: Points of the exact law whose critical time is marked, as in the section on potentials.
POINTS, QUICK_POINTS = 5000, 1000
#: Larger images get fewer samples.
SMALL = 256


def _measure(context: ReportContext) -> LateStartSweep:
    data = context.train[: QUICK_POINTS if context.quick else POINTS]
    time = context.once("first critical time", lambda: first_critical_time(data, seed=context.seed))
    small = context.model.dim <= SMALL
    options = LateStartOptions(
        steps=(5,) if context.quick or not small else (3, 5),
        starts=(300, 400, 600) if context.quick else (300, 400, 500, 700),
        n=(48 if small else 24) if context.quick else 64 if small else 40,
        queries=16 if context.quick else 48,
    )
    subject = Subject(context.model, context.train, context.data.name, seed=context.seed)
    critical = None if time is None else DDPM().time(VP().sigma(time))
    return measure_late_start(subject, options, critical, context.gaussian)


@section("late_start", "How late one may start", order=56, needs=("potential",))
def late_start(context: ReportContext) -> Section:
    """The start-time curve of DDIM with few steps, from N(0, I) and from the data's Gaussian."""
    try:
        found = context.once("late start", lambda: _measure(context))
    except FarfieldError as error:
        return Section([blocks.note(f"Late starts could not be measured: {error}.")])
    out = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    out.append(blocks.text(found.summary()))
    caption = (
        "Fréchet distance of a few steps of DDIM against the index of a 1000-step schedule at which they start (Raya & "
        "Ambrogioni 2023, sections 4.1 and 5). Blue: the state is drawn from N(0, I), whatever the index; the vanilla start is "
        "the rightmost point. Orange: from the Gaussian with the noised data's mean and covariance. Stars: the lowest values. "
        "Every point costs the same evaluations."
    )
    out.append(blocks.figure(blocks.svg(found.plot(), "Fréchet distance against the start index"), caption))
    table = found.tables()[-1]
    out.append(blocks.table(table.columns, [list(row) for row in table.rows], table.title))
    out.append(
        blocks.note(
            f"{found.count} samples for each point, seed {context.seed}; compare the points with each other only: so few",
            "samples have a distance of their own. The starred starts were chosen on the samples shown.",
        )
    )
    return Section(out, found.to_dict())
