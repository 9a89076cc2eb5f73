"""The configuration of a training run: nested frozen dataclasses, read from YAML and ``key=value`` overrides.

Every value has a default but the data; every key and value is checked before anything runs, and each mistake is one
line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from farfield.errors import ArgumentError
from farfield.networks.model_file import Preconditioning
from farfield.networks.registry import NetworkConfig
from farfield.networks.structure import plain, structure
from farfield.networks.unet import SongUNetConfig
from farfield.objectives import EDMObjective, ObjectiveConfig, TargetConfig
from farfield.training.augment import AugmentConfig
from farfield.training.posthoc import PostHocConfig
from farfield.training.probe import ProbeConfig


def _need(ok: bool, name: str, value: object, right: str) -> None:
    if not ok:
        raise ArgumentError(f"{name} = {value}; expected {right}")


@dataclass(frozen=True)
class DataConfig:
    """Where the training images come from.

    Args:
        source: a name or path that ``farfield.data.load`` knows, e.g. ``digits`` or ``toy:ring``.
        size: image size in pixels; None is the source's own.
        holdout: number of images kept aside; 0 trains on all, None is the source's own number.
    """

    source: str
    size: int | None = None
    holdout: int | None = None

    def __post_init__(self) -> None:
        _need(self.size is None or self.size > 0, "data.size", self.size, "a positive number")
        _need(self.holdout is None or self.holdout >= 0, "data.holdout", self.holdout, "a number of at least 0")


@dataclass(frozen=True)
class LabelsConfig:
    """Training on the data's classes.

    Args:
        use: give the network its image's class.
        dropout: probability that a class is hidden, so that the network also learns the law of all of them.
    """

    use: bool = False
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _need(0 <= self.dropout <= 1, "labels.dropout", self.dropout, "a probability in [0, 1]")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam and its learning rate.

    Args:
        lr: the learning rate after warm-up, > 0.
        betas: Adam's averaging factors.
        eps: Adam's ε.
        weight_decay: decoupled decay (AdamW), a rate a step times ``lr``.
        warmup_steps: steps of linear growth from 0.
        decay: ``constant``; ``cosine``, to 0 at the last step; or ``rsqrt``, as 1/√step after ``decay_start``.
        decay_start: the step at which ``rsqrt`` sets in.
        clip: largest norm of the gradient; None does not clip.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 100
    decay: Literal["constant", "cosine", "rsqrt"] = "constant"
    decay_start: int = 1000
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        _need(self.lr > 0, "optimizer.lr", self.lr, "a positive number")
        _need(all(0 <= b < 1 for b in self.betas), "optimizer.betas", list(self.betas), "two numbers in [0, 1)")
        _need(self.eps > 0, "optimizer.eps", self.eps, "a positive number")
        _need(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "a number of at least 0")
        _need(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "a number of at least 0")
        _need(self.decay_start > 0, "optimizer.decay_start", self.decay_start, "a positive number")
        _need(self.clip is None or self.clip > 0, "optimizer.clip", self.clip, "a positive number, or null")


@dataclass(frozen=True)
class EMAConfig:
    """The average of the weights that is kept as the model.

    Args:
        half_life: images after which a weight counts half.
        ramp: the half-life is at most this fraction of the images seen, which forgets the start; None is no ramp.
        posthoc: snapshots from which averages of other widths are made afterwards.
    """

    half_life: float = 500_000.0
    ramp: float | None = 0.05
    posthoc: PostHocConfig = field(default_factory=PostHocConfig)

    def __post_init__(self) -> None:
        _need(self.half_life >= 0, "ema.half_life", self.half_life, "a number of at least 0")
        _need(self.ramp is None or self.ramp > 0, "ema.ramp", self.ramp, "a positive number, or null")


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured on samples of the finished model and written into its card.

    Args:
        samples: how many to draw; 0 measures nothing. They are compared with the training and the held-out images.
        steps: levels of the Heun sampler that draws them.
        seed: of their noise.
        seeds: how many seeds, from ``seed`` on; their spread is written down.
        every: steps between measurements on the way, which the log keeps; 0 measures only at the end.
        at_end: measure the finished model in full, for its card.
    """

    samples: int = 0
    steps: int = 18
    seed: int = 0
    seeds: int = 1
    every: int = 0
    at_end: bool = True

    def __post_init__(self) -> None:
        _need(self.samples == 0 or self.samples >= 4, "evaluate.samples", self.samples, "0, or at least 4")
        _need(self.steps > 0, "evaluate.steps", self.steps, "a positive number")
        _need(self.seed >= 0, "evaluate.seed", self.seed, "a number of at least 0")
        _need(1 <= self.seeds <= 100, "evaluate.seeds", self.seeds, "1 to 100")
        _need(self.every >= 0, "evaluate.every", self.every, "a number of at least 0")


