"""Arrays in ``.npz`` and ``.npy`` files. Object arrays, which are pickles, are never read.

An ``.npz`` holds the samples under ``images``, ``x``, ``samples`` or ``arr_0`` and the labels, if any, under
``labels``, ``y`` or ``label``. What the samples are is told from their shape:

- (N, d): vectors, any finite values;
- (N, H, W): grey images;
- (N, a, H, b): images; the channel axis is whichever of axes 1 and 3 has at most four entries. If both have, or
  neither, the array is refused.

Images are uint8 (0 … 255) or floating in [−1, 1].
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farfield.data.pixels import Size, one_line, resize, to_unit
from farfield.data.source import Source
from farfield.errors import ArgumentError, DataError

IMAGE_KEYS = ("images", "x", "samples", "arr_0")
LABEL_KEYS = ("labels", "y", "label")
_BLOCK = 1024


def open_arrays(path: Path) -> Source:
    """An ``.npz`` or ``.npy`` file as a source; its arrays are loaded whole.

    Raises:
        DataError: for a truncated or pickled file, missing arrays, or values and shapes that are no data set.
    """
    images, labels = _load(path)
    images = _arrange(images, path.name)

    def read(rows: Tensor, size: Size) -> tuple[Tensor, Tensor | None]:
        return _convert(images, rows.numpy(), size, path.name), None if labels is None else labels[rows]

    return Source(path.stem, len(images), read)


def _load(path: Path) -> tuple[NDArray[Any], Tensor | None]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            key = next((name for name in IMAGE_KEYS if name in loaded.files), None)
            if key is None:
                held = ", ".join(loaded.files) or "nothing"
                raise DataError(f"{path}: holds {held}; expected samples under {', '.join(IMAGE_KEYS)}")
            images = loaded[key]
            label_key = next((name for name in LABEL_KEYS if name in loaded.files), None)
            labels = None if label_key is None else loaded[label_key]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        if "pickle" in str(error).lower():
            raise DataError(f"{path}: holds a pickle or an object array; pickles are never read") from None
        raise DataError(f"{path}: damaged or not a NumPy file: {one_line(error)}") from None
    return images, None if labels is None else _labels(labels, len(images) if images.ndim else 0, path)


def _labels(labels: NDArray[Any], count: int, path: Path) -> Tensor | None:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(f"{path}: labels are {labels.dtype} {labels.shape}; expected integers of shape ({count},)")
    return torch.from_numpy(labels.astype(np.int64))


def _arrange(images: NDArray[Any], name: str) -> NDArray[Any]:
    """The array as (N, d) or (N, C, H, W), of type uint8 or floating; see the head of this module."""
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(f"{name}: samples are {images.dtype}; expected uint8 or floating point")
    if images.ndim not in (2, 3, 4) or images.size == 0:
        raise DataError(f"{name}: samples have shape {images.shape}; expected (N, d), (N, H, W) or (N, C, H, W), N > 0")
    if images.ndim == 2:
        if images.dtype == np.uint8:
            raise DataError(f"{name}: uint8 samples of shape {images.shape}; expected (N, H, W) or (N, C, H, W)")
        return images
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] <= 4, images.shape[3] <= 4
    if first == last:
        reason = "both axis 1 and axis 3" if first else "neither axis 1 nor axis 3"
        raise DataError(f"{name}: {reason} of {images.shape} could be channels; expected (N, C, H, W) with C <= 4 < W")
    return images if first else images.transpose(0, 3, 1, 2)


def _convert(images: NDArray[Any], rows: NDArray[np.int64], size: Size, name: str) -> Tensor:
    if images.ndim == 2:
        if size is not None:
            raise ArgumentError(f"size = {size!r}: {name} holds vectors, which have no size")
        return torch.from_numpy(images[rows].astype(np.float32))
    out: Tensor | None = None
    low, high = np.inf, -np.inf
    for start in range(0, len(rows), _BLOCK):
        block = images[rows[start : start + _BLOCK]]
        if block.dtype == np.uint8:
            values = to_unit(resize(torch.from_numpy(block), size))
        else:
            low, high = np.minimum(low, block.min()), np.maximum(high, block.max())  # both keep a NaN
            if not np.isfinite(low + high):
                raise DataError(f"{name}: samples hold NaN or infinity")
            if low < -1 - 1e-6 or high > 1 + 1e-6:
                raise DataError(
                    f"{name}: floating-point image values run from {low:g} to {high:g}; "
                    "expected [-1, 1] (or uint8 from 0 to 255)"
                )
            values = resize(torch.from_numpy(block.astype(np.float32)).clamp_(-1, 1), size)
        if out is None:
            out = torch.empty(len(rows), *values.shape[1:])
        out[start : start + len(values)] = values
    if out is None:
        raise DataError(f"{name}: no samples")
    if images.dtype != np.uint8 and low >= 0:
        warnings.warn(f"{name}: values run from {low:g} to {high:g} and are read as [-1, 1]; map [0, 1] by 2x - 1")
    return out
