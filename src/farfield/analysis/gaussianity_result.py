"""What the tests of normality found, time by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, label_ends, marker_line
from farfield.analysis.tables import Table

if TYPE_CHECKING:
    from farfield.analysis.gaussianity import ShapiroWilk

_COLOURS = {"coordinates": PALETTE[0], "projections": PALETTE[2], "components": PALETTE[1]}


@dataclass(frozen=True)
class ReductionCurve:
    """One reduction, a value for each time.

    Attributes:
        columns: how many columns were tested.
        statistic, p: the median W and p over the columns.
        rejected: the fraction of columns with p below 0.05.
        kurtosis: the median excess kurtosis.
    """

    columns: int
    statistic: tuple[float, ...]
    p: tuple[float, ...]
    rejected: tuple[float, ...]
    kurtosis: tuple[float, ...]

    @classmethod
    def of(cls, columns: int, tested: Sequence[ShapiroWilk]) -> ReductionCurve:
        """The summary of the tests at each time."""
        return cls(
            columns,
            tuple(float(t.statistic.quantile(0.5)) for t in tested),
            tuple(float(t.p.quantile(0.5)) for t in tested),
            tuple(t.rejected for t in tested),
            tuple(float(t.kurtosis.quantile(0.5)) for t in tested),
        )


@dataclass(frozen=True)
class Gaussianity:
    """The tests of noised samples of a data set.

    Attributes:
        curves: by reduction.
        times: forward times, decreasing from noise to data.
        thetas, sigmas: signal scale and noise level at each.
        n: samples tested; ``points`` data they were drawn from.
        threshold: the fraction of rejected columns at which the normal regime ends.
        critical: a critical time to compare with, or None.
        seed: of everything random.
    """

    curves: dict[str, ReductionCurve]
    times: tuple[float, ...]
    thetas: tuple[float, ...]
    sigmas: tuple[float, ...]
    n: int
    points: int
    threshold: float
    critical: float | None
    seed: int

    def normal_until(self, reduction: str) -> float | None:
        """The forward time at which the normal regime ends, coming from high noise.

        Between the last time with fewer and the first with more than ``threshold`` of the columns rejected the fraction is
        taken to be linear. None where it never ends; the first time where it had ended before.
        """
        shares = self.curves[reduction].rejected
        for k, share in enumerate(shares):
            if share >= self.threshold:
                if k == 0:
                    return self.times[0]
                part = (self.threshold - shares[k - 1]) / (share - shares[k - 1])
                return self.times[k - 1] + part * (self.times[k] - self.times[k - 1])
        return None

    @property
    def first_end(self) -> tuple[str, float] | None:
        """The reduction that leaves the normal regime first, with the time; None where none does."""
        ends = [(t, name) for name in self.curves if (t := self.normal_until(name)) is not None]
        return (max(ends)[1], max(ends)[0]) if ends else None

    def summary(self) -> str:
        """Until when noisy data look Gaussian."""
        parts = [
            f"{_WORDS[name]} until {'the end' if (t := self.normal_until(name)) is None else f's = {t:.3f}'}"
            for name in self.curves
        ]
        text = f"{self.n} noised samples look Gaussian to Shapiro-Wilk: {'; '.join(parts)}"
        if self.critical is not None:
            text += f". The first critical time of the data is s = {self.critical:.3f}"
        return text + "."

    def tables(self) -> list[Table]:
        """Each reduction at each time, and where its normal regime ends."""
        ends = [
            (name, curve.columns, self.normal_until(name), self.critical) for name, curve in self.curves.items()
        ]  # fmt: skip
        out = [
            Table(
                f"end of the normal regime ({self.threshold:g} of the columns rejected at 0.05)",
                ("reduction", "columns", "s", "critical s"),
                tuple(ends),
            )
        ]
        for name, curve in self.curves.items():
            rows = tuple(
                zip(self.times, self.thetas, curve.statistic, curve.p, curve.rejected, curve.kurtosis, strict=True)
            )
            columns = ("s", "α", "median W", "median p", "rejected at 0.05", "median excess kurtosis")
            out.append(Table(f"{name}, {curve.columns} columns of {self.n} samples", columns, rows))
        return out

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""
        return {
            "curves": {
                name: {
                    "columns": curve.columns,
                    "statistic": list(curve.statistic),
                    "p": list(curve.p),
                    "rejected": list(curve.rejected),
                    "kurtosis": list(curve.kurtosis),
                    "normal_until": self.normal_until(name),
                }
                for name, curve in self.curves.items()
            },
            "times": list(self.times),
            "thetas": list(self.thetas),
            "sigmas": list(self.sigmas),
            "n": self.n,
            "points": self.points,
            "threshold": self.threshold,
            "critical": self.critical,
            "seed": self.seed,
        }

    def plot(self, ax: Any = None) -> Any:
        """Rejected fraction and median p against time, in the order of generation."""
        left, *rest = axes_for(ax, 2, width=9.2, height=3.8)
        panels = [(left, "rejected", "fraction rejected at 0.05"), *((r, "p", "median p") for r in rest)]
        for axes, field, title in panels:
            ends = []
            for name, curve in self.curves.items():
                values = getattr(curve, field)
                shown = [max(v, 1e-12) for v in values] if field == "p" else values
                axes.plot(self.times, shown, color=_COLOURS[name], linewidth=1.8)
                ends.append((shown[-1], name, _COLOURS[name]))
            axes.set_xlim(self.times[0], self.times[-1])
            if field == "p":
                axes.set_yscale("log")
                axes.set_ylim(1e-13, 2)
            else:
                axes.set_ylim(-0.03, 1.03)
            line = 0.05 if field == "p" else self.threshold
            axes.axhline(line, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (1, 2)))
            if self.critical is not None:
                marker_line(axes, self.critical, f"critical s = {self.critical:.2f}", foot=0.35)
            dress(axes, "forward time s (generation →)", title)
            if axes is panels[-1][0]:
                label_ends(axes, ends)
        return left.figure


_WORDS = {"coordinates": "coordinates", "projections": "random projections", "components": "principal components"}
