"""How early the denoiser's output is as good as the finished sample."""

from __future__ import annotations

from typing import Any

from farfield.analysis.entrants import sigma_range
from farfield.analysis.trajectory_quality import QualityBench, trajectory_quality
from farfield.metrics import pca_features
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section
from farfield.sampling import Sampler, karras

#: Few components, because the section draws few samples: their number should be well above the components'.
COMPONENTS = 16
LEVELS = 18


@section("jump", "How early a sample is done", order=43)
def jump(context: ReportContext) -> Section:
    """Fréchet distance of states and of denoiser outputs along one run, by evaluations."""
    train, low_high = context.train, sigma_range(context.model)
    features = pca_features(train, min(COMPONENTS, train[0].numel()))
    bench = QualityBench.of(train, features, context.heldout, seed=context.seed)
    plan = Sampler("dpmpp_2m", karras(LEVELS, *low_high))
    found = trajectory_quality(context.model, bench, plan, 48 if context.quick else 96, context.seed)
    early = found.within()
    where = "never, on this run" if early is None else f"at σ = {early.sigma:.2g}, after {early.jump_nfe} evaluations"
    text = blocks.text(
        "Along a run the denoiser's output is at every level a clean sample, if a blurred one at first.",
        "A run may stop early and jump to it: ODE-Jump,",
        f"Jump(at=σ) as the finish of a sampler. Here the output comes within 10 % of the finished samples {where}",
        f"of {found.final_nfe}.",
    )
    picture = blocks.svg(found.plot(_axes()), "Fréchet distance of states and denoiser outputs against evaluations")
    held = "" if found.heldout is None else f", held-out data {blocks.number(found.heldout)}"
    caption = (
        f"Squared Fréchet distance to the training data of {found.samples} states (blue) and denoiser outputs (orange) of "
        f"DPM-Solver++(2M) on {LEVELS} Karras levels, on {features.components} principal "
        f"components ({100 * features.explained:.0f} % of the variance), seed {context.seed}. As many samples of a perfect "
        f"model would show about {blocks.number(found.floor)}{held}: with so few samples the distances compare with each "
        "other and with nothing else. (Chen et al., A geometric perspective on diffusion models, figures 26-28.)"
    )
    behind = found.behind
    note = "At no level is the output farther from the data than the state." if not behind else (
        f"The output is farther from the data than the state at {len(behind)} of {len(found.rows)} levels: σ = "
        + ", ".join(f"{row.sigma:.2g}" for row in behind) + "."
    )  # fmt: skip
    remark = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    return Section([*remark, text, blocks.figure(picture, caption), blocks.note(note)], found.to_dict())


def _axes() -> Any:
    """One panel with known margins: to find them takes longer than to draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.105, right=0.985, top=0.97, bottom=0.12)
    return axes
