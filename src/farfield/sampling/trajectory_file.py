"""A trajectory on the disk: one safetensors file, with levels, evaluations and seeds as JSON in its header.

Nothing in it is executed, and it is written beside its place and renamed, so that a reader never sees half of it.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from farfield.errors import DataError
from farfield.networks.files import refuse_pickle, write_atomic
from farfield.sampling.results import Trajectory

FORMAT = "farfield trajectory 1"
_KEY = "trajectory"
#: A header holds a few numbers for each step.
_MAX_HEADER = 64 << 20


def save_trajectory(path: str | Path, trajectory: Trajectory) -> None:
    """Write a trajectory to ``path``, atomically; the folder has to exist.

    Args:
        path: of the file, usually ``….safetensors``.
        trajectory: on any device.
    """
    from safetensors.torch import save_file

    about = {
        "format": FORMAT,
        "sigmas": list(trajectory.sigmas),
        "nfe": list(trajectory.nfe),
        "steps": None if trajectory.steps is None else list(trajectory.steps),
        "seed": trajectory.seed,
        "first": trajectory.first,
        "drawn": trajectory.drawn,
    }
    states, outputs = (t.detach().cpu().contiguous() for t in (trajectory.states, trajectory.denoised))
    if states.untyped_storage().data_ptr() == outputs.untyped_storage().data_ptr():
        outputs = outputs.clone()  # safetensors writes no two tensors that share memory
    tensors = {"states": states, "denoised": outputs}

    def write(partial: Path) -> None:
        partial.touch()
        mode = partial.stat().st_mode  # the user's default; save_file makes files that only the owner can read
        save_file(tensors, partial, metadata={_KEY: json.dumps(about, allow_nan=False)})
        partial.chmod(mode)

    write_atomic(Path(path), write)


def load_trajectory(path: str | Path) -> Trajectory:
    """Read a trajectory to the CPU.

    Raises:
        ModelFileError: if the file cannot be read or is a pickle.
        DataError: if it is no safetensors file, or holds something else, parts that do not fit together, or values that are
            not finite.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in ("states", "denoised") if name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is not a complete safetensors file ({str(error).splitlines()[0]})") from error
    if text is None or len(text) > _MAX_HEADER or names != {"states", "denoised"}:
        raise DataError(f"{path} holds no trajectory")
    try:
        about = json.loads(text)
        found = Trajectory(
            _floats(about["sigmas"]),
            tensors["states"],
            tensors["denoised"],
            _integers(about["nfe"]),
            None if about["steps"] is None else _integers(about["steps"]),
            None if about["seed"] is None else _integers([about["seed"]], signed=True)[0],
            _integers([about["first"]])[0],
            about["drawn"],
        )
        known = about["format"] == FORMAT
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} holds no trajectory: its header is damaged ({error!r})") from error
    if not known or not _fits(found):
        raise DataError(f"{path} holds no trajectory of this version: its parts do not fit together or are not finite")
    return found


def _floats(values: Any) -> tuple[float, ...]:
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and v >= 0 for v in values):
        raise ValueError("a level is not a finite number >= 0")
    return tuple(map(float, values))


def _integers(values: Any, signed: bool = False) -> tuple[int, ...]:
    if not all(isinstance(v, int) and not isinstance(v, bool) and (signed or v >= 0) for v in values):
        raise ValueError("a count is not a whole number >= 0")
    return tuple(values)


def _fits(found: Trajectory) -> bool:
    rows, states, outputs = len(found.sigmas), found.states, found.denoised
    steps = found.step_numbers
    return (
        isinstance(found.drawn, bool)
        and states.ndim >= 2
        and states.dtype == outputs.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and len(states) == len(found.nfe) == len(steps) == rows >= 1
        and outputs.shape == (rows - 1, *states.shape[1:])
        and all(s > 0 for s in found.sigmas[:-1])
        and bool(torch.isfinite(states).all() and torch.isfinite(outputs).all())
        and all(a < b for a, b in pairwise(steps))
    )
