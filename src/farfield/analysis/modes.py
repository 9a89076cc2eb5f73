"""The modes of the data's kernel density by bandwidth, and whether the model's denoiser leads to the same ones.

The optimal denoiser at level σ pulls towards the modes of the density of bandwidth h = σ (:mod:`farfield.analysis.mean_shift`):
one for all data at large noise, one for each training image at small noise. Where a mode splits, sampling decides. Above
``h = diam/2`` there is one mode whatever the data. It splits where ``λ_max(Cov_w) = h²``; as ``Cov_w`` tends to the data's
covariance for large h, that is about ``sqrt(λ₁)``, the largest standard deviation, for data that consist of groups along their
leading direction, and later for data that look Gaussian along it. Two equal points part at half of their distance.

The model's denoiser is iterated in the same way, ``x ← D(x, σ)``, from training images. It was trained on noisy states, so a
clean image at a level far above its own is not what it has seen; where it still ends in the same mode as the data's mean shift,
it has learnt the data's density on that scale. At small levels a model that generalises does not: its field has modes of its
own, and only one that copies ends on the training images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.mean_shift import mean_shift
from farfield.analysis.mean_shift_modes import MERGE, Modes, merged, modes
from farfield.analysis.mean_shift_plot import draw_modes
from farfield.analysis.mean_shift_tree import ModeTree, mode_tree
from farfield.analysis.tables import Cell, Table
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.numerics import streams

#: A network's iteration has float32 noise and is compared coarsely: its tolerance and merging, in units of h.
_ROUGH, _MERGE_ROUGH = 1e-3, 0.1
#: Shown by default: the bandwidths whose numbers of modes are nearest to these (a number, or a share of the points).
_SHOWN = (6.0, 0.05, 0.5)


@dataclass(frozen=True, eq=False)
class ModelModes:
    """The model's denoiser iterated at one level from n training images.

    Attributes:
        same: share of the starts whose end lies in the basin of the data's mode that the start belongs to.
        distance: mean over the starts of the distance from the end to the data's mode of the start, per coordinate (RMS).
        count: distinct ends.
        unfinished: starts whose iteration had not converged.
        states: where the iteration leads from the data's modes of the largest basins, (k, *event).
    """

    same: float
    distance: float
    count: int
    unfinished: int
    states: Tensor


@dataclass(frozen=True, eq=False)
class ModeLevel:
    """The data's modes at one bandwidth, from every point.

    Attributes:
        bandwidth: h.
        count: number of modes.
        sizes: points in the largest basins, descending.
        distance: mean RMS distance per coordinate of the modes to their nearest points.
        on_points: share of the modes nearer to a point than a tenth of the typical distance between neighbours.
        states, nearest: the modes of the largest basins and their nearest training points, (k, *event).
        model: the same with the model, or None.
    """

    bandwidth: float
    count: int
    sizes: tuple[int, ...]
    distance: float
    on_points: float
    states: Tensor
    nearest: Tensor
    model: ModelModes | None


@dataclass(frozen=True, eq=False)
class ModeStructure:
    """Modes of the data's kernel density.

    Attributes:
        tree: counts and modes at each bandwidth, and how they merge.
        levels: some bandwidths in detail, decreasing.
        points, total: data points used, and all there are.
        starts: training images from which the model was iterated, at each of the ``levels``; 0 without the model.
        spread: square root of the largest eigenvalue of the data's covariance.
        spacing: median distance of a point to its nearest neighbour.
        seed: of the choice of points and starts.
        event_shape: of one sample.
    """

    tree: ModeTree
    levels: tuple[ModeLevel, ...]
    points: int
    total: int
    starts: int
    spread: float
    spacing: float
    seed: int
    event_shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Counts, splits and comparisons as plain values; the modes themselves are left out."""
        return {
            "bandwidths": list(self.tree.bandwidths),
            "counts": list(self.tree.counts),
            "largest_basin": [int(size.max()) for size in self.tree.sizes],
            "parents": [self.tree.parents(k).tolist() for k in range(len(self.tree.levels) - 1)],
            "single_until": self.tree.single,
            "levels": [
                {
                    "bandwidth": level.bandwidth,
                    "count": level.count,
                    "sizes": list(level.sizes),
                    "distance": level.distance,
                    "on_points": level.on_points,
                    "model": None
                    if level.model is None
                    else {name: getattr(level.model, name) for name in ("same", "distance", "count", "unfinished")},
                }
                for level in self.levels
            ],
            "points": self.points,
            "total": self.total,
            "starts": self.starts,
            "spread": self.spread,
            "spacing": self.spacing,
            "seed": self.seed,
        }

    def summary(self) -> str:
        """Where the one mode splits, how many there are below, and how often the model agrees."""
        tree = self.tree
        part = "" if self.points == self.total else f" (a random part of {self.total:,})"
        if tree.single is not None:
            head = f"one mode down to h = {tree.single:.3g} (largest standard deviation of the data: {self.spread:.3g})"
        else:
            head = f"{tree.counts[0]:,} modes at h = {tree.bandwidths[0]:.3g}"
        text = f"The kernel density of {self.points:,} points{part} has {head}"
        text += f" and {tree.counts[-1]:,} at h = {tree.bandwidths[-1]:.3g}."
        told = [(level.bandwidth, level.model) for level in self.levels if level.model is not None]
        if told:
            words = ", ".join(f"{model.same:.0%} at σ = {h:.3g}" for h, model in told if model is not None)
            text += (
                f" Iterating the model's denoiser from {self.starts} of the points ends in the same mode for {words}."
            )
        return text

    def tables(self) -> list[Table]:
        """Counts by bandwidth; the bandwidths in detail."""
        rows = tuple(
            (h, n, int(size.max()), int(size.max()) / int(size.sum()))
            for h, n, size in zip(self.tree.bandwidths, self.tree.counts, self.tree.sizes, strict=True)
        )
        first = Table(
            f"modes of the kernel density of {self.points:,} points", ("h", "modes", "largest basin", "share"), rows
        )
        columns: tuple[str, ...] = ("h", "modes", "largest basins", "RMS to nearest point", "modes on a point")
        more = ("same mode", "model's modes", "RMS to the data's mode", "unfinished")
        with_model = any(level.model is not None for level in self.levels)
        detail: list[tuple[Cell, ...]] = []
        for level in self.levels:
            row: tuple[Cell, ...] = (
                level.bandwidth, level.count, ", ".join(map(str, level.sizes[:5])), level.distance, level.on_points,
            )  # fmt: skip
            own = level.model
            if with_model:
                row += (None,) * 4 if own is None else (own.same, own.count, own.distance, own.unfinished)
            detail.append(row)
        title = "from every point" + (f"; the model from {self.starts} of them" if with_model else "")
        return [first, Table(title, columns + (more if with_model else ()), tuple(detail))]

    def plot(self, ax: Any = None) -> Any:
        """Number of modes and tree against bandwidth, for images the modes themselves below.

        Args:
            ax: two axes for the curves alone, or None for a new figure.
        """
        return draw_modes(self, ax)


