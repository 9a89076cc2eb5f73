"""What :func:`~farfield.analysis.rank_sweep.rank_sweep` found: gains, best numbers of components, minimal ranks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from farfield.analysis.ratios import finite
from farfield.analysis.tables import Cell, Table
from farfield.errors import ArgumentError

#: A rank suffices where it leaves at most this many times what all eigenvalues leave.
ENOUGH = 1.1


@dataclass(frozen=True, eq=False)
class RankSweep:
    """Unexplained fractions of a model's score by low-rank mixtures, by level, number of components K and rank r.

    Attributes:
        sigmas: the noise levels, decreasing.
        components: K, ascending.
        ranks: r, ascending; the last is d, every eigenvalue that a component has.
        fuv: ``[σ][K][r]``, the ratio of means.
        mean_ratio: the same, the mean over queries of each query's own ratio.
        standard_error: of ``fuv``.
        differences: ``[σ][K][K']``, standard error of FUV[K] − FUV[K'] at full rank on the same queries.
        predicted: ``[σ][r]``, what K = 1 would leave by the closed form for truncation on Gaussian data, added to what
            it leaves at full rank; None without K = 1.
        queries, seed: of the query points, noised data points.
        count, dim: data points behind the mixtures, and coordinates of each.
        largest: of each K, the largest rank of a component.
    """

    sigmas: tuple[float, ...]
    components: tuple[int, ...]
    ranks: tuple[int, ...]
    fuv: tuple[tuple[tuple[float, ...], ...], ...]
    mean_ratio: tuple[tuple[tuple[float, ...], ...], ...]
    standard_error: tuple[tuple[tuple[float, ...], ...], ...]
    differences: tuple[tuple[tuple[float, ...], ...], ...]
    predicted: tuple[tuple[float, ...], ...] | None
    queries: int
    seed: int
    count: int
    dim: int
    largest: tuple[int, ...]

    def _place(self, components: int) -> int:
        if components not in self.components:
            raise ArgumentError(f"components = {components}; this sweep has {', '.join(map(str, self.components))}")
        return self.components.index(components)

    def full(self, level: int) -> tuple[float, ...]:
        """FUV at full rank of each K at ``sigmas[level]``."""
        return tuple(row[-1] for row in self.fuv[level])

    def gain(self, level: int, components: int) -> float:
        """What K components explain beyond one, ``FUV[1] − FUV[K]`` at full rank; negative where they are worse."""
        return self.full(level)[self._place(1)] - self.full(level)[self._place(components)]

    def best_components(self, level: int) -> int:
        """The K that leaves least at full rank: the bottom of the U."""
        full = self.full(level)
        return self.components[full.index(min(full))]

    def is_u_shaped(self, level: int, errors: float = 2.0) -> bool:
        """Whether the bottom lies inside, below both ends by ``errors`` standard errors of the difference."""
        full = self.full(level)
        best = full.index(min(full))
        ends = (0, len(full) - 1)
        return all(full[e] - full[best] > errors * self.differences[level][e][best] for e in ends) and best not in ends

    def minimal_rank(self, level: int, components: int, enough: float = ENOUGH) -> int:
        """The smallest rank of the sweep that leaves at most ``enough`` times what full rank leaves."""
        row = self.fuv[level][self._place(components)]
        return _first(self.ranks, row, enough)

    def predicted_rank(self, level: int, enough: float = ENOUGH) -> int | None:
        """:meth:`minimal_rank` of K = 1 as the closed form predicts it."""
        return None if self.predicted is None else _first(self.ranks, self.predicted[level], enough)

    def nearest(self, sigma: float) -> int:
        """The index of the level nearest to σ, in log σ."""
        apart = [abs(math.log(s / sigma)) for s in self.sigmas]
        return apart.index(min(apart))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, with what follows from them."""
        levels = range(len(self.sigmas))
        more = {
            "best_components": [self.best_components(k) for k in levels],
            "minimal_rank": [[self.minimal_rank(k, c) for c in self.components] for k in levels],
            "predicted_rank": [self.predicted_rank(k) for k in levels],
        }
        plain: dict[str, Any] = finite({**asdict(self), **more})
        return plain

    def summary(self) -> str:
        """Where more components help and where they hurt, and how the rank that suffices grows."""
        top, low = 0, len(self.sigmas) - 1
        first = self.components[0]
        said = [
            f"With K = {first} a rank of {self.minimal_rank(top, first)} does as well as all {self.dim} eigenvalues at "
            f"σ = {self.sigmas[top]:.3g}, and it takes {self.minimal_rank(low, first)} at σ = {self.sigmas[low]:.3g}."
        ]
        u = [k for k in range(len(self.sigmas)) if self.is_u_shaped(k)]
        if u:
            k = u[-1]
            full = self.full(k)
            best = self.best_components(k)
            said.append(
                f"At σ = {self.sigmas[k]:.3g} {best} components leave least, {100 * min(full):.3g} % of the score; "
                f"{self.components[0]} leave {100 * full[0]:.3g} % and {self.components[-1]} leave {100 * full[-1]:.3g} %: "
                "too many hurt."
            )
        return " ".join(said)

    def tables(self) -> list[Table]:
        """Full-rank FUV by K, minimal ranks, and the whole trade-off at the level nearest to 0.1."""
        levels = range(len(self.sigmas))
        names = tuple(f"K = {c}" for c in self.components)
        full: tuple[tuple[Cell, ...], ...] = tuple(
            (self.sigmas[k], *self.full(k), self.best_components(k)) for k in levels
        )
        minimal: tuple[tuple[Cell, ...], ...] = tuple(
            (self.sigmas[k], *(self.minimal_rank(k, c) for c in self.components), self.predicted_rank(k))
            for k in levels
        )
        k = self.nearest(0.1)
        trade: tuple[tuple[Cell, ...], ...] = tuple(
            (rank, *(row[j] for row in self.fuv[k])) for j, rank in enumerate(self.ranks)
        )
        return [
            Table(
                f"unexplained fraction of the score at full rank, {self.queries} queries, protocol noised",
                ("σ", *names, "best K"),
                full,
            ),
            Table(
                f"smallest rank of the sweep that leaves at most {ENOUGH:g} times that",
                ("σ", *names, "K = 1, predicted"),
                minimal,
            ),
            Table(f"unexplained fraction by rank at σ = {self.sigmas[k]:.3g}", ("rank", *names), trade),
        ]

    def plot(self, ax: Any = None) -> Any:
        """FUV against K, minimal rank against σ, and equal FUV in the plane of K and r at the level nearest to 0.1."""
        from farfield.analysis.plotting import axes_for
        from farfield.analysis.rank_sweep_plot import draw_components, draw_ranks, draw_trade_off

        panels = axes_for(ax, count=3, width=15.0, height=4.4)
        for axes, draw in zip(panels, (draw_components, draw_ranks, draw_trade_off), strict=False):
            draw(self, axes)
        return panels[0].figure


def _first(ranks: tuple[int, ...], row: tuple[float, ...], enough: float) -> int:
    return next(rank for rank, value in zip(ranks, row, strict=True) if value <= enough * row[-1])
