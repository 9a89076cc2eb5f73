"""What a field does: how much of its score the simple laws explain, the shape of its trajectories, its solvers' errors."""

from farfield.analysis.advice import Advice, advise
from farfield.analysis.catalogue import ANALYSES, Findings, Subject, analysis, analyze
from farfield.analysis.consistency import seed_consistency
from farfield.analysis.critical_closed_form import critical_time_closed_form
from farfield.analysis.critical_result import CriticalTimes
from farfield.analysis.criticality import Criticality
from farfield.analysis.deviation import TrajectoryDeviation, trajectory_deviation
from farfield.analysis.diagnosis import score_deviation
from farfield.analysis.diagnosis_result import ScoreDeviation
from farfield.analysis.emergence import Emergence, measure_emergence
from farfield.analysis.entrants import Entrant, default_entrants, describe
from farfield.analysis.fidelity import LawFidelity, ScoreFidelity, reference_laws, score_fidelity, score_gaps
from farfield.analysis.field import ScoreField, score_field
from farfield.analysis.gaussianity import shapiro_wilk
from farfield.analysis.interpolation_diagnostics import latent_diagnostics
from farfield.analysis.inversion import Inversion, invert
from farfield.analysis.label_diversity import mode_masses
from farfield.analysis.late_start import analyze_late_start
from farfield.analysis.late_start_choice import StartChoice, choose_start
from farfield.analysis.late_start_curve import knee, plateau_edge
from farfield.analysis.late_start_mismatch import LawMismatch, law_mismatch
from farfield.analysis.late_start_result import LateStartSweep
from farfield.analysis.learning import LearningProbe, named_laws
from farfield.analysis.learning_curves import LearningCurves
from farfield.analysis.learning_record import learning_curves, read_record
from farfield.analysis.likelihood import LikelihoodReport
from farfield.analysis.likelihood_order import LikelihoodOrder, measure_order
from farfield.analysis.linear_learning import LinearLearning
from farfield.analysis.magnitude import magnitude_statistics
from farfield.analysis.mean_shift import annealed_mean_shift
from farfield.analysis.mean_shift_modes import Modes
from farfield.analysis.mean_shift_tree import ModeTree, mode_tree
from farfield.analysis.modes import ModeStructure, mode_structure
from farfield.analysis.perturbation import (
    Injection,
    PerturbationResponse,
    perturbation_gain,
    perturbation_response,
    plan_injection,
)
from farfield.analysis.planarity import Planarity
from farfield.analysis.plane import choose_images, plane_through
from farfield.analysis.posteriors import PosteriorSpread, divergence_generator, posterior_spread
from farfield.analysis.potential_sections_analysis import sample_sections
from farfield.analysis.preview_linear import linear_preview
from farfield.analysis.rank_sweep import rank_sweep
from farfield.analysis.rank_sweep_result import RankSweep
from farfield.analysis.ratios import Ratios
from farfield.analysis.replay import ReplayAudit, replay_audit
from farfield.analysis.rotation import Rotation, rotation_of
from farfield.analysis.shape import Curve, TrajectoryShape, shape_statistics, trajectory_shape
from farfield.analysis.shape_comparison import ShapeFindings
from farfield.analysis.shape_curvature import path_curvature
from farfield.analysis.solver_audit import SolverAudit, compare_solvers, skip_audits, solver_audit
from farfield.analysis.solver_comparison import SolverComparison
from farfield.analysis.solver_table import Reference, SolverRow, SolverTable, reference_solution, solver_errors
from farfield.analysis.straightness import Straightening, straightening
from farfield.analysis.symmetry_check import check_symmetry, is_symmetry_of
from farfield.analysis.tables import Table
from farfield.analysis.target_variance import Estimate, TargetVariance, target_variance
from farfield.analysis.teleport import plan_teleport
from farfield.analysis.teleport_result import TeleportPlan
from farfield.analysis.trajectory_quality import trajectory_qualities
from farfield.analysis.trajectory_view import TrajectoryView

__all__ = [
    "ANALYSES",
    "Advice",
    "CriticalTimes",
    "Criticality",
    "Curve",
    "Emergence",
    "Entrant",
    "Estimate",
    "Findings",
    "Injection",
    "Inversion",
    "LateStartSweep",
    "LawFidelity",
    "LawMismatch",
    "LearningCurves",
    "LearningProbe",
    "LikelihoodOrder",
    "LikelihoodReport",
    "LinearLearning",
    "ModeStructure",
    "ModeTree",
    "Modes",
    "PerturbationResponse",
    "Planarity",
    "PosteriorSpread",
    "RankSweep",
    "Ratios",
    "Reference",
    "ReplayAudit",
    "Rotation",
    "ScoreDeviation",
    "ScoreFidelity",
    "ScoreField",
    "ShapeFindings",
    "SolverAudit",
    "SolverComparison",
    "SolverRow",
    "SolverTable",
    "StartChoice",
    "Straightening",
    "Subject",
    "Table",
    "TargetVariance",
    "TeleportPlan",
    "TrajectoryDeviation",
    "TrajectoryShape",
    "TrajectoryView",
    "advise",
    "analysis",
    "analyze",
    "analyze_late_start",
    "annealed_mean_shift",
    "check_symmetry",
    "choose_images",
    "choose_start",
    "compare_solvers",
    "critical_time_closed_form",
    "default_entrants",
    "describe",
    "divergence_generator",
    "invert",
    "is_symmetry_of",
    "knee",
    "latent_diagnostics",
    "law_mismatch",
    "learning_curves",
    "linear_preview",
    "magnitude_statistics",
    "measure_emergence",
    "measure_order",
    "mode_masses",
    "mode_structure",
    "mode_tree",
    "named_laws",
    "path_curvature",
    "perturbation_gain",
    "perturbation_response",
    "plan_injection",
    "plan_teleport",
    "plane_through",
    "plateau_edge",
    "posterior_spread",
    "rank_sweep",
    "read_record",
    "reference_laws",
    "reference_solution",
    "replay_audit",
    "rotation_of",
    "sample_sections",
    "score_deviation",
    "score_fidelity",
    "score_field",
    "score_gaps",
    "seed_consistency",
    "shape_statistics",
    "shapiro_wilk",
    "skip_audits",
    "solver_audit",
    "solver_errors",
    "straightening",
    "target_variance",
    "trajectory_deviation",
    "trajectory_qualities",
    "trajectory_shape",
]
