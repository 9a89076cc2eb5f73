"""Looking at a network while it learns: rows of ``learning.jsonl`` in a run's folder, or from the weights that a run kept.

The looks of a run are at step 0, at ``per_decade`` steps for each factor of ten, every ``every`` steps, and after the last.
They are addressed by seed and step alone, and the record is trimmed to the checkpoint that a run goes on from: one that was
killed and resumed leaves the file of one that was not. Nothing of the training depends on them.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from farfield.analysis.learning import LAWS, SIGMAS, LearningProbe, check_law, named_laws
from farfield.analysis.learning_record import AFTERWARDS, RECORD
from farfield.errors import ArgumentError, ModelFileError
from farfield.networks.model_file import CARD, build_model, read_card
from farfield.networks.preconditioning import Preconditioned
from farfield.training.checkpoint import read_checkpoint, steps_in
from farfield.training.posthoc import POSTHOC, Plan, averaged_model, read_snapshots
from farfield.training.reporter import trim_log

if TYPE_CHECKING:
    from farfield.training.config import TrainConfig
    from farfield.training.engine import Engine
    from farfield.training.step import TrainStep


@dataclass(frozen=True)
class ProbeConfig:
    """Looks at how much of the network the simple laws explain while it learns, in ``learning.jsonl``.

    A look costs ``queries`` evaluations for each of ``sigmas``.

    Args:
        every: steps between looks; 0 takes none.
        per_decade: further looks for each factor of ten of steps, so that the start is seen closely; 0 takes none.
        sigmas: noise levels.
        laws: ``isotropic``, ``gaussian``, ``mixture:K`` and ``empirical``, fitted to the training data at the first look.
        queries: points at each level.
        components: leading principal components whose gain is measured.
        weights: ``average`` looks at the averaged model: with ``ema.ramp`` it is some 7 % of the steps behind and free of
            the last steps' noise. ``raw`` looks at the weights themselves, as one should where the average has no ramp;
            it takes the memory of one more copy.
        seed: of the queries and the clusters.
    """

    every: int = 0
    per_decade: int = 10
    sigmas: tuple[float, ...] = SIGMAS
    laws: tuple[str, ...] = LAWS
    queries: int = 256
    components: int = 16
    weights: Literal["average", "raw"] = "average"
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {"every": (0, 2**31), "per_decade": (0, 1000), "queries": (2, 2**20), "components": (0, 4096)}
        for name, (low, high) in {**bounds, "seed": (0, 2**63)}.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ArgumentError(f"probe.{name} = {value}; expected {low} to {high}")
        if not self.sigmas or not all(0 < s < math.inf for s in self.sigmas):
            raise ArgumentError(f"probe.sigmas = {list(self.sigmas)}; expected positive noise levels")
        if not self.laws or len(set(self.laws)) < len(self.laws):
            raise ArgumentError(f"probe.laws = {list(self.laws)}; expected different laws, at least one")
        for name in self.laws:
            check_law(name)

    def due(self, done: int, steps: int) -> bool:
        """Whether to look after ``done`` steps of a run of ``steps``."""
        if not self.every:
            return False
        if done in (0, steps) or done % self.every == 0:
            return True
        if not self.per_decade:
            return False
        place = self.per_decade * math.log10(done)
        return any(done == round(10 ** (k / self.per_decade)) for k in (math.floor(place), math.ceil(place)))


class RunProbe:
    """The looks of a run, in its first process.

    Args:
        config: the run.
        images: the training images (N, *event), where the laws are to be fitted.
        folder: of the run.
        engine: the processes.

    Raises:
        ArgumentError: looks are asked for at a model that learns nothing without a class.
    """

    def __init__(self, config: TrainConfig, images: Tensor, folder: Path, engine: Engine) -> None:
        self.config, self.settings, self.images, self.engine = config, config.probe, images, engine
        self.path = folder / RECORD
        self._probe: LearningProbe | None = None
        self._twin: Preconditioned | None = None
        if self.settings.every and config.labels.use and config.labels.dropout == 0:
            raise ArgumentError(
                f"probe.every = {self.settings.every} asks the model without a class, which it never learns with "
                "labels.dropout = 0"
            )

    def begin(self, done: int, step: TrainStep) -> None:
        """Take up the record of a run that has done so many steps; a new run is looked at before its first."""
        if self.engine.main:
            if done:
                trim_log(self.path, done)
            else:
                self.path.unlink(missing_ok=True)
        if done == 0:
            self(done, step)

    def __call__(self, done: int, step: TrainStep) -> None:
        """Look, if it is time, and write the row; to be called before the checkpoint of the same step is written."""
        if self.settings.due(done, self.config.steps):
            self.engine.on_main(lambda: self._look(done, step))

    def _look(self, done: int, step: TrainStep) -> None:
        c = self.settings
        if self._probe is None:  # the laws are let go once they have answered
            laws = named_laws(self.images, c.laws, c.seed)
            self._probe = LearningProbe(
                self.images,
                laws,
                c.sigmas,
                queries=c.queries,
                components=c.components,
                seed=c.seed,
                device=self.engine.device,
            )
        row = self._probe(self._model(step))
        about = {"step": done, "images": done * self.config.batch_size, "weights": c.weights}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**about, **row}, allow_nan=False) + "\n")

    @torch.no_grad()
    def _model(self, step: TrainStep) -> Preconditioned:
        """What is looked at, in eval mode."""
        average = step.ema.model
        assert isinstance(average, Preconditioned)
        if self.settings.weights == "average":
            return average
        # A copy in eval mode, not the model in training: that one may be compiled for training's shapes, and stays as it is.
        if self._twin is None:
            self._twin = copy.deepcopy(average)
        pairs = zip(self._twin.state_dict().values(), step.denoiser.state_dict().values(), strict=True)
        for target, source in pairs:
            target.copy_(source)
        return self._twin


# -- afterwards -----------------------------------------------------------------------------------------------------------


def look_afterwards(folder: Path, make: Callable[[], LearningProbe]) -> list[dict[str, Any]]:
    """Rows from the weights that a run kept: its post-hoc snapshots, or else its checkpoints.

    Of a snapshot the narrowest average is taken, of a checkpoint the weights themselves.

    Args:
        folder: of the run.
        make: makes the probe; called only if there is something to look at.

    Returns:
        A row for each, in ascending order of steps; none where the run kept fewer than two.

    Raises:
        ModelFileError: a file that is damaged or of another model.
    """
    snapshots, checkpoints = folder / POSTHOC, folder / "checkpoints"
    rows: list[dict[str, Any]] = []
    if len(steps_in(snapshots)) > 1:
        probe = make()
        for snapshot in read_snapshots(snapshots):
            narrow = min(snapshot.sigma_rel)
            alone = Plan((snapshot,), (tuple(float(width == narrow) for width in snapshot.sigma_rel),), 0.0)
            about = {"step": snapshot.step, "images": snapshot.images, "weights": "snapshots"}
            rows.append({**about, **probe(averaged_model(alone).to(probe.device))})
    elif len(steps_in(checkpoints)) > 1 and (folder / CARD).is_file():
        probe = make()
        for step in steps_in(checkpoints):
            model, images = _from_checkpoint(folder, checkpoints / f"step-{step:08d}.json")
            rows.append({"step": step, "images": images, "weights": "checkpoints", **probe(model.to(probe.device))})
    return rows


def _from_checkpoint(folder: Path, path: Path) -> tuple[Preconditioned, int]:
    """The model with the weights of a checkpoint, in eval mode, and the images seen."""
    found = read_checkpoint(path)
    _, spec = read_card(folder / CARD)
    with torch.random.fork_rng(devices=[]):  # the weights it starts with are not kept
        model = build_model(spec)
    state = {name.removeprefix("model."): t for name, t in found.tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelFileError(f"{path} is of another model than {folder / CARD}") from error
    images = found.record.get("images")
    return model.eval().requires_grad_(False), images if isinstance(images, int) else 0


AFTERWARDS.append(look_afterwards)
