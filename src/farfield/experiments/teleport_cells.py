"""What the teleport experiments share: a bundled model with its data, and samplers whose distances are kept on file."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from farfield.data import DataSet, load
from farfield.data.progress import track
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import unknown_name
from farfield.experiments.base import Settings, available
from farfield.interop import load as load_model
from farfield.metrics import FrechetReference, default_features, frechet_floor
from farfield.networks.files import read_json, write_json
from farfield.sampling import Sampler
from farfield.version import __version__

#: Samples of each seed, by data set: with three seeds a sweep takes one core some ten minutes, or three quarters of an hour.
SAMPLES: Mapping[str, int] = {"digits": 800, "cifar10": 500}
BATCH = 256


@dataclass(frozen=True, eq=False)
class Bench:
    """A model with its data, and the distance of samples from them."""

    name: str
    model: Denoiser
    data: DataSet
    n: int

    @classmethod
    def of(cls, name: str, n: int) -> Bench:
        """The bundled model of a data set, and the data at its size."""
        model = load_model(name)
        return cls(name, model, load(name, size=(model.event_shape[-2], model.event_shape[-1])), n)

    @cached_property
    def gaussian(self) -> Gaussian:
        """Of the training images."""
        return Gaussian.fit(self.data.train.images, rank=None if self.model.dim <= 1024 else 512)

    @cached_property
    def features(self) -> Any:
        """The feature map of the data."""
        return default_features(self.data)

    @cached_property
    def reference(self) -> tuple[FrechetReference, float]:
        """The training images in features, and the distance that n samples of their own law would have."""
        found = self.features(self.data.train.images)
        return FrechetReference.of(found), frechet_floor(found, self.n)

    def distance(self, x: Tensor) -> float:
        """Fréchet distance of samples from the training images."""
        return self.reference[0].distance(self.features(x.clamp(-1, 1)))


@dataclass(frozen=True, eq=False)
class Cell:
    """One sampler at one place of the sweep, on every seed.

    Attributes:
        solver: its name.
        sampler: how the samples are drawn.
        skip: nodes skipped by a teleport; 0 without one.
        values: the Fréchet distance of each seed.
    """

    solver: str
    sampler: Sampler
    skip: int = 0
    values: list[float] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What the cell's files are called."""
        return f"{self.solver}-{self.sampler.nfe}-from-{self.sampler.levels[0]:.4g}"

    def change(self, base: Cell) -> tuple[float, float]:
        """Mean over the seeds of the relative change against another cell, seed by seed, and its standard error."""
        ratios = [a / b - 1 for a, b in zip(self.values, base.values, strict=True)]
        error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else 0.0
        return statistics.mean(ratios), error

    def saved(self, base: Cell) -> float:
        """The fraction of another cell's evaluations that this one does without."""
        return 1 - self.sampler.nfe / base.sampler.nfe

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds, 0 for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def benches(settings: Settings, samples: Mapping[str, int]) -> list[Bench]:
    """The models of the data sets asked for, those whose data can be opened here.

    Raises:
        ArgumentError: for a data set that has no model here.
    """
    chosen = settings.data or tuple(samples)
    for name in chosen:
        if name not in samples:
            raise unknown_name("data set of this experiment", name, samples)
    return [Bench.of(name, samples[name]) for name in available(chosen, settings.progress)]


def about(settings: Settings, found: Iterable[Bench]) -> dict[str, Any]:
    """What an outcome says about its measurement."""
    seeds = [settings.seed + k for k in range(settings.seeds)]
    return {"samples": {bench.name: bench.n for bench in found}, "seeds": seeds}


def fill(bench: Bench, sweep_cells: Sequence[Cell], settings: Settings) -> None:
    """Measure every cell on every seed; what is on file in the settings' folder already is not drawn again."""
    runs = [(cell, settings.seed + k) for k in range(settings.seeds) for cell in sweep_cells]
    shown = track(runs, len(runs), f"teleports {bench.name}", threshold=1) if settings.progress else runs
    for cell, seed in shown:
        cell.values.append(_measure(bench, cell, seed, settings.out))


def _measure(bench: Bench, cell: Cell, seed: int, out: Path | None) -> float:
    told = {
        "farfield": __version__, "data": bench.data.digest, "n": bench.n, "seed": seed, "features": bench.features.digest,
        "sampler": hashlib.sha256(cell.sampler.to_json().encode()).hexdigest(),
    }  # fmt: skip
    path = None if out is None else out / "cells" / f"{bench.name}-{cell.key}-{seed}.json"
    if path is not None and path.exists():
        kept = read_json(path)
        if {k: kept.get(k) for k in told} == told and isinstance(kept.get("frechet"), float):
            return float(kept["frechet"])
    value = bench.distance(cell.sampler(bench.model, bench.n, seed, batch_size=BATCH).x)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**told, "frechet": value, "nfe": cell.sampler.nfe})
    return value
