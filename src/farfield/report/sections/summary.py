"""The report in a sentence and four numbers; runs last, stands first."""

from __future__ import annotations

from html import escape
from shlex import quote
from typing import Any

from farfield.analysis import ScoreFidelity, SolverTable
from farfield.analysis.entrants import baseline, in_words
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.output import SAMPLER
from farfield.report.registry import Section, section


@section("summary", "In short", order=0, needs=("*",))
def summary(context: ReportContext) -> Section:
    """The verdict, the recommended sampler, and where to read on."""
    table: SolverTable | None = context.peek("solvers")
    fidelity: ScoreFidelity | None = context.peek("fidelity")
    sampler = context.sampler
    words = in_words(sampler)
    tiles: list[tuple[str, str, str]] = []
    data: dict[str, Any] = {"sampler": words, "nfe": sampler.nfe}
    if table is not None:
        chosen, base = table.choose(), table.baseline
        saving = base.nfe / chosen.nfe
        fresh = context.peek("confirmed") or {"error": chosen.error, "baseline_error": base.error}
        data |= {"confirmed": fresh}
        factor = fresh["error"] / fresh["baseline_error"] if fresh["baseline_error"] > 0 else 1.0
        if factor <= 1.1:
            how = f"as exactly as Heun's method does in {base.nfe}: {saving:.1f} times fewer network calls"
        else:
            how = (
                f"with an error of {blocks.number(100 * fresh['error'] / table.scale, 2)} % of the samples' spread; "
                f"Heun's method takes {base.nfe} for {blocks.number(100 * fresh['baseline_error'] / table.scale, 2)} %"
            )
        headline = f"{words} solves this model's sampling equation in {chosen.nfe} evaluations {how}."
        headline = headline[0].upper() + headline[1:]
        tiles.append((f"{chosen.nfe}", "evaluations a sample", f"instead of {base.nfe} for Heun on 18 levels"))
        tiles.append(
            (
                f"{saving:.1f} ×",
                "fewer network calls",
                f"rms error {blocks.number(fresh['error'])} against {blocks.number(fresh['baseline_error'])}",
            )
        )
        data |= {"baseline_nfe": base.nfe, "saving": saving, "error": chosen.error, "baseline_error": base.error}
    else:
        headline = f"The solvers could not be compared on this model; sampler.json holds the usual one, {words}."
        tiles.append((f"{baseline(context.model).nfe}", "evaluations a sample", "the usual sampler; see below"))
    if fidelity is not None:
        until = fidelity.gaussian_until
        shown = "–" if until is None else f"σ = {until:.2g}"
        tiles.append((shown, "Gaussian until", "above this noise level mean and covariance explain 99 % of the score"))
        data["gaussian_until"] = until
    quality = context.peek("quality")
    if quality is not None:
        ratio = quality["frechet"]["ratio_to_heldout"]
        if ratio is not None:
            tiles.append(
                (
                    blocks.number(ratio),
                    "Fréchet ratio",
                    "distance to the training data ÷ that of held-out data; 1 is perfect",
                )
            )
            times = blocks.number(ratio, 2)
            headline += f" Its samples' Fréchet distance to the training data is {times} times that of held-out data."
        data["frechet_ratio"] = ratio
    model = context.name if context.source is None else context.source
    file = SAMPLER if context.out is None else str(context.out / SAMPLER)
    command = f"farfield sample {quote(model)} --n 64 --sampler {quote(file)} --out samples"
    use = f"<pre>{escape(command)}</pre>"
    how = "To sample this way:" if not context.conditional else "To sample this way (with --label K for class K):"
    return Section([blocks.tiles(tiles), blocks.text(how), use], data, headline)
