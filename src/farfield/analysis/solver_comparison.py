"""All solvers side by side: end-point error and Fréchet distance by evaluations, each with its best options and grid.

The error is the distance to the exact solution of the model's own ODE (:mod:`farfield.analysis.solver_table`); the Fréchet
distance is that of samples to the data (:mod:`farfield.analysis.solver_frechet`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.entrants import COMPARED, LETTERS, all_entrants, grid_letter, is_whitened
from farfield.analysis.solver_frechet import (
    FRECHET_NFES,
    TOLERANCES,
    AdaptiveRow,
    FrechetCell,
    FrechetTable,
    adaptive_rows,
    chosen_rows,
    distance_of,
    frechet_table,
)
from farfield.analysis.solver_table import SolverRow, SolverTable, reference_solution, solver_errors
from farfield.analysis.solver_table_plot import draw_comparison
from farfield.analysis.tables import Cell, Table
from farfield.analysis.trajectory_quality import QualityBench, features_for
from farfield.data.progress import track
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError

#: Evaluations of the table.
TABLE_NFES = (4, 5, 6, 8, 10, 14, 20)
#: Coordinates up to which the data's Gaussian is kept whole, and the rank beyond.
_WHOLE, _RANK = 1024, 64


def teleport_levels(gaussian: Gaussian) -> tuple[float, ...]:
    """Where the comparison's teleports end: twice and once the largest standard deviation of the data."""
    values = gaussian.spectrum.values
    top = float(values.max() if values.numel() else gaussian.spectrum.tail) ** 0.5
    return (2 * top, top)


