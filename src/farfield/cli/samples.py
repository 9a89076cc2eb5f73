"""Samples on the disk: reading what ``farfield sample`` wrote, drawing several seeds, and figures into a card."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from farfield.cli.drawing import FORMAT, RUN, SAMPLES, draw
from farfield.errors import ArgumentError, DataError, ModelFileError
from farfield.networks.files import read_json, sha256, write_json
from farfield.networks.model_file import CARD, WEIGHTS, read_card
from farfield.training.labels import labels_like

if TYPE_CHECKING:
    from farfield.networks import Preconditioned
    from farfield.sampling import Sampler


def read_samples(text: str) -> tuple[Tensor, dict[str, Any]] | None:
    """The samples of a folder of ``farfield sample`` or of an .npz file, with what is known of them.

    Returns:
        (n, *event) float32 and a record; None for a path that is neither (a model, perhaps).

    Raises:
        DataError: for samples that are unfinished, damaged or not finite.
    """
    path = Path(text)
    record: dict[str, Any] = {}
    if path.is_dir():
        if not (path / RUN).is_file() or read_json(path / RUN).get("format") != FORMAT:
            return None
        record, path = read_json(path / RUN), path / SAMPLES
        if not path.is_file():
            raise DataError(f"{text}: the drawing has not finished; run the same `farfield sample` again")
    elif path.suffix != ".npz":
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.files)
            name = "images" if "images" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise DataError(f"{path}: holds the arrays {', '.join(names)}; expected one, or one named images")
            x = torch.from_numpy(np.ascontiguousarray(arrays[name], dtype=np.float32))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged or not an .npz of plain numbers") from error
    if x.ndim not in (2, 4) or not bool(torch.isfinite(x).all()):
        raise DataError(f"{path}: samples of shape {tuple(x.shape)}; expected finite (n, C, H, W) or (n, d)")
    return x, {**record, "file": text}


def draw_seeds(
    model: Preconditioned,
    name: str,
    sampler: Sampler,
    n: int,
    seeds: Sequence[int],
    work: Path,
    *,
    labels: Tensor | None,
    batch_size: int,
    progress: bool,
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Samples of a model for several seeds, each in its folder of ``work``, going on with what is there.

    Args:
        labels: classes of the data, in whose proportion a model with classes is asked.

    Returns:
        The sets (n, *event), and their records.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ArgumentError(f"--seeds {' '.join(map(str, seeds))}; expected one or more different numbers")
    if n < 8:
        raise ArgumentError(f"--n {n}; expected at least 8")
    draws, records = [], []
    for seed in seeds:
        condition: dict[str, Any] = {}
        if model.label_dim and labels is not None:
            condition["labels"] = labels_like(labels, n, seed).cpu()
        record = draw(
            model,
            sampler,
            n,
            seed,
            work / f"n{n}-seed{seed}",
            batch_size=batch_size,
            condition=condition,
            describe={"model": name, "labels": "those of the data" if condition else None},
            overwrite=True,
            progress=progress,
        )
        found = read_samples(str(work / f"n{n}-seed{seed}"))
        assert found is not None  # draw has just written it
        draws.append(found[0])
        records.append(record)
    return draws, records


def weights_of(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Make sure that samples were drawn by the model in ``folder``.

    Raises:
        ArgumentError: if they were not, or nothing is known about it.
        ModelFileError: if there is no model.
    """
    from farfield.cli.drawing import weights_digest
    from farfield.interop import load

    own = weights_digest(load(folder))
    for record in records:
        if record.get("weights") != own:
            where = record.get("file", record.get("model", "SAMPLES"))
            why = "were drawn by another model" if "weights" in record else "do not say which model drew them"
            raise ArgumentError(f"--update-card {folder}: the samples of {where} {why}")


def update_card(folder: Path, evaluation: dict[str, Any]) -> None:
    """Write an evaluation into a model's card, under ``training.metrics.evaluation``; all else is kept as it is.

    Raises:
        ModelFileError: if the card is not that of the weights beside it.
    """
    path = folder / CARD
    card, _ = read_card(path)
    if sha256(folder / WEIGHTS) != card["weights"]["sha256"]:
        raise ModelFileError(f"{folder / WEIGHTS} is not the file that {path} describes (SHA-256 differs)")
    training = card.setdefault("training", {})
    metrics = training.setdefault("metrics", {}) if isinstance(training, dict) else None
    if not isinstance(metrics, dict):
        raise ModelFileError(f"{path} has no group training.metrics to write into")
    metrics["evaluation"] = json.loads(json.dumps(evaluation))
    write_json(path, card)
