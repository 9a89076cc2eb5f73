"""What several commands share: printing, and the data that belong to a model."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

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


def data_of(model: Denoiser, given: str | None) -> DataSet | None:
    """The training images of ``given``, or of the data set that the model's card names where that is one of ours.

    Args:
        model: a loaded model, whose card may name its data.
        given: what the user passed as ``--data``, or None.

    Returns:
        The data set, its training part, or None where nothing is known.
    """
    from farfield.data import SOURCES

    if given is not None:
        return load_for(model, given).train
    source = card_source(model)
    known = source is not None and (source in SOURCES or source.startswith("toy:"))
    return load_for(model, str(source)).train if known else None


def load_for(model: Denoiser, source: str) -> DataSet:
    """A data source at the model's image size."""
    from farfield.data import load

    images = len(model.event_shape) == 3 and not source.startswith("toy:")
    return load(source, size=model.event_shape[-1] if images else None)


def card_source(model: Denoiser) -> str | None:
    """The data source that a model's card names, or None."""
    card: dict[str, Any] = getattr(model, "card", {})
    training = card.get("training", card)
    source = training.get("config", {}).get("data", {}).get("source")
    return source if isinstance(source, str) else None
