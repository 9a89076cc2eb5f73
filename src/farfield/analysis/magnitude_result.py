"""What the measurement of magnitudes returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from farfield.analysis.plotting import PALETTE, axes_for, dress
from farfield.analysis.tables import Table

#: Means over samples and their standard deviations.
Curve = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class MagnitudeStatistics:
    """Mean and standard deviation of the Euclidean norm, forward (noised data) and backward (a run of N steps).

    Attributes:
        sigmas: (N + 1,) the levels of the run, the final one last.
        states: of ‖x_n‖ over samples, (N + 1,).
        denoised: of ‖r_n‖ over samples, (N,).
        noised: of ‖x_i + σ z_i‖ over the data at the same levels, (N + 1,).
        curve_sigmas, curve: the same on evenly spaced levels, for drawing.
        dim, samples, points: coordinates, samples and data.
        nfe: evaluations for each sample.
        seed: of noise and samples.
    """

    sigmas: tuple[float, ...]
    states: Curve
    denoised: Curve
    noised: Curve
    curve_sigmas: tuple[float, ...]
    curve: Curve
    dim: int
    samples: int
    points: int
    nfe: int
    seed: int

    @property
    def gaps(self) -> tuple[float, ...]:
        """``mean ‖x_n‖ / mean ‖x_i + σ z_i‖ − 1`` at each level of the run; 0 where the marginal laws agree."""
        return tuple(a / b - 1 if b > 0 else 0.0 for a, b in zip(self.states[0], self.noised[0], strict=True))

    @property
    def errors(self) -> tuple[float, ...]:
        """The standard error of each gap, from the spread of the samples and of the data."""
        found = []
        for mean, s, t in zip(self.noised[0], self.states[1], self.noised[1], strict=True):
            found.append(
                math.hypot(s / math.sqrt(self.samples), t / math.sqrt(self.points)) / mean if mean > 0 else 0.0
            )
        return tuple(found)

    @property
    def largest_gap(self) -> tuple[float, float]:
        """The level where forward and backward differ most, and the relative gap there."""
        k = max(range(len(self.sigmas)), key=lambda i: abs(self.gaps[i]))
        return self.sigmas[k], self.gaps[k]

    @property
    def shrinks(self) -> bool:
        """Whether the mean norm of the states falls at every step, up to the standard error of the mean."""
        mean, errors = self.states[0], [s / math.sqrt(self.samples) for s in self.states[1]]
        return all(b <= a + e for (a, b), e in zip(pairwise(mean), errors[1:], strict=True))

    def summary(self) -> str:
        """The result in two sentences."""
        sigma, gap = self.largest_gap
        error = self.errors[self.sigmas.index(sigma)]
        falls = "shrink at every step" if self.shrinks else "do not shrink at every step"
        return (
            f"States {falls}, from a mean length of {self.states[0][0]:.4g} (σ√d = {self.sigmas[0] * self.dim**0.5:.4g}) to "
            f"{self.states[0][-1]:.4g}; data have {self.noised[0][-1] if self.sigmas[-1] == 0 else self.curve[0][0]:.4g}. "
            f"Sampled states and noised data differ most at σ = {sigma:.3g}, by {100 * gap:+.2g} % of the length "
            f"(standard error {100 * error:.2g} %)."
        )

    def tables(self) -> Sequence[Table]:
        """Level by level."""
        outputs: list[float | None] = [*self.denoised[0], *[None] * (len(self.sigmas) - len(self.denoised[0]))]
        rows = tuple(
            (s, x, spread, data, 100 * gap, r)
            for s, x, spread, data, gap, r in zip(
                self.sigmas, *self.states, self.noised[0], self.gaps, outputs, strict=True
            )
        )
        columns = ("σ", "‖x‖", "± spread", "‖data + σz‖", "gap, %", "‖D(x, σ)‖")
        return (Table(f"mean norms over {self.samples} samples and {self.points} data", columns, rows),)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""
        plain = {k: [list(part) for part in v] if k in _CURVES else v for k, v in asdict(self).items()}
        sigma, gap = self.largest_gap
        return {
            **{k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()},
            "gaps": list(self.gaps),
            "gap_errors": list(self.errors),
            "largest_gap": {"sigma": sigma, "gap": gap},
            "shrinks": self.shrinks,
        }

    def plot(self, ax: Any = None) -> Any:
        """Norms against the noise level, and the relative gap between backward and forward."""
        left, right = axes_for(ax, 2, 9.6, 3.8)
        levels = [s for s in self.sigmas if s > 0]
        m = len(levels)
        left.plot(self.curve_sigmas, self.curve[0], color=PALETTE[7], linewidth=5, alpha=0.45, label="data + σz")
        left.plot(
            self.sigmas, self.states[0], color=PALETTE[0], linewidth=1.6, marker="o", markersize=3.5, label="state x"
        )
        k = len(self.denoised[0])
        left.plot(self.sigmas[:k], self.denoised[0], color=PALETTE[1], linewidth=1.6, marker="o", markersize=3.5,
                  label="D(x, σ)")  # fmt: skip
        dress(left, "noise level σ", "mean norm")
        left.legend(frameon=False, fontsize=9)
        gaps, errors = [100 * g for g in self.gaps[:m]], [100 * e for e in self.errors[:m]]
        right.axhline(0.0, color=PALETTE[7], linewidth=1)
        right.errorbar(levels, gaps, errors, color=PALETTE[0], linewidth=1.6, marker="o", markersize=3.5, capsize=2)
        right.set_xscale("log")
        right.set_xlim(max(levels) * 1.2, min(levels) / 1.2)
        dress(right, "noise level σ (sampling →)", "‖x‖ against ‖data + σz‖, %")
        return left.figure


_CURVES = ("states", "denoised", "noised", "curve")
