"""What the model is and how it was trained, from its card."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from html import escape
from typing import Any

import yaml

from farfield.data.dataset import describe
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.output import plain
from farfield.report.registry import Section, section


def card_of(context: ReportContext) -> dict[str, Any]:
    """The model's card, empty for models that have none (exact laws)."""
    found = getattr(context.model, "card", None)
    return dict(found) if isinstance(found, Mapping) else {}


def data_match(card: Mapping[str, Any], digests: Collection[str]) -> bool | None:
    """Whether the model was trained on data with one of these digests; None where the card does not say."""
    training = card.get("training")
    trained_on = training.get("data") if isinstance(training, Mapping) else None
    known = trained_on.get("digest") if isinstance(trained_on, Mapping) else None
    return None if not isinstance(known, str) else known in digests


@section("card", "The model and its training", order=20)
def card(context: ReportContext) -> Section:
    """Configuration, steps, metrics and data of the training run; whether the data given here are the same."""
    record = card_of(context)
    data = describe(context.data)
    pairs: list[tuple[str, Any]] = [
        ("model", context.name),
        ("kind", type(context.model).__name__),
        ("sample shape", " × ".join(map(str, context.model.event_shape))),
        ("noise range σ", f"{blocks.number(context.model.sigma_min)} to {blocks.number(context.model.sigma_max)}"),
    ]
    parameters = sum(p.numel() for p in context.model.parameters())
    if parameters:
        pairs.append(("parameters", parameters))
    training = record.get("training")
    training = dict(training) if isinstance(training, Mapping) else {}
    for key, label in (("steps", "training steps"), ("images", "images seen"), ("seed", "training seed")):
        if isinstance(training.get(key), int):
            pairs.append((label, training[key]))
    metrics = training.get("metrics")
    if isinstance(metrics, Mapping):
        pairs += [(key.replace("_", " "), v) for key, v in metrics.items() if isinstance(v, int | float | str)]
    match = data_match(record, (context.data.train.digest, context.data.digest))
    out = [blocks.facts(pairs)]
    if match is False:
        out.append(
            blocks.warning(
                "The model's card names other data than those given here (their digests differ), so 'training' and",
                "'held out' below are parts of the given data and not what the model saw.",
            )
        )
    elif match:
        out.append(
            blocks.text("The training data given here are the very data the model was trained on (same digest).")
        )
    elif record:
        out.append(blocks.note("The card does not say which data the model was trained on."))
    else:
        out.append(blocks.note("This model has no training card: it was not trained by farfield, or is an exact law."))
    out.append(blocks.heading("The data"))
    out.append(
        blocks.facts(
            [
                ("data", data["name"]),
                ("samples", data["count"]),
                ("training / held out", f"{len(context.train):,} / {len(context.heldout):,}"),
                ("value range", f"{data['min']:.3g} to {data['max']:.3g}"),
                ("standard deviation", float(data["std"])),
                ("digest", data["digest"][:16] + "…"),
            ]
        )
    )
    settings = {k: v for k, v in record.items() if k in ("network", "preconditioning", "weights")}
    if isinstance(training.get("config"), Mapping):
        settings["training"] = training["config"]
    if settings:
        listing = yaml.safe_dump(plain(settings), sort_keys=False, allow_unicode=True)
        out.append(blocks.details("Full configuration", f"<pre>{escape(listing)}</pre>"))
    return Section(out, {"card": record, "data": data, "data_match": match, "parameters": parameters})
