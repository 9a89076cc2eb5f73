"""What several commands share: printing, and the data that belong to a model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from farfield.analysis.tables import Table
    from farfield.data import DataSet
    from farfield.denoiser import Denoiser


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """A remark for the person at the terminal, on standard error."""
    print(f"farfield: {text}", file=sys.stderr, flush=True)


def console() -> Console:
    """Where tables go: standard output, with colours on a terminal."""
    from rich.console import Console

    return Console(soft_wrap=False)


def cell(value: object) -> str:
    """A cell of a table: four digits of a number, nothing for None."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def print_table(table: Table) -> None:
    """A table on standard output, never with cut numbers: wider than the terminal if need be."""
    from rich.table import Table as Rich

    # The width of the title would otherwise be the table's own, and a long one break into many lines.
    shown = Rich(*table.columns, box=None, header_style="bold", pad_edge=False)
    for column in shown.columns:
        column.no_wrap = True
    for row in table.rows:
        shown.add_row(*map(cell, row))
    out = console()
    out.print(f"[bold]{table.title}[/bold]" if table.title else "", soft_wrap=True, highlight=False)
    out.width = max(out.width, out.measure(shown, options=out.options.update(max_width=1000)).maximum)
    out.print(shown)
    out.print()


def data_of(model: Denoiser, given: str | None) -> DataSet | None:
    """The training images of ``given``, or of the data set that the model's card names where that is one of ours.

    Args:
        model: a loaded model, whose card may name its data.
        given: what the user passed as ``--data``, or None.

    Returns:
        What the model was trained on: the training part, or all where its card says so; None where nothing is known.
    """
    from farfield.data import SOURCES

    source = card_source(model) if given is None else given
    if source is None or not (given is not None or source in SOURCES or source.startswith("toy:")):
        return None
    return trained_on(model, load_for(model, source))[0]


def trained_on(model: Denoiser, data: DataSet) -> tuple[DataSet, DataSet | None]:
    """The part of the data that a model was trained on, and the rest: None where its card says that it saw all."""
    trained = _trained_digest(model)
    if trained is not None and trained == data.digest:
        return data, None
    return data.train, data.validation


def load_for(model: Denoiser, source: str) -> DataSet:
    """A data source at the model's image size, split as the model's card says it was for the training.

    The card's number of held-out images counts where it leaves some to train on; 0 leaves the source's own rule, and the
    digest in the card then says that the model saw all of it.
    """
    from farfield.data import load

    images = len(model.event_shape) == 3 and not source.startswith("toy:")
    # The shape of the model's samples is what the card's `size` made of the source, also where that is null.
    size = (model.event_shape[-2], model.event_shape[-1]) if images else None
    holdout = _card_data(model).get("holdout")
    data = load(source, size=size)
    if isinstance(holdout, int) and not isinstance(holdout, bool) and 0 < holdout < len(data):
        return replace(data, rule=replace(data.rule, holdout=holdout))
    return data


def card_source(model: Denoiser) -> str | None:
    """The data source that a model's card names, or None."""
    source = _card_data(model).get("source")
    return source if isinstance(source, str) else None


def _group(value: object, *names: str) -> dict[str, Any]:
    """The mapping at the end of a path into nested ones; empty where a card holds something else on the way."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _training(model: Denoiser) -> dict[str, Any]:
    card = _group(getattr(model, "card", None))
    return _group(card, "training") if "training" in card else card


def _card_data(model: Denoiser) -> dict[str, Any]:
    """The group ``data`` of the training configuration in a model's card."""
    return _group(_training(model), "config", "data")


def _trained_digest(model: Denoiser) -> object:
    return _group(_training(model), "data").get("digest")
