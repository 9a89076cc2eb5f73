"""``load``: every kind of data through one door, named data sets and paths alike."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from farfield.data.arrays import open_arrays
from farfield.data.dataset import DataSet, Split, SplitRule, split_rows
from farfield.data.folders import open_folder
from farfield.data.parquet import open_parquet
from farfield.data.pixels import Size, resize, target_size
from farfield.data.source import Source
from farfield.errors import ArgumentError, DataError, unknown_name

TOY_COUNT = 10_000
DIGITS_HOLDOUT = 297


@dataclass(frozen=True)
class NamedSource:
    """A data set that needs no file: what it is, in one line, and how to open it with a seed."""

    description: str
    open: Callable[[int], Source]


def _open_digits(seed: int) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 17 grey levels: 0 … 16.
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 8 - 1
    labels = torch.from_numpy(bunch.target).to(torch.int64)

    def read(rows: Tensor, size: Size) -> tuple[Tensor, Tensor | None]:
        return resize(images[rows], size), labels[rows]

    return Source("digits", len(images), read, tuple("0123456789"), DIGITS_HOLDOUT)


#: Where the CIFAR-10 file is looked for, after ``$FARFIELD_CIFAR10``.
CIFAR10_PLACES = (".", "data", "../shared/data")
CIFAR10_FILES = ("cifar10_train.parquet", "cifar10.parquet")


def _open_cifar10(seed: int) -> Source:
    told = os.environ.get("FARFIELD_CIFAR10")
    places = [Path(told).expanduser()] if told else [Path(p) / f for p in CIFAR10_PLACES for f in CIFAR10_FILES]
    for path in places:
        if path.is_file():
            return dataclasses.replace(open_parquet([path], path.stem), name="cifar10", classes=CIFAR10_CLASSES)
    raise DataError(
        f"cifar10: no file at {', '.join(map(str, places))}; farfield downloads nothing: set FARFIELD_CIFAR10 to the "
        "50,000 training images as one .parquet file (columns image, label), or give the path in place of the name"
    )


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SOURCES: dict[str, NamedSource] = {
    "cifar10": NamedSource(
        "50,000 photographs in ten classes, 32x32 colour (Krizhevsky 2009); your own file, see FARFIELD_CIFAR10",
        _open_cifar10,
    ),
    "digits": NamedSource("1,797 scans of handwritten digits, 8x8 grey (Alpaydin & Kaynak 1998)", _open_digits),
}


def names() -> tuple[str, ...]:
    """All named data sets, as ``load`` takes them: ``digits`` and one ``toy:NAME`` for each toy law."""
    from farfield.data.toys import TOY_NAMES

    return (*SOURCES, *(f"toy:{name}" for name in TOY_NAMES))


def _open_toy(text: str, seed: int) -> Source:
    from farfield.data.toys import TOY_NAMES, sample_toy

    toy, _, number = text.removeprefix("toy:").partition(":")
    if toy not in TOY_NAMES:
        raise unknown_name("data source", text, names())
    if number and not (number.isdecimal() and int(number) > 0):
        raise ArgumentError(f"source = {text!r}; expected toy:NAME or toy:NAME:COUNT with a positive count")
    points = sample_toy(toy, int(number or TOY_COUNT), seed)

    def read(rows: Tensor, size: Size) -> tuple[Tensor, Tensor | None]:
        if size is not None:
            raise ArgumentError(f"size = {size!r}: {text} holds vectors, which have no size")
        return points[rows], None

    return Source(f"toy:{toy}", len(points), read, tail=True)  # independent draws: the last serve as well as any


def open_source(source: str | Path, seed: int = 0) -> Source:
    """The reader for a name or a path; see :func:`load`."""
    text = str(source)
    if text in SOURCES:
        return SOURCES[text].open(seed)
    if text.startswith("toy:"):
        return _open_toy(text, seed)
    path = Path(text).expanduser()
    if path.is_dir():
        shards = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
        return open_parquet(shards, path.name) if shards else open_folder(path)
    if path.is_file():
        return _open_file(path)
    shards = [Path(name) for name in sorted(glob.glob(str(path)))] if glob.has_magic(text) else []
    if shards:
        if any(shard.suffix.lower() != ".parquet" for shard in shards):
            raise ArgumentError(f"source = {text!r}: a pattern may only match .parquet files")
        return open_parquet(shards, path.parent.name or text)
    raise ArgumentError(
        f"{unknown_name('data source', text, names())} "
        "A path works too: a folder of pictures, an .npz, .npy or .parquet file; there is none of that name."
    )


def _open_file(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return open_arrays(path)
    if suffix == ".parquet":
        return open_parquet([path], path.stem)
    if suffix in (".pkl", ".pickle", ".pt", ".pth"):
        raise DataError(f"{path}: pickles are never read as data; save the arrays as .npz")
    raise DataError(f"{path}: not a kind of file that is read; .npz, .npy, .parquet and folders of pictures are")


def load(
    source: str | Path,
    *,
    size: Size = None,
    split: Split = "all",
    holdout: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    labels: bool = True,
) -> DataSet:
    """Load a data set into memory.

    Args:
        source: ``"digits"``; ``"toy:NAME"`` (10,000 points) or ``"toy:NAME:COUNT"``; or a path: a folder of pictures
            (classes in sub-folders), an ``.npz`` or ``.npy`` file, a ``.parquet`` file, a folder of such shards, or a
            pattern such as ``data/train-*.parquet``. Nothing in a file is ever executed.
        size: images are cropped to this size's aspect ratio and resized, an integer (square) or (height, width); by
            exact block means where both sides shrink by integers (32 → 16), else by an antialiased bilinear filter.
        split: ``"all"`` in the source's order, ``"train"`` or ``"validation"``.
        holdout: number of validation samples. By default 297 for the digits (1,500 train), 5,000 for a parquet set
            of at least 50,000 rows, a tenth otherwise. Large parquet sets and toys hold out their last rows,
            everything else a choice permuted by ``seed``.
        limit: at most this many samples, the first of the split.
        seed: of the split, and of the draw of a toy law.
        labels: False leaves the labels out.

    Returns:
        The data; ``load(s).train`` has the same samples as ``load(s, split="train")``.

    Raises:
        ArgumentError: for an unknown source or an argument out of range.
        DataError: for data that cannot be read, or are not finite images in [−1, 1].
    """
    target_size(size)
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit = {limit}; expected at least 1")
    opened = open_source(source, seed)
    rule = SplitRule(opened.holdout if holdout is None else holdout, seed, opened.tail)
    whole = split == "all" and (limit is None or limit >= opened.count)
    images, targets = opened.read(split_rows(opened.count, split, rule)[:limit], size)
    if not labels or targets is None:
        return DataSet(images, None, opened.name, None, rule if whole else SplitRule())
    return DataSet(images, targets, opened.name, opened.classes, rule if whole else SplitRule())
