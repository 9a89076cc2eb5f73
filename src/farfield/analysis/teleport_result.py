"""What a plan for a teleport holds, and how it is shown."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from farfield.analysis.entrants import describe
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, marker_line
from farfield.analysis.tables import Table
from farfield.sampling import Sampler

Verdict = Literal["safe", "doubtful", "harmful"]
Choice = Literal["deviation", "skip", "noise", "budget", "data"]


@dataclass(frozen=True)
class SkipCheck:
    """What a teleport did to samples that had no part in the plan: root mean squares over samples and coordinates.

    Attributes:
        skip, sigma: nodes skipped, and the level reached.
        state: distance of the teleported state from the model's own at this level; ``predicted_state`` of the plan.
        end: distance of the samples, both solved finely from there; ``predicted_end`` of the plan.
        median: over the samples, of each one's own distance at the end. Samples that end in another basin make the root mean
            square larger than this.
    """

    skip: int
    sigma: float
    state: float
    predicted_state: float
    end: float
    predicted_end: float
    median: float


@dataclass(frozen=True, eq=False)
class TeleportPlan:
    """How far a model can be skipped along the data's Gaussian; tuples run along ``sigmas``.

    Attributes:
        sigmas: the levels that were looked at, nodes of the grid and the one asked for, decreasing.
        fuv: fraction of the model's score that the Gaussian leaves unexplained at the teleported states.
        standard_error: of ``fuv`` over the states, by the delta method.
        denoiser_fuv: the same for ``D − μ`` instead of the score.
        state_error: root-mean-square distance from the model's own state at this level that a teleport to it makes.
        end_error: the same at zero noise.
        measured: whether the model was evaluated; otherwise ``fuv`` is the data's far-field estimate, and no errors are known.
        scale: root-mean-square deviation of the data from their mean: what ``end_error`` compares with.
        tolerance: on ``fuv``.
        breakdown: the level down to which ``fuv`` stays below the tolerance; None where it does at none.
        far_field: the same by the data's far field alone; None where no data were given.
        chosen_by: how the level was chosen.
        skip: nodes of the grid that lie above the level.
        sigma: the level, the top of the grid where there is nothing to skip.
        verdict: ``"safe"`` where ``fuv`` is within the tolerance, ``"doubtful"`` up to ten times that, else ``"harmful"``.
        nfe, nfe_left: evaluations without and with the teleport.
        sampler: the sampler with its teleport.
        states, seed: what was measured on.
        checks: what some skips did to other samples, possibly none.
    """

    sigmas: tuple[float, ...]
    fuv: tuple[float, ...]
    standard_error: tuple[float, ...]
    denoiser_fuv: tuple[float, ...]
    state_error: tuple[float, ...]
    end_error: tuple[float, ...]
    measured: bool
    scale: float
    tolerance: float
    breakdown: float | None
    far_field: float | None
    chosen_by: Choice
    skip: int
    sigma: float
    verdict: Verdict
    nfe: int
    nfe_left: int
    sampler: Sampler
    states: int
    seed: int
    checks: tuple[SkipCheck, ...] = ()

    @property
    def saved(self) -> float:
        """The fraction of the evaluations that is saved."""
        return 1 - self.nfe_left / self.nfe

    @property
    def policy(self) -> str:
        """What becomes of the grid: ``"truncate"``, ``"regrid"``, or ``"none"`` where nothing is skipped."""
        return str(getattr(self.sampler.start, "grid_policy", "none"))

    def at(self, sigma: float) -> int:
        """The index of the level nearest to σ."""
        return min(range(len(self.sigmas)), key=lambda k: abs(math.log(self.sigmas[k] / sigma)))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; the sampler without its Gaussian."""
        keys = (
            "sigmas", "fuv", "standard_error", "denoiser_fuv", "state_error", "end_error", "measured", "scale",
            "tolerance", "breakdown", "far_field", "chosen_by", "skip", "sigma", "verdict", "nfe", "nfe_left", "saved",
            "policy", "states", "seed",
        )  # fmt: skip
        plain = {k: getattr(self, k) for k in keys}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
        return {**plain, "sampler": describe(self.sampler), "checks": [asdict(check) for check in self.checks]}

    def summary(self) -> str:
        """The level, what it saves, and what it is expected to do to the samples."""
        if not self.skip:
            if self.chosen_by in ("skip", "noise") or (self.chosen_by == "budget" and self.nfe_left == self.nfe):
                return f"No teleport: what was asked for skips nothing; all {self.nfe} evaluations remain."
            if self.fuv[0] <= self.tolerance:
                level = f"σ = {self.sigmas[0]:.3g}"
                return f"No teleport: only the top of the grid, {level}, is within the tolerance of {self.tolerance:g}."
            return (
                f"No teleport: already at σ = {self.sigmas[0]:.3g} the Gaussian leaves {self.fuv[0]:.2g} of the score "
                f"unexplained, against a tolerance of {self.tolerance:g}."
            )
        k = self.at(self.sigma)
        kept = (
            f"{self.nfe_left} of {self.nfe} evaluations" if self.nfe_left < self.nfe else f"all {self.nfe} evaluations"
        )
        what = f"{self.saved:.0%} saved" if self.saved > 0 else "all of them below it"
        source = "leaves" if self.measured else "leaves, by the data's third cumulant alone,"
        text = (
            f"Teleport to σ = {self.sigma:.3g}, {self.skip} nodes of the grid: {kept}, {what}. The Gaussian {source} "
            f"{self.fuv[k]:.2g} of the score unexplained there, against a tolerance of {self.tolerance:g} ({self.verdict})."
        )
        if self.measured:
            share = self.end_error[k] / self.scale
            text += (
                f" Samples are predicted to change by {self.end_error[k]:.2g} (rms), {share:.1%} of the data's spread."
            )
        checks = [c for c in self.checks if c.skip == self.skip]
        if checks:
            text += f" On other noise they changed by {checks[0].end:.2g} (median of samples {checks[0].median:.2g})."
        return text

    def tables(self) -> list[Table]:
        """One row for each level; a second table for the check."""
        rows = [
            (k, s, self.fuv[k], self.denoiser_fuv[k], self.state_error[k], self.end_error[k])
            for k, s in enumerate(self.sigmas)
        ] if self.measured else [(k, s, self.fuv[k]) for k, s in enumerate(self.sigmas)]  # fmt: skip
        columns: tuple[str, ...] = ("#", "σ", "FUV of the score")
        if self.measured:
            columns = (*columns, "FUV of D − μ", "predicted error of the state", "of the sample")
        found = [Table(f"the data's Gaussian along its own flow, {self.states} states", columns, tuple(rows))]
        if self.checks:
            names = ("skip", "σ", "state", "predicted", "sample", "predicted", "median")
            body = tuple(
                (c.skip, c.sigma, c.state, c.predicted_state, c.end, c.predicted_end, c.median) for c in self.checks
            )
            found.append(Table("error of a teleport on other noise, measured and predicted (rms)", names, body))
        return found

    def plot(self, ax: Any = None) -> Any:
        """Unexplained fraction against σ, and the predicted and measured error of the samples. Returns the figure."""
        left, *rest = axes_for(ax, 2 if self.measured else 1, 9.6 if self.measured else 6.4, 4.0)
        low, high = self.sigmas[-1], self.sigmas[0]
        left.set_xscale("log")
        left.set_yscale("log")
        left.plot(self.sigmas, self.fuv, color=PALETTE[0], linewidth=2, marker="o", markersize=4, label="of the score")
        if self.measured and max(self.denoiser_fuv) > 0:
            left.plot(self.sigmas, self.denoiser_fuv, color=PALETTE[7], linewidth=1.2, label="of D − μ")
            left.legend(frameon=False, fontsize=9, loc="center right")
        left.set_xlim(low / 1.15, high * 1.15)
        left.axhline(self.tolerance, color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (1, 2)))
        left.annotate(
            "tolerance", (high, self.tolerance), xytext=(0, 3), textcoords="offset points", fontsize=8, color=INK,
            alpha=0.8, ha="right",
        )  # fmt: skip
        name = "unexplained fraction" if self.measured else "unexplained fraction of the score, by the far field"
        dress(left, "noise level σ", name)
        if self.skip:  # each name where its panel's curve does not pass
            for axes, foot in zip((left, *rest), (0.45, 0.06), strict=False):
                marker_line(axes, self.sigma, f"teleport to σ = {self.sigma:.2g}", foot)
        if rest:
            (right,) = rest
            right.set_xscale("log")
            right.set_yscale("log")
            seen = [(s, e) for s, e in zip(self.sigmas, self.end_error, strict=True) if e > 0]
            right.plot(
                *zip(*seen, strict=True), color=PALETTE[0], linewidth=2, marker="o", markersize=4, label="predicted"
            )
            if self.checks:
                at = [c.sigma for c in self.checks]
                right.plot(at, [c.end for c in self.checks], "s", color=PALETTE[1], markersize=6, label="measured, rms")
                right.plot(
                    at, [c.median for c in self.checks], "^", color=PALETTE[2], markersize=6, label="measured, median"
                )
            right.axhline(self.scale, color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (1, 2)))
            right.annotate(
                "spread of the data", (high, self.scale), xytext=(0, 3), textcoords="offset points", fontsize=8,
                color=INK, alpha=0.8, ha="right",
            )  # fmt: skip
            right.set_xlim(low / 1.15, high * 1.15)
            dress(right, "noise level σ of the teleport", "change of the samples (rms)")
            if seen:
                right.legend(frameon=False, fontsize=9)
        return left.figure
