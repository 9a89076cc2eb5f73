"""Decoding many latents into a folder, batch by batch, so that nothing is lost when the run is killed.

Each finished batch is a part file; ``run.json`` says what the parts belong to, and the same command goes on with them.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.analysis.tables import Table
from farfield.errors import ArgumentError, DataError
from farfield.networks.files import read_json, remove_partial, write_atomic, write_json

RUN, RESULT, FRAMES, PICTURE, PARTS = "run.json", "result.json", "frames.npz", "frames.png", "parts"
FORMAT = "farfield frames 1"
_PART = re.compile(r"(\d+)-(\d+)\.npy$")


def claim(out: Path, record: dict[str, Any], overwrite: bool) -> bool:
    """Make a folder this run's; returns whether it holds the finished run already.

    Raises:
        ArgumentError: if it holds something else, or another run's frames and not ``overwrite``.
    """
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"--out {out} is a file; expected a folder")
    run, parts = out / RUN, out / PARTS
    if run.exists():
        old = read_json(run)
        if old.get("format") != FORMAT:
            raise ArgumentError(f"--out {out} holds something else than frames; choose another folder")
        changed = sorted(k for k in record.keys() | old.keys() if record.get(k) != old.get(k) and k != "farfield")
        if not changed:
            parts.mkdir(exist_ok=True)
            remove_partial(parts)
            return (out / RESULT).exists()
        if not overwrite:
            raise ArgumentError(
                f"--out {out} holds frames of another run ({', '.join(changed)} differ); "
                "choose another folder or pass --overwrite"
            )
    elif out.is_dir():
        remove_partial(out)
        if any(out.iterdir()):
            raise ArgumentError(f"--out {out} holds something else than frames; choose an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    for name in (RESULT, FRAMES, PICTURE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(parts, ignore_errors=True)
    write_json(run, record)
    parts.mkdir(exist_ok=True)
    return False


def decode_into(
    out: Path, latents: Tensor, decode: Callable[[Tensor, slice], Tensor], batch_size: int, progress: bool
) -> Tensor:
    """All latents decoded, (n, *event) on the CPU; what earlier runs have left in the parts is not decoded again.

    Args:
        out: a folder that :func:`claim` has made this run's.
        latents: (n, *event).
        decode: a function of a batch of them, and of the rows it is.
        batch_size: latents at once.
        progress: show a bar on a terminal.
    """
    from rich.console import Console
    from rich.progress import Progress

    parts, n = out / PARTS, len(latents)
    done = sorted(tuple(map(int, m.groups())) for p in parts.glob("*.npy") if (m := _PART.search(p.name)))
    at, err = 0, Console(stderr=True)
    with Progress(console=err, transient=True, disable=not (progress and sys.stderr.isatty())) as bar:
        task = bar.add_task("decode", total=n)
        for low, high in [*done, (n, n)]:
            for start in range(at, low, batch_size):
                rows = slice(start, min(start + batch_size, low))
                x = decode(latents[rows], rows).float().cpu().numpy()
                _write(parts / f"{rows.start:09d}-{rows.stop:09d}.npy", x)
                bar.update(task, completed=rows.stop)
            at = max(at, high)
            bar.update(task, completed=at)
    return torch.from_numpy(np.concatenate([_read(p) for p in sorted(parts.glob("*.npy"))])[:n])


def finish(
    out: Path, arrays: dict[str, Tensor], picture: Callable[[Path], object] | None, result: dict[str, Any]
) -> None:
    """Write arrays, picture and result, in this order: a folder with a result is finished. The parts go last."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **{name: x.cpu().numpy() for name, x in arrays.items()})  # type: ignore[arg-type]

    write_atomic(out / FRAMES, write)
    if picture is not None:
        write_atomic(out / PICTURE, picture)
    write_json(out / RESULT, result)
    shutil.rmtree(out / PARTS, ignore_errors=True)


def _write(path: Path, x: np.ndarray) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, x, allow_pickle=False)

    write_atomic(path, write)


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged; delete it, and the same command decodes its frames again") from error


def table(result: dict[str, Any]) -> Table:
    """The norms of a result by mode: first, middle and last frame, least and most."""
    rows = []
    for k, one in enumerate(result["diagnostics"]):
        ratio = [sum(r) / len(r) for r in one["ratio"]]
        near = result.get("nearest_distance")
        middle = len(ratio) // 2
        cells = (one["mode"], ratio[0], ratio[middle], ratio[-1], min(ratio), max(ratio))
        rows.append(cells if near is None else (*cells, _mean(near[k])))
    columns = ("mode", "first", "middle", "last", "least", "most")
    if result.get("nearest_distance") is not None:
        columns = (*columns, "mean distance to the nearest data")  # type: ignore[assignment]
    band = result["diagnostics"][0]["band"]
    return Table(f"norms of the latents / σ√d (noise: {band[0]:.3f} to {band[1]:.3f})", columns, tuple(rows))


def _mean(values: Any) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())


def stacked(pictures: list[bytes]) -> bytes:
    """Sheets below each other in one PNG."""
    from PIL import Image

    images = [Image.open(io.BytesIO(p)) for p in pictures]
    gap = 12
    height = sum(i.height for i in images) + gap * (len(images) - 1)
    canvas = Image.new("RGBA", (max(i.width for i in images), height))
    y = 0
    for image in images:
        canvas.paste(image, (0, y))
        y += image.height + gap
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
