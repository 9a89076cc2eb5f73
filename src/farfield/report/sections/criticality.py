"""When the model has to choose: critical times and directions of the network beside those of its data."""

from __future__ import annotations

from typing import Any

from farfield.analysis.bifurcation import BifurcationDiagram, leading_diagram
from farfield.analysis.catalogue import Subject
from farfield.analysis.criticality import Criticality, CriticalityOptions, analyze_criticality
from farfield.errors import FarfieldError
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section

#: Points of the exact law, as in the section on potentials; those of the diagram.
POINTS, QUICK_POINTS, DRAWN = 5000, 1000, 1000
#: Larger images get fewer draws of noise.
SMALL = 256
#: Relative accuracy of the noise levels.
TOLERANCE = 1e-2


def _measure(context: ReportContext) -> Criticality:
    small = context.model.dim <= SMALL
    options = CriticalityOptions(
        count=1,
        noise=(8 if small else 4) if context.quick else 16 if small else 6,
        points=min(len(context.train), QUICK_POINTS if context.quick else POINTS),
        tolerance=TOLERANCE,
        check_model=False,
        check_bare=False,
    )
    subject = Subject(context.model, context.train, context.name, seed=context.seed)
    found = analyze_criticality(subject, options)
    # The noiseless value that the sections on potentials, Gaussianity and late starts mark.
    context.once("first critical time", lambda: None if found.bare.first is None else found.bare.first.time)
    return found


def _diagram(context: ReportContext) -> BifurcationDiagram:
    return leading_diagram(context.train[:DRAWN], starts=5, fold_accuracy=2 * TOLERANCE)


@section("criticality", "When the model has to choose", order=51)
def criticality(context: ReportContext) -> Section:
    """First critical times of network and data, their directions, and the branches of the data's leading coordinate."""
    try:
        found = context.once("criticality", lambda: _measure(context))
    except FarfieldError as error:
        return Section([blocks.note(f"Critical times could not be measured: {error}.")])
    out = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    out.append(blocks.text(found.summary()))
    caption = (
        "At high noise all samples rest about one centre. Where an eigenvalue of the denoiser's Jacobian there reaches its "
        "critical value, 1 in this figure, the centre loses its stability along the eigenvector and the samples have to choose "
        "a side (Raya & Ambrogioni 2023). Blue: the exact law of the data; orange: the model; both averaged over the same "
        "draws of noise. Beside: these directions; for one channel, red and blue are the two sides."
    )
    out.append(blocks.figure(blocks.svg(found.plot(), "Eigenvalues by noise level and critical directions"), caption))
    out.append(_table(found))
    data = dict(found.to_dict())
    try:
        diagram = context.once("bifurcation diagram", lambda: _diagram(context))
        out.append(_picture(diagram))
        data["diagram"] = diagram.to_dict()
    except FarfieldError as error:
        out.append(blocks.note(f"The bifurcation diagram could not be drawn: {error}."))
    out.append(_sizes(found, context))
    return Section(out, data)


def _table(found: Criticality) -> str:
    columns = ("direction", "σ data", "σ model", "gap", "± gap", "agree", "|cos|", "excess variance", "explains", "s")
    rows = [
        [m.order + 1, m.data, m.model, m.gap, m.error, "yes" if m.agrees else "no", m.overlap, m.excess, m.explained,
         found.model.crossings[m.order].time]
        for m in found.matches
    ]  # fmt: skip
    return blocks.table(columns, rows, "Critical noise levels σ, and the forward time s of the model's")


def _picture(diagram: BifurcationDiagram) -> str:
    folds = sum(event.kind == "fold" for event in diagram.bifurcations)
    said = (
        f"{diagram.stable_at(diagram.levels[-1])} stable states at the lowest noise shown; {folds} born in a fold, beside a "
        "centre that stays stable, for the data are not symmetric."
        if folds
        else f"{diagram.stable_at(diagram.levels[-1])} stable states at the lowest noise shown."
    )
    caption = (
        "Fixed points of the reverse dynamics at a frozen time, for the data's coordinate along their leading principal "
        "component, whose noisy law is exact. Solid: stable; dashed: unstable. From left to right the noise falls. "
        + said
    )
    return blocks.figure(
        blocks.svg(diagram.plot(_axes()), "Bifurcation diagram of the leading principal component"), caption
    )


def _axes() -> Any:
    """One panel with known margins: to find them takes longer than to draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.085, right=0.9, top=0.97, bottom=0.12)
    return axes


def _sizes(found: Criticality, context: ReportContext) -> str:
    away = found.departure
    return blocks.note(
        f"{found.data.noise} draws of noise, seed {context.seed}, σ to {100 * TOLERANCE:g} %; {found.count:,} data points in",
        f"the exact law, {min(DRAWN, len(context.train)):,} in the diagram. What the model's crossing leads to is not examined",
        "here.",
        "With so few draws the errors are rough: farfield analyze --what criticality takes more. The theory's closed form",
        f"asks for centred data of one length; here the distances to the mean differ by {100 * away.spread:.0f} %.",
    )
