"""A model on the disk: a folder with ``model.safetensors`` (the weights) and ``card.json`` (what they are).

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
from farfield.networks.files import read_json, read_tensors, sha256, write_json, write_tensors
from farfield.networks.mlp import MLPConfig
from farfield.networks.preconditioning import Preconditioned
from farfield.networks.registry import NetworkConfig, build_network
from farfield.networks.structure import plain, structure
from farfield.networks.unet import SongUNetConfig
from farfield.version import __version__

FORMAT, SCHEMA = "farfield-model", 1
WEIGHTS, CARD = "model.safetensors", "card.json"
_MAX_DIM = 1 << 26
_MAX_PARAMETERS = 1 << 33


@dataclass(frozen=True)
class Preconditioning:
    """The numbers of EDM's preconditioning, see :class:`Preconditioned`.

    Args:
        sigma_data: standard deviation of the data; None takes it from the training images.
        sigma_min, sigma_max: the noise levels for which the model is meant.
    """

    sigma_data: float | None = None
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if self.sigma_data is not None and not self.sigma_data > 0:
            raise ArgumentError(f"preconditioning.sigma_data = {self.sigma_data}; expected a positive number")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ArgumentError(
                f"preconditioning.sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}; expected 0 < min < max"
            )


@dataclass(frozen=True)
class ModelSpec:
    """The part of a card from which the model is built."""

    network: SongUNetConfig | MLPConfig
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
    p = spec.preconditioning
    if p.sigma_data is None:
        raise ArgumentError("preconditioning.sigma_data is missing; expected the standard deviation of the data")
    network: NetworkConfig = spec.network
    model = build_network(network, spec.event_shape)
    return Preconditioned(model, spec.event_shape, p.sigma_data, p.sigma_min, p.sigma_max, network.label_dim)


def save_model(folder: Path, model: Preconditioned, spec: ModelSpec, training: Mapping[str, Any]) -> dict[str, Any]:
    """Write weights and card; the card last, since it vouches for the weights. Returns the card.

    Args:
        folder: an existing folder.
        model: the denoiser whose state is kept.
        spec: what it was built from.
        training: anything JSON can hold about how it was trained (configuration, seed, data, metrics).
    """
    digest = write_tensors(folder / WEIGHTS, model.state_dict())
    card = {
        "format": FORMAT,
        "schema": SCHEMA,
        "farfield": __version__,
        **plain(spec),
        "weights": {"file": WEIGHTS, "sha256": digest, "parameters": sum(p.numel() for p in model.parameters())},
        "training": dict(training),
    }
    write_json(folder / CARD, card)
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
    weights = card.get("weights")
    if not isinstance(weights, dict) or not isinstance(weights.get("sha256"), str):
        raise ModelFileError(f"{path} does not name the digest of its weights (weights.sha256)")
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
            expected = build_model(spec).state_dict()
    except ArgumentError as error:
        raise ModelFileError(f"{card_path}: {error}") from error
    if sum(t.numel() for t in expected.values()) > _MAX_PARAMETERS:
        raise ModelFileError(f"{card_path} describes a network of more than {_MAX_PARAMETERS} parameters")
    state = read_tensors(weights)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        kind, name, count = ("lacks", missing[0], len(missing)) if missing else ("has foreign", extra[0], len(extra))
        raise ModelFileError(f"{weights} {kind} tensor {name!r} ({count} in all), which its card does not fit")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ModelFileError(
                f"{weights}: tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}; "
                f"the card's network has {expected[name].dtype} {tuple(expected[name].shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ModelFileError(f"{weights}: tensor {name!r} holds NaN or infinite values")
    if sha256(weights) != card["weights"]["sha256"]:
        raise ModelFileError(f"{weights} is not the file that {card_path} describes (SHA-256 differs)")
    with torch.random.fork_rng(devices=[]):  # loading leaves the caller's random numbers alone
        model = build_model(spec)
    model.load_state_dict(state)
    model.card = card
    return model.eval().requires_grad_(False)
