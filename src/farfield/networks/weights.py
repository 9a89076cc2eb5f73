"""The weights of a model on the disk: one safetensors file or several, in float32 or, at half the size, bfloat16.

bfloat16 keeps eight bits of each weight; buffers (filters, frequencies, tables) stay as they are, since the network turns
their last bits into angles. Whatever is stored, weights are read back as the network's own type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from farfield.errors import ArgumentError, ModelFileError
from farfield.networks.files import read_tensors, sha256, write_tensors

WEIGHTS = "model.safetensors"
StoredType = Literal["fp32", "bf16"]
_PART = re.compile(r"model-\d{1,4}\.safetensors")
_MAX_PARTS = 1000
#: What a tensor takes in the header of a file besides its name, and the file besides its tensors; rather too much.
_ENTRY, _HEADER = 128, 64


def _split(tensors: Mapping[str, Tensor], max_bytes: int | None) -> list[dict[str, Tensor]]:
    """The tensors in their order, in as few files of at most ``max_bytes`` each as that allows."""
    parts: list[dict[str, Tensor]] = [{}]
    size = _HEADER
    for name, tensor in tensors.items():
        need = tensor.numel() * tensor.element_size() + len(name.encode()) + _ENTRY
        if max_bytes is not None and need + _HEADER > max_bytes:
            raise ArgumentError(f"max_bytes = {max_bytes}; expected at least {need + _HEADER}, for tensor {name!r}")
        if max_bytes is not None and size + need > max_bytes:
            parts.append({})
            size = _HEADER
        parts[-1][name] = tensor
        size += need
    if len(parts) > _MAX_PARTS:
        raise ArgumentError(f"max_bytes = {max_bytes} makes {len(parts)} files; expected at most {_MAX_PARTS}")
    return parts


def write_weights(
    folder: Path, model: nn.Module, dtype: StoredType = "fp32", max_bytes: int | None = None
) -> dict[str, Any]:
    """Write a model's state; returns what the card says of it.

    Args:
        folder: an existing folder.
        model: the module.
        dtype: of the parameters on the disk.
        max_bytes: size that no file passes; None makes one file.

    Raises:
        ArgumentError: an unknown ``dtype``, or a tensor that is larger than ``max_bytes``.
    """
    if dtype not in ("fp32", "bf16"):
        raise ArgumentError(f"dtype = {dtype!r}; expected 'fp32' or 'bf16'")
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = {
        name: t.to(torch.bfloat16) if dtype == "bf16" and name in parameters else t
        for name, t in model.state_dict().items()
    }
    parts = _split(state, max_bytes)
    names = [WEIGHTS, *(f"model-{k}.safetensors" for k in range(2, len(parts) + 1))]
    files = [{"file": n, "sha256": write_tensors(folder / n, part)} for n, part in zip(names, parts, strict=True)]
    entry = {**files[0], "parameters": sum(p.numel() for p in model.parameters()), "dtype": dtype}
    return entry | ({"more": files[1:]} if len(files) > 1 else {})


def remove_parts(folder: Path, entry: Mapping[str, Any]) -> None:
    """Delete the parts in ``folder`` of an earlier model that was split over more files than ``entry`` names."""
    kept = {part["file"] for part in entry.get("more", [])}
    for path in folder.glob("model-*.safetensors"):
        if _PART.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)


def check_entry(path: Path, entry: object) -> None:
    """Raise ``ModelFileError`` unless ``entry`` of the card at ``path`` names files beside it, their digests and type."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        raise ModelFileError(f"{path} does not name the digest of its weights (weights.sha256)")
    if entry.get("dtype", "fp32") not in ("fp32", "bf16"):
        raise ModelFileError(f"{path}: weights.dtype = {entry['dtype']!r}; expected 'fp32' or 'bf16'")
    more = entry.get("more", [])
    if not isinstance(more, list) or len(more) >= _MAX_PARTS:
        raise ModelFileError(f"{path}: weights.more is not a list of at most {_MAX_PARTS - 1} files")
    for k, part in enumerate(more, 2):
        if not isinstance(part, dict) or part.get("file") != f"model-{k}.safetensors":
            raise ModelFileError(f"{path}: weights.more[{k - 2}] does not name the file 'model-{k}.safetensors'")
        if not isinstance(part.get("sha256"), str):
            raise ModelFileError(f"{path} does not name the digest of {part['file']} (weights.more[{k - 2}].sha256)")


def _check_tensor(path: Path, name: str, tensor: Tensor, expected: nn.Parameter | Tensor, half: bool) -> None:
    """Shape, type and finiteness of one tensor; ``half`` if parameters are bfloat16."""
    dtype = torch.bfloat16 if half and isinstance(expected, nn.Parameter) else expected.dtype
    if tensor.shape != expected.shape or tensor.dtype != dtype:
        raise ModelFileError(
            f"{path}: tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}; "
            f"the card's network has {dtype} {tuple(expected.shape)}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ModelFileError(f"{path}: tensor {name!r} holds NaN or infinite values")


def read_weights(first: Path, card_path: Path, entry: Mapping[str, Any], layout: nn.Module) -> dict[str, Tensor]:
    """The state of a model from its files, which nothing but ``layout`` and the digests in ``entry`` vouch for.

    Args:
        first: the first file of weights; further ones lie beside it.
        card_path: the card, for messages.
        entry: what it says of the weights, as :func:`check_entry` let pass.
        layout: the module that the state must fit, on the meta device or any other.

    Raises:
        ModelFileError: missing, foreign, damaged or unfitting files.
    """
    expected = layout.state_dict(keep_vars=True)
    half = entry.get("dtype", "fp32") == "bf16"
    files = [(first, entry["sha256"])]
    files += [(first.with_name(part["file"]), part["sha256"]) for part in entry.get("more", [])]
    state: dict[str, Tensor] = {}
    origin: dict[str, Path] = {}
    for path, _ in files:
        tensors = read_tensors(path)
        twice = sorted(tensors.keys() & state.keys())
        if twice:
            raise ModelFileError(f"{path} repeats tensor {twice[0]!r} of {origin[twice[0]].name}")
        state |= tensors
        origin |= dict.fromkeys(tensors, path)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        kind, name, count = ("lacks", missing[0], len(missing)) if missing else ("has foreign", extra[0], len(extra))
        raise ModelFileError(
            f"{origin.get(name, first)} {kind} tensor {name!r} ({count} in all), which its card does not fit"
        )
    for name, tensor in state.items():
        _check_tensor(origin[name], name, tensor, expected[name], half)
    for path, digest in files:
        if sha256(path) != digest:
            raise ModelFileError(f"{path} is not the file that {card_path} describes (SHA-256 differs)")
    return {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
