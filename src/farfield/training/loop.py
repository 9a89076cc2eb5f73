"""Training in one process or several: deterministic, resumable after a kill at any moment, bit for bit.

The folder of a run holds ``run.json`` (what the run is), ``log.jsonl``, ``checkpoints/`` and, at the end,
``model.safetensors`` and ``card.json``, the averaged model; with these switched on, also ``previews/``, ``posthoc/``,
``tensorboard/`` and ``learning.jsonl``. All randomness is addressed by the step, so a checkpoint is the weights, their
averages, the optimiser's tensors and one number, and any number of processes can take it up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from farfield.data import DataSet
from farfield.errors import ArgumentError, ModelFileError, NonFiniteError
from farfield.networks import Preconditioned
from farfield.networks.files import remove_partial
from farfield.networks.model_file import ModelSpec, build_model, save_model
from farfield.numerics import streams
from farfield.objectives import StableTargets
from farfield.training.augment import augment
from farfield.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    pack,
    read_checkpoint,
    steps_in,
    unpack,
    write_checkpoint,
)
from farfield.training.config import TrainConfig, differences, from_dict, to_dict
from farfield.training.engine import Engine
from farfield.training.feed import Feed
from farfield.training.measure import Watch, at_the_end
from farfield.training.posthoc import POSTHOC, PowerEMA, write_snapshot
from farfield.training.preview import write_preview
from farfield.training.probe import RunProbe
from farfield.training.reporter import Reporter, summary_writer, trim_log
from farfield.training.setup import alone, claim, load_data, reproducible, specify, write_down
from farfield.training.step import TrainStep

LOG, CHECKPOINTS, PREVIEWS, TENSORBOARD = "log.jsonl", "checkpoints", "previews", "tensorboard"

#: Called with the number of steps done and the averaged model; the numbers it returns go into the log by name, those
#: that are NaN or infinite as null.
Hook = Callable[[int, Preconditioned], Mapping[str, float]]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        folder: where the model is.
        steps, images: done in the whole run.
        loss: mean training loss of the last log interval.
        validation_loss: of the averaged model on held-out images, or None without any.
        seconds: that this call took; the log counts those of the whole run.
        main: whether this is the first process of the run, which speaks for all.
    """

    folder: Path
    steps: int
    images: int
    loss: float
    validation_loss: float | None
    seconds: float
    main: bool = True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def train(
    config: TrainConfig,
    out: str | Path,
    resume: bool = True,
    progress: bool = True,
    hooks: Sequence[Hook] = (),
) -> TrainResult:
    """Train a model, or go on with a run that was interrupted; alone, or as one of a launcher's processes.

    Args:
        config: the run.
        out: its folder; empty, new, or that of the same run.
        resume: go on with a run found there; otherwise its presence is an error.
        progress: show a progress bar (on a terminal) or a line every ``log_every`` steps, on standard error.
        hooks: called in the first process every ``evaluate.every`` steps and after the last.

    Returns:
        Where the model is and how the run ended.

    Raises:
        ArgumentError: wrong configuration or folder.
        NonFiniteError: loss or gradient became NaN or infinite; the last checkpoint is still good.
        ModelFileError: no checkpoint of the run can be read, or the newest is of another run.
        ProcessLostError: another process of the run has ended.
    """
    folder = Path(out)
    engine = Engine(config.device)
    parts = engine.world * config.accumulate
    if config.batch_size % parts:
        raise ArgumentError(
            f"batch_size = {config.batch_size}; expected a multiple of {engine.world} processes × accumulate = "
            f"{config.accumulate}"
        )
    if config.evaluate.every and not (config.evaluate.samples or hooks):
        raise ArgumentError(f"evaluate.every = {config.evaluate.every} without evaluate.samples measures nothing")
    if config.tensorboard:
        summary_writer()
    data, held = load_data(config)
    spec = specify(config, data, held)
    with ExitStack() as stack:
        stack.enter_context(reproducible(config.threads))
        torch.manual_seed(streams.derive(config.seed, "weights") >> 1)
        model = build_model(spec).to(engine.device).train()
        # Before the folder is claimed: settings that are refused leave none behind.
        run = _Run(config, folder, data, held, spec, model, engine, progress, hooks)
        stack.callback(run.feed.close)

        def take() -> None:
            claim(folder, config, data, resume)
            stack.enter_context(alone(folder))
            write_down(folder, config)

        with engine.watch(run.advice):
            engine.on_main(take)
            return run.go()


