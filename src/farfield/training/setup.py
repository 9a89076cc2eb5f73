"""What a run needs before its first step: reproducible kernels, its data, the model's specification, its folder."""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from farfield.analysis.images import is_image
from farfield.data import DataSet, load
from farfield.errors import ArgumentError
from farfield.networks.files import read_json, remove_partial, write_json
from farfield.networks.model_file import ModelSpec
from farfield.training.config import TrainConfig, differences, from_dict, to_dict
from farfield.version import __version__

FORMAT = "farfield-run"
RUN = "run.json"


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


def load_data(config: TrainConfig) -> tuple[DataSet, DataSet | None]:
    """Training and held-out images."""
    d = config.data
    if d.holdout == 0:
        return load(d.source, size=d.size, split="all"), None
    train = load(d.source, size=d.size, split="train", holdout=d.holdout)
    return train, load(d.source, size=d.size, split="validation", holdout=d.holdout)


def specify(config: TrainConfig, data: DataSet, held: DataSet | None = None) -> ModelSpec:
    """The model of a run: what the configuration leaves to the data is filled in.

    Args:
        config: the run.
        data, held: training and held-out images; a class that only the latter have is one of the model's too.

    Raises:
        ArgumentError: a setting that does not fit the data.
    """
    network, p = config.network, config.preconditioning
    if config.labels.use:
        if data.labels is None:
            raise ArgumentError(f"labels.use = true, but the data {data.name!r} have no labels")
        labels = [part.labels for part in (data, held) if part is not None and part.labels is not None]
        network = dataclasses.replace(network, label_dim=max(int(part.max()) for part in labels) + 1)
    elif network.label_dim:
        raise ArgumentError(
            f"network.label_dim = {network.label_dim} without labels.use = true; leave it out, it is set"
        )
    if config.augment.active and len(data.event_shape) != 3:
        raise ArgumentError(f"augment changes images; the data have samples of shape {data.event_shape}")
    if config.preview.every and not is_image(data.event_shape):
        raise ArgumentError(f"preview.every draws images; the data have samples of shape {data.event_shape}")
    if config.augment.active and config.augment.inform:
        network = dataclasses.replace(network, augment_dim=config.augment.augment_dim)
    if p.sigma_data is None:
        # Five digits: the last ones depend on the order of summation, and the model on every one of them.
        p = dataclasses.replace(p, sigma_data=float(f"{float(data.images.double().std(correction=0)):.5g}"))
    return ModelSpec(network, data.event_shape, p)


def claim(folder: Path, config: TrainConfig, data: DataSet, resume: bool) -> None:
    """Make the folder this run's, or check that it is; one that is there already is left as it is.

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


def write_down(folder: Path, config: TrainConfig) -> None:
    """Keep a claimed folder's record up to date with what may differ from one start of a run to the next."""
    record = read_json(folder / RUN)
    if record.get("config") != to_dict(config):
        write_json(folder / RUN, {**record, "config": to_dict(config)})


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run's folder, so that two runs never write into one.

    Raises:
        ArgumentError: if another run holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArgumentError(
                f"out = {str(folder)!r} is being trained in by another process; wait for it or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)  # which also lets go of the lock, as the end of the process does