@dataclass(frozen=True, eq=False)
class SolverComparison:
    """What the analysis ``solvers`` finds.

    Attributes:
        table: all errors.
        adaptive: the solver with steps of its own, at several tolerances.
        frechet: distances of samples to the data, or None.
        name: of the model.
    """

    table: SolverTable
    adaptive: tuple[AdaptiveRow, ...] = ()
    frechet: FrechetTable | None = None
    name: str = "model"

    def best(self, budget: int, *, whitened: bool, published: bool = False) -> SolverRow | None:
        """The smallest error at a budget among the whitened families, or among all others.

        Args:
            budget: of the table.
            whitened: which of the two.
            published: on grids that do not follow the data only.
        """
        rows = [
            row
            for row in self.table.rows
            if row.budget == budget
            and is_whitened(row.family) == whitened
            and not (published and row.sampler.grid.name == "spectral")
        ]
        return min(rows, key=lambda row: row.error) if rows else None

    def ratio(self, budget: int, *, published: bool = False) -> float | None:
        """The smallest error of the whitened families over that of all others; None where one of the two is missing.

        Args:
            budget: of the table.
            published: leave the others the grids alone that do not follow the data's spectrum, which is ours as well.
        """
        ours = self.best(budget, whitened=True)
        others = self.best(budget, whitened=False, published=published)
        return None if ours is None or others is None or not others.error else ours.error / others.error

    def summary(self) -> str:
        """The best solver of a middle budget, what the next best rule has, and the distances there."""
        table = self.table
        budget = min(table.budgets, key=lambda b: abs(b - 8))
        best = table.best(budget)
        text = (
            f"At {budget} evaluations {best.name} has the smallest error to the model's own ODE solution, "
            f"{_digits(best.error)} (rms over {table.n} samples whose own spread is {_digits(table.scale)}; Heun at "
            f"{table.baseline.nfe}: {_digits(table.baseline.error)})."
        )
        ratio, others = self.ratio(budget), self.best(budget, whitened=False)
        if ratio is not None and others is not None:
            text += f" The whitened solver's error is {ratio:.2f} times that of the best other one, {others.name}."
        distances = self.frechet
        if distances is not None:
            at = min(distances.budgets, key=lambda b: abs(b - 8))
            cell = distances.best(at)
            text += (
                f" The Fréchet distance to the data at {at} is smallest for {cell.family}, {_digits(cell.distance)}; Heun at "
                f"{distances.baseline_nfe} has {_digits(distances.baseline)}, a perfect model about {_digits(distances.floor)}."
            )
        return text

    def tables(self) -> list[Table]:
        """Errors, medians, options, tolerances and distances; the best of each column with a star."""
        table, budgets = self.table, self.table.budgets
        rows = {(f, b): table.best_of(f, b) for f in table.families for b in budgets}
        best = {b: table.best(b) for b in budgets}
        kinds = ", ".join(f"{letter} {grid}" for grid, letter in LETTERS.items() if self._uses(letter))
        title = (
            f"{self.name}: end-point error (rms, {table.n} samples of spread {_digits(table.scale)}) by evaluations; each "
            f"solver with its best options and grid ({kinds}); * the best; in brackets the evaluations spent where they are "
            f"fewer. The exact solution is known to {_digits(table.reference.error)}"
        )

        def shown(row: SolverRow | None, star: bool) -> str | None:
            if row is None:
                return None
            spent = "" if row.nfe == row.budget else f" ({row.nfe})"
            return f"{_digits(row.error)}{'*' if star else ''} {grid_letter(row.sampler)}{spent}"

        found = [
            _by_budget(title, table.families, budgets, lambda f, b: shown(rows[f, b], rows[f, b] is best[b])),
            _by_budget(
                f"{self.name}: median over the samples of each one's own error, of the same runs", table.families, budgets,
                lambda f, b: None if (row := rows[f, b]) is None else _digits(row.median),
            ),
        ]  # fmt: skip
        varied = [f for f in table.families if any(_options(rows[f, b]) for b in budgets)]
        if varied:
            options = _by_budget(
                f"{self.name}: options of the best", varied, budgets, lambda f, b: _options(rows[f, b]) or None
            )
            found.append(options)
        if self.adaptive:
            lines: list[tuple[Cell, ...]] = [
                (r.tolerance, r.nfe, _digits(r.error), _digits(r.median)) for r in self.adaptive
            ]
            columns = ("rtol = atol", "evaluations", "error (rms)", "median")
            title = f"{self.name}: RK45 with steps of its own; evaluations of the sample that took the most"
            found.append(Table(title, columns, tuple(lines)))
        if self.frechet is not None:
            found.append(self._distances(self.frechet))
        return found

    def _uses(self, letter: str) -> bool:
        return any(grid_letter(row.sampler) == letter for row in self.table.rows)

    def _distances(self, table: FrechetTable) -> Table:
        best = {b: table.best(b) for b in table.budgets}

        def shown(cell: FrechetCell | None) -> str | None:
            if cell is None:
                return None
            spent = "" if cell.nfe == cell.budget else f" ({cell.nfe})"
            return f"{_digits(cell.distance)}{'*' if cell is best[cell.budget] else ''}{spent}"

        held = "" if table.heldout is None else f", held-out data {_digits(table.heldout)}"
        title = (
            f"{self.name}: squared Fréchet distance to the data of {table.n} samples (seed {table.seed}, the same noise for "
            f"all) on {table.features['name']}, by evaluations; options and grid as in the first table. Heun at "
            f"{table.baseline_nfe}: {_digits(table.baseline)}; as many samples of a perfect model about "
            f"{_digits(table.floor)}{held}"
        )
        return _by_budget(title, table.families, table.budgets, lambda f, b: shown(table.cell(f, b)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "name": self.name,
            "table": self.table.to_dict(),
            "best_by_solver": {
                family: {str(b): row.to_dict() for b in self.table.budgets if (row := self.table.best_of(family, b))}
                for family in self.table.families
            },
            "whitened_over_others": {str(b): self.ratio(b) for b in self.table.budgets},
            "whitened_over_others_on_published_grids": {
                str(b): self.ratio(b, published=True) for b in self.table.budgets
            },
            "adaptive": [dict(row.__dict__) for row in self.adaptive],
            "frechet": None if self.frechet is None else self.frechet.to_dict(),
        }

    def plot(self, ax: Any = None) -> Any:
        """Error, and Fréchet distance where there is one, against evaluations."""
        return draw_comparison(self, ax)


def _by_budget(
    title: str, families: Sequence[str], budgets: Sequence[int], shown: Callable[[str, int], str | None]
) -> Table:
    rows: list[tuple[Cell, ...]] = [(family, *(shown(family, b) or "–" for b in budgets)) for family in families]
    return Table(title, ("solver", *map(str, budgets)), tuple(rows))


def _digits(value: float) -> str:
    """Three significant digits; from a thousand on two, as a power of ten."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.1e}"


def _options(row: SolverRow | None) -> str:
    """The detail of a row without its grid."""
    if row is None:
        return ""
    return ", ".join(part for part in row.detail.split(", ") if part not in LETTERS)


@dataclass(frozen=True)
class SolversOptions:
    """Options of the analysis.

    Attributes:
        nfes: evaluations of the error table.
        n: samples whose end points are compared.
        solvers: names of the registry; empty is all of them.
        grids: karras, karras12, log_snr, spectral.
        tolerances: of rk45; none leaves it out.
        frechet: whether samples are drawn and compared with the data.
        samples: their number.
        frechet_nfes: the evaluations at which they are; those of ``nfes`` among them count.
        levels: steps of the exact solution.
        batch_size: samples at once.
    """

    nfes: tuple[int, ...] = TABLE_NFES
    n: int = 24
    solvers: tuple[str, ...] = ()
    grids: tuple[str, ...] = COMPARED
    tolerances: tuple[float, ...] = TOLERANCES
    frechet: bool = True
    samples: int = 300
    frechet_nfes: tuple[int, ...] = FRECHET_NFES
    levels: int = 200
    batch_size: int = 256


@analysis(
    "solvers",
    about="error and Fréchet distance of every solver by evaluations, each with its best options and grid",
    options=SolversOptions,
)
def analyze_solvers(subject: Subject, options: SolversOptions) -> SolverComparison:
    """Every solver of the registry on a subject."""
    if options.frechet and not set(options.frechet_nfes) & set(options.nfes):
        raise ArgumentError(
            f"frechet_nfes = {list(options.frechet_nfes)}: none of them is among nfes = {list(options.nfes)}; "
            "give one that is, or frechet=false"
        )
    model, data, n, seed, size = subject.model, subject.data, options.n, subject.seed, options.batch_size
    gaussian = Gaussian.fit(data, rank=None if model.dim <= _WHOLE else _RANK)
    solvers = [name for name in options.solvers if name != "rk45"]
    entrants = (
        all_entrants(model, gaussian, solvers=solvers, grids=options.grids, teleports=teleport_levels(gaussian))
        if solvers or not options.solvers
        else []
    )
    if not entrants:
        raise ArgumentError("solvers = ['rk45']: it is shown beside others; name one of these as well")
    reference = reference_solution(model, n, seed, gaussian=gaussian, levels=options.levels, batch_size=size)
    table = solver_errors(
        model, nfes=options.nfes, n=n, seed=seed, entrants=entrants, reference=reference, batch_size=size,
        progress=subject.progress,
    )  # fmt: skip
    adaptive: list[AdaptiveRow] = []
    if options.tolerances and (not options.solvers or "rk45" in options.solvers):
        adaptive = adaptive_rows(model, reference, n, seed, options.tolerances, batch_size=size)
    found = None
    if options.frechet:
        bench = QualityBench.of(data, features_for(data, subject.name), subject.heldout, seed=seed)
        rows = chosen_rows(table, options.frechet_nfes)
        shown = track(rows, len(rows), "Fréchet distances", threshold=1 if subject.progress else len(rows) + 1)
        found = frechet_table(
            model, bench, shown, options.samples, seed,
            distance=lambda sampler: distance_of(model, bench, sampler, options.samples, seed, size),
        )  # fmt: skip
    return SolverComparison(table, tuple(adaptive), found, subject.name)
