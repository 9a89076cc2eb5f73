"""What the analysis of the potential between samples found: sections, their shapes, and when they split."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.potential_sections import Shape, both_ways, section_shape
from farfield.analysis.potential_sections_paths import Which
from farfield.analysis.tables import Table


@dataclass(frozen=True, eq=False)
class LawSections:
    """The sections under one law.

    Attributes:
        mean: (T, A) the average over the pairs, each in both orders, in units of g².
        error: (T, A) its standard error over the pairs.
        shapes: (T,) how many pairs have which shape.
        splits: (P,) the time at which each pair's section splits; NaN for one that never does, infinite for one that is
            split from the start.
        split: the same of the averaged section.
    """

    mean: Tensor
    error: Tensor
    shapes: tuple[dict[Shape, int], ...]
    splits: Tensor
    split: float

    @property
    def median_split(self) -> float:
        """The median time of the pairs, those that never split counted as 0 and those that always were as infinite."""
        return float(self.splits.nan_to_num(nan=0.0, posinf=math.inf).median())

    def split_by(self, t: float) -> float:
        """The share of pairs whose section has split by the forward time t."""
        return float((self.splits.nan_to_num(nan=-math.inf, posinf=math.inf) >= t).double().mean())


def shape_counts(angles: Tensor, values: Tensor) -> dict[Shape, int]:
    """How many sections (P, A) have which shape."""
    return dict(Counter(section_shape(angles, row) for row in values))


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _time(value: float) -> str:
    if math.isnan(value) or value <= 0:
        return "never"
    return "from the start" if math.isinf(value) else f"{value:.3f}"


@dataclass(frozen=True, eq=False)
class SampleSections:
    """Sections of the potential between generated samples.

    Attributes:
        laws: ``"model"`` and, beside it, ``"data"``, the exact law of the data, between the same states.
        times: forward times, decreasing.
        thetas, sigmas: signal scale and noise level at each.
        angles: (A,) in radians.
        which: the dynamics that made the states.
        n, pairs, steps, seed: of the samples.
        resolution: how well a split is located, in time.
        critical: the first critical time of the data, or None.
    """

    laws: dict[str, LawSections]
    times: tuple[float, ...]
    thetas: tuple[float, ...]
    sigmas: tuple[float, ...]
    angles: Tensor
    which: Which
    n: int
    pairs: int
    steps: int
    seed: int
    resolution: float
    critical: float | None

    def summary(self) -> str:
        """When the sections split, beside the critical time."""
        model = self.laws["model"]
        text = (
            f"Of {self.pairs} pairs of samples the median section splits at s = {_time(model.median_split)}, the average at "
            f"{_time(model.split)} (located to {self.resolution:.1g})"
        )
        if "data" in self.laws:
            data = self.laws["data"]
            text += f"; under the data's exact law at {_time(data.median_split)} and {_time(data.split)}"
        if self.critical is not None:
            text += f". The first critical time of the data is s = {self.critical:.3f}"
            if math.isfinite(model.split):
                text += f": the average splits {'later' if model.split < self.critical else 'earlier'} in generation"
        return text + "."

    def tables(self) -> list[Table]:
        """Shapes by time, and split times by law."""
        rows = []
        for k, t in enumerate(self.times):
            for name, law in self.laws.items():
                counts = law.shapes[k]
                mean = section_shape(self.angles, law.mean[k])
                rows.append(
                    (t, self.thetas[k], self.sigmas[k], name, mean, *(counts.get(s, 0) for s in _SHAPES))
                )  # fmt: skip
        splits = []
        for name, law in self.laws.items():
            found = law.splits.nan_to_num(nan=0.0, posinf=1e9)
            quartiles = [float(found.quantile(q, interpolation="lower")) for q in (0.25, 0.75)]
            shown = [
                _time(v if v < 1e9 else math.inf) for v in (quartiles[0], law.median_split, quartiles[1], law.split)
            ]
            splits.append((name, *shown, None if self.critical is None else round(self.critical, 3)))
        return [
            Table(
                f"sections between {self.pairs} pairs of samples",
                ("s", "α", "σ", "law", "average", *(f"pairs: {s}" for s in _SHAPES)),
                tuple(rows),
            ),
            Table(
                "forward time at which sections split",
                ("law", "pairs, lower quartile", "pairs, median", "pairs, upper quartile", "average", "critical time"),
                tuple(splits),
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe; a split of None is one without a time, see ``state``."""
        laws = {
            name: {
                "mean": law.mean.tolist(),
                "error": law.error.tolist(),
                "shapes": [dict(counts) for counts in law.shapes],
                "splits": [_plain(v) for v in law.splits.tolist()],
                "state": [_time(v) for v in law.splits.tolist()],
                "median_split": _plain(law.median_split),
                "split": _plain(law.split),
            }
            for name, law in self.laws.items()
        }
        return {
            "laws": laws,
            "times": list(self.times),
            "thetas": list(self.thetas),
            "sigmas": list(self.sigmas),
            "angles": self.angles.tolist(),
            "which": self.which,
            "n": self.n,
            "pairs": self.pairs,
            "steps": self.steps,
            "seed": self.seed,
            "resolution": self.resolution,
            "critical": self.critical,
        }

    def plot(self, ax: Any = None) -> Any:
        """The averaged sections at each time, then the share of pairs that have split; ``ax`` takes the last panel alone."""
        from farfield.analysis.potential_sections_plot import draw_sections, draw_splits

        if ax is None:
            return draw_sections(self)
        draw_splits(self, ax)
        return ax.figure


_SHAPES: tuple[Shape, ...] = ("convex", "single well", "double well", "no well")


def law_sections(angles: Tensor, tables: list[Tensor], splits: Tensor, split: float) -> LawSections:
    """Bring the sections (P, A) at each time together."""
    even = [both_ways(values) for values in tables]
    return LawSections(
        mean=torch.stack([v.mean(0) for v in even]),
        error=torch.stack([v.std(0, correction=min(1, len(v) - 1)) / len(v) ** 0.5 for v in even]),
        shapes=tuple(shape_counts(angles, values) for values in tables),
        splits=splits,
        split=split,
    )
