"""Folders of pictures, read recursively in the order of their relative paths.

Labels come from the first of these that applies:

1. a file ``dataset.json`` with ``{"labels": [["path/in/folder.png", 3], …]}``, the layout of EDM's and StyleGAN's data;
2. sub-folders: where every picture lies in one of at least two folders, the folders, sorted by name, are the classes;
3. none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from farfield.data.pixels import SUFFIXES, Assembler, Size, decode, one_line
from farfield.data.progress import track
from farfield.data.source import Source
from farfield.errors import DataError


def list_pictures(folder: Path) -> list[str]:
    """Relative paths, with forward slashes and sorted, of all pictures below a folder; hidden names are left out."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        base = Path(root).relative_to(folder)
        found += [
            (base / name).as_posix()
            for name in files
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def open_folder(folder: Path) -> Source:
    """A folder of pictures as a source.

    Raises:
        DataError: if it holds no pictures, or its ``dataset.json`` does not fit them.
    """
    paths = list_pictures(folder)
    if not paths:
        raise DataError(f"{folder}: no pictures ({', '.join(sorted(SUFFIXES))}) and no parquet files in this folder")
    labels, classes = _labels(folder, paths)

    def read(rows: Tensor, size: Size) -> tuple[Tensor, Tensor | None]:
        out = Assembler(len(rows), size)
        for row in track(rows.tolist(), len(rows), f"reading {folder.name}"):
            out.add(decode(folder / paths[row], paths[row]), paths[row])
        return out.result(), None if labels is None else labels[rows]

    return Source(folder.name or str(folder), len(paths), read, classes)


def _labels(folder: Path, paths: list[str]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    listing = folder / "dataset.json"
    if listing.is_file():
        return _json_labels(listing, paths), None
    tops = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
    names = tuple(sorted(set(tops)))
    if len(names) < 2 or "" in names:
        return None, None
    number = {name: k for k, name in enumerate(names)}
    return torch.tensor([number[top] for top in tops]), names


def _json_labels(listing: Path, paths: list[str]) -> Tensor | None:
    try:
        entries = json.loads(listing.read_text(encoding="utf-8"))["labels"]
        if entries is None:
            return None
        table = {str(path): label for path, label in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{listing}: no readable table of labels: {one_line(error)}") from None
    missing = [path for path in paths if path not in table]
    if missing:
        raise DataError(f"{listing}: {len(missing)} pictures have no label there, the first is {missing[0]}")
    values = [table[path] for path in paths]
    wrong = [value for value in values if not isinstance(value, int) or isinstance(value, bool)]
    if wrong:
        raise DataError(f"{listing}: label {wrong[0]!r}; expected integers")
    return torch.tensor(values, dtype=torch.int64)
