"""Training of the feature classifiers: plain supervised learning, short, deterministic and resumable.

Stochastic gradient descent with Nesterov's momentum under a one-cycle rate, which rises linearly to its peak and falls
linearly to zero (Smith & Topin 2018). Images are shifted by whole pixels and mirrored; where the classifier serves
several sizes, each image is drawn at one of them: averaged over blocks and enlarged again, as a small image will be.

Order, shifts and sizes are streams addressed by the image's place in the run, so a run that was killed and resumed
ends, on the same kind of processor and number of threads, with the weights of one that was not.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from farfield.data import DataSet
from farfield.data.batches import batch_indices
from farfield.data.pixels import resize
from farfield.errors import ArgumentError, ModelFileError, NonFiniteError
from farfield.metrics.classifier import CARD, ClassifierConfig, ImageClassifier, save_classifier
from farfield.networks.files import read_json, read_tensors, remove_partial, write_json, write_tensors
from farfield.networks.structure import plain
from farfield.numerics import streams

RUN, CHECKPOINT, FORMAT = "run.json", "checkpoint.safetensors", "farfield-features-run"


@dataclass(frozen=True)
class ClassifierTraining:
    """How a classifier is trained.

    Args:
        epochs: passes over the training images.
        batch_size: images a step.
        lr: peak rate; ``warmup`` is the fraction of the steps in which it is reached.
        momentum, weight_decay: of the descent.
        translate: shifts by up to so many pixels, the edge repeated.
        flip: probability of a mirror image.
        precision: ``bf16`` runs the convolutions in bfloat16.
        seed: of weights, order and augmentation.
    """

    epochs: int = 12
    batch_size: int = 128
    lr: float = 0.1
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    translate: int = 4
    flip: float = 0.5
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("epochs", self.epochs, 1), ("batch_size", self.batch_size, 2)):
            if value < least:
                raise ArgumentError(f"{name} = {value}; expected at least {least}")
        if not (self.lr > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0 and 0 < self.warmup < 1):
            raise ArgumentError(
                f"lr = {self.lr}, momentum = {self.momentum}, weight_decay = {self.weight_decay}, "
                f"warmup = {self.warmup}; expected lr > 0, momentum in [0, 1), weight_decay >= 0, warmup in (0, 1)"
            )
        if self.translate < 0 or not 0 <= self.flip <= 1:
            raise ArgumentError(f"translate = {self.translate}, flip = {self.flip}; expected >= 0 and in [0, 1]")


def recipe(data: DataSet) -> tuple[ClassifierConfig, ClassifierTraining]:
    """The classifier and its training that suit a data set: by name for those of the library, else by image size.

    Raises:
        ArgumentError: for data without labels, vectors, or images that are not square.
    """
    if data.labels is None:
        raise ArgumentError(f"data {data.name!r} have no labels; a classifier needs them")
    shape = data.event_shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ArgumentError(f"data {data.name!r} have samples of shape {shape}; a classifier takes square images")
    side, classes = shape[1], len(data.classes) if data.classes else int(data.labels.max()) + 1
    widths: tuple[int, ...] = (32, 64, 96, 128) if side >= 24 else (32, 64, 128) if side >= 12 else (32, 64)
    sizes = (side, side // 2) if side >= 24 and side % 2 == 0 else (side,)
    config = ClassifierConfig(shape[0], sizes, widths, classes)
    if data.name == "cifar10":
        return config, ClassifierTraining()
    # A mirror image may be another class (letters, digits), so mirrors are asked for and not assumed.
    epochs = min(60, max(12, math.ceil(60_000 / len(data))))
    return config, ClassifierTraining(epochs, translate=max(1, side // 8), flip=0.0, precision="fp32", batch_size=64)


def augment(images: Tensor, ids: Tensor, training: ClassifierTraining, sizes: tuple[int, ...]) -> Tensor:
    """Images (B, C, S, S) shifted, mirrored and at one of the sizes, by the streams of their places ``ids`` (B,)."""
    b, _, height, width = images.shape
    u = streams.uniform(training.seed, ids, (4,), purpose="classifier augment").to(images.device)
    shift = (u[:, :2] * (2 * training.translate + 1)).floor().long() - training.translate
    y = (torch.arange(height, device=images.device) + shift[:, :1]).clamp(0, height - 1)
    x = (torch.arange(width, device=images.device) + shift[:, 1:]).clamp(0, width - 1)
    x = torch.where(u[:, 2:3] < training.flip, x.flip(1), x)
    rows = torch.arange(b, device=images.device)
    # Advanced indices about a slice come out first: (B, H, W, C), channels last in memory.
    out = images[rows[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    choice = (u[:, 3] * len(sizes)).floor().long()
    for k, size in enumerate(sizes[1:], start=1):
        factor = sizes[0] // size
        coarse = F.avg_pool2d(out, factor).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        out = torch.where((choice == k)[:, None, None, None], coarse, out)
    return out


def accuracy(model: ImageClassifier, data: DataSet, size: int) -> float:
    """The fraction of images, brought to ``size``, whose class is the most probable one."""
    assert data.labels is not None
    device = next(model.parameters()).device
    hits = 0
    with torch.no_grad():
        for images, labels in zip(data.images.split(256), data.labels.split(256), strict=True):
            hits += int((model(resize(images, size).to(device)).argmax(1).cpu() == labels).sum())
    return hits / len(data)


class _Run:
    """The state of a training: model, momentum, the steps done."""

    def __init__(
        self, config: ClassifierConfig, training: ClassifierTraining, data: DataSet, device: torch.device
    ) -> None:
        assert data.labels is not None
        self.config, self.training, self.device = config, training, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(streams.derive(training.seed, "classifier weights") >> 1)
            model = ImageClassifier(config)
        self.model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.velocity = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.epoch_steps = math.ceil(len(data) / training.batch_size)
        self.steps = self.epoch_steps * training.epochs
        self.done = 0
        self.loss = torch.zeros((), device=device)  # summed over the steps since the last checkpoint

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        peak = self.training.warmup * self.steps
        at = step + 0.5
        return self.training.lr * (at / peak if at < peak else (self.steps - at) / (self.steps - peak))

    def step(self) -> None:
        """One step of the descent."""
        t, b = self.training, self.training.batch_size
        rows = batch_indices(len(self.images), b, self.done, t.seed).to(self.device)
        ids = torch.arange(self.done * b, (self.done + 1) * b, device=self.device)
        x, y = augment(self.images[rows], ids, t, self.config.sizes), self.labels[rows]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=t.precision == "bf16"):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), y)
        names, weights = zip(*self.model.named_parameters(), strict=True)
        gradients = list(torch.autograd.grad(loss, weights))
        velocity = [self.velocity[name] for name in names]
        with torch.no_grad():
            torch._foreach_add_(gradients, weights, alpha=t.weight_decay)
            torch._foreach_mul_(velocity, t.momentum)
            torch._foreach_add_(velocity, gradients)
            torch._foreach_add_(gradients, velocity, alpha=t.momentum)
            torch._foreach_add_(weights, gradients, alpha=-self.rate(self.done))
            self.loss += loss.detach()
        self.done += 1

    def save(self, path: Path) -> None:
        """Write the whole state to one file, atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"velocity.{k}": v for k, v in self.velocity.items()}
        write_tensors(path, {**tensors, "done": torch.tensor(self.done)})

    def restore(self, path: Path) -> None:
        """Take up the state of a checkpoint.

        Raises:
            ModelFileError: if it is damaged or of another network.
        """
        tensors = read_tensors(path)
        own = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        own |= {f"velocity.{k}": v for k, v in self.velocity.items()}
        own["done"] = torch.tensor(0)
        if {k: (v.shape, v.dtype) for k, v in own.items()} != {k: (v.shape, v.dtype) for k, v in tensors.items()}:
            raise ModelFileError(f"{path} is a checkpoint of another network; remove it to start anew")
        self.done = int(tensors.pop("done"))
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)


