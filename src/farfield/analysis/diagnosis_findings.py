"""The two parts of the analysis ``deviation`` as one result: against the simple laws, and against the training set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farfield.analysis.diagnosis_result import ScoreDeviation
from farfield.analysis.tables import Table

if TYPE_CHECKING:
    from farfield.analysis.deviation import TrajectoryDeviation


@dataclass(frozen=True, eq=False)
class DeviationFindings:
    """How long the model's paths stay with those of simple laws, and how its score differs from the training set's.

    Attributes:
        laws: against the laws.
        training_set: against the optimal denoiser of the training set.
    """

    laws: TrajectoryDeviation
    training_set: ScoreDeviation

    def to_dict(self) -> dict[str, Any]:
        """The first part's values, and the second's under ``training_set``."""
        return {**self.laws.to_dict(), "training_set": self.training_set.to_dict()}

    def summary(self) -> str:
        """Both summaries."""
        return f"{self.laws.summary()} {self.training_set.summary()}"

    def tables(self) -> list[Table]:
        """The tables of both parts."""
        return [*self.laws.tables(), *self.training_set.tables()]

    def plot(self, ax: Any = None) -> Any:
        """The laws' curves above, the training set's below, with strips of samples for images.

        Args:
            ax: four axes for the curves alone, or None for a new figure.
        """
        from farfield.analysis.diagnosis_plot import draw_findings

        return draw_findings(self, ax)
