"""What the score-deviation diagnosis found: two curves, their regions, and what became of the samples."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.diagnosis_curves import Band, Regions, band, drops, outliers, reached, regions
from farfield.analysis.diagnosis_paths import Neighbours
from farfield.analysis.tables import Table

#: The share of starts that counts as almost all.
ALMOST_ALL = 0.9


@dataclass(frozen=True, eq=False)
class ScoreDeviation:
    """A model's denoiser r_θ beside the optimal one r* of its data, along the path of either from the same starts.

    Attributes:
        sigmas: the N levels at which the denoisers were asked, decreasing.
        optimal_gap: (N, n) ``‖r_θ(x*) − r*(x*)‖`` along the optimal path, in the data's units, float64.
        own_gap: (N, n) ``‖r_θ(x) − r*(x)‖`` along the model's path.
        premise: (N, n) ``‖r*(x) − r_θ(x)‖ / ‖r*(x) − x‖`` along the model's path; at most 1 where the likelihood is sure to
            grow (Chen et al., theorem 1).
        locked: (N, n) whether ``r*(x)`` on the model's path is the data point nearest to the model's sample.
        leading: (N, n) whether that point is at least the nearest to ``r*(x)``.
        neighbours, optimal_neighbours: the nearest data of the model's and of the optimal denoiser's samples.
        same_basin: (n,) whether both samples have the same nearest data point.
        distinct: different data points among the nearest ones of the optimal samples.
        n_data, dim: data points, and coordinates of each.
        nfe: evaluations of either denoiser for each start, those on the other's path included.
        starts: ``"gaussian"``, ``"noised"``, ``"encoded"`` or ``"given"``.
        origins: (n,) the data points of noised and encoded starts, or None.
        conditional: whether each start had a class, to whose data r* was restricted.
        sampler: in words.
        seed: of the starts.
        pictures: first samples by name, where they are images: the model's, the optimal ones, and the nearest data.
    """

    sigmas: tuple[float, ...]
    optimal_gap: Tensor
    own_gap: Tensor
    premise: Tensor
    locked: Tensor
    leading: Tensor
    neighbours: Neighbours
    optimal_neighbours: Neighbours
    same_basin: Tensor
    distinct: int
    n_data: int
    dim: int
    nfe: int
    starts: str
    origins: Tensor | None
    conditional: bool
    sampler: str
    seed: int
    pictures: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """Starts."""
        return self.own_gap.shape[1]

    @cached_property
    def along_optimal(self) -> Band:
        """``‖r_θ − r*‖`` along the optimal path."""
        return band(self.optimal_gap)

    @cached_property
    def along_own(self) -> Band:
        """``‖r_θ − r*‖`` along the model's path."""
        return band(self.own_gap)

    def score_error(self, own: bool = False) -> Band:
        """The error of the score, ``‖r_θ − r*‖/σ²``, along the optimal path or the model's own."""
        squares = torch.tensor(self.sigmas, dtype=torch.float64, device=self.own_gap.device).square().unsqueeze(1)
        return band((self.own_gap if own else self.optimal_gap) / squares)

    @cached_property
    def outliers(self) -> tuple[float, ...]:
        """Levels that stand out of either curve, decreasing; see :func:`~farfield.analysis.diagnosis_curves.outliers`."""
        found = {*outliers(self.sigmas, self.along_optimal.mean), *outliers(self.sigmas, self.along_own.mean)}
        return tuple(sorted(found, reverse=True))

    @cached_property
    def regions(self) -> Regions | None:
        """Where the deviation along the optimal path is negligible, rises and falls; outliers left out."""
        return regions(self.sigmas, self.along_optimal.mean, self.outliers)

    @cached_property
    def drops(self) -> tuple[float, ...]:
        """Levels at which the mean deviation along the model's path shrinks by more than two standard errors."""
        return drops(self.sigmas, self.own_gap, self.outliers)

    @property
    def grows(self) -> bool:
        """Whether the deviation along the model's path only grows on the way down, within its errors."""
        return not self.drops

    @property
    def grows_from(self) -> float:
        """The level σ from which on down the deviation along the model's path only grows, within its errors."""
        return min(self.drops, default=self.sigmas[0])

    @cached_property
    def lock_share(self) -> tuple[float, ...]:
        """The share of starts for which ``r*(x_n)`` is the nearest data point of the sample, at each level."""
        return tuple(self.locked.double().mean(1).tolist())

    @cached_property
    def lead_share(self) -> tuple[float, ...]:
        """The share of starts for which the sample's nearest data point is the one nearest to ``r*(x_n)``, at each level."""
        return tuple(self.leading.double().mean(1).tolist())

    def lock_level(self, least: float = ALMOST_ALL) -> float | None:
        """The highest level σ from which on down at least a share of the starts is locked; None if never."""
        return reached(self.sigmas, self.lock_share, least)

    @property
    def locked_halfway(self) -> float:
        """The share of starts locked after half of the steps."""
        return self.lock_share[len(self.sigmas) // 2]

    @property
    def basin_rate(self) -> float:
        """The share of starts from which both denoisers end nearest to the same data point."""
        return float(self.same_basin.double().mean())

    @property
    def returns(self) -> float | None:
        """The share of noised or encoded starts whose model sample is nearest to the point they came from."""
        if self.origins is None:
            return None
        return float((self.neighbours.number[:, 0] == self.origins).double().mean())

    def to_dict(self) -> dict[str, Any]:
        """Curves, regions, neighbours and derived numbers as plain values; the pictures are left out."""
        found = self.regions
        return {
            "sigmas": list(self.sigmas),
            "along_optimal": asdict(self.along_optimal),
            "along_own": asdict(self.along_own),
            "score_error_optimal": asdict(self.score_error()),
            "score_error_own": asdict(self.score_error(own=True)),
            "premise": {
                "mean": [_finite(v) for v in self.premise.mean(1).tolist()],
                "max": _finite(float(self.premise.max())),
            },
            "regions": None if found is None else found.to_dict(),
            "outliers": list(self.outliers),
            "grows": self.grows,
            "grows_from": self.grows_from,
            "drops": list(self.drops),
            "lock_share": list(self.lock_share),
            "lead_share": list(self.lead_share),
            "lock_level": self.lock_level(),
            "locked_halfway": self.locked_halfway,
            "basin_rate": self.basin_rate,
            "distinct": self.distinct,
            "returns": self.returns,
            "neighbours": _neighbours(self.neighbours),
            "optimal_neighbours": _neighbours(self.optimal_neighbours),
            "n": self.n,
            "n_data": self.n_data,
            "dim": self.dim,
            "nfe": self.nfe,
            "starts": self.starts,
            "conditional": self.conditional,
            "sampler": self.sampler,
            "seed": self.seed,
        }

    def summary(self) -> str:
        """The regions, the growth, and whether samples are copies of data."""
        found = self.regions
        if found is None:
            return (
                "The model's denoiser is the optimal denoiser of the data at every level: its samples are data points."
            )
        before = "negligible" if found.negligible else f"up to {found.before:.0%} of that"
        after = "falling" if found.falls else "staying high"
        text = (
            f"Along the optimal path the model's denoiser differs from the training set's by at most {found.peak:.3g}: "
            f"{before} above σ = {found.rising:.2g}, rising down to σ = {found.falling:.2g}, {after} below."
        )
        end = self.along_own.mean[-1]
        if self.grows_from > self.sigmas[-1] or self.grows:
            since = "" if self.grows else f" from σ = {self.grows_from:.2g} on"
            text += f" Along its own path the difference only grows{since}, to {end:.3g}."
        else:
            text += f" Along its own path the difference does not only grow: it still falls at the last level, to {end:.3g}."
        if self.outliers:
            text += f" Levels that stand out: σ = {', '.join(f'{s:.3g}' for s in self.outliers)}."
        near, far = (float(part.distance[:, 0].mean()) for part in (self.optimal_neighbours, self.neighbours))
        return (
            f"{text} The optimal denoiser's {self.n} samples are {near:.2g} from their nearest of {self.n_data:,} data "
            f"points on average ({self.distinct} different points), the model's {far:.3g}; "
            f"{self.basin_rate:.0%} of the starts end nearest to the same point."
        )

    def tables(self) -> list[Table]:
        """The curves by level; the nearest data."""
        score, own = self.score_error().mean, self.score_error(own=True).mean
        rows = tuple(
            (
                s,
                self.along_optimal.mean[k],
                self.along_own.mean[k],
                score[k],
                own[k],
                self.lead_share[k],
                self.lock_share[k],
            )
            for k, s in enumerate(self.sigmas)
        )
        columns = (
            "σ", "‖r_θ − r*‖, optimal path", "‖r_θ − r*‖, own path", "score error, optimal path", "score error, own path",
            "leading", "locked",
        )  # fmt: skip
        first = Table(f"deviation from the optimal denoiser, {self.n} starts ({self.starts})", columns, rows)
        names = (("model", self.neighbours), ("optimal denoiser", self.optimal_neighbours))
        near = tuple((name, *_spread(part.distance[:, 0]), *_spread(part.distance[:, -1])[:1]) for name, part in names)
        k = self.neighbours.distance.shape[1]
        second = Table(
            "distance of samples to the data",
            ("samples of", "nearest: mean", "least", "median", f"{k} nearest: mean of the last"),
            near,
        )
        found = self.regions
        third = Table(
            "what follows",
            ("quantity", "value"),
            (
                ("rising below σ", None if found is None else found.rising),
                ("falling below σ", None if found is None else found.falling),
                ("largest before the rise, share of the peak", None if found is None else found.before),
                ("growing along the own path below σ", self.grows_from),
                ("same basin", self.basin_rate),
                ("leading after half of the steps", self.lead_share[len(self.sigmas) // 2]),
                ("locked after half of the steps", self.locked_halfway),
                (f"{ALMOST_ALL:.0%} locked below σ", self.lock_level()),
                ("different data points hit by the optimal denoiser", self.distinct),
                ("largest premise ratio", _finite(float(self.premise.max()))),
            ),
        )
        return [first, second, third]

    def plot(self, ax: Any = None) -> Any:
        """Deviation (left) and locked starts (right) against σ, with a strip of samples below for images.

        Args:
            ax: two axes for the curves alone, or None for a new figure.
        """
        from farfield.analysis.diagnosis_plot import draw_diagnosis

        return draw_diagnosis(self, ax)


def _finite(value: float) -> float | None:
    """None for the ratio of a deviation to no distance at all."""
    return value if math.isfinite(value) else None


def _neighbours(found: Neighbours) -> dict[str, Any]:
    return {"distance": found.distance.tolist(), "number": found.number.tolist()}


def _spread(values: Tensor) -> tuple[float, float, float]:
    return float(values.mean()), float(values.min()), float(values.median())
