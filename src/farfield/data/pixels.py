"""From encoded pictures to tensors in [−1, 1]: safe decoding, exact pooling, and the assembly of a whole set.

Decoding goes through Pillow, restricted to formats that are plain raster data (no PostScript, which Pillow would hand
to an interpreter), with a cap on the pixels, checked before anything is decompressed. Values map as x/127.5 − 1.

Resizing first crops the centre to the target's aspect ratio. Where both sides shrink by an integer factor it then takes
the mean of each block, in integers, so the result is exact and the same on every machine; otherwise it uses PyTorch's
antialiased bilinear filter, which cannot leave the range of its input.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from farfield.errors import ArgumentError, DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"})
MAX_PIXELS = 2**26  # 8192 × 8192; more is an error in a training set, or a decompression bomb

Size = int | tuple[int, int] | None
_BLOCK = 1024


def decode(source: bytes | Path, where: str) -> NDArray[np.uint8]:
    """One picture as (H, W, 1) or (H, W, 3) uint8: grey stays grey, all else becomes RGB, transparency over white.

    The orientation in a photograph's EXIF record is applied, 16-bit grey is rounded to 8 bits, and the first frame is
    taken of an animation.

    Args:
        source: the encoded bytes, or a file.
        where: what to call the picture in an error.

    Raises:
        DataError: for a file that is no picture, is truncated, or has more than 2²⁶ pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning: the check below raises earlier
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DataError(f"{where}: {picture.width}x{picture.height} pixels; at most {MAX_PIXELS} are read")
                return _as_array(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise DataError(f"{where}: not a readable picture ({', '.join(FORMATS)} are read)") from None
    except Image.DecompressionBombError:
        raise DataError(f"{where}: too many pixels; at most {MAX_PIXELS} are read") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, MemoryError) as error:
        raise DataError(f"{where}: cannot decode the picture: {one_line(error)}") from None


def _as_array(picture: Any) -> NDArray[np.uint8]:
    """The pixels of an open Pillow image; see :func:`decode`."""
    mode = picture.mode
    if mode.startswith("I") or mode == "F":
        wide = np.asarray(picture).astype(np.float64)
        if mode == "F" or wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"pixel type {mode!r} is not read; save the picture with 8 or 16 bits")
        return np.rint(wide / 257).astype(np.uint8)[..., None]
    if mode == "RGB":
        return np.asarray(picture)
    if mode in ("L", "1"):
        return np.asarray(picture.convert("L"))[..., None]
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        from PIL import Image

        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        if mode in ("LA", "La"):
            return np.asarray(picture.convert("L"))[..., None]
    return np.asarray(picture.convert("RGB"))


def one_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def target_size(size: Size) -> tuple[int, int] | None:
    """``size`` as (height, width).

    Raises:
        ArgumentError: unless it is None, a positive integer or a pair of them.
    """
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ArgumentError(f"size = {size!r}; expected a positive integer or (height, width)")
    return pair[0], pair[1]


def resize(images: Tensor, size: Size) -> Tensor:
    """Images (N, C, H, W), uint8 or floating, at another size: crop to the aspect ratio, then pool or filter.

    Returns:
        float32 in the units of the input (0 … 255 for uint8), (N, C, height, width).
    """
    goal = target_size(size)
    if goal is None or goal == tuple(images.shape[-2:]):
        return images.float()
    images = _crop(images, goal)
    height, width = images.shape[-2:]
    if height % goal[0] == 0 and width % goal[1] == 0:
        fy, fx = height // goal[0], width // goal[1]
        blocks = images.reshape(*images.shape[:2], goal[0], fy, goal[1], fx)
        total = blocks.sum((3, 5), dtype=torch.float64 if images.is_floating_point() else torch.int64)
        return (total.double() / (fy * fx)).float()
    return functional.interpolate(images.float(), goal, mode="bilinear", antialias=True, align_corners=False)


def _crop(images: Tensor, goal: tuple[int, int]) -> Tensor:
    """The centre of the images with the goal's aspect ratio, as large as fits."""
    height, width = images.shape[-2:]
    # Integer arithmetic: whichever side is too long for the ratio is cut.
    new_height = min(height, max(1, width * goal[0] // goal[1]))
    new_width = min(width, max(1, height * goal[1] // goal[0]))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return images[..., top : top + new_height, left : left + new_width]


def to_unit(images: Tensor) -> Tensor:
    """Values 0 … 255 to [−1, 1]: x/127.5 − 1, float32. Changes a float32 input in place."""
    return images.float().div_(127.5).sub_(1)


class Assembler:
    """Collects decoded pictures into one float32 tensor, resizing in blocks so that only the result is held in full.

    Args:
        count: number of pictures to come.
        size: target size; None keeps the size, which must then be the same for all.

    A set with both grey and colour pictures becomes colour, grey values repeated.
    """

    def __init__(self, count: int, size: Size = None) -> None:
        self.count = count
        self.size = target_size(size)
        self._out: Tensor | None = None
        self._filled = 0
        self._pending: list[NDArray[np.uint8]] = []
        self._first: tuple[str, tuple[int, int]] | None = None

    def add(self, picture: NDArray[np.uint8], where: str) -> None:
        """Append one picture (H, W, C).

        Raises:
            DataError: for a second size where no target size was given.
        """
        shape = picture.shape[:2]
        if self._first is None:
            self._first = (where, shape)
        elif self.size is None and shape != self._first[1]:
            name, (height, width) = self._first
            raise DataError(
                f"{where} is {shape[0]}x{shape[1]} but {name} is {height}x{width}; give size= to crop and resize"
            )
        self._pending.append(picture)
        if len(self._pending) == _BLOCK:
            self._flush()

    def _flush(self) -> None:
        start = 0
        while start < len(self._pending):
            # Runs of one shape go through the filter together.
            shape = self._pending[start].shape
            stop = start + 1
            while stop < len(self._pending) and self._pending[stop].shape == shape:
                stop += 1
            block = torch.from_numpy(np.stack(self._pending[start:stop])).permute(0, 3, 1, 2)
            self._store(to_unit(resize(block, self.size)))
            start = stop
        self._pending.clear()

    def _store(self, block: Tensor) -> None:
        if self._out is None:
            self._out = torch.empty(self.count, *block.shape[1:])
        if block.shape[1] > self._out.shape[1]:
            self._out = self._out.repeat(1, 3, 1, 1)
        self._out[self._filled : self._filled + len(block)] = block  # one grey channel broadcasts over three
        self._filled += len(block)

    def result(self) -> Tensor:
        """The pictures, (count, C, H, W) float32 in [−1, 1], in the order they came."""
        self._flush()
        if self._out is None or self._filled != self.count:
            raise DataError(f"{self._filled} pictures were read where {self.count} were announced")
        return self._out
