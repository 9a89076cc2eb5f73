"""Error against evaluations: how far each sampler ends from the exact solution of the model's own ODE.

    error = sqrt( mean over samples and coordinates of (x_sampler − x_fine)² ),   both from the same noise

The fine solution is a run of a few hundred evaluations, and its own error is estimated by a run with half the steps. A
teleport changes nothing about the target: the same noise, the same ODE, a shorter way. The error says how well the ODE is
solved and not how good the images are: that is the model's affair, measured by the report's quality section.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.entrants import Entrant, baseline, default_entrants, describe, sigma_range
from farfield.analysis.solver_table_plot import draw_errors
from farfield.data.progress import track
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, NonFiniteError
from farfield.sampling import Sampler, karras
from farfield.sampling.solvers import Whitened

NFES = (5, 6, 8, 10, 14, 20)


@dataclass(frozen=True, eq=False)
class Reference:
    """A fine solution.

    Attributes:
        x: (n, *event) the end points.
        nfe: evaluations of the fine run.
        error: root-mean-square distance to the run with half the steps, an upper estimate of the fine run's own error.
        sampler: the fine run, as :func:`describe` writes it.
    """

    x: Tensor
    nfe: int
    error: float
    sampler: dict[str, Any]


@dataclass(frozen=True, eq=False)
class SolverRow:
    """One sampler at one budget.

    Attributes:
        family, detail: see :class:`Entrant`.
        budget: the evaluations allowed; ``nfe`` those spent.
        error: root-mean-square end-point error over samples and coordinates.
        median, worst: median and largest over the samples of each one's own root-mean-square error.
        sampler: the sampler itself.
    """

    family: str
    detail: str
    budget: int
    nfe: int
    error: float
    median: float
    worst: float
    sampler: Sampler

    @property
    def name(self) -> str:
        """Family and detail."""
        return f"{self.family}, {self.detail}" if self.detail else self.family

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the sampler as :func:`describe` writes it."""
        keys = ("family", "detail", "budget", "nfe", "error", "median", "worst")
        return {"name": self.name, **{k: getattr(self, k) for k in keys}, "sampler": describe(self.sampler)}


