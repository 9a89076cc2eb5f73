"""Training in one process: deterministic, resumable after a kill at any moment, bit for bit.

The folder of a run holds ``run.json`` (what the run is), ``log.jsonl``, ``checkpoints/`` and, at the end,
``model.safetensors`` and ``card.json``, the averaged model. All randomness is addressed by the step, so a checkpoint is
the weights, their average, the optimiser's tensors and one number.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from farfield.data import DataSet, batch_indices, load
from farfield.errors import ArgumentError, ModelFileError, NonFiniteError
from farfield.metrics import sample_quality
from farfield.networks import Preconditioned
from farfield.networks.files import read_json, remove_partial, write_json
from farfield.networks.model_file import ModelSpec, build_model, save_model
from farfield.numerics import streams
from farfield.numerics.devices import choose_device
from farfield.sampling import Sampler, karras
from farfield.training.checkpoint import Checkpoint, latest_checkpoint, pack, steps_in, unpack, write_checkpoint
from farfield.training.config import TrainConfig, differences, from_dict, to_dict
from farfield.training.labels import labels_like
from farfield.training.reporter import Reporter, trim_log
from farfield.training.step import AUGMENT_DIM, TrainStep
from farfield.version import __version__

FORMAT = "farfield-run"
RUN, LOG, CHECKPOINTS = "run.json", "log.jsonl", "checkpoints"


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        folder: where the model is.
        steps, images: done in the whole run.
        loss: mean training loss of the last log interval.
        validation_loss: of the averaged model on held-out images, or None without any.
        seconds: of this process's share of the run.
    """

    folder: Path
    steps: int
    images: int
    loss: float
    validation_loss: float | None
    seconds: float


