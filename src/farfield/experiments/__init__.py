"""Claims of the sources as runnable experiments: a claim, a measurement, a verdict."""

from farfield.analysis.tables import Table
from farfield.experiments import (
    gaussian_late_start,
    gaussian_score,
    gaussian_score_rank,
    late_start,
    learning_order,
    minority_coverage,
    stf_training,
    stf_variance,
    symmetry_sections,
    teleport,
    teleport_budget,
)
from farfield.experiments.base import EXPERIMENTS, Experiment, Outcome, Settings, run_experiment

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Outcome",
    "Settings",
    "Table",
    "gaussian_late_start",
    "gaussian_score",
    "gaussian_score_rank",
    "late_start",
    "learning_order",
    "minority_coverage",
    "run_experiment",
    "stf_training",
    "stf_variance",
    "symmetry_sections",
    "teleport",
    "teleport_budget",
]
