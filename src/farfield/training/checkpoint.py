"""Checkpoints: all that a run needs to go on, written so that a kill at any moment loses only the last steps.

A checkpoint is ``step-00001000.safetensors`` (weights, their average, every tensor of the optimiser) and, written
after it, ``step-00001000.json`` with the step, the digest of the tensors and the run's record. One without its JSON
never counts. The newest ``keep`` stay; a damaged newest one gives way, with a warning, to the one before, and goes when the
run that went on from there writes its next.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from farfield.errors import ModelFileError
from farfield.networks.files import (
    read_json,
    read_tensors,
    refuse_pickle,
    remove_partial,
    sha256,
    write_json,
    write_tensors,
)
from farfield.version import __version__

FORMAT, SCHEMA = "farfield-checkpoint", 1
#: What Adam keeps for a parameter.
_ADAM = ("step", "exp_avg", "exp_avg_sq")
_NAME = re.compile(r"step-(\d{8,})\.(json|safetensors)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: the step it was made after, its tensors by name, and the record beside them."""

    step: int
    tensors: dict[str, Tensor]
    record: dict[str, Any]


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any], keep: int
) -> Path:
    """Write a checkpoint and leave it and the ``keep − 1`` before it; returns the path of its JSON.

    Any with a higher step go: a run that is at ``step`` has passed over them as damaged, and they must not count among
    those kept.

    Args:
        folder: where checkpoints are; made if need be.
        step: steps done.
        tensors: everything with a state, by name.
        record: anything JSON can hold.
        keep: how many to leave, ≥ 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"step-{step:08d}"
    digest = write_tensors(folder / f"{stem}.safetensors", tensors)
    card = {"format": FORMAT, "schema": SCHEMA, "farfield": __version__, "step": step, "sha256": digest, **record}
    write_json(folder / f"{stem}.json", card)
    steps = steps_in(folder)
    for old in set(steps) - set([s for s in steps if s <= step][-keep:]):
        # The JSON first: between the two deletions there is then no JSON that vouches for missing tensors.
        for suffix in ("json", "safetensors"):
            (folder / f"step-{old:08d}.{suffix}").unlink(missing_ok=True)
    return folder / f"{stem}.json"


def steps_in(folder: Path) -> list[int]:
    """The steps of the complete checkpoints of a folder, in ascending order."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(m[1]) for m in found if m and m[2] == "json")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint of a ``.json`` or ``.safetensors`` path.

    Raises:
        ModelFileError: missing, a pickle (never executed), truncated, foreign, or not the tensors of its JSON.
    """
    if path.suffix not in {".json", ".safetensors"}:
        refuse_pickle(path)
        raise ModelFileError(f"{path} is not a checkpoint; expected a .json or .safetensors file")
    card_path, tensor_path = path.with_suffix(".json"), path.with_suffix(".safetensors")
    card = read_json(card_path)
    if card.get("format") != FORMAT or card.get("schema") != SCHEMA:
        raise ModelFileError(
            f"{card_path} is not a checkpoint that this version reads "
            f"(format {card.get('format')!r}, schema {card.get('schema')!r})"
        )
    step = card.get("step")
    if not isinstance(step, int) or step < 0:
        raise ModelFileError(f"{card_path} has step = {step!r}; expected a number of at least 0")
    refuse_pickle(tensor_path)
    if sha256(tensor_path) != card.get("sha256"):
        raise ModelFileError(f"{tensor_path} is damaged: its SHA-256 is not the one in {card_path.name}")
    return Checkpoint(step, read_tensors(tensor_path), card)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None if the folder has none; clears what interrupted writes left.

    Raises:
        ModelFileError: if there are checkpoints and none can be read.
    """
    if not folder.is_dir():
        return None
    remove_partial(folder)
    steps = steps_in(folder)
    for match in (_NAME.fullmatch(path.name) for path in list(folder.iterdir())):
        if match and match[2] == "safetensors" and int(match[1]) not in steps:
            (folder / match[0]).unlink()
    error: ModelFileError | None = None
    for step in reversed(steps):
        try:
            return read_checkpoint(folder / f"step-{step:08d}.json")
        except ModelFileError as problem:
            error = problem
            warnings.warn(f"checkpoint skipped: {problem}", UserWarning, stacklevel=2)
    if error is not None:
        raise ModelFileError(f"no checkpoint in {folder} can be read; the last problem: {error}") from error
    return None


def pack(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """All state under flat names: ``<module>.…`` and ``optimizer.<parameter>.<quantity>``.

    Args:
        modules: everything with a state but the optimiser, e.g. the model and its average.
        optimizer: Adam.
        parameters: what it moves, by name.
    """
    tensors = {f"{kind}.{name}": t for kind, module in modules.items() for name, t in module.state_dict().items()}
    for name, parameter in parameters.items():
        for quantity, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{quantity}"] = torch.as_tensor(value)
    return tensors


@torch.no_grad()
def unpack(
    tensors: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Put packed state back, in place.

    Args:
        tensors: what :func:`pack` made.
        modules: with the weights they start a run with. A parameter that still has them has never been stepped; any
            other must have its optimiser state.
        optimizer, parameters: as for :func:`pack`.

    Raises:
        ModelFileError: if names or shapes are not those of the run, or optimiser state is missing.
    """
    targets = {f"{kind}.{name}": t for kind, module in modules.items() for name, t in module.state_dict().items()}
    rest = tensors.keys() - targets.keys()
    _same(targets, tensors)
    for key in sorted(rest):
        name, _, quantity = key.removeprefix("optimizer.").rpartition(".")
        value = tensors[key]
        fits = name in parameters and quantity in _ADAM
        fits = fits and value.shape == (() if quantity == "step" else parameters[name].shape)
        if not key.startswith("optimizer.") or not fits:
            raise ModelFileError(f"checkpoint tensor {key!r} {tuple(value.shape)} belongs to no parameter of the model")
    stored = {parameter.data_ptr(): key for key, parameter in targets.items()}
    for name, parameter in parameters.items():
        lacking = [q for q in _ADAM if f"optimizer.{name}.{q}" not in tensors]
        untouched = len(lacking) == len(_ADAM) and torch.equal(tensors[stored[parameter.data_ptr()]], parameter.cpu())
        if lacking and not untouched:
            raise ModelFileError(f"the checkpoint lacks tensor 'optimizer.{name}.{lacking[0]}'")
    for name, target in targets.items():
        target.copy_(tensors[name])
    for key in sorted(rest):
        name, _, quantity = key.removeprefix("optimizer.").rpartition(".")
        value = tensors[key]
        # Adam's kernels want the step count where the parameter is, in float32, and the rest laid out as the parameter.
        state = value.to(parameters[name].device, copy=True)
        if quantity != "step" and state.ndim == 4 and parameters[name].is_contiguous(memory_format=torch.channels_last):
            state = state.contiguous(memory_format=torch.channels_last)
        optimizer.state[parameters[name]][quantity] = state


def _same(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Every target is among the tensors, with its shape and type."""
    names: Iterable[str] = targets
    for name in names:
        if name not in tensors:
            raise ModelFileError(f"the checkpoint lacks tensor {name!r}")
        if tensors[name].shape != targets[name].shape or tensors[name].dtype != targets[name].dtype:
            raise ModelFileError(
                f"checkpoint tensor {name!r} is {tensors[name].dtype} {tuple(tensors[name].shape)}; "
                f"the model has {targets[name].dtype} {tuple(targets[name].shape)}"
            )
