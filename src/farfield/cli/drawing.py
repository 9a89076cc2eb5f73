"""Drawing samples into a folder, batch by batch, so that nothing is lost when the run is killed.

Each finished batch is a part file; ``run.json`` says what the parts belong to. The same command picks up what is there.
Because sample i of a seed is the same in any batch, parts drawn with different batch sizes fit together.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from farfield.analysis.images import grid_png, is_image
from farfield.errors import ArgumentError, DataError
from farfield.networks.files import read_json, remove_partial, write_atomic, write_json
from farfield.version import __version__

if TYPE_CHECKING:
    from farfield.denoiser import Denoiser
    from farfield.sampling import Sampler

#: About how many pixels wide a picture in the grid is.
TILE = 48
RUN, SAMPLES, PICTURE, PARTS = "run.json", "samples.npz", "samples.png", "parts"
FORMAT = "farfield samples 1"
#: The first sample of a part, the one after its last, and where it is not known beforehand what its batch took.
_PART = re.compile(r"(\d+)-(\d+)(?:-(\d+))?\.npy$")


def draw(
    model: Denoiser,
    sampler: Sampler,
    n: int,
    seed: int,
    out: Path,
    *,
    batch_size: int,
    condition: dict[str, Any],
    describe: dict[str, Any],
    overwrite: bool,
    progress: bool,
) -> dict[str, Any]:
    """Draw ``n`` samples of ``seed`` into the folder ``out``, going on with what is there.

    Returns:
        The record of the run, as ``run.json`` holds it. Where the evaluations show only on the way, under a solver that
        chooses its steps or a rule that stops samples, its ``nfe`` is the most that a batch took, and None until all is drawn.

    Raises:
        ArgumentError: if the folder holds something else, or samples of another run and not ``overwrite``.
    """
    if batch_size < 1:
        raise ArgumentError(f"--batch-size {batch_size}; expected at least 1")
    plan = sampler.to_json(indent=None)
    record = {
        "format": FORMAT,
        "farfield": __version__,
        **describe,
        "weights": weights_digest(model),
        "sampler": {k: v for k, v in json.loads(plan).items() if k != "gaussians"},
        "sampler_digest": hashlib.sha256(plan.encode()).hexdigest(),
        "n": n,
        "seed": seed,
        "nfe": None if sampler_decides(sampler) else sampler.nfe,
        "event_shape": list(model.event_shape),
        "clamped_to": [-1, 1] if len(model.event_shape) == 3 else None,
    }
    same = _is_same(out, record, overwrite)
    parts = out / PARTS
    if same and (out / SAMPLES).exists():
        shutil.rmtree(parts, ignore_errors=True)  # a kill may have come between the set and the end of its parts
        return {**record, "nfe": read_json(out / RUN).get("nfe")}
    if same:
        parts.mkdir(exist_ok=True)
        remove_partial(parts)
    for low, high in _missing(parts if same else None, n, batch_size, progress):
        rows = {k: v[low:high] for k, v in condition.items()}
        drawn = sampler(model, high - low, seed, first=low, **rows)
        if not same:  # only now: a run that cannot draw its first batch leaves no trace
            _claim(out, record)
            same = True
        count = f"-{drawn.nfe}" if record["nfe"] is None else ""
        _write_array(parts / f"{low:09d}-{high:09d}{count}.npy", drawn.x.float().cpu().numpy())
    if record["nfe"] is None:
        record["nfe"] = max(int(m.group(3) or 0) for p in parts.glob("*.npy") if (m := _PART.search(p.name)))
        write_json(out / RUN, record)
    _assemble(out, parts, n, record)
    return record


def sampler_decides(sampler: Sampler) -> bool:
    """Whether the evaluations show only in the run: the solver chooses its steps, or a rule stops each sample."""
    return sampler.rule.adaptive or sampler.finish.rule is not None


def weights_digest(model: Denoiser) -> str:
    """A digest of the weights that make the samples."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return total.hexdigest()


def _is_same(out: Path, record: dict[str, Any], overwrite: bool) -> bool:
    """Whether the folder holds this very run already; False where it is free to take.

    Raises:
        ArgumentError: if it holds something else, or another run's samples and not ``overwrite``.
    """
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"--out {out} is a file; expected a folder")
    run = out / RUN
    if run.exists():
        old = read_json(run)
        if old.get("format") != FORMAT:
            raise ArgumentError(f"--out {out} holds something else than samples; choose another folder")
        known = {"farfield", "nfe"} if record["nfe"] is None else {"farfield"}  # a finished run knows its evaluations
        changed = sorted(k for k in (record.keys() | old.keys()) - known if record.get(k) != old.get(k))
        if not changed:
            return True
        if not overwrite:
            raise ArgumentError(
                f"--out {out} holds samples of another run ({', '.join(changed)} differ); "
                "choose another folder or pass --overwrite"
            )
    elif out.is_dir():
        remove_partial(out)
        if any(out.iterdir()):
            raise ArgumentError(f"--out {out} holds something else than samples; choose an empty folder")
    return False


def _claim(out: Path, record: dict[str, Any]) -> None:
    """Make the folder this run's; samples of another run go, and its record last, by being replaced."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (SAMPLES, PICTURE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    write_json(out / RUN, record)
    (out / PARTS).mkdir(exist_ok=True)


def _missing(parts: Path | None, n: int, batch_size: int, progress: bool) -> Iterator[tuple[int, int]]:
    """The ranges of samples that no part holds, in batches, with a progress bar on a terminal."""
    found = [] if parts is None else parts.glob("*.npy")
    done = sorted((int(m.group(1)), int(m.group(2))) for p in found if (m := _PART.search(p.name)))
    ranges, at = [], 0
    for low, high in [*done, (n, n)]:
        ranges += [(k, min(k + batch_size, low)) for k in range(at, low, batch_size)]
        at = max(at, high)
    if not ranges:
        return
    from rich.console import Console
    from rich.progress import Progress

    err = Console(stderr=True)
    with Progress(console=err, transient=True, disable=not (progress and sys.stderr.isatty())) as bar:
        task = bar.add_task("sample", total=n, completed=n - sum(b - a for a, b in ranges))
        for low, high in ranges:
            yield low, high
            bar.advance(task, high - low)


def _write_array(path: Path, x: np.ndarray) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, x, allow_pickle=False)

    write_atomic(path, write)


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged; delete it, and the same command draws its samples again") from error


def _assemble(out: Path, parts: Path, n: int, record: dict[str, Any]) -> None:
    """Join the parts into one array and a picture; the parts go last."""
    files = sorted(parts.glob("*.npy"))
    x = np.concatenate([_read_array(f) for f in files])[:n]
    if record["clamped_to"] is not None:
        x = x.clip(-1, 1)
    if is_image(tuple(record["event_shape"])):
        shown = torch.from_numpy(x[:256])
        image, _ = grid_png(shown, math.ceil(math.sqrt(len(shown))), TILE)
        write_atomic(out / PICTURE, lambda partial: partial.write_bytes(image))

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, images=x)

    write_atomic(out / SAMPLES, write)
    shutil.rmtree(parts, ignore_errors=True)
