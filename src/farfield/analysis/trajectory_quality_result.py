"""What the measurement of quality along a trajectory returns: its table, its sentence and its figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.analysis.tables import Cell, Table

#: Distances that differ by less are called equal: near the end both curves are the same samples but for rounding.
MARGIN = 0.02


@dataclass(frozen=True)
class QualityRow:
    """One step of the run.

    Attributes:
        n: number of the level from below; 1 is the last.
        sigma: the level.
        nfe: evaluations to reach the state; ``state``, its squared Fréchet distance.
        jump_nfe: evaluations to the denoiser's output there; ``denoised``, its distance.
    """

    n: int
    sigma: float
    nfe: int
    state: float
    jump_nfe: int
    denoised: float

    @property
    def gain(self) -> float:
        """How many times closer to the data the output is; above 1 where the jump pays."""
        return self.state / self.denoised if self.denoised > 0 else math.inf


@dataclass(frozen=True)
class BudgetRow:
    """A jump beside a full run at one budget.

    Attributes:
        budget: evaluations allowed.
        n, sigma: of the last level from which the long run can jump within it; ``jump``, the distance of that output.
        nfe: evaluations of the solver's own shorter plan; ``shorter``, its distance.
    """

    budget: int
    n: int
    sigma: float
    jump: float
    nfe: int
    shorter: float


@dataclass(frozen=True)
class TrajectoryQuality:
    """Fréchet distances along a run, in squared units of the features.

    Attributes:
        rows: step by step, from noise to data.
        final, final_nfe: distance of the finished samples, and what they cost.
        budgets: jumps beside shorter plans.
        floor: what as many samples of a perfect model would show, if features were Gaussian.
        heldout: what held-out data show, read off at the same number; None without any.
        features: name, number and digest of the features.
        samples, points: numbers of samples and reference data.
        sampler: name of the solver.
        seed: of the samples.
        exact: (of x, of D) at each row for the exact flow on Gaussian data; None for any other law.
    """

    rows: tuple[QualityRow, ...]
    final: float
    final_nfe: int
    budgets: tuple[BudgetRow, ...]
    floor: float
    heldout: float | None
    features: Mapping[str, Any]
    samples: int
    points: int
    sampler: str
    seed: int
    exact: tuple[tuple[float, float], ...] | None = None

    @property
    def behind(self) -> tuple[QualityRow, ...]:
        """The rows where the output is farther from the data than the state, by more than 2 %."""
        return tuple(row for row in self.rows if row.denoised > row.state * (1 + MARGIN))

    def within(self, share: float = 0.1) -> QualityRow | None:
        """The first row whose output is within a share of the finished samples' distance; None if none is."""
        return next((row for row in self.rows if row.denoised <= self.final * (1 + share)), None)

    def summary(self) -> str:
        """The result in a few sentences."""
        early = self.within()
        best = max(self.rows, key=lambda row: row.gain)
        words = [
            f"The jump gains most at σ = {best.sigma:.3g}: after {best.nfe} evaluations the state is {best.state:.4g} "
            f"from the data, the denoiser's output, one evaluation later, {best.denoised:.4g}."
        ]
        if early is not None:
            words.append(
                f"Jumping at σ = {early.sigma:.3g} ({early.jump_nfe} evaluations) is within 10 % of the finished samples "
                f"({self.final:.4g} after {self.final_nfe})."
            )
        where = ", ".join(f"σ = {row.sigma:.3g}" for row in self.behind)
        words.append(
            f"The output is behind the state at {where}." if where else "Nowhere is the output behind the state."
        )
        held = "" if self.heldout is None else f"; held-out data show {self.heldout:.3g}"
        words.append(
            f"All distances are of {self.samples} samples on {self.features['name']}, and as many samples of a perfect "
            f"model would be about {self.floor:.3g} away{held}."
        )
        return " ".join(words)

    def tables(self) -> Sequence[Table]:
        """Both curves step by step, and jumps beside shorter plans."""
        columns = ["n", "σ", "NFE", "distance of x", "NFE of jump", "distance of D", "x/D"]
        rows: list[tuple[Cell, ...]] = []
        for k, row in enumerate(self.rows):
            cells = (
                row.n,
                row.sigma,
                row.nfe,
                row.state,
                row.jump_nfe,
                row.denoised,
                row.gain if row.denoised else None,
            )
            rows.append(cells if self.exact is None else (*cells, *self.exact[k]))
        end: tuple[Cell, ...] = (0, 0.0, self.final_nfe, self.final, None, None, None)
        rows.append(end if self.exact is None else (*end, None, None))
        if self.exact is not None:
            columns += ["exact x", "exact D"]
        title = (
            f"{self.sampler}: Fréchet distance of {self.samples} samples to {self.points:,} data on {self.features['name']} "
            f"(as many of a perfect model: about {self.floor:.3g}"
        )
        title += ")" if self.heldout is None else f"; held-out data: {self.heldout:.3g})"
        found = [Table(title, tuple(columns), tuple(rows))]
        if self.budgets:
            told = tuple((b.budget, b.n, b.sigma, b.jump, b.nfe, b.shorter, b.shorter / b.jump) for b in self.budgets)
            names = (
                "budget",
                "jump at n",
                "σ",
                "distance of the jump",
                "NFE of a shorter run",
                "its distance",
                "run/jump",
            )
            found.append(Table(f"{self.sampler}: a jump out of the long run beside a run of fewer steps", names, told))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe; a gain without bound is None."""
        told = [asdict(row) | {"gain": row.gain if math.isfinite(row.gain) else None} for row in self.rows]
        early = self.within()
        return {
            "sampler": self.sampler,
            "samples": self.samples,
            "points": self.points,
            "seed": self.seed,
            "features": dict(self.features),
            "rows": told,
            "final": self.final,
            "final_nfe": self.final_nfe,
            "budgets": [asdict(b) for b in self.budgets],
            "floor": self.floor,
            "heldout": self.heldout,
            "behind": [row.sigma for row in self.behind],
            "within_tenth": None if early is None else {"sigma": early.sigma, "nfe": early.jump_nfe},
            "exact": None if self.exact is None else [list(pair) for pair in self.exact],
        }

    def plot(self, ax: Any = None) -> Any:
        """Distance against evaluations, for states, outputs and shorter runs, with what a perfect model would show."""
        (axes,) = axes_for(ax, 1, 6.8, 4.2)
        axes.plot(
            [*(row.nfe for row in self.rows), self.final_nfe], [*(row.state for row in self.rows), self.final],
            color=PALETTE[0], linewidth=1.8, marker="o", markersize=4, label="state x",
        )  # fmt: skip
        axes.plot(
            [row.jump_nfe for row in self.rows], [row.denoised for row in self.rows],
            color=PALETTE[1], linewidth=1.8, marker="o", markersize=4, label="denoiser's output D(x, σ)",
        )  # fmt: skip
        if self.budgets:
            axes.plot(
                [b.nfe for b in self.budgets], [b.shorter for b in self.budgets],
                color=PALETTE[2], linewidth=1.2, linestyle=":", marker="s", markersize=5, label="finished run of fewer steps",
            )  # fmt: skip
        axes.axhline(
            self.floor, color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (4, 3)), label="samples of a perfect model"
        )
        axes.set_yscale("log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        dress(axes, "denoiser evaluations for each sample", "Fréchet distance to the data")
        axes.legend(frameon=False, fontsize=9)
        return axes.figure
