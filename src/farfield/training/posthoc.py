"""Averages of the weights whose width is chosen after training (Karras et al. 2024, section 3 and appendix C).

A run follows a few power-function averages (:mod:`farfield.training.profiles`) and stores snapshots of them; any other
width at any stored step is the combination of snapshots whose profile is nearest to it.

Snapshots are float16 or float32. Combinations subtract nearly equal weights, which magnifies rounding by up to some thirty
for narrow widths: bfloat16, eight times as coarse as float16, then loses half of what averaging changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from farfield.errors import ArgumentError, ModelFileError
from farfield.networks.files import read_json, refuse_pickle, remove_partial, sha256, write_json, write_tensors
from farfield.networks.model_file import ModelSpec, build_model
from farfield.networks.preconditioning import Preconditioned
from farfield.networks.structure import plain, structure
from farfield.training.checkpoint import steps_in
from farfield.training.profiles import gamma_of, power_share, solve_weights
from farfield.version import __version__

FORMAT, SCHEMA = "farfield-posthoc", 1
#: The folder of the snapshots in a run's folder.
POSTHOC = "posthoc"
_PREFIX, _BUFFER = "posthoc", "buffer"
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class PostHocConfig:
    """Averages kept for :func:`reconstruct`.

    Args:
        sigma_rel: relative widths to track, each in (0, 0.2886]; two are enough.
        every: steps between snapshots; 0 keeps none. Some 30 in a run give widths from 0.05 to 0.2 to the
            precision of the snapshots.
        dtype: precision of the snapshots; ``fp16`` is good to about 2·10⁻⁴ of the weights, ``fp32`` to rounding.

    Raises:
        ArgumentError: for a value out of its range.
    """

    sigma_rel: tuple[float, ...] = (0.05, 0.10)
    every: int = 0
    dtype: Literal["fp16", "fp32"] = "fp16"

    def __post_init__(self) -> None:
        if not 1 <= len(self.sigma_rel) <= 16 or len(set(self.sigma_rel)) < len(self.sigma_rel):
            raise ArgumentError(f"ema.posthoc.sigma_rel = {list(self.sigma_rel)}; expected 1 to 16 different widths")
        for width in self.sigma_rel:
            gamma_of(width, "ema.posthoc.sigma_rel")
        if self.every < 0:
            raise ArgumentError(f"ema.posthoc.every = {self.every}; expected a number of at least 0")
        if self.dtype not in _DTYPES:
            raise ArgumentError(f"ema.posthoc.dtype = {self.dtype!r}; expected fp16 or fp32")


# averages in training


class PowerEMA:
    """Power-function averages of a model's parameters, one for each width.

    Args:
        model: the model that is trained.
        sigma_rels: relative widths, see :func:`gamma_of`.

    Raises:
        ArgumentError: for a width out of range.
    """

    def __init__(self, model: nn.Module, sigma_rels: Sequence[float] = (0.05, 0.10)) -> None:
        self.sigma_rels = tuple(sigma_rels)
        self.gammas = tuple(gamma_of(s) for s in self.sigma_rels)
        self._model = model
        self._names = [name for name, _ in model.named_parameters()]
        self._parameters: list[Tensor] = list(model.parameters())
        self._averages = [[p.detach().clone() for p in self._parameters] for _ in self.sigma_rels]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number ``step``, counted from 1."""
        for gamma, average in zip(self.gammas, self._averages, strict=True):
            torch._foreach_lerp_(average, self._parameters, power_share(step, gamma))

    def tensors(self) -> dict[str, Tensor]:
        """The averages under the names ``posthoc.<number of the width>.<parameter>``; not copies."""
        return {
            f"{_PREFIX}.{k}.{name}": tensor
            for k, average in enumerate(self._averages)
            for name, tensor in zip(self._names, average, strict=True)
        }

    def buffers(self) -> dict[str, Tensor]:
        """What the model's state has beside its parameters, as it is now."""
        return {name: t for name, t in self._model.state_dict().items() if name not in set(self._names)}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave; other names are left alone.

        Raises:
            ModelFileError: if a tensor is missing or has another shape.
        """
        own = self.tensors()
        for name, target in own.items():
            if name not in tensors:
                raise ModelFileError(f"the checkpoint lacks tensor {name!r}")
            if tensors[name].shape != target.shape:
                raise ModelFileError(
                    f"checkpoint tensor {name!r} is {tuple(tensors[name].shape)}; the model has {tuple(target.shape)}"
                )
        for name, target in own.items():
            target.copy_(tensors[name])


# snapshots


@dataclass(frozen=True)
class Snapshot:
    """The record of a stored snapshot.

    Args:
        path: of its tensors.
        step, images: done when it was made.
        sigma_rel: the widths it holds.
        sha256: of its file.
        spec: of the model.
        training: about the run, as in a model's card.
    """

    path: Path
    step: int
    images: int
    sigma_rel: tuple[float, ...]
    sha256: str
    spec: ModelSpec
    training: dict[str, Any]


def _narrow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In the snapshot's precision, or as it is where that cannot hold it."""
    stored = tensor.detach().to(dtype)
    return stored if bool(torch.isfinite(stored).all()) else tensor


