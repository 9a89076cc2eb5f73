"""The value every loader returns: samples in [−1, 1] with optional labels, a name and a content digest.

The digest is a SHA-256 over what the data *say* (shape, decoded values, labels) and not over how a file stores them:
the same images read from a folder, an ``.npz`` or a parquet file, in the same order, have the same digest.

Splitting. A set of N samples with a holdout of H is divided by one of two rules. The *permuted* rule draws an order
from ``streams.permutation(seed, N, purpose="holdout")``; the first N − H of it train, the last H validate. The *tail*
rule holds out the last H rows as they stand; it is used where the source is known to be shuffled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.errors import ArgumentError, DataError
from farfield.numerics import streams

Split = Literal["all", "train", "validation"]
SPLITS: tuple[Split, ...] = ("all", "train", "validation")


@dataclass(frozen=True)
class SplitRule:
    """How a set is divided when nothing else is said.

    Args:
        holdout: number of validation samples; a tenth when None.
        seed: of the permuted rule.
        tail: hold out the last rows instead of a permuted choice.
    """

    holdout: int | None = None
    seed: int = 0
    tail: bool = False


@dataclass(frozen=True, eq=False)
class DataSet:
    """Samples held in memory.

    Args:
        images: (N, C, H, W) float32 in [−1, 1], or (N, d) float32 vectors of any finite range.
        labels: (N,) int64 ≥ 0, or None.
        name: what the data are called in messages and records.
        classes: the names of the labels 0, 1, …, or None.
        rule: what ``train``, ``validation`` and ``split`` hold out by default.

    Raises:
        DataError: for wrong shapes or types, NaN or infinity, images outside [−1, 1], or labels that do not fit.
    """

    images: Tensor
    labels: Tensor | None = None
    name: str = "data"
    classes: tuple[str, ...] | None = None
    rule: SplitRule = SplitRule()

    def __post_init__(self) -> None:
        x = self.images
        if x.ndim not in (2, 4) or 0 in x.shape:
            raise DataError(f"{self.name}: shape {tuple(x.shape)}; expected (N, C, H, W) or (N, d) with no axis of 0")
        if x.dtype != torch.float32:
            raise DataError(f"{self.name}: values are {x.dtype}; expected float32")
        low, high = (float(v) for v in torch.aminmax(x))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # also false for NaN, which aminmax passes on
            raise DataError(f"{self.name}: {_count_bad(x)} of {len(x)} samples hold NaN or infinity")
        if x.ndim == 4 and (low < -1.000001 or high > 1.000001):
            raise DataError(f"{self.name}: image values run from {low:g} to {high:g}; expected [-1, 1]")
        if self.labels is not None:
            self._check_labels(self.labels)

    def _check_labels(self, labels: Tensor) -> None:
        if labels.dtype != torch.int64 or tuple(labels.shape) != (len(self.images),):
            raise DataError(
                f"{self.name}: labels are {labels.dtype} of shape {tuple(labels.shape)}; "
                f"expected int64 of shape ({len(self.images)},)"
            )
        if int(labels.min()) < 0:
            raise DataError(f"{self.name}: the smallest label is {int(labels.min())}; expected labels from 0")
        if self.classes is not None and int(labels.max()) >= len(self.classes):
            raise DataError(f"{self.name}: label {int(labels.max())}, but there are only {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"DataSet({self.name!r}, {len(self)} x {self.event_shape}, labels={self.labels is not None})"

    @property
    def x(self) -> Tensor:
        """The samples: another name for ``images``, for data that are not images."""
        return self.images

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.images.shape[1:])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of shape, values and labels; see :func:`content_digest`."""
        return content_digest(self.images, self.labels)

    def subset(self, rows: Tensor) -> DataSet:
        """The samples with the given numbers (n,), in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return DataSet(self.images[rows], labels, self.name, self.classes)

    def split(self, holdout: int | None = None, seed: int | None = None) -> tuple[DataSet, DataSet]:
        """Training and validation part; None takes the value of ``rule``.

        Args:
            holdout: number of validation samples, 1 to N − 1.
            seed: of the permuted rule; the tail rule has no randomness.

        Raises:
            ArgumentError: if ``holdout`` does not leave a sample on both sides.
        """
        rule = SplitRule(
            self.rule.holdout if holdout is None else holdout, self.rule.seed if seed is None else seed, self.rule.tail
        )
        return self.subset(split_rows(len(self), "train", rule)), self.subset(split_rows(len(self), "validation", rule))

    @cached_property
    def train(self) -> DataSet:
        """The training part of ``split()``; the same samples as ``load(…, split="train")``."""
        return self.split()[0]

    @cached_property
    def validation(self) -> DataSet:
        """The validation part of ``split()``; the same samples as ``load(…, split="validation")``."""
        return self.split()[1]


def split_rows(n: int, split: Split, rule: SplitRule) -> Tensor:
    """The row numbers (int64) of a part of ``n`` samples, in the part's order; see the head of this module.

    Args:
        n: number of samples.
        split: ``"all"`` (0 … n − 1), ``"train"`` or ``"validation"``.
        rule: how to divide; a holdout of None is a tenth, at least one.

    Raises:
        ArgumentError: for an unknown split or an impossible holdout.
    """
    if split not in SPLITS:
        raise ArgumentError(f"split = {split!r}; expected one of {', '.join(SPLITS)}")
    if split == "all":
        return torch.arange(n)
    holdout = max(1, n // 10) if rule.holdout is None else rule.holdout
    if not 1 <= holdout < n:
        raise ArgumentError(f"holdout = {holdout}; expected 1 to {n - 1} for {n} samples")
    order = torch.arange(n) if rule.tail else streams.permutation(rule.seed, n, purpose="holdout")
    return order[: n - holdout] if split == "train" else order[n - holdout :]


def content_digest(images: Tensor, labels: Tensor | None = None) -> str:
    """SHA-256 of a header with the shapes, the float32 values and the int64 labels, little-endian, row by row."""
    digest = hashlib.sha256(f"farfield-data-1 {tuple(images.shape)} {labels is not None}".encode())
    for block in images.detach().cpu().split(1024):
        # Adding +0.0 turns −0.0 into 0.0: equal values, equal digest.
        digest.update((block.float().contiguous().numpy() + 0.0).astype("<f4", copy=False).data)
    if labels is not None:
        digest.update(labels.detach().cpu().contiguous().numpy().astype("<i8", copy=False).data)
    return digest.hexdigest()


def describe(data: DataSet) -> dict[str, Any]:
    """What ``farfield data NAME`` prints: plain numbers and strings, ready for JSON.

    Returns:
        ``name``, ``count``, ``shape``, ``min``, ``max``, ``mean`` and ``std`` over all values (float64; the standard
        deviation about the one mean, EDM's σ_data), ``class_counts`` (None without labels) and ``digest``.
    """
    # Two passes in blocks: float64 accuracy without a float64 copy of the data.
    total = data.images.numel()
    mean = sum(float(block.sum(dtype=torch.float64)) for block in data.images.split(4096)) / total
    square = sum(float((block.double() - mean).square().sum()) for block in data.images.split(4096)) / total
    low, high = torch.aminmax(data.images)
    counts: Mapping[str, int] | None = None
    if data.labels is not None:
        bins = torch.bincount(data.labels, minlength=len(data.classes or ())).tolist()
        counts = {data.classes[k] if data.classes else str(k): int(n) for k, n in enumerate(bins)}
    return {
        "name": data.name,
        "count": len(data),
        "shape": list(data.event_shape),
        "min": float(low),
        "max": float(high),
        "mean": mean,
        "std": square**0.5,
        "class_counts": counts,
        "digest": data.digest,
    }


def _count_bad(x: Tensor) -> int:
    return sum(int((~torch.isfinite(block).flatten(1).all(1)).sum()) for block in x.split(4096))
