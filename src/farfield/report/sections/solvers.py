"""Error against evaluations: which sampler solves this model's ODE with the fewest network calls."""

from __future__ import annotations

from typing import Any

from farfield.analysis.entrants import baseline, in_words, is_whitened
from farfield.analysis.solver_table import SolverRow, SolverTable, fine_solution
from farfield.metrics.finite_sample import frechet_floor
from farfield.metrics.quality import QualityReference
from farfield.numerics import streams
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section
from farfield.sampling import Sampler


def _confirmed(context: ReportContext) -> dict[str, float | int]:
    """Recommended and usual sampler on other noise: the recommended one was chosen as the best of many on the first."""
    n, seed = context.sizes.solver_n, streams.derive(context.seed, "confirm") >> 33
    fine = fine_solution(context.model, context.sizes.fine, context.gaussian)
    exact = context.draw(fine, n, seed).double()

    def error(sampler: Sampler) -> float:
        return float((context.draw(sampler, n, seed).double() - exact).square().mean().sqrt())

    return {"n": n, "seed": seed, "error": error(context.sampler), "baseline_error": error(baseline(context.model))}


#: Samples for the Fréchet distances, the features they are looked at with, and the evaluations they may cost.
_SAMPLES, _COMPONENTS, _EVALUATIONS = 128, 20, 6000


def _at_its_budget(found: SolverTable, chosen: SolverRow) -> list[tuple[str, SolverRow]]:
    """The recommended sampler, the best of the solvers of another kind at its budget, and Heun there."""
    rows = [
        row
        for row in found.rows
        if row.budget == chosen.budget and is_whitened(row.family) != is_whitened(chosen.family)
    ]
    out = [("recommended", chosen)]
    if rows:
        kind = "without the data's Gaussian in its steps" if is_whitened(chosen.family) else "with the data's Gaussian"
        out.append((f"best {kind}", min(rows, key=lambda row: row.error)))
    heun = found.best_of("Heun", chosen.budget)
    if heun is not None and all(heun is not row for _, row in out):
        out.append(("Heun at as many", heun))
    return out


def _distances(
    context: ReportContext, found: SolverTable, chosen: SolverRow
) -> tuple[str, list[dict[str, Any]]] | None:
    """Fréchet distances at the recommended budget: whether a smaller error shows in the samples."""
    n = min(_SAMPLES, len(context.train))
    components = min(_COMPONENTS, context.train[0].numel())
    rows = _at_its_budget(found, chosen)
    if n <= 2 * components or n * sum(row.nfe for _, row in rows) > _EVALUATIONS:
        return None
    reference = QualityReference.of(context.train, None, components, seed=context.seed)
    # The recommended sampler's are drawn for other sections as well.
    draws = [context.samples[:n], *(context.draw(row.sampler, n, context.seed) for _, row in rows[1:])]
    record = [
        {"what": what, "name": row.name, "nfe": row.nfe, "error": row.error, "frechet": reference.frechet(x), "n": n}
        for (what, row), x in zip(rows, draws, strict=True)
    ]
    floor = frechet_floor(reference.features(context.train), n)
    table = blocks.table(
        ["", "sampler", "evaluations", "error (rms)", "Fréchet distance"],
        [[r["what"], r["name"], r["nfe"], r["error"], r["frechet"]] for r in record],
        f"Squared Fréchet distance to the training data of {n} samples from the same noise (seed {context.seed}), on "
        f"{components} principal components; as many of a perfect model would have about {blocks.number(floor)}. The error "
        "says how well the ODE is solved; the distance, whether that can be seen.",
    )
    return table, record


@section("solvers", "Faster sampling", order=50, needs=("fidelity",))
def solvers(context: ReportContext) -> Section:
    """The table of solvers, the curves of their families, and the recommended sampler."""
    found = context.solvers
    chosen, limit = found.choose(), found.default_tolerance()
    base, reference = found.baseline, found.reference
    fresh = context.once("confirmed", lambda: _confirmed(context))
    within = chosen.error <= limit
    reason = (
        f"the fewest evaluations whose error is within {blocks.number(limit)}, the larger of Heun's at {base.nfe} evaluations "
        "and 2/255 of the samples' spread"
        if within
        else f"the smallest error at the largest budget; none came within {blocks.number(limit)}"
    )
    out = [
        blocks.text(
            f"Recommended: {in_words(chosen.sampler)}; {chosen.nfe} evaluations, error {blocks.number(chosen.error)}.",
            f"Heun on 18 levels, the usual choice, takes {base.nfe} for {blocks.number(base.error)}.",
            f"On {fresh['n']} samples from other noise, which had no part in the choice, the errors are",
            f"{blocks.number(fresh['error'])} and {blocks.number(fresh['baseline_error'])}.",
        ),
        blocks.note(f"Rule: {reason}. It is in sampler.json, which farfield sample --sampler reads."),
    ]
    if context.class_remark is not None:
        given = "" if context.labels is None else " The check on other noise is made with the classes of the data."
        out.append(blocks.note(context.class_remark + given))
    caption = (
        f"Root-mean-square distance, over {found.n} samples and all coordinates, between each sampler's end points and the "
        f"exact solution of this model's own ODE from the same noise (seed {found.seed}); the best member of each family at "
        "each number of evaluations. Lower and further left is better. A teleport follows the data's Gaussian down to a lower "
        "noise level without evaluating the network (Wang & Vastola 2024); the whitened solver integrates the Gaussian part "
        f"of every step exactly. The samples' own spread is {blocks.number(found.scale)}."
    )
    out.append(
        blocks.figure(blocks.svg(found.plot(), "End-point error against evaluations, by family of samplers"), caption)
    )

    budgets = found.budgets
    names = list(dict.fromkeys(row.name for row in found.rows))
    cells = {(row.name, row.budget): row for row in found.rows}
    body: list[list[object]] = []
    marked = []
    best = {b: found.best(b) for b in budgets}
    for r, name in enumerate(names):
        line: list[object] = [name]
        for c, budget in enumerate(budgets):
            row = cells.get((name, budget))
            spent = "" if row is None or row.nfe == budget else f" ({row.nfe})"
            line.append("–" if row is None else blocks.number(row.error, 2) + spent)
            if row is best[budget]:
                marked.append((r, c + 1))
        body.append(line)
    out.append(
        blocks.table(
            ["sampler", *(f"{b}" for b in budgets)],
            body,
            "End-point error (rms, units of the data) by evaluations allowed; best of each budget in bold; in brackets the "
            "evaluations spent where a sampler cannot use the whole budget.",
            marked,
            right=True,
        )
    )
    doubt = "" if reference.error < 0.1 * min(row.error for row in found.rows) else (
        " That is not far below the smallest errors in the table, so these are known only roughly."
    )  # fmt: skip
    distances = _distances(context, found, chosen)
    if distances is not None:
        out.append(distances[0])
    out.append(
        blocks.note(
            f"Exact solution: whitened steps of order 3 on a Karras grid, {reference.nfe} evaluations; halving its steps",
            f"changes it by {blocks.number(reference.error)}.{doubt} Samplers that end in another basin than the exact",
            "solution make the root mean square larger than the typical error; report.json has the median as well.",
        )
    )
    record = {**found.to_dict(), "confirmed": fresh, "frechet": None if distances is None else distances[1]}
    return Section(out, record)
