"""What the model is and how it was trained, from its card."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import yaml

from farfield.data.dataset import describe
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.output import plain
from farfield.report.registry import Section, section


@section("card", "The model and its training", order=20)
def card(context: ReportContext) -> Section:
    """Configuration, steps, metrics and data of the training run; whether the data given here are the same."""
    record = context.card
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
    training = context.training
    for key, label in (("steps", "training steps"), ("images", "images seen"), ("seed", "training seed")):
        if isinstance(training.get(key), int):
            pairs.append((label, training[key]))
    metrics = training.get("metrics")
    if isinstance(metrics, Mapping):
        pairs += [(key.replace("_", " "), v) for key, v in metrics.items() if isinstance(v, int | float | str)]
    known = context.trained_digest
    match = None if known is None else known == context.train_set.digest
    out = [blocks.facts(pairs)]
    if match is False:
        out.append(
            blocks.warning(
                "The model's card names other data than those given here (their digests differ), so 'training' and",
                "'held out' below are parts of the given data and not what the model saw.",
            )
        )
    elif context.trained_on_all:
        out.append(
            blocks.text(
                "The model was trained on all of the data given here (same digest), so none are held out, and below there is",
                "nothing that it has not seen to compare its samples with.",
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
    return Section(
        out,
        {
            "card": record,
            "data": data,
            "data_match": match,
            "trained_on_all": context.trained_on_all,
            "parameters": parameters,
        },
    )