@dataclass(frozen=True, eq=False)
class SolverTable:
    """All rows of a comparison.

    Attributes:
        rows: one for each sampler and budget it can be planned to.
        baseline: EDM's default, Heun on 18 Karras levels, at 35 evaluations.
        reference: the fine solution.
        n, seed: the samples on which the errors were measured.
        scale: root-mean-square deviation of the reference samples from their mean: what an error compares with.
    """

    rows: tuple[SolverRow, ...]
    baseline: SolverRow
    reference: Reference
    n: int
    seed: int
    scale: float

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets, ascending."""
        return tuple(sorted({row.budget for row in self.rows}))

    @property
    def families(self) -> tuple[str, ...]:
        """The families in the order of the entrants."""
        return tuple(dict.fromkeys(row.family for row in self.rows))

    def best(self, budget: int) -> SolverRow:
        """The row of smallest error among those planned to a budget."""
        rows = [row for row in self.rows if row.budget == budget]
        if not rows:
            raise ArgumentError(f"budget = {budget}; this table has {', '.join(map(str, self.budgets))}")
        return min(rows, key=lambda row: row.error)

    def envelope(self, family: str) -> list[SolverRow]:
        """The best member of a family at each number of evaluations, ascending."""
        found: dict[int, SolverRow] = {}
        for row in self.rows:
            if row.family == family and (row.nfe not in found or row.error < found[row.nfe].error):
                found[row.nfe] = row
        return [found[k] for k in sorted(found)]

    def best_of(self, family: str, budget: int) -> SolverRow | None:
        """The best member of a family at a budget, with whatever options and grid; None where it has no plan that cheap."""
        rows = [row for row in self.rows if row.family == family and row.budget == budget]
        return min(rows, key=lambda row: (row.error, -row.nfe)) if rows else None

    def default_tolerance(self) -> float:
        """The error of Heun at 35 evaluations, or 0.8 % of the samples' own spread where that is larger.

        For pictures of spread 1 in [−1, 1] the latter is one of 255 grey levels, 2/255: nobody sees less.
        """
        return max(self.baseline.error, 2 / 255 * self.scale)

    def choose(self, tolerance: float | None = None) -> SolverRow:
        """The row with the fewest evaluations whose error is within a tolerance, the more exact one of equals.

        Args:
            tolerance: a root-mean-square error; :meth:`default_tolerance` if None. Where no row meets it, the best row of
                the largest budget is returned.
        """
        limit = self.default_tolerance() if tolerance is None else tolerance
        within = [row for row in self.rows if row.error <= limit]
        if within:
            return min(within, key=lambda row: (row.nfe, row.error))
        return self.best(self.budgets[-1])

    def recommended(self, tolerance: float | None = None) -> Sampler:
        """The sampler of :meth:`choose`."""
        return self.choose(tolerance).sampler

    def to_dict(self) -> dict[str, Any]:
        """Plain values: all rows, the best of each budget, the recommended one and by which tolerance."""
        chosen, limit = self.choose(), self.default_tolerance()
        return {
            "n": self.n,
            "seed": self.seed,
            "scale": self.scale,
            "reference": {
                "nfe": self.reference.nfe, "error": self.reference.error, "sampler": self.reference.sampler
            },
            "baseline": self.baseline.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "best": {str(b): self.best(b).name for b in self.budgets},
            "tolerance": limit,
            "recommended": {**chosen.to_dict(), "within_tolerance": chosen.error <= limit},
        }  # fmt: skip

    def plot(self, ax: Any = None) -> Any:
        """Error against evaluations, both logarithmic: the best member of each family. Returns the figure."""
        return draw_errors(self, ax)


def fine_solution(denoiser: Denoiser, levels: int, gaussian: Gaussian | None = None) -> Sampler:
    """The sampler of the fine solution: third-order whitened steps, isotropic ones without a Gaussian, on a Karras grid."""
    return Sampler(Whitened(3), karras(levels, *sigma_range(denoiser)), covariance=gaussian)


def reference_solution(
    denoiser: Denoiser,
    n: int,
    seed: int = 0,
    *,
    gaussian: Gaussian | None = None,
    levels: int = 256,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Reference:
    """A fine solution of the model's ODE from the noise of a seed, and how far the run with half the steps is from it.

    Third-order whitened steps on a Karras grid; without a Gaussian they are isotropic exponential steps.

    Args:
        denoiser: the model.
        n, seed: the samples.
        gaussian: the data's Gaussian.
        levels: steps of the fine run, ≥ 8.
        batch_size, dtype: as for ``Sampler``.
    """
    if levels < 8:
        raise ArgumentError(f"levels = {levels}; expected at least 8 for a reference")
    runs = []
    for count in (levels, levels // 2):
        sampler = fine_solution(denoiser, count, gaussian)
        runs.append((sampler, sampler(denoiser, n, seed, batch_size=batch_size, dtype=dtype)))
    (fine, solution), (_, coarse) = runs
    error = end_point_errors(coarse.x, solution.x)[0]
    return Reference(solution.x, solution.nfe, error, describe(fine))


def solver_errors(
    denoiser: Denoiser,
    *,
    nfes: Sequence[int] = NFES,
    n: int = 64,
    seed: int = 0,
    gaussian: Gaussian | None = None,
    entrants: Sequence[Entrant] | Mapping[str, Sampler] | None = None,
    teleports: Sequence[float] | None = None,
    reference: Reference | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> SolverTable:
    """Run every sampler at every budget from the same noise and measure its end-point error.

    Args:
        denoiser: the model.
        nfes: budgets of denoiser evaluations, ≥ 1.
        n, seed: the samples; the noise is ``numerics.streams``'s, the same for all.
        gaussian: the data's Gaussian, for teleports and whitened steps.
        entrants: samplers whose grid has a number of levels to choose; :func:`default_entrants` if None.
        teleports: levels for the default entrants; by default twice and once the largest standard deviation of the data.
        reference: a fine solution for the same ``n`` and ``seed``, if there is one already.
        batch_size, dtype: as for ``Sampler``.
        progress: show a bar on standard error.

    Raises:
        ArgumentError: for an argument out of range, or where no entrant can be planned to any budget.
    """
    budgets = sorted({int(b) for b in nfes})
    if not budgets or budgets[0] < 1 or n < 1:
        raise ArgumentError(f"nfes = {list(nfes)}, n = {n}; expected positive numbers")
    if teleports is None:
        teleports = ()
        if gaussian is not None:
            values = gaussian.spectrum.values
            top = math.sqrt(float(values.max()) if values.numel() else gaussian.spectrum.tail)
            teleports = (2 * top, top)
    if entrants is None:
        entrants = default_entrants(denoiser, gaussian, teleports)
    elif isinstance(entrants, Mapping):
        entrants = [Entrant(name, "", sampler) for name, sampler in entrants.items()]
    if reference is None:
        reference = reference_solution(denoiser, n, seed, gaussian=gaussian, batch_size=batch_size, dtype=dtype)
    if tuple(reference.x.shape) != (n, *denoiser.event_shape):
        raise ArgumentError(
            f"reference has shape {tuple(reference.x.shape)}; expected {(n, *denoiser.event_shape)}"
        )  # fmt: skip

    rows: list[SolverRow] = []
    shown = track(entrants, len(entrants), "solvers", threshold=1 if progress else len(entrants) + 1)
    for entrant in shown:
        rows += entrant_rows(denoiser, entrant, budgets, reference, n, seed, batch_size=batch_size, dtype=dtype)
    if not rows:
        raise ArgumentError(f"nfes = {list(nfes)}: no sampler can be planned to these budgets")
    standard = baseline_row(denoiser, reference, n, seed, batch_size=batch_size, dtype=dtype)
    return SolverTable(tuple(rows), standard, reference, n, seed, spread(reference.x))


def entrant_rows(
    denoiser: Denoiser,
    entrant: Entrant,
    budgets: Sequence[int],
    reference: Reference,
    n: int,
    seed: int = 0,
    *,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[SolverRow]:
    """One entrant at each budget that it can be planned to; budgets with the same plan are run once.

    Args:
        denoiser, n, seed, reference, batch_size, dtype: as for :func:`solver_errors`.
        entrant: the template.
        budgets: evaluations, ascending.
    """
    rows: list[SolverRow] = []
    done: dict[int, SolverRow | None] = {}
    for budget in budgets:
        try:
            sampler = entrant.sampler.with_nfe(budget)
        except ArgumentError:
            continue  # no plan is that cheap
        if sampler.nfe not in done:
            done[sampler.nfe] = _measured(denoiser, entrant, sampler, budget, reference, n, seed, batch_size, dtype)
        found = done[sampler.nfe]
        if found is not None:
            rows.append(replace(found, budget=budget))
    return rows


def baseline_row(
    denoiser: Denoiser,
    reference: Reference,
    n: int,
    seed: int = 0,
    *,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> SolverRow:
    """EDM's default, Heun on 18 Karras levels, at 35 evaluations; arguments as for :func:`solver_errors`.

    Raises:
        NonFiniteError: if it diverges.
    """
    usual = Entrant("Heun", "Karras ρ=7, 18 levels", baseline(denoiser))
    row = _measured(denoiser, usual, usual.sampler, 35, reference, n, seed, batch_size, dtype)
    if row is None:
        raise NonFiniteError("Heun on 18 levels diverges on this model")
    return row


def spread(x: Tensor) -> float:
    """Root-mean-square deviation of samples from their mean."""
    wide = x.double()
    return float((wide - wide.mean(0)).square().mean().sqrt())


def _measured(
    denoiser: Denoiser,
    entrant: Entrant,
    sampler: Sampler,
    budget: int,
    reference: Reference,
    n: int,
    seed: int,
    batch_size: int | None,
    dtype: torch.dtype,
) -> SolverRow | None:
    try:
        run = sampler(denoiser, n, seed, batch_size=batch_size, dtype=dtype)
    except NonFiniteError:
        return None  # a sampler that diverges has no place in the table
    error, median, worst = end_point_errors(run.x, reference.x)
    return SolverRow(entrant.family, entrant.detail, budget, run.nfe, error, median, worst, sampler)


def end_point_errors(x: Tensor, fine: Tensor) -> tuple[float, float, float]:
    """Root mean square over everything; median and largest of each sample's own."""
    own = (x.double() - fine.double()).flatten(1).square().mean(1)
    return float(own.mean().sqrt()), float(own.sqrt().median()), float(own.max().sqrt())
