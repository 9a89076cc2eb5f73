"""What :func:`~farfield.analysis.fidelity.score_fidelity` found: the curves by law, what they say, and their tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from farfield.analysis.ratios import COVERED, QUANTILES, Ratios, finite
from farfield.analysis.tables import Table
from farfield.errors import ArgumentError

Protocol = Literal["noised", "noise"]
Quantity = Literal["score", "denoiser"]

#: Levels of the pixel-range test in units of sqrt(tr Σ): σ = 10 to 40 for CIFAR-10 at 32×32, where it is 27.
_RANGE = (0.37, 1.5)
#: A Gaussian that leaves so much of the denoiser unexplained there is not that of the model's data: trained CIFAR-10
#: networks have 0.02 to 0.04, the mean alone 0.67 to 0.89.
MISMATCH = 0.25


@dataclass(frozen=True)
class LawFidelity(Ratios):
    """One law's curves: of the score, ``E‖s_model − s_law‖² / E‖s_model‖²``, and beside it

    Attributes:
        reversed: the same with the law's score in the denominator, ``‖s_law‖²``.
        denoiser: ``E‖D_model − D_law‖² / E‖D_model‖²``. Its denominator holds the mean, so it depends on where the zero of
            the pixels is: the law D = μ has ‖D − μ‖²/‖D‖², below 1 (0.97 at low noise for CIFAR-10 in [−1, 1]).
        denoiser_reversed: the same with ``‖D_law‖²`` in the denominator.
    """

    reversed: Ratios
    denoiser: Ratios
    denoiser_reversed: Ratios


@dataclass(frozen=True, eq=False)
class ScoreFidelity:
    """The fraction of score variance that each law leaves unexplained, by noise level.

    Attributes:
        sigmas: the noise levels, decreasing.
        laws: the curves of each law, by name.
        protocol: ``"noised"``: x = data point + σz; ``"noise"``: x = σz.
        queries, seed: number of query points at each level, and the seed that names them.
        count, dim: data points behind the laws, and coordinates of each.
        scales: square roots of the (at most ten) largest covariance eigenvalues.
        total_scale: ``sqrt(tr Σ)``, below which the far-field argument no longer promises anything.
        components: clusters of the mixture, or None where there is no such law or not only one.
    """

    sigmas: tuple[float, ...]
    laws: dict[str, LawFidelity]
    protocol: Protocol
    queries: int
    seed: int
    count: int
    dim: int
    scales: tuple[float, ...]
    total_scale: float
    components: int | None

    def curve(self, law: str = "gaussian", quantity: Quantity = "score") -> Ratios:
        """The curve of a law, for the score or for the denoiser.

        Raises:
            ArgumentError: for a law that was not measured.
        """
        if law not in self.laws:
            raise ArgumentError(f"law = {law!r}; this analysis has {', '.join(self.laws)}")
        return self.laws[law] if quantity == "score" else self.laws[law].denoiser

    def explained_until(
        self, law: str = "gaussian", unexplained: float = 0.01, quantity: Quantity = "score"
    ) -> float | None:
        """The lowest σ above which a law leaves less than a fraction unexplained, or None if it does at no level.

        Between levels the curve is interpolated linearly in log σ and log FUV.
        """
        curve = self.curve(law, quantity).fuv
        if not curve[0] < unexplained:
            return None
        for k in range(1, len(curve)):
            if curve[k] >= unexplained:
                low, high = math.log(max(curve[k - 1], 1e-300)), math.log(curve[k])
                share = (math.log(unexplained) - low) / (high - low)
                a, b = math.log(self.sigmas[k - 1]), math.log(self.sigmas[k])
                return math.exp(a + share * (b - a))
        return self.sigmas[-1]

    def unexplained_at(self, sigma: float, law: str = "gaussian", quantity: Quantity = "score") -> float | None:
        """The unexplained fraction at any σ, interpolated as in :meth:`explained_until`; None outside the levels."""
        curve = self.curve(law, quantity).fuv
        for k, level in enumerate(self.sigmas):
            if level == sigma:
                return curve[k]
            if level < sigma:
                if k == 0:
                    return None
                share = math.log(self.sigmas[k - 1] / sigma) / math.log(self.sigmas[k - 1] / level)
                above, below = (math.log(max(v, 1e-300)) for v in (curve[k - 1], curve[k]))
                return math.exp(above + share * (below - above))
        return None

    @property
    def gaussian_until(self) -> float | None:
        """The lowest σ above which the Gaussian leaves less than 1 % of the score variance unexplained."""
        return self.explained_until("gaussian", 0.01) if "gaussian" in self.laws else None

    @property
    def far_unexplained(self) -> float | None:
        """The fraction of the denoiser that the Gaussian leaves unexplained where σ is about ``sqrt(tr Σ)``: the median
        over the levels from 0.37 to 1.5 of it, or at the nearest level; None without that law.

        Only the denoiser tells a Gaussian from a wrong one there, for the score is almost ``−x/σ²`` for both.
        """
        if "gaussian" not in self.laws or not self.total_scale > 0:
            return None
        values = self.laws["gaussian"].denoiser.fuv
        apart = [abs(math.log(s / self.total_scale)) for s in self.sigmas]
        inside = [k for k, s in enumerate(self.sigmas) if _RANGE[0] <= s / self.total_scale <= _RANGE[1]]
        return statistics.median(values[k] for k in inside or [apart.index(min(apart))])

    @property
    def mismatch(self) -> str | None:
        """A warning where the data do not look like the model's own, such as pixels in another range; else None."""
        left = self.far_unexplained
        if left is None or left <= MISMATCH:
            return None
        return (
            f"At σ near sqrt(tr Σ) = {self.total_scale:.3g} the Gaussian leaves {100 * left:.3g} % of the denoiser "
            f"unexplained, where a model of these data leaves less than {100 * MISMATCH:.0f} %: are the data in the model's "
            "pixel range, and are they what it was trained on?"
        )

    def ranking(self, level: int, quantity: Quantity = "score") -> list[str]:
        """The laws at ``sigmas[level]``, the one that explains most first."""
        return sorted(self.laws, key=lambda law: self.curve(law, quantity).fuv[level])

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, with what follows from them; None for what is not finite."""
        more = {"quantile_levels": QUANTILES, "band": COVERED, "gaussian_until": self.gaussian_until}
        more |= {"gaussian_unexplained_at_1": self.unexplained_at(1.0) if "gaussian" in self.laws else None}
        plain: dict[str, Any] = finite({**asdict(self), **more, "mismatch": self.mismatch})
        return plain

    def summary(self) -> str:
        """Down to which level the Gaussian is all the model knows, and how much it explains at σ = 1."""
        if "gaussian" not in self.laws:
            return f"Measured against the laws {', '.join(self.laws)}, on {self.queries} queries at each level."
        until, said = self.gaussian_until, []
        law = "The Gaussian with the data's mean and covariance"
        if until is None:
            said.append("At no level does the Gaussian with the data's mean and covariance explain 99 % of the score.")
        else:
            said.append(f"{law} explains over 99 % of the score above σ = {until:.3g}.")
        at = self.unexplained_at(1.0)
        if at is not None:
            share = self.unexplained_at(1.0, quantity="denoiser") or 0.0
            said.append(
                f"At σ = 1 it leaves {100 * at:.3g} % of the score and {100 * share:.3g} % of the denoiser unexplained."
            )
        if self.mismatch is not None:
            said.append(f"Warning: {self.mismatch}")
        return " ".join(said)

    def tables(self) -> list[Table]:
        """FUV of score and denoiser by level and law, the Gaussian's in all conventions, and how far down each law reaches."""
        about = f"{self.queries} queries, protocol {self.protocol}"
        score = "unexplained fraction of the score ‖s_model − s_law‖² / ‖s_model‖²"
        denoiser = "unexplained fraction of the denoiser ‖D_model − D_law‖² / ‖D_model‖²"
        found = [self._table(f"{score}, {about}", "score"), self._table(f"{denoiser}, {about}", "denoiser")]
        if "gaussian" in self.laws:
            found.append(self.conventions_table())
        return [*found, self.reach_table()]

    def _table(self, title: str, quantity: Quantity) -> Table:
        curves = [self.curve(law, quantity) for law in self.laws]
        rows = tuple((s, *(c.fuv[k] for c in curves)) for k, s in enumerate(self.sigmas))
        return Table(title, ("σ", *self.laws), rows)

    def conventions_table(self, law: str = "gaussian") -> Table:
        """One law's fractions of the score: with its band, as a mean of ratios, and over the law's own score."""
        self.curve(law)
        own = self.laws[law]
        columns = ("σ", "ratio of means", "95 % from", "to", "mean of ratios", "over ‖s_law‖²")
        columns_of = (own.fuv, own.low, own.high, own.mean_ratio, own.reversed.fuv)
        rows = tuple((s, *(column[k] for column in columns_of)) for k, s in enumerate(self.sigmas))
        return Table(f"the law {law}, unexplained fraction of the score by convention", columns, rows)

    def reach_table(self, shares: Sequence[float] = (0.01, 0.1, 0.5)) -> Table:
        """The break-down noise: down to which σ each law leaves less than a share of the score unexplained."""
        heads = (f"explains {100 * (1 - u):.0f} % down to σ =" for u in shares)
        rows = tuple((law, *(self.explained_until(law, u) for u in shares)) for law in self.laws)
        return Table("how far down from high noise each law explains the score", ("law", *heads), rows)

    def plot(self, ax: Any = None) -> Any:
        """Unexplained fractions against σ, with 95 % bands: score and denoiser, or the score alone on one given axes."""
        from farfield.analysis.fidelity_plot import draw
        from farfield.analysis.plotting import axes_for

        panels = axes_for(ax, count=2, width=12.4, height=4.4)
        quantities: tuple[Quantity, Quantity] = ("score", "denoiser")
        for axes, quantity in zip(panels, quantities, strict=False):
            draw(self, axes, quantity)
        return panels[0].figure