def write_snapshot(
    folder: Path,
    step: int,
    images: int,
    average: PowerEMA,
    spec: ModelSpec,
    training: Mapping[str, Any],
    dtype: Literal["fp16", "fp32"] = "fp16",
) -> Path:
    """Store averages as ``step-….safetensors`` and, after it, the ``.json`` that vouches for it.

    Args:
        folder: made if need be.
        step: optimiser steps done, ≥ 1.
        images: images seen.
        average: what to store; the model's buffers go with it, as they are.
        spec: from which the model is built.
        training: anything JSON can hold about the run.
        dtype: precision of the averages; a tensor that would overflow in it keeps its own.

    Returns:
        The path of the JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    stem = f"step-{step:08d}"
    tensors = {name: _narrow(t, _DTYPES[dtype]) for name, t in average.tensors().items()}
    tensors |= {f"{_BUFFER}.{name}": t for name, t in average.buffers().items()}
    digest = write_tensors(folder / f"{stem}.safetensors", tensors)
    record = {
        "format": FORMAT,
        "schema": SCHEMA,
        "farfield": __version__,
        "step": step,
        "images": images,
        "sigma_rel": list(average.sigma_rels),
        "sha256": digest,
        "model": plain(spec),
        "training": dict(training),
    }
    write_json(folder / f"{stem}.json", record)
    return folder / f"{stem}.json"


def read_snapshots(folder: Path) -> list[Snapshot]:
    """The records of a folder's snapshots, in ascending order of steps.

    Raises:
        ModelFileError: none there, or a record that is not one.
    """
    found = [_read_record(folder / f"step-{step:08d}.json") for step in steps_in(folder)]
    if not found:
        raise ModelFileError(f"{folder} holds no snapshots of averages; train with ema.posthoc.every above 0")
    return found


def _read_record(path: Path) -> Snapshot:
    record = read_json(path)
    if record.get("format") != FORMAT or record.get("schema") != SCHEMA:
        raise ModelFileError(
            f"{path} is not a snapshot that this version reads "
            f"(format {record.get('format')!r}, schema {record.get('schema')!r})"
        )
    try:
        rest = {"path": str(path.with_suffix(".safetensors")), **{k: record.get(k) for k in ("step", "images")}}
        values = structure(_Record, rest | {k: record.get(k) for k in ("sigma_rel", "sha256")})
        for width in values.sigma_rel:
            gamma_of(width)
        spec = structure(ModelSpec, record.get("model"), "model")
    except ArgumentError as error:
        raise ModelFileError(f"{path}: {error}") from error
    training = record.get("training")
    if values.step < 1 or not values.sigma_rel or not isinstance(training, dict):
        raise ModelFileError(f"{path} is not a whole record of a snapshot (step, sigma_rel, training)")
    return Snapshot(Path(values.path), values.step, values.images, values.sigma_rel, values.sha256, spec, training)


@dataclass(frozen=True)
class _Record:
    """The plain part of a record, as :func:`structure` checks it."""

    path: str
    step: int
    images: int
    sigma_rel: tuple[float, ...]
    sha256: str


# reconstruction


@dataclass(frozen=True)
class Plan:
    """Which snapshots make an average, and how well.

    Args:
        snapshots: those up to the step, in ascending order.
        weights: for each of them, one weight a stored width.
        mismatch: distance of the combined profile from the wanted one, relative to its size.
    """

    snapshots: tuple[Snapshot, ...]
    weights: tuple[tuple[float, ...], ...]
    mismatch: float


def plan(folder: str | Path, sigma_rel: float, step: int | None = None) -> Plan:
    """How to make the average of a width at a stored step.

    Args:
        folder: of the snapshots.
        sigma_rel: relative width in (0, 0.2886].
        step: one that has a snapshot; the last by default.

    Raises:
        ArgumentError: a width out of range, or a step without a snapshot.
        ModelFileError: the folder has no snapshots, or a broken record.
    """
    gamma = gamma_of(sigma_rel)
    found = read_snapshots(Path(folder))
    steps = [s.step for s in found]
    end = steps[-1] if step is None else step
    if end not in steps:
        known = ", ".join(map(str, steps if len(steps) <= 8 else [*steps[:3], "…", *steps[-3:]]))
        raise ArgumentError(f"step = {step}; expected one that has a snapshot: {known}")
    used = [s for s in found if s.step <= end]
    profiles = [(s.step, gamma_of(width)) for s in used for width in s.sigma_rel]
    weights, mismatch = solve_weights([t for t, _ in profiles], [g for _, g in profiles], end, gamma)
    flat = iter(weights.tolist())
    return Plan(tuple(used), tuple(tuple(next(flat) for _ in s.sigma_rel) for s in used), mismatch)


def reconstruct(folder: str | Path, sigma_rel: float, step: int | None = None) -> dict[str, Tensor]:
    """The model's state with the average of any width, from a run's snapshots. Arguments and errors: :func:`plan`.

    Files are read one after another and summed in float64, so memory is about three times that of the parameters.

    Returns:
        Parameters in float32 and the buffers of the snapshot at ``step``, by name.

    Raises:
        ModelFileError: also for a snapshot that is damaged, or of another model than the others.
    """
    return combine(plan(folder, sigma_rel, step))


@torch.no_grad()
def combine(made: Plan) -> dict[str, Tensor]:
    """Carry out a plan, see :func:`reconstruct`."""
    from safetensors import SafetensorError, safe_open

    total: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    last = made.snapshots[-1]
    for snapshot, weights in zip(made.snapshots, made.weights, strict=True):
        refuse_pickle(snapshot.path)
        if sha256(snapshot.path) != snapshot.sha256:
            raise ModelFileError(f"{snapshot.path} is damaged: its SHA-256 is not the one in its .json")
        try:
            with safe_open(snapshot.path, "pt") as file:
                keys = list(file.keys())
                names = [k for k in keys if not k.startswith(f"{_BUFFER}.")]
                wanted = {f"{_PREFIX}.{k}." for k in range(len(weights))}
                for key in names:
                    prefix, number, name = key.split(".", 2)
                    if f"{prefix}.{number}." not in wanted:
                        raise ModelFileError(f"{snapshot.path} has foreign tensor {key!r}")
                    tensor = file.get_tensor(key).to(torch.float64)
                    if name not in total:
                        if snapshot is not made.snapshots[0]:
                            raise ModelFileError(f"{snapshot.path} has tensor {key!r}, which earlier snapshots lack")
                        total[name] = torch.zeros_like(tensor)
                    if tensor.shape != total[name].shape:
                        raise ModelFileError(f"{snapshot.path}: tensor {key!r} has another shape than in the others")
                    total[name].add_(tensor, alpha=weights[int(number)])
                if len(names) != len(total) * len(weights):
                    raise ModelFileError(f"{snapshot.path} lacks tensors that earlier snapshots have")
                if snapshot is last:
                    buffers = {k.removeprefix(f"{_BUFFER}."): file.get_tensor(k) for k in keys if k not in names}
        except (SafetensorError, ValueError) as error:
            raise ModelFileError(f"{snapshot.path} is not a snapshot ({str(error).splitlines()[0]})") from error
    return {name: t.to(torch.float32) for name, t in total.items()} | buffers


def averaged_model(made: Plan) -> Preconditioned:
    """The model of a run with the average that a plan makes, in eval mode on the CPU.

    Raises:
        ModelFileError: a damaged snapshot, one of another model, or values that are not finite.
    """
    last = made.snapshots[-1]
    state = combine(made)
    try:
        with torch.random.fork_rng(devices=[]):  # the weights it starts with are not kept
            model = build_model(last.spec)
    except ArgumentError as error:
        raise ModelFileError(f"{last.path.with_suffix('.json')}: {error}") from error
    expected = model.state_dict()
    differing = sorted(expected.keys() ^ state.keys())
    differing += sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape)
    if differing:
        raise ModelFileError(f"{last.path}: tensor {differing[0]!r} does not fit the model in its record")
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelFileError(f"{last.path}: tensor {name!r} holds NaN or infinite values")
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