class _Run:
    """The loop around :class:`TrainStep`: data, log, checkpoints, previews, measurements, export."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        data: DataSet,
        held: DataSet | None,
        spec: ModelSpec,
        model: Preconditioned,
        engine: Engine,
        progress: bool,
        hooks: Sequence[Hook],
    ) -> None:
        device = engine.device
        self.config, self.folder, self.data, self.spec = config, folder, data, spec
        self.engine, self.progress, self.hooks, self.held_out = engine, progress, hooks, held
        self.feed = Feed(data, config.labels.use, device, config.batch_size, config.seed, engine.rank, engine.world)
        targets = self._targets()
        self.feed.also = None if targets is None else targets.rows_of
        self.step = TrainStep(model, config, targets)
        posthoc = config.ema.posthoc
        self.power = PowerEMA(model, posthoc.sigma_rel) if posthoc.every else None
        self.held = None if held is None else held.images[:1024].to(device)
        self.held_labels = None
        if held is not None and config.labels.use and held.labels is not None:
            self.held_labels = held.labels[:1024].to(device)
        self.watch = Watch(data, config.evaluate, config.labels.use)
        self.probe = RunProbe(config, self.feed.images, folder, engine)
        self.sums = [0.0, 0.0, 0.0]  # loss, gradient norm, steps since the last line of the log
        self.metrics: dict[str, Any] = {}
        self.clock, self.spent = time.perf_counter(), 0.0  # seconds: this start's beginning, and those before it

    def _targets(self) -> StableTargets | None:
        """Stable targets over references that are augmented as the batch is."""
        c = self.config
        if c.target.kind == "dsm":
            return None

        def change(images: Tensor, ids: Tensor, purpose: str) -> tuple[Tensor, Tensor]:
            return augment(c.augment, images, c.seed, ids, purpose)

        return StableTargets(
            c.target,
            len(self.data),
            self.feed.take,
            c.batch_size,
            c.seed,
            augment=change if c.augment.active else None,
            inform=c.augment.inform,
        )

    # -- state --------------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """Everything with a state but the optimiser."""
        named: dict[str, nn.Module] = {"model": self.step.denoiser, "ema": self.step.ema.model}
        if self.step.uncertainty is not None:
            named["uncertainty"] = self.step.uncertainty
        return named

    def restore(self) -> int:
        """State from the newest good checkpoint; returns the steps done."""
        found = self.engine.on_main(self._find)
        done = 0
        if found is not None:
            # Each process reads the file itself: sending an optimiser's state around would take longer.
            checkpoint = read_checkpoint(self.folder / CHECKPOINTS / f"step-{found:08d}.json")
            self.check(checkpoint)
            tensors = dict(checkpoint.tensors)
            if self.power is not None:
                own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{POSTHOC}.")}
                self.power.load(own)
            unpack(tensors, self.modules(), self.step.optimizer, self.step.named_parameters())
            done, self.sums = checkpoint.step, [float(v) for v in checkpoint.record["window"]]
            self.metrics = dict(checkpoint.record["metrics"])
            self.spent = float(checkpoint.record.get("seconds", 0.0))
        if self.engine.main:
            trim_log(self.folder / LOG, done)
        return done

    def _find(self) -> int | None:
        """The step of the newest good checkpoint; clears what a kill left behind."""
        remove_partial(self.folder)
        found = latest_checkpoint(self.folder / CHECKPOINTS)
        if found is not None:
            self.check(found)
        return None if found is None else found.step

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
        if not _is_number(record.get("seconds", 0.0)):  # which the first checkpoints did not have
            raise ModelFileError(f"{where} has seconds = {record['seconds']!r}; expected a number")

    def last_good(self) -> str:
        """Where a run that failed can be taken up, in words."""
        kept = steps_in(self.folder / CHECKPOINTS)
        return f"the last good checkpoint is after step {kept[-1]}" if kept else "there is no checkpoint yet"

    def advice(self) -> str:
        """What can be done after such a failure, in words."""
        again = "resumes from there" if steps_in(self.folder / CHECKPOINTS) else "starts again"
        return f"{self.last_good()}; the same command {again}"

    def seconds(self) -> float:
        """What the run has taken so far, without what a kill has undone."""
        return round(self.spent + time.perf_counter() - self.clock, 3)

    def save(self, done: int) -> None:
        """Write a checkpoint after ``done`` steps."""
        tensors = pack(self.modules(), self.step.optimizer, self.step.named_parameters())
        tensors |= {} if self.power is None else self.power.tensors()
        record = {
            "images": done * self.config.batch_size,
            "seed": self.config.seed,
            "config": to_dict(self.config),
            "data": self.data.digest,
            "metrics": self.metrics,
            "window": self.sums,
            "seconds": self.seconds(),
        }
        write_checkpoint(self.folder / CHECKPOINTS, done, tensors, record, self.config.keep)

    # -- looking at the model -----------------------------------------------------------------------------------------

    @property
    def averaged(self) -> Preconditioned:
        """The averaged model."""
        model = self.step.ema.model
        assert isinstance(model, Preconditioned)
        return model

    def validate(self, done: int) -> None:
        """Measure the averaged model on the held-out images, if there are any; never let a broken one be saved."""
        held = self.held
        if held is None:
            return
        loss = self.engine.on_main(lambda: self.step.validation_loss(held, self.held_labels))
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"step {done - 1}: validation loss = {loss:g} of the averaged weights; {self.last_good()}"
            )
        self.metrics["validation_loss"] = loss

    def measure(self, done: int) -> dict[str, float | None]:
        """Samples of the averaged model in numbers, on the way; for the log's line of this step and no other."""

        def numbers() -> dict[str, float | None]:
            found: dict[str, float] = {}
            if self.config.evaluate.every and self.config.evaluate.samples:
                found |= self.watch(self.averaged)
            for hook in self.hooks:
                found |= {name: float(value) for name, value in hook(done, self.averaged).items()}
            return {name: value if math.isfinite(value) else None for name, value in found.items()}

        return self.engine.on_main(numbers)

    def export(self, done: int) -> None:
        """Write the averaged model as the run's result."""
        measured = at_the_end(self.averaged, self.data, self.held_out, self.config.evaluate, self.config.labels.use)
        save_model(self.folder, self.averaged, self.spec, self.about(done) | {"metrics": self.metrics | measured})

    def about(self, done: int) -> dict[str, Any]:
        """What a card says of the training."""
        return {
            "config": to_dict(self.config),
            "seed": self.config.seed,
            "steps": done,
            "images": done * self.config.batch_size,
            "data": {"name": self.data.name, "count": len(self.data), "digest": self.data.digest},
            "torch": torch.__version__,
        }

    # -- the run ------------------------------------------------------------------------------------------------------

    def go(self) -> TrainResult:
        """Run the steps that are left."""
        c, main = self.config, self.engine.main
        start = self.restore()
        self.step.join(self.engine)
        self.probe.begin(start, self.step)
        board = self.folder / TENSORBOARD if c.tensorboard and main else None
        log = self.folder / LOG if main else None
        with Reporter(log, c.steps, start, self.progress and main, board) as reporter:
            for step in range(start, c.steps):
                self._advance(step, reporter)
        done = max(start, c.steps)
        # Also where nothing was left to do: a kill may have come between weights and card.
        self.engine.on_main(lambda: self.export(done))
        seconds = time.perf_counter() - self.clock
        loss = self.metrics.get("loss", float("nan"))
        held = self.metrics.get("validation_loss")
        return TrainResult(self.folder, done, done * c.batch_size, loss, held, seconds, main)

    def _advance(self, step: int, reporter: Reporter) -> None:
        """One step and all that is due after it."""
        c, main, done = self.config, self.engine.main, step + 1
        try:
            stats = self.step(step, self.feed(step))
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {self.last_good()}") from error
        if self.power is not None:
            self.power.update(done)
            if main and (done % c.ema.posthoc.every == 0 or done == c.steps):
                about = self.about(done)
                folder, images = self.folder / POSTHOC, done * c.batch_size
                write_snapshot(folder, done, images, self.power, self.spec, about, c.ema.posthoc.dtype)
        self.probe(done, self.step)
        self.sums = [self.sums[0] + stats.loss, self.sums[1] + stats.grad_norm, self.sums[2] + 1]
        reporter.advance(done)
        due, last = done % c.log_every == 0, done == c.steps
        saving = done % c.checkpoint_every == 0 or last
        if saving or due:
            # The window of a checkpoint is that of all processes, whichever of them goes on from it.
            self.sums[0] = self.engine.mean([self.sums[0]])[0]
        if due or last:
            self.metrics |= {"loss": self.sums[0] / self.sums[2], "grad_norm": self.sums[1] / self.sums[2]}
            self.sums = [0.0, 0.0, 0.0]
        if saving:
            self.validate(done)
        looking = bool((c.evaluate.every and done % c.evaluate.every == 0) or (self.hooks and last))
        seen = self.measure(done) if looking else {}
        if main and c.preview.every and (done % c.preview.every == 0 or last):
            write_preview(self.folder / PREVIEWS / f"step-{done:08d}.png", self.averaged, c.preview, self.feed.labels)
        # Before the checkpoint: a line may be written twice and trimmed, but never be missing.
        if main and (due or last or looking):
            known = self.metrics if due or last else {}
            record = {"step": done, "images": done * c.batch_size, **known, **seen, "lr": stats.lr}
            reporter.record({**record, "seconds": self.seconds()})
        if main and saving:
            self.save(done)
