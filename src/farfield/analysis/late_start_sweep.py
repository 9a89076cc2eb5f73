"""Sweeps over the start time: every sampler, number of steps, law and start on the same noise, cell by cell.

A cell is one run of one seed. With a folder each cell is written as soon as it is done, and a sweep that was interrupted
goes on where it stopped; the folder remembers what it belongs to and refuses anything else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from farfield.analysis.late_start_result import Cell, LateStartSweep
from farfield.data.progress import track
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.networks.files import write_json
from farfield.sampling.late import Kind, late_sampler, sigma_of, vanilla_start
from farfield.sampling.starts import Start

#: Takes samples (n, *event) and returns a number; lower is better for the first metric of a sweep.
Metric = Callable[[Tensor], float]

#: The starts of the published tables.
STARTS = (50, 100, 200, 300, 400, 500, 600, 700, 800, 900)
NAME = "late-start-cells.json"


@dataclass(frozen=True)
class Task:
    """One cell to run: which sampler, how many steps, which law, from which index, with which seed."""

    sampler: Kind
    n: int
    law: str
    start: int
    seed: int


class Cells:
    """The cells that are done, in memory and, with a folder, on disk.

    Args:
        folder: where ``late-start-cells.json`` is, or None.
        about: what the cells belong to, JSON-safe: a model, a number of samples, metrics.

    Raises:
        DataError: if the folder holds cells of something else, or a file that is none of ours.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        self.path = None if folder is None else folder / NAME
        self.about = json.loads(json.dumps(dict(about)))
        self.done: dict[Task, Cell] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            about, cells = stored["about"], [Cell(**row) for row in stored["cells"]]
            self.done = {Task(c.sampler, c.n, c.law, int(c.start), c.seed): c for c in cells}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} does not hold the cells of a sweep: {error!r}") from error
        if about != self.about:
            wrong = sorted(k for k in {*about, *self.about} if about.get(k) != self.about.get(k))
            raise DataError(f"{path} holds another sweep: it differs in {', '.join(wrong)}; choose another folder")

    def add(self, task: Task, cell: Cell) -> None:
        """Keep a cell, on disk as well."""
        self.done[task] = cell
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"about": self.about, "cells": [c.to_dict() for c in self.done.values()]})


def tasks_of(
    samplers: Sequence[Kind],
    starts: Sequence[int],
    n_steps: Sequence[int],
    laws: Sequence[str],
    seeds: Sequence[int],
    sigma_max: float = math.inf,
) -> list[Task]:
    """All cells of a sweep; the vanilla start is among those of the law called plain, where it lies below ``sigma_max``."""
    found = []
    for seed in seeds:
        for kind in samplers:
            for n in n_steps:
                for law in laws:
                    first = vanilla_start(n)
                    own = {*starts, *([first] if law == "plain" and sigma_of(first) <= sigma_max else [])}
                    found += [Task(kind, n, law, int(s), seed) for s in sorted(own) if n <= s + 1]
    return found


def late_start_sweep(
    denoiser: Denoiser,
    samplers: Sequence[Kind] = ("ddpm", "ddim", "pndm"),
    starts: Sequence[int] = STARTS,
    n_steps: Sequence[int] = (3, 5, 10),
    laws: Mapping[str, Gaussian | Start | Callable[[int], Start] | None] | None = None,
    metric: Metric | Mapping[str, Metric] | None = None,
    seeds: Sequence[int] = (0,),
    *,
    count: int = 500,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
    tasks: Sequence[Task] | None = None,
    batch_size: int = 250,
    clip: bool = True,
    progress: bool = False,
    **condition: Any,
) -> LateStartSweep:
    """Run samplers of a few steps from every start, and measure what they draw.

    Samples of one seed use the same noise whatever the sampler, the start and its law, so that differences between cells are
    paired.

    Args:
        denoiser: the model.
        samplers: of ``"ddpm"``, ``"ddim"``, ``"pndm"``, ``"ancestral"``.
        starts: indices of the DDPM schedule; the vanilla start of each n is added to the plain law,
            unless it lies above the model's range.
        n_steps: numbers of steps.
        laws: by name what a run starts from: None for N(0, I), a Gaussian of the clean data, a start, or a function of the
            index that makes one (moments sampled at each level). Called ``"plain"`` and ``"gls"`` by convention.
        metric: a function of the samples, or several by name, the first of which is what the sweep is about.
        seeds: of the noise.
        count: samples of a cell.
        folder: where cells are kept, so that a sweep can be interrupted.
        about: what else tells this sweep from others with another model or metric; used with a folder.
        tasks: the cells to run, instead of all combinations.
        batch_size: samples evaluated at once; it does not change them.
        clip: clamp samples to [−1, 1] before they are measured, as images are.
        progress: show progress on standard error.
        **condition: passed to the denoiser.

    Raises:
        ArgumentError: for a missing metric or an index that the schedule or the model's range lacks.
        DataError: if the folder holds another sweep.
    """
    if metric is None or (isinstance(metric, Mapping) and not metric):
        raise ArgumentError("metric is missing; expected a function of the samples, lower is better")
    metrics = dict(metric) if isinstance(metric, Mapping) else {"value": metric}
    chosen = {"plain": None} if laws is None else dict(laws)
    if tasks is None:
        tasks = tasks_of(samplers, starts, n_steps, list(chosen), seeds, denoiser.sigma_max)
    cells = Cells(folder, {**(about or {}), "samples": count, "metrics": list(metrics), "clip": clip})
    ordered = list(tasks)
    for task in track(ordered, len(ordered), "late starts", threshold=2 if progress else len(ordered) + 1):
        if task in cells.done:
            continue
        law = chosen[task.law]
        if callable(law) and not isinstance(law, Gaussian):
            law = law(task.start)
        sampler = late_sampler(task.sampler, task.n, task.start, law)
        x = sampler(denoiser, count, task.seed, batch_size=batch_size, **condition).x
        x = x.clamp(-1, 1) if clip else x
        values = {name: float(measure(x)) for name, measure in metrics.items()}
        cells.add(task, Cell(task.sampler, task.n, task.law, task.start, task.seed, sampler.nfe, values))
    return LateStartSweep(tuple(cells.done[task] for task in ordered), next(iter(metrics)), count)