def bandwidth_grid(law: Empirical, count: int) -> tuple[tuple[float, ...], float, float]:
    """Bandwidths from one mode to (nearly) one for each point, decreasing, and the two scales they are made from.

    Returns:
        The bandwidths from 1.5 ``spread`` to 0.45 times the 1 % quantile of the distance to the nearest other point; the
        spread, ``sqrt(λ₁)`` of the covariance; and the median distance to the nearest other point.

    Raises:
        ArgumentError: if all points are the same.
    """
    flat = law.data.flatten(1).double()
    # The largest singular value of the centred data; a few thousand points at most come here.
    spread = float(torch.linalg.matrix_norm(flat - flat.mean(0), 2)) / math.sqrt(len(flat))
    # Copies of a point lie at distance 0 from each other and never part.
    own = torch.cat([law.nearest(part, min(2, law.count))[0][:, -1] for part in law.data.split(512)]).sqrt()
    own = own[own > 0]
    if not len(own):
        own = torch.pdist(flat)
        own = own[own > 0]
    if not len(own) or not spread > 0:
        raise ArgumentError("the data are a single point, many times over; expected at least two different ones")
    low, top = 0.45 * float(torch.quantile(own, 0.01)), 1.5 * spread
    low = min(low, top / 4)
    ratio = (low / top) ** (1 / (count - 1))
    return tuple(top * ratio**k for k in range(count)), spread, float(own.median())