@contextmanager
def reproducible(threads: int | None) -> Iterator[None]:
    """Deterministic kernels and a fixed number of threads inside; the caller's settings and random state afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    count, fill = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Filling every new tensor with NaN is a debugging aid that costs a pass over memory each time.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.set_num_threads(count)


def _load_data(config: TrainConfig) -> tuple[DataSet, DataSet | None]:
    """Training and held-out images."""
    d = config.data
    if d.holdout == 0:
        return load(d.source, size=d.size, split="all"), None
    train = load(d.source, size=d.size, split="train", holdout=d.holdout)
    return train, load(d.source, size=d.size, split="validation", holdout=d.holdout)


def _specify(config: TrainConfig, data: DataSet) -> ModelSpec:
    """The model of a run: what the configuration leaves to the data is filled in."""
    network, p = config.network, config.preconditioning
    if config.labels.use:
        if data.labels is None:
            raise ArgumentError(f"labels.use = true, but the data {data.name!r} have no labels")
        network = dataclasses.replace(network, label_dim=int(data.labels.max()) + 1)
    elif network.label_dim:
        raise ArgumentError(
            f"network.label_dim = {network.label_dim} without labels.use = true; leave it out, it is set"
        )
    if config.augment.active and len(data.event_shape) != 3:
        raise ArgumentError(f"augment changes images; the data have samples of shape {data.event_shape}")
    if config.augment.active and config.augment.inform:
        network = dataclasses.replace(network, augment_dim=AUGMENT_DIM)
    if p.sigma_data is None:
        # Five digits: the last ones depend on the order of summation, and the model on every one of them.
        p = dataclasses.replace(p, sigma_data=float(f"{float(data.images.double().std(correction=0)):.5g}"))
    return ModelSpec(network, data.event_shape, p)


def _claim(folder: Path, config: TrainConfig, data: DataSet, resume: bool) -> None:
    """Make the folder this run's, or check that it is.

    Raises:
        ArgumentError: the folder holds something else, a run with another configuration or other data, or a run at all
            where ``resume`` is false.
    """
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"out = {str(folder)!r} is a file; expected a folder")
    run = folder / RUN
    if not run.exists():
        if folder.is_dir():
            remove_partial(folder)
            if any(folder.iterdir()):
                raise ArgumentError(
                    f"out = {str(folder)!r} holds something else than a training run; choose an empty folder"
                )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArgumentError(f"out = {str(folder)!r} cannot be made: {error.strerror}") from error
        write_json(run, {"format": FORMAT, "farfield": __version__, "config": to_dict(config), "data": data.digest})
        return
    record = read_json(run)
    if record.get("format") != FORMAT:
        raise ArgumentError(f"out = {str(folder)!r} holds something else than a training run; choose an empty folder")
    if not resume:
        raise ArgumentError(f"out = {str(folder)!r} already holds a run; resume it, or choose an empty folder")
    changed = differences(config, from_dict(record.get("config")))
    if changed:
        raise ArgumentError(
            f"out = {str(folder)!r} holds a run with another configuration "
            f"({', '.join(sorted(changed))} changed); choose another folder, or resume with the same values"
        )
    if record.get("data") != data.digest:
        raise ArgumentError(f"out = {str(folder)!r} holds a run on other data (digest differs); choose another folder")
    if record["config"] != to_dict(config):
        write_json(run, {**record, "config": to_dict(config)})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def train(config: TrainConfig, out: str | Path, resume: bool = True, progress: bool = True) -> TrainResult:
    """Train a model, or go on with a run that was interrupted.

    Args:
        config: the run.
        out: its folder; empty, new, or that of the same run.
        resume: go on with a run found there; otherwise its presence is an error.
        progress: show a progress bar (on a terminal) or a line every ``log_every`` steps, on standard error.

    Returns:
        Where the model is and how the run ended.

    Raises:
        ArgumentError: wrong configuration or folder.
        NonFiniteError: loss or gradient became NaN or infinite; the last checkpoint is still good.
        ModelFileError: no checkpoint of the run can be read, or the newest is of another run.
    """
    folder = Path(out)
    data, held = _load_data(config)
    spec = _specify(config, data)
    device = choose_device(config.device)
    with reproducible(config.threads):
        torch.manual_seed(streams.derive(config.seed, "weights") >> 1)
        model = build_model(spec).to(device).train()
        _claim(folder, config, data, resume)
        return _Run(config, folder, data, held, spec, TrainStep(model, config), device, progress).go()


class _Run:
    """The loop around :class:`TrainStep`: data, log, checkpoints, export."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        data: DataSet,
        held: DataSet | None,
        spec: ModelSpec,
        step: TrainStep,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.config, self.folder, self.data, self.spec = config, folder, data, spec
        self.step, self.device, self.progress = step, device, progress
        self.images = data.images.to(device)
        self.labels = data.labels.to(device) if config.labels.use and data.labels is not None else None
        self.held_all = None if held is None else held.images.to(device)
        self.held = None if held is None else held.images[:1024].to(device)
        self.held_labels = None
        if held is not None and config.labels.use and held.labels is not None:
            self.held_labels = held.labels[:1024].to(device)
        self.sums = [0.0, 0.0, 0.0]  # loss, gradient norm, steps since the last line of the log
        self.metrics: dict[str, Any] = {}

    def restore(self) -> int:
        """State from the newest good checkpoint; returns the steps done."""
        remove_partial(self.folder)
        found = latest_checkpoint(self.folder / CHECKPOINTS)
        done = 0
        if found is not None:
            self.check(found)
            unpack(found.tensors, self.step.denoiser, self.step.ema.model, self.step.optimizer)
            done, self.sums = found.step, [float(v) for v in found.record["window"]]
            self.metrics = dict(found.record["metrics"])
        trim_log(self.folder / LOG, done)
        return done

    def check(self, found: Checkpoint) -> None:
        """Raise ``ModelFileError`` unless a checkpoint is of this run: same configuration, same data, a whole record."""
        where, record = f"checkpoint {found.step} of {str(self.folder)!r}", found.record
        try:
            changed = differences(self.config, from_dict(record.get("config")))
        except ArgumentError as error:
            raise ModelFileError(f"{where}: {error}") from error
        if changed:
            raise ModelFileError(f"{where} is of another run ({', '.join(sorted(changed))} differ); remove it")
        if record.get("data") != self.data.digest:
            raise ModelFileError(f"{where} is of a run on other data (digest differs); remove it")
        window, metrics = record.get("window"), record.get("metrics")
        if not (isinstance(window, list) and len(window) == 3 and all(map(_is_number, window))):
            raise ModelFileError(f"{where} has window = {window!r}; expected three numbers")
        if not (isinstance(metrics, dict) and all(map(_is_number, metrics.values()))):
            raise ModelFileError(f"{where} has metrics = {metrics!r}; expected numbers by name")

    def validate(self, done: int) -> None:
        """Measure the averaged model on the held-out images, if there are any; never let a broken one be saved."""
        if self.held is None:
            return
        loss = self.step.validation_loss(self.held, self.held_labels)
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"step {done - 1}: validation loss = {loss:g} of the averaged weights; {self.last_good()}"
            )
        self.metrics["validation_loss"] = loss

    def last_good(self) -> str:
        """Where a run that failed can be taken up, in words."""
        kept = steps_in(self.folder / CHECKPOINTS)
        return f"the last good checkpoint is after step {kept[-1]}" if kept else "there is no checkpoint yet"

    def save(self, done: int) -> None:
        """Write a checkpoint after ``done`` steps."""
        tensors = pack(self.step.denoiser, self.step.ema.model, self.step.optimizer)
        record = {
            "images": done * self.config.batch_size,
            "seed": self.config.seed,
            "config": to_dict(self.config),
            "data": self.data.digest,
            "metrics": self.metrics,
            "window": self.sums,
        }
        write_checkpoint(self.folder / CHECKPOINTS, done, tensors, record, self.config.keep)

    def evaluate(self) -> dict[str, Any]:
        """Samples of the averaged model, measured against training and held-out images; nothing where none are asked for."""
        e = self.config.evaluate
        if not e.samples:
            return {}
        labels: dict[str, Any] = {}
        if self.labels is not None:
            labels = {"labels": labels_like(self.labels, e.samples, e.seed)}
        model = self.step.ema.model
        assert isinstance(model, Preconditioned)
        sampler = Sampler("heun", karras(e.steps, model.sigma_min, model.sigma_max))
        x = sampler(model.eval(), e.samples, e.seed, batch_size=256, **labels).x
        quality = sample_quality(x, self.images, self.held_all, seed=e.seed)
        return {"quality": {"sampler": f"heun, {sampler.nfe} evaluations", "seed": e.seed, **quality.to_dict()}}

    def export(self, done: int) -> None:
        """Write the averaged model as the run's result."""
        about = {
            "config": to_dict(self.config),
            "seed": self.config.seed,
            "steps": done,
            "images": done * self.config.batch_size,
            "data": {"name": self.data.name, "count": len(self.data), "digest": self.data.digest},
            "metrics": self.metrics | self.evaluate(),
            "torch": torch.__version__,
        }
        save_model(self.folder, self.step.ema.model, self.spec, about)  # type: ignore[arg-type]

    def go(self) -> TrainResult:
        """Run the steps that are left."""
        c, start_time = self.config, time.perf_counter()
        start = self.restore()
        with Reporter(self.folder / LOG, c.steps, start, self.progress) as reporter:
            for step in range(start, c.steps):
                rows = batch_indices(len(self.images), c.batch_size, step, c.seed).to(self.device)
                ids = torch.arange(step * c.batch_size, (step + 1) * c.batch_size, device=self.device)
                labels = None if self.labels is None else self.labels[rows]
                try:
                    stats = self.step(step, self.images[rows], labels, ids)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{error}; {self.last_good()}") from error
                done = step + 1
                self.sums = [self.sums[0] + stats.loss, self.sums[1] + stats.grad_norm, self.sums[2] + 1]
                reporter.advance(done)
                due = done % c.log_every == 0 or done == c.steps
                if due:
                    self.metrics |= {"loss": self.sums[0] / self.sums[2], "grad_norm": self.sums[1] / self.sums[2]}
                    self.sums = [0.0, 0.0, 0.0]
                saving = done % c.checkpoint_every == 0 or done == c.steps
                if saving:
                    self.validate(done)
                if due:  # before the checkpoint: a line may be written twice and trimmed, but never be missing
                    record = {"step": done, "images": done * c.batch_size, **self.metrics, "lr": stats.lr}
                    reporter.record({**record, "seconds": round(time.perf_counter() - start_time, 3)})
                if saving:
                    self.save(done)
        done = max(start, c.steps)
        self.export(done)  # also where nothing was left to do: a kill may have come between weights and card
        seconds = time.perf_counter() - start_time
        metrics = self.metrics
        return TrainResult(
            self.folder,
            done,
            done * c.batch_size,
            metrics.get("loss", float("nan")),
            metrics.get("validation_loss"),
            seconds,
        )
