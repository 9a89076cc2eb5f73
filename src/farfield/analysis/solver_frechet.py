"""What a solver comparison measures beside the error at a budget: Fréchet distances, and solvers with steps of their own.

The **Fréchet distance** of samples to the data is what a user sees. It holds the model's own error, which no solver removes,
and the noise of a finite number of samples: the floor that is given with it. All solvers start from the same noise, so that
their differences are far better known than the values. Each is shown with the options and the grid that had the smallest
end-point error at that budget: to choose by the distance itself would fit its noise.

**Adaptive solvers** have no budget. They are run at several tolerances, and the evaluations are those of the sample that
took the most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from farfield.analysis.entrants import baseline, sigma_range
from farfield.analysis.solver_table import Reference, SolverRow, SolverTable, end_point_errors
from farfield.analysis.trajectory_quality import BATCH, QualityBench
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.metrics.features import identify
from farfield.sampling import Sampler, karras
from farfield.sampling.solvers import RK45

#: Evaluations at which samples are drawn for the Fréchet distance.
FRECHET_NFES = (5, 8, 10, 20)
#: Relative and absolute tolerance of the adaptive runs.
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class AdaptiveRow:
    """An adaptive run.

    Attributes:
        tolerance: relative and absolute.
        nfe: evaluations of the sample that took the most.
        error, median: end-point error, as in :class:`SolverRow`.
    """

    tolerance: float
    nfe: int
    error: float
    median: float


@dataclass(frozen=True)
class FrechetCell:
    """Samples of one solver at one budget.

    Attributes:
        family, detail, budget, nfe: as in :class:`SolverRow`.
        distance: squared Fréchet distance to the data.
    """

    family: str
    detail: str
    budget: int
    nfe: int
    distance: float


@dataclass(frozen=True)
class FrechetTable:
    """Distances of all solvers at their best.

    Attributes:
        cells: one for each solver and budget.
        baseline, baseline_nfe: Heun on 18 Karras levels.
        n, seed: the samples, from the same noise for all.
        floor: what as many samples of a Gaussian with the data's moments would show.
        heldout: the same of held-out data; None without any.
        features: of the images, as records write them.
        points: images of the data that are compared with.
    """

    cells: tuple[FrechetCell, ...]
    baseline: float
    baseline_nfe: int
    n: int
    seed: int
    floor: float
    heldout: float | None
    features: Mapping[str, Any]
    points: int

    @property
    def budgets(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(sorted({cell.budget for cell in self.cells}))

    @property
    def families(self) -> tuple[str, ...]:
        """In the order of the cells."""
        return tuple(dict.fromkeys(cell.family for cell in self.cells))

    def cell(self, family: str, budget: int) -> FrechetCell | None:
        """The cell of a family at a budget, if there is one."""
        return next((c for c in self.cells if c.family == family and c.budget == budget), None)

    def best(self, budget: int) -> FrechetCell:
        """The smallest distance at a budget.

        Raises:
            ArgumentError: for a budget that the table has not.
        """
        cells = [cell for cell in self.cells if cell.budget == budget]
        if not cells:
            raise ArgumentError(f"budget = {budget}; this table has {', '.join(map(str, self.budgets))}")
        return min(cells, key=lambda cell: cell.distance)

    def curve(self, family: str) -> list[tuple[int, float]]:
        """Evaluations and distance, ascending."""
        found = {cell.nfe: cell.distance for cell in self.cells if cell.family == family}
        return sorted(found.items())

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {**self.__dict__, "cells": [dict(c.__dict__) for c in self.cells], "features": dict(self.features)}


def adaptive_rows(
    denoiser: Denoiser,
    reference: Reference,
    n: int,
    seed: int = 0,
    tolerances: Sequence[float] = TOLERANCES,
    *,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[AdaptiveRow]:
    """``rk45`` at several tolerances, from the same noise and to the same levels as the others; largest tolerance first.

    Args:
        denoiser, reference, n, seed, batch_size, dtype: as for :func:`solver_errors`.
        tolerances: relative and absolute; in float32 no less than about 1e-6.
    """
    rows = []
    for tolerance in sorted(tolerances, reverse=True):
        sampler = Sampler(RK45(rtol=tolerance, atol=tolerance), karras(2, *sigma_range(denoiser)))
        run = sampler(denoiser, n, seed, batch_size=batch_size, dtype=dtype)
        error, median, _ = end_point_errors(run.x, reference.x)
        rows.append(AdaptiveRow(float(tolerance), run.nfe, error, median))
    return rows


def distance_of(
    denoiser: Denoiser, bench: QualityBench, sampler: Sampler, n: int, seed: int = 0, batch_size: int = BATCH
) -> float:
    """Squared Fréchet distance of n samples of a sampler to the data."""
    return bench.reference.distance(bench.seen(sampler(denoiser, n, seed, batch_size=batch_size).x))


def chosen_rows(table: SolverTable, budgets: Sequence[int] = FRECHET_NFES) -> list[SolverRow]:
    """The best row of every solver at each budget that the table has: whose samples are worth a look."""
    found = (table.best_of(family, b) for b in budgets if b in table.budgets for family in table.families)
    return [row for row in found if row is not None]


def frechet_table(
    denoiser: Denoiser,
    bench: QualityBench,
    rows: Iterable[SolverRow],
    n: int,
    seed: int = 0,
    *,
    distance: Callable[[Sampler], float] | None = None,
) -> FrechetTable:
    """Draw the samples of each row and measure their distance to the data.

    Rows with the same grid, evaluations and error are one rule under two names (``lms`` and ``ipndm_v``), and are drawn once.

    Args:
        denoiser: the model.
        bench: the data in features.
        rows: e.g. those of :func:`chosen_rows`.
        n, seed: the samples; more than twice the number of features is advised.
        distance: what measures a sampler, e.g. one that looks into a file first; by default :func:`distance_of`.

    Raises:
        ArgumentError: for fewer than 4 samples, or no rows.
    """
    if n < 4:
        raise ArgumentError(f"n = {n}; expected at least 4 samples")
    measured: Callable[[Sampler], float] = (
        distance if distance is not None else lambda sampler: distance_of(denoiser, bench, sampler, n, seed)
    )
    known: dict[tuple[Any, ...], float] = {}
    cells = []
    for row in rows:
        key = (row.sampler.grid, row.sampler.start.name, row.nfe, row.error, row.worst)
        if key not in known:
            known[key] = measured(row.sampler)
        cells.append(FrechetCell(row.family, row.detail, row.budget, row.nfe, known[key]))
    if not cells:
        raise ArgumentError("rows is empty: no solver whose samples could be compared")
    usual = baseline(denoiser)
    return FrechetTable(
        cells=tuple(cells),
        baseline=measured(usual),
        baseline_nfe=usual.nfe,
        n=n,
        seed=seed,
        floor=bench.floor(n),
        heldout=bench.heldout_distance(n, seed),
        features=identify(bench.features),
        points=len(bench.train),
    )
