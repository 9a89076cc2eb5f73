"""A model on the disk: a folder with ``model.safetensors`` (the weights) and ``card.json`` (what they are).

Large weights may be split over further files, and kept as bfloat16 (:mod:`farfield.networks.weights`).

The card says which network to build, its preconditioning and noise range, the shape of a sample, the digest of the
weights and how they were trained. Reading trusts neither file: the card is checked against a schema and bounds, the
network is first laid out without memory, and the weights must match it in name, shape, type and digest, and be
finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from farfield.errors import ArgumentError, ModelFileError
from farfield.networks.files import read_json, write_json
from farfield.networks.precondition_config import PRECONDITIONINGS, Preconditioning
from farfield.networks.preconditioning import Preconditioned
from farfield.networks.registry import NetworkConfig, build_network
from farfield.networks.structure import plain, structure
from farfield.networks.weights import WEIGHTS, StoredType, check_entry, read_weights, remove_parts, write_weights
from farfield.version import __version__

__all__ = [
    "CARD",
    "WEIGHTS",
    "ModelSpec",
    "Preconditioning",
    "build_model",
    "load_model",
    "read_card",
    "save_model",
]

FORMAT, SCHEMA = "farfield-model", 1
CARD = "card.json"
_MAX_DIM = 1 << 26
_MAX_PARAMETERS = 1 << 33


@dataclass(frozen=True)
class ModelSpec:
    """The part of a card from which the model is built."""

    network: NetworkConfig
    event_shape: tuple[int, ...]
    preconditioning: Preconditioning = field(default_factory=Preconditioning)

    def __post_init__(self) -> None:
        if not 1 <= len(self.event_shape) <= 5 or min(self.event_shape) < 1 or math.prod(self.event_shape) > _MAX_DIM:
            raise ArgumentError(f"event_shape = {list(self.event_shape)}; expected 1 to 5 positive sizes")


def build_model(spec: ModelSpec) -> Preconditioned:
    """The denoiser of a specification, with fresh weights from torch's global generator.

    Raises:
        ArgumentError: if the network cannot take the event shape, or ``sigma_data`` is not a number yet.
    """
    p, channels = spec.preconditioning, spec.event_shape[0]
    factor = PRECONDITIONINGS[p.kind].channels_factor
    model = build_network(spec.network, spec.event_shape, factor * channels)
    return p.build(model, spec.event_shape, spec.network.label_dim)


def save_model(
    folder: Path,
    model: Preconditioned,
    spec: ModelSpec,
    training: Mapping[str, Any],
    dtype: StoredType = "fp32",
    max_bytes: int | None = None,
) -> dict[str, Any]:
    """Write weights and card; the card last, since it vouches for the weights. Returns the card.

    Args:
        folder: an existing folder.
        model: the denoiser whose state is kept.
        spec: what it was built from.
        training: anything JSON can hold about how it was trained (configuration, seed, data, metrics).
        dtype: of the weights on the disk, ``fp32`` or ``bf16``; they are read back as float32.
        max_bytes: size that no file of weights passes: more are made, ``model.safetensors``, ``model-2.safetensors``
            and so on; None makes one.

    Raises:
        ArgumentError: an unknown ``dtype``, or a tensor that is larger than ``max_bytes``.
    """
    entry = write_weights(folder, model, dtype, max_bytes)
    card = {
        "format": FORMAT,
        "schema": SCHEMA,
        "farfield": __version__,
        **plain(spec),
        # without the arguments of other kinds of preconditioning
        "preconditioning": {k: v for k, v in plain(spec.preconditioning).items() if v is not None},
        "weights": entry,
        "training": dict(training),
    }
    write_json(folder / CARD, card)
    remove_parts(folder, entry)
    return card


def read_card(path: Path) -> tuple[dict[str, Any], ModelSpec]:
    """A card and the specification in it.

    Raises:
        ModelFileError: unreadable, of another format or a newer schema, or with values out of bounds.
    """
    card = read_json(path)
    if card.get("format") != FORMAT:
        raise ModelFileError(f"{path} is not a farfield model card (format = {card.get('format')!r})")
    if card.get("schema") != SCHEMA:
        raise ModelFileError(f"{path} has schema {card.get('schema')!r}; this version of farfield reads {SCHEMA}")
    check_entry(path, card.get("weights"))
    keys = ("network", "event_shape", "preconditioning")
    try:
        return card, structure(ModelSpec, {key: card[key] for key in keys if key in card})
    except ArgumentError as error:
        raise ModelFileError(f"{path}: {error}") from error


def load_model(weights: Path, card_path: Path) -> Preconditioned:
    """The denoiser of a card with its weights, in eval mode on the CPU, ``.card`` filled in.

    Raises:
        ModelFileError: anything about the two files that is not as it should be.
    """
    card, spec = read_card(card_path)
    try:
        with torch.device("meta"):  # no memory yet: a card may ask for a network that its weights do not fill
            layout = build_model(spec)
    except ArgumentError as error:
        raise ModelFileError(f"{card_path}: {error}") from error
    if sum(t.numel() for t in layout.state_dict().values()) > _MAX_PARAMETERS:
        raise ModelFileError(f"{card_path} describes a network of more than {_MAX_PARAMETERS} parameters")
    state = read_weights(weights, card_path, card["weights"], layout)
    with torch.random.fork_rng(devices=[]):  # loading leaves the caller's random numbers alone
        model = build_model(spec)
    model.load_state_dict(state)
    model.card = card
    return model.eval().requires_grad_(False)
