"""What a field does: how much of its score the simple laws explain, the shape of its trajectories, its solvers' errors."""

from farfield.analysis.entrants import Entrant, default_entrants, describe
from farfield.analysis.fidelity import LawFidelity, ScoreFidelity, reference_laws, score_fidelity, score_gaps
from farfield.analysis.shape import Curve, TrajectoryShape, shape_statistics, trajectory_shape
from farfield.analysis.solver_table import Reference, SolverRow, SolverTable, reference_solution, solver_errors

__all__ = [
    "Curve",
    "Entrant",
    "LawFidelity",
    "Reference",
    "ScoreFidelity",
    "SolverRow",
    "SolverTable",
    "TrajectoryShape",
    "default_entrants",
    "describe",
    "reference_laws",
    "reference_solution",
    "score_fidelity",
    "score_gaps",
    "shape_statistics",
    "solver_errors",
    "trajectory_shape",
]
