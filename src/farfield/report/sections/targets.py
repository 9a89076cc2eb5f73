"""How noisy the training targets of the data are, and what training settings follow from the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from farfield.analysis import Advice, TargetVariance, advise, target_variance
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section

_POINTS, _REFERENCES = 2048, (1, 16, 64, 256, 1024)


@section("targets", "What the training targets are worth", order=70)
def targets(context: ReportContext) -> Section:
    """Target variance by level with its three phases, and advice for the next training run."""
    data = context.train
    levels = 64 if context.quick else 128
    sizes = [*_REFERENCES, len(data)] if len(data) <= _POINTS else list(_REFERENCES)
    found = target_variance(data, references=sizes, points=_POINTS, probes=levels, seed=context.seed)
    advice = advise(data, target=found, seed=context.seed)
    caption = (
        "Left: variance of the ordinary training target times σ², the same without the factor, the divergence between data and "
        "posterior, each divided by its maximum, and the posterior's entropy over ln N. Shaded: the near phase (one training "
        "sample explains the noisy one, entropy below 0.05) and the far phase (all explain it equally well, above 0.95). "
        "Right: the share of the variance that is left when the target is averaged over n reference samples (stable target "
        f"field, Xu 2024, chapter 3); lower is better. {found.probes} noised samples at each of {len(found.sigmas)} levels, "
        + (
            f"all {found.points:,} training samples."
            if found.exact
            else f"{found.points:,} of {found.total:,} training samples."
        )
    )
    picture = blocks.svg(
        found.plot(), "Variance of the training target against noise level, and what references leave of it"
    )
    trained = _trained(context)
    rows = []
    for setting in advice.settings:
        stable = setting.name != "references"
        shown = blocks.number(setting.value) if stable else (f"{advice.references:,}" if advice.stable else "none")
        edm = blocks.number(setting.edm) if stable else "none"
        rows.append([setting.name, shown, edm, blocks.number(trained.get(setting.name)), setting.reason])
    table = blocks.table(
        ["setting", "advice", "EDM's default", "this model", "why"], rows,
        "Settings that the data suggest for training, in the units of the data (P_mean and P_std of ln σ).",
    )  # fmt: skip
    note = blocks.note(
        "The levels come from the covariance and the rounding of the data; the rules are derived in "
        "farfield.analysis.noise_range, and `farfield advise` prints them for any data. They say where to begin, not what is "
        "best."
    )
    parts = [blocks.text(*_phases(found, advice)), blocks.figure(picture, caption), table, note]
    return Section(parts, advice.to_dict())


def _phases(found: TargetVariance, advice: Advice) -> list[str]:
    """The phases in words."""
    near, far = found.near_until, found.far_from
    until = "nowhere" if near is None else f"up to σ = {near:.2g}"
    onward = "at no level measured" if far is None else f"from σ = {far:.2g}"
    one, two, three = (f"{100 * share:.2g} %" for share in advice.phases)
    return [
        f"A noisy sample has one training sample behind it {until} (near phase), all of them alike {onward} (far phase).",
        f"Between, training targets disagree most, at σ = {found.peak:.2g}.",
        f"Of the levels that the advice would train on, {one} are in the near, {two} in the intermediate and {three} in the",
        "far phase.",
        advice.difference(),
    ]


def _trained(context: ReportContext) -> dict[str, float]:
    """The same settings of the model at hand, as far as it tells them."""
    config: Any = context.training.get("config")
    objective = config.get("objective") if isinstance(config, Mapping) else None
    found: dict[str, Any] = dict(objective) if isinstance(objective, Mapping) else {}
    for name in ("sigma_min", "sigma_max", "sigma_data"):
        found[name] = getattr(context.model, name, None)
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
