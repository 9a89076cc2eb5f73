"""Until when the noisy data are as good as Gaussian."""

from __future__ import annotations

from farfield.analysis.gaussianity import gaussianity as measure
from farfield.analysis.gaussianity_result import Gaussianity
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section


def _measure(context: ReportContext) -> Gaussianity:
    quick = context.quick
    count = 13 if quick else 25
    return measure(
        context.train,
        times=[(k + 0.5) / count for k in range(count)],
        n=300 if quick else 500,
        columns=24 if quick else 64,
        components=8 if quick else 16,
        critical=context.peek("first critical time"),
        seed=context.seed,
    )


@section("gaussianity", "Until when noise hides the data", order=54, needs=("potential",))
def gaussianity(context: ReportContext) -> Section:
    """The Shapiro-Wilk test of noised training samples by time."""
    found = context.once("gaussianity", lambda: _measure(context))
    caption = (
        "Shapiro-Wilk tests of noised training samples, one for each column of a reduction, against the forward time of a "
        "variance-preserving process. Left: fraction rejected at 5 %, which is one in twenty for normal columns. Right: "
        "median p. A sampler can start from the data's Gaussian while all of them look normal."
    )
    picture = blocks.svg(found.plot(), "Rejected fraction and median p of the Shapiro-Wilk test against time")
    ends = found.tables()[0]
    return Section(
        [
            blocks.text(found.summary()),
            blocks.figure(picture, caption),
            blocks.table(ends.columns, [list(row) for row in ends.rows], ends.title.capitalize()),
            blocks.note(
                f"{found.n} samples, seed {found.seed}. coordinates: a choice of pixels. projections: random unit vectors;",
                "of many coordinates they look normal whatever the law. components: leading principal components.",
                "The tests of one reduction share the samples and are not independent.",
            ),
        ],
        found.to_dict(),
    )
