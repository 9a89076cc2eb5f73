"""What a field does: how much of its score the simple laws explain, the shape of its trajectories, its solvers' errors."""

from farfield.analysis.advice import Advice, advise
from farfield.analysis.catalogue import ANALYSES, Findings, Subject, analysis, analyze
from farfield.analysis.entrants import Entrant, default_entrants, describe
from farfield.analysis.fidelity import LawFidelity, ScoreFidelity, reference_laws, score_fidelity, score_gaps
from farfield.analysis.posteriors import PosteriorSpread, divergence_generator, posterior_spread
from farfield.analysis.shape import Curve, TrajectoryShape, shape_statistics, trajectory_shape
from farfield.analysis.solver_table import Reference, SolverRow, SolverTable, reference_solution, solver_errors
from farfield.analysis.tables import Table
from farfield.analysis.target_variance import Estimate, TargetVariance, target_variance

__all__ = [
    "ANALYSES",
    "Advice",
    "Curve",
    "Entrant",
    "Estimate",
    "Findings",
    "LawFidelity",
    "PosteriorSpread",
    "Reference",
    "ScoreFidelity",
    "SolverRow",
    "SolverTable",
    "Subject",
    "Table",
    "TargetVariance",
    "TrajectoryShape",
    "advise",
    "analysis",
    "analyze",
    "default_entrants",
    "describe",
    "divergence_generator",
    "posterior_spread",
    "reference_laws",
    "reference_solution",
    "score_fidelity",
    "score_gaps",
    "shape_statistics",
    "solver_errors",
    "target_variance",
    "trajectory_shape",
]
