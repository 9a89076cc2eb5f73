"""Claims of the sources as runnable experiments: a claim, a measurement, a verdict."""

from farfield.analysis.tables import Table
from farfield.experiments import (
    gaussian_score,
    gaussian_score_rank,
    learning_order,
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
    "gaussian_score",
    "gaussian_score_rank",
    "learning_order",
    "run_experiment",
    "stf_training",
    "stf_variance",
    "symmetry_sections",
    "teleport",
    "teleport_budget",
]