@dataclass(frozen=True)
class PreviewConfig:
    """Pictures of samples on the way, as ``previews/step-….png``.

    Args:
        every: steps between pictures; 0 draws none.
        samples: images in a picture.
        steps: levels of the Heun sampler.
        seed: of their noise, the same in every picture.
    """

    every: int = 0
    samples: int = 64
    steps: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        _need(self.every >= 0, "preview.every", self.every, "a number of at least 0")
        _need(1 <= self.samples <= 4096, "preview.samples", self.samples, "1 to 4096")
        _need(self.steps > 1, "preview.steps", self.steps, "at least 2")
        _need(self.seed >= 0, "preview.seed", self.seed, "a number of at least 0")


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Args:
        data, network, preconditioning, objective, target, labels, augment, optimizer, ema, evaluate, preview, probe:
            see their classes.
        uncertainty: learn the weight of each noise level (Karras et al. 2024, section 2.2), which evens out what the
            levels contribute to the gradient.
        batch_size: images a step, over all processes.
        accumulate: parts into which each process cuts its images, one after another, to save memory.
        steps: optimiser steps of the whole run.
        seed: of weights, order, noise, dropout and augmentation.
        device: ``auto`` is the first GPU, or else the CPU.
        threads: CPU threads; None leaves torch's setting. Results are reproducible for a fixed number.
        precision: of the network's matrix products and convolutions in training; with ``bf16`` the weights, their
            average, the preconditioning and the loss stay float32.
        compile: let ``torch.compile`` make kernels for the network: minutes at the start, faster steps on a GPU.
        channels_last: keep images and weights with the channels innermost, which GPUs prefer in half precision.
        tensorboard: also log for TensorBoard, in ``tensorboard/``; needs the extra ``farfield[tensorboard]``.
        checkpoint_every: steps between checkpoints.
        keep: checkpoints kept.
        log_every: steps between lines of the log.
    """

    data: DataConfig
    network: NetworkConfig = field(default_factory=SongUNetConfig)
    preconditioning: Preconditioning = field(default_factory=Preconditioning)
    objective: ObjectiveConfig = field(default_factory=EDMObjective)
    target: TargetConfig = field(default_factory=TargetConfig)
    uncertainty: bool = False
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    batch_size: int = 128
    accumulate: int = 1
    steps: int = 10_000
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    tensorboard: bool = False
    checkpoint_every: int = 1000
    keep: int = 2
    log_every: int = 100

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "steps", "checkpoint_every", "keep", "log_every"):
            _need(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        _need(self.batch_size <= 2**20, "batch_size", self.batch_size, "at most 2^20")
        _need(self.steps < 2**31, "steps", self.steps, "less than 2^31")
        _need(self.threads is None or 0 < self.threads <= 1024, "threads", self.threads, "1 to 1024, or null")


#: Keys that change nothing of what is computed, or only how its sums are rounded: a run may be resumed with others.
BOOKKEEPING = (
    "device",
    "checkpoint_every",
    "keep",
    "log_every",
    "accumulate",
    "compile",
    "channels_last",
    "tensorboard",
)
#: Groups of which the same holds.
BOOKKEEPING_GROUPS = ("evaluate.", "preview.", "probe.")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON holds it."""
    return plain(config)


def from_dict(mapping: object) -> TrainConfig:
    """A configuration from a mapping; raises ``ArgumentError`` in one line for any key or value that is wrong."""
    return structure(TrainConfig, mapping)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and change it by overrides such as ``optimizer.lr=2e-3`` (values are YAML, keys are dotted).

    Raises:
        ArgumentError: an unreadable file, invalid YAML, an override without ``=``, an unknown key, a wrong value.
    """
    import yaml

    try:
        mapping = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(
            f"configuration {str(path)!r} cannot be read: {getattr(error, 'strerror', error)}"
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ArgumentError(f"configuration {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(mapping, dict):
        raise ArgumentError(f"configuration {str(path)!r} holds no mapping of names to values")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ArgumentError(f"override {override!r}; expected key=value, e.g. optimizer.lr=2e-3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ArgumentError(f"override {override!r}: the value is not valid YAML") from error
        *parents, last = key.strip().split(".")
        place = mapping
        for parent in parents:
            inner = place.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ArgumentError(f"override {override!r}: {parent} is not a group of keys")
            place = inner
        place[last] = value
    return from_dict(mapping)


def differences(a: TrainConfig, b: TrainConfig) -> list[str]:
    """The keys, dotted, in which two configurations compute something different."""

    def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, entry in value.items():
            out |= flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {f"{prefix}{key}": entry}
        return out

    ignored = set(BOOKKEEPING)
    # Without a decay that aims at the last step, a run may be made longer or shorter at any time.
    if a.optimizer.decay != "cosine":
        ignored.add("steps")
    left, right = flat(to_dict(a)), flat(to_dict(b))
    keys = (k for k in left.keys() | right.keys() if k not in ignored and not k.startswith(BOOKKEEPING_GROUPS))
    return [key for key in keys if left.get(key) != right.get(key)]
