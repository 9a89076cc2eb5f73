"""Claims of the sources as runnable experiments: a claim, a measurement, a verdict."""

from farfield.analysis.tables import Table
from farfield.experiments import stf_training, stf_variance
from farfield.experiments.base import EXPERIMENTS, Experiment, Outcome, Settings, run_experiment

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Outcome",
    "Settings",
    "Table",
    "run_experiment",
    "stf_training",
    "stf_variance",
]