def _claim(folder: Path, record: dict[str, Any]) -> None:
    """Make the folder this run's, or check that it is."""
    run = folder / RUN
    if run.exists():
        if read_json(run) != record:
            raise ArgumentError(f"out = {str(folder)!r} holds another run; choose an empty folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    if any(folder.iterdir()):
        raise ArgumentError(f"out = {str(folder)!r} holds something else; choose an empty folder")
    write_json(run, record)


def train_classifier(
    data: DataSet,
    out: str | Path,
    config: ClassifierConfig | None = None,
    training: ClassifierTraining | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a classifier on the training part of ``data`` and measure it on the validation part.

    Args:
        data: labelled square images; ``data.train`` and ``data.validation`` are its parts.
        out: folder of the result; empty, new, or that of the same training, which is then taken up.
        config, training: by default :func:`recipe`.
        device: where to compute.
        progress: called after each epoch with the steps done, their total, and the epoch's mean loss.

    Returns:
        The card, with ``training.accuracy`` by image size.

    Raises:
        ArgumentError: for data that do not fit, or a folder that holds something else.
        NonFiniteError: where the loss became NaN or infinite.
    """
    default_config, default_training = recipe(data)
    config, training = config or default_config, training or default_training
    if not config.fits(data.event_shape) or data.event_shape[1] != config.sizes[0]:
        raise ArgumentError(f"data {data.name!r} have samples of shape {data.event_shape}; the network takes another")
    folder, train, held = Path(out), data.train, data.validation
    about = {
        "config": plain(training),
        "data": {"name": data.name, "count": len(train), "digest": train.digest},
    }
    _claim(folder, {"format": FORMAT, "network": plain(config), "training": about})
    if (folder / CARD).is_file():
        return read_json(folder / CARD)
    run = _Run(config, training, train, torch.device(device))
    if (folder / CHECKPOINT).is_file():
        run.restore(folder / CHECKPOINT)
    while run.done < run.steps:
        start = run.done
        while run.done < run.steps and (run.done == start or run.done % run.epoch_steps):
            run.step()
        mean, run.loss = float(run.loss) / (run.done - start), torch.zeros_like(run.loss)
        if not math.isfinite(mean):
            raise NonFiniteError(f"step {run.done - 1}: loss = {mean:g}; try a smaller lr")
        run.save(folder / CHECKPOINT)
        if progress is not None:
            progress(run.done, run.steps, mean)
    folded = run.model.fold()
    scores = {str(size): accuracy(folded, held, size) for size in config.sizes}
    about |= {"accuracy": scores, "validation": len(held), "torch": torch.__version__}
    card = save_classifier(folder, folded, data.name, data.classes, about)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return card


def print_epoch(done: int, steps: int, loss: float) -> None:
    """Progress as a line on standard error."""
    print(f"step {done} of {steps}  loss {loss:.4f}", file=sys.stderr, flush=True)
