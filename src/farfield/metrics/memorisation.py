"""Does a model copy its training set? Distances from samples to training images, calibrated on held-out images.

For each sample, d₁ and d₂ are the distances to the nearest and the second nearest *distinct* training image. A sample
counts as a copy where d₁/d₂ < 1/3 (Yoon et al. 2023; after Carlini et al. 2023): it is far closer to one image than the
data are to each other. Training images that occur more than once are counted once, or a copy of one of them would have
a ratio of 1.

The ratio misses a model that stays a little too close everywhere. So the distances d₁ of the samples are set against
those of held-out images, which are as close to the training set as honest samples of the same law would be: the ratio
of the medians (1 for honest samples), the fraction of samples closer than the 1 % quantile of the held-out distances
(0.01), and the probability that a sample is closer than a held-out image (0.5).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.errors import ArgumentError

COPY_RATIO = 1 / 3
_SPARE = 6  # candidates beyond k that the fast search hands to the exact one


def nearest_distances(x: Tensor, data: Tensor, k: int = 2) -> tuple[Tensor, Tensor]:
    """Euclidean distances to the k nearest rows of ``data``, exact in float64.

    A blocked matrix product ``|x|² − 2 x·y + |y|²`` proposes k + 6 candidates for each row, in float64 up to 128
    dimensions and in float32 above; their distances are then computed from the differences, so a copy has distance 0.

    Args:
        x: (B, *event).
        data: (N, *event), N ≥ k.
        k: number of neighbours.

    Returns:
        Distances (B, k) float64, ascending, and row numbers in ``data`` (B, k) int64.

    Raises:
        ArgumentError: for unlike shapes or fewer than k rows.
    """
    if x.ndim < 2 or x.shape[1:] != data.shape[1:]:
        raise ArgumentError(f"x is {tuple(x.shape)} and data {tuple(data.shape)}; expected (B, *event) and (N, *event)")
    if not 1 <= k <= len(data):
        raise ArgumentError(f"k = {k}; expected 1 to {len(data)}, the rows of data")
    x, data = x.flatten(1), data.flatten(1)
    dtype = torch.float64 if x.shape[1] <= 128 else torch.float32
    centre = data.mean(0, dtype=torch.float64).to(dtype)  # short vectors lose fewer digits in the product
    candidates = min(k + _SPARE, len(data))
    distances, numbers = [], []
    for block in x.split(256):
        near = _candidates(block.to(dtype) - centre, data, centre, candidates)
        exact = (data[near].double() - block.double().unsqueeze(1)).norm(dim=2)
        best, place = exact.topk(k, dim=1, largest=False)
        distances.append(best)
        numbers.append(near.gather(1, place))
    return torch.cat(distances), torch.cat(numbers)


def _candidates(x: Tensor, data: Tensor, centre: Tensor, count: int) -> Tensor:
    """Row numbers (B, count) of the nearest rows by the product formula; the |x|² common to a row is left out."""
    best: Tensor | None = None
    numbers: Tensor | None = None
    for start in range(0, len(data), 4096):
        part = data[start : start + 4096].to(x.dtype) - centre
        score = part.square().sum(1) - 2 * (x @ part.T)
        value, place = score.topk(min(count, len(part)), dim=1, largest=False)
        place = place + start
        if best is None or numbers is None:
            best, numbers = value, place
            continue
        best, numbers = torch.cat((best, value), 1), torch.cat((numbers, place), 1)
        best, keep = best.topk(min(count, best.shape[1]), dim=1, largest=False)
        numbers = numbers.gather(1, keep)
    assert numbers is not None  # data has rows
    return numbers


def distinct_rows(data: Tensor) -> Tensor:
    """The numbers of the first occurrence of each distinct row, ascending: (n,) int64."""
    seen: dict[bytes, int] = {}
    for start in range(0, len(data), 4096):
        block = (data[start : start + 4096].detach().flatten(1).cpu() + 0.0).numpy()
        for offset, row in enumerate(block):
            seen.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), start + offset)
    return torch.tensor(list(seen.values()), device=data.device)


@dataclass(frozen=True, eq=False)
class Memorisation:
    """How close samples lie to the training images, beside held-out images; see the head of this module.

    Args:
        distance: (n,) float64, d₁ of each sample.
        ratio: (n,) float64 in [0, 1], d₁/d₂.
        nearest: (n,) int64, the row of the nearest training image.
        heldout_distance, heldout_ratio: the same of the held-out images, or None without them.
        n_train, n_distinct: training images, and distinct ones.
    """

    distance: Tensor
    ratio: Tensor
    nearest: Tensor
    heldout_distance: Tensor | None
    heldout_ratio: Tensor | None
    n_train: int
    n_distinct: int

    @property
    def copies(self) -> float:
        """Fraction of samples with d₁/d₂ < 1/3."""
        return _fraction(self.ratio < COPY_RATIO)

    @property
    def heldout_copies(self) -> float | None:
        """The same of the held-out images: what the rule finds where nothing was copied."""
        return None if self.heldout_ratio is None else _fraction(self.heldout_ratio < COPY_RATIO)

    @property
    def median_ratio(self) -> float | None:
        """Median d₁ of the samples over that of the held-out images: about 1 for honest samples, 0 for copies."""
        if self.heldout_distance is None:
            return None
        base = float(self.heldout_distance.quantile(0.5))
        return float(self.distance.quantile(0.5)) / base if base > 0 else None

    @property
    def close(self) -> float | None:
        """Fraction of samples below the 1 % quantile of the held-out distances: about 0.01 for honest samples."""
        if self.heldout_distance is None:
            return None
        return _fraction(self.distance < self.heldout_distance.quantile(0.01))

    @property
    def closer(self) -> float | None:
        """Probability that a sample is closer than a held-out image, ties counted half; 0.5 for honest samples."""
        if self.heldout_distance is None:
            return None
        base = self.heldout_distance.sort().values
        above = len(base) - torch.searchsorted(base, self.distance, right=True)
        ties = torch.searchsorted(base, self.distance, right=True) - torch.searchsorted(base, self.distance)
        return float((above + ties / 2).double().mean()) / len(base)

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values; the arrays are left out."""
        return {
            "copies": self.copies,
            "heldout_copies": self.heldout_copies,
            "median_distance": float(self.distance.quantile(0.5)),
            "median_ratio": self.median_ratio,
            "close": self.close,
            "closer": self.closer,
            "n_samples": len(self.distance),
            "n_heldout": None if self.heldout_distance is None else len(self.heldout_distance),
            "n_train": self.n_train,
            "n_distinct": self.n_distinct,
        }


