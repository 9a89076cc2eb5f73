"""The report's folder: what it may be, and how files get into it whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farfield.errors import ArgumentError
from farfield.networks.files import write_atomic

FORMAT = "farfield report 1"
PAGE, DATA, SAMPLER = "index.html", "report.json", "sampler.json"


def check_folder(out: Path) -> None:
    """Raise unless ``out`` is missing, empty, or holds a former report.

    Raises:
        ArgumentError: naming the folder and what was found in it.
    """
    if not out.exists() and not out.is_symlink():
        _check_writable(out)
        return
    if not out.is_dir():
        raise ArgumentError(f"out = {str(out)!r} is not a folder")
    names = sorted(path.name for path in out.iterdir())
    if not names or _former_report(out / DATA):
        return
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise ArgumentError(
        f"out = {str(out)!r} holds something else ({names[0]}{more}); expected a new or empty folder, or a former report"
    )


def _check_writable(out: Path) -> None:
    """Raise unless a folder can be made where ``out`` would be: better now than after the work."""
    parent = next(p for p in out.absolute().parents if p.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    except OSError as error:
        raise ArgumentError(f"out = {str(out)!r} cannot be written: {error.strerror or error}") from error


def _former_report(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and str(found.get("format", "")).startswith("farfield report ")


def plain(value: Any) -> Any:
    """A value as strict JSON knows it: tuples to lists, NaN and infinity to null, anything else to its text.

    Unlike ``networks.structure.plain`` it need not be read back, and never fails.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return str(value)


def write_files(out: Path, files: Mapping[str, str]) -> None:
    """Write texts into a folder so that no reader ever finds half a file.

    They are written to a temporary sibling first. A folder that does not exist yet appears complete, by one rename; into
    an existing one each file is moved by ``os.replace``, report.json first: it alone marks the folder as a report, so
    that one left by a kill between two moves can be written again.

    Raises:
        ArgumentError: if the folder cannot be written, or has come to hold something else meanwhile.
    """
    out = out.absolute()
    check_folder(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ArgumentError(f"out = {str(out)!r} cannot be written: {error.strerror or error}") from error
    try:
        for name, text in files.items():
            write_atomic(stage / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        if not out.exists():
            stage.chmod(0o755)
            os.replace(stage, out)
        else:
            for name in sorted(files, key=lambda name: name != DATA):
                os.replace(stage / name, out / name)
    except OSError as error:
        raise ArgumentError(f"out = {str(out)!r} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
