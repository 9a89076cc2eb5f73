"""What a reader of any kind of storage offers to :func:`farfield.data.load`: a count known before anything is decoded,
and a function that reads chosen rows, so that a split or a limit never costs more than its own samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from farfield.data.pixels import Size


@dataclass(frozen=True)
class Source:
    """An opened source.

    Args:
        name: what the data are called.
        count: number of rows.
        read: from row numbers (n,) int64, in any order, and a size to images and labels in that order.
        classes: names of the labels.
        holdout: default number of validation samples; a tenth when None.
        tail: whether the last rows are held out.
    """

    name: str
    count: int
    read: Callable[[Tensor, Size], tuple[Tensor, Tensor | None]]
    classes: tuple[str, ...] | None = None
    holdout: int | None = None
    tail: bool = False