def _fraction(hits: Tensor) -> float:
    return float(hits.double().mean())


def _ratio(distances: Tensor) -> Tensor:
    """d₁/d₂, and 0 where both vanish."""
    first, second = distances.unbind(1)
    return torch.where(second > 0, first / second, 0.0)


def memorisation(samples: Tensor, train: Tensor, heldout: Tensor | None = None) -> Memorisation:
    """Compare samples with training images, and with what held-out images would show.

    Args:
        samples: (n, *event), n ≥ 1.
        train: (N, *event) with at least two distinct images.
        heldout: (m, *event) images of the same law that the model has not seen, or None.

    Raises:
        ArgumentError: for unlike shapes, no samples, or fewer than two distinct training images.
    """
    for name, part in (("samples", samples), ("heldout", heldout)):
        if part is not None and len(part) == 0:
            raise ArgumentError(f"{name} is empty")
    rows = distinct_rows(train)
    if len(rows) < 2:
        raise ArgumentError(f"train holds {len(rows)} distinct images; at least 2 are needed")
    unique = train if len(rows) == len(train) else train[rows]
    distances, numbers = nearest_distances(samples, unique, 2)
    held = None if heldout is None else nearest_distances(heldout, unique, 2)[0]
    return Memorisation(
        distance=distances[:, 0].contiguous(),
        ratio=_ratio(distances),
        nearest=rows[numbers[:, 0]],
        heldout_distance=None if held is None else held[:, 0].contiguous(),
        heldout_ratio=None if held is None else _ratio(held),
        n_train=len(train),
        n_distinct=len(rows),
    )