def mode_structure(
    model: Denoiser | None,
    data: Tensor,
    *,
    points: int = 2000,
    levels: int = 16,
    at: Sequence[float] | None = None,
    n: int = 48,
    steps: int = 100,
    shown: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> ModeStructure:
    """The modes of a data set by bandwidth, and the model's beside them.

    Args:
        model: a denoiser of Gaussian diffusion, or None.
        data: (N, *event).
        points: data points used at most, drawn by the seed.
        levels: bandwidths of the tree.
        at: bandwidths that are looked at in detail; by default three, with about 6 modes, one for 20 and one for 2 points.
        n: training images from which the model is iterated; 0 leaves the model out, as does a bandwidth outside its range.
        steps: iterations of the model at most.
        shown: modes kept of each detailed bandwidth.
        seed: of the random choices.
        progress: show it on standard error.

    Raises:
        ArgumentError: for an argument out of range, or data with fewer than two different points.
    """
    if points < 2 or levels < 3 or n < 0 or steps < 1 or shown < 1:
        raise ArgumentError(
            f"points = {points}, levels = {levels}, n = {n}, steps = {steps}, shown = {shown}; expected at least 2, 3, 0, 1, 1"
        )
    if len(data) < 2:
        raise ArgumentError(f"data has {len(data)} points; expected at least 2")
    chosen = streams.permutation(seed, len(data), purpose="modes")[:points].sort().values
    law = Empirical(data[chosen.to(data.device)])
    grid, spread, spacing = bandwidth_grid(law, levels)
    tree = mode_tree(law, grid, progress=progress)
    bandwidths = _chosen(tree, law.count) if at is None else tuple(sorted((float(h) for h in at), reverse=True))
    usable = model if model is not None and n > 0 and model.process.gaussian else None
    starts = law.data[:0]
    if usable is not None:
        order = streams.permutation(seed, law.count, purpose="modes starts")[:n]
        starts = law.data[order.to(data.device)]
    found = tuple(_level(law, h, usable, starts, steps, shown, spacing) for h in bandwidths)
    compared = any(level.model is not None for level in found)
    return ModeStructure(
        tree, found, law.count, len(data), len(starts) if compared else 0, spread, spacing, seed, law.event_shape
    )


def _chosen(tree: ModeTree, points: int) -> tuple[float, ...]:
    """Bandwidths of the tree with few modes, some and many: decreasing."""
    split = [k for k, count in enumerate(tree.counts) if count > 1] or [len(tree.counts) - 1]
    places = []
    for wanted in _SHOWN:
        target = math.log(max(2.0, wanted if wanted > 1 else wanted * points))
        places.append(min(split, key=lambda k: abs(math.log(tree.counts[k]) - target)))
    return tuple(tree.bandwidths[k] for k in sorted(set(places)))


def _level(
    law: Empirical, h: float, model: Denoiser | None, starts: Tensor, steps: int, shown: int, spacing: float
) -> ModeLevel:
    found = modes(law, h, rates=False)
    order = found.sizes.argsort(descending=True, stable=True)[:shown]
    squared, index = law.nearest(found.states)
    gaps = squared[:, 0].sqrt()
    inside = model is not None and model.sigma_min <= h <= model.sigma_max
    return ModeLevel(
        h,
        found.count,
        tuple(found.sizes[order].tolist()),
        float(gaps.mean()) / math.sqrt(law.dim),
        float((gaps < 0.1 * spacing).double().mean()),
        found.states[order],
        law.data[index[order, 0]],
        _of_model(law, found, model, starts, found.states[order], steps) if inside and model is not None else None,
    )


def _of_model(law: Empirical, found: Modes, model: Denoiser, starts: Tensor, shown: Tensor, steps: int) -> ModelModes:
    """Iterate the model, then let the data's mean shift say in whose basin its ends lie."""
    h, n = found.bandwidth, len(starts)
    ends = mean_shift(model, torch.cat((starts, shown)), h, tolerance=_ROUGH, steps=steps, batch_size=256)
    own = mean_shift(law, starts, h, accelerate=True).x
    theirs = mean_shift(law, ends.x[:n], h, accelerate=True).x
    distance = (own - theirs).flatten(1).double().norm(dim=1)
    gap = (ends.x[:n] - own).flatten(1).double().square().mean(1).sqrt()
    return ModelModes(
        float((distance <= 5 * MERGE * h).double().mean()),
        float(gap.mean()),
        len(merged(ends.x[:n], _MERGE_ROUGH * h)[0]),
        int((~ends.converged[:n]).sum()),
        ends.x[n:],
    )


@dataclass(frozen=True)
class ModesOptions:
    """Options of the analysis; see :func:`mode_structure`."""

    points: int = 2000
    levels: int = 16
    at: tuple[float, ...] | None = None
    n: int = 48
    steps: int = 100
    shown: int = 10


@analysis(
    "modes",
    about="where the modes of the data split as noise falls, and the model's own beside them",
    options=ModesOptions,
)
def analyze_modes(subject: Subject, options: ModesOptions) -> ModeStructure:
    """:func:`mode_structure` of a subject."""
    return mode_structure(
        subject.model, subject.data, points=options.points, levels=options.levels, at=options.at, n=options.n,
        steps=options.steps, shown=options.shown, seed=subject.seed, progress=subject.progress,
    )  # fmt: skip
