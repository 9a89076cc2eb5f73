"""Samplers: noise grids, step rules, starts, finishes, noise and guidance, and the value that joins them."""

from farfield.sampling.calibration import calibrate
from farfield.sampling.class_start import ClassTeleport
from farfield.sampling.conversion import FromNative, ToNative
from farfield.sampling.encoding import Latents, decode, encode
from farfield.sampling.finishes import AtLastLevel, Finish, Jump, ToZero
from farfield.sampling.grids import Grid, ddpm, karras, log_snr, vp_time
from farfield.sampling.guidance import ClassifierFree, DynamicThreshold, FunctionGuidance, Guidance
from farfield.sampling.guided_gaussian import GuidedGaussian
from farfield.sampling.index_grids import late_start_grid, quadratic_grid, vanilla_grid
from farfield.sampling.interpolation import combine, corner_grid, from_simplex, interpolate
from farfield.sampling.late import late_sampler
from farfield.sampling.late_moments import late_gaussian, moments_memory, noised_moments
from farfield.sampling.late_starts import LatePrior, NoisedStart
from farfield.sampling.legs import Leg, Route
from farfield.sampling.mixture_start import LawTeleport
from farfield.sampling.noise import Ancestral, Churn, DDPMNoise, Noise
from farfield.sampling.recording import KeepAll, KeepEnds, KeepEvery, KeepStatistics, Recording, TrajectoryStatistics
from farfield.sampling.reference_ode import monotone_map, reference_path
from farfield.sampling.results import Replay, Samples, Step, Stops, Trajectory
from farfield.sampling.sampler import Sampler
from farfield.sampling.solvers import PLANNED, SOLVERS, Solver
from farfield.sampling.solvers.gains import GainTable
from farfield.sampling.spectral_grid import spectral
from farfield.sampling.starts import Given, LateStart, Prior, Start, Teleport
from farfield.sampling.stop_rules import AtIndex, Budget, SmallChange, StopRule
from farfield.sampling.trajectory_file import load_trajectory, save_trajectory
from farfield.sampling.weights import grid_from_weights, weights_of

__all__ = [
    "PLANNED",
    "SOLVERS",
    "Ancestral",
    "AtIndex",
    "AtLastLevel",
    "Budget",
    "Churn",
    "ClassTeleport",
    "ClassifierFree",
    "DDPMNoise",
    "DynamicThreshold",
    "Finish",
    "FromNative",
    "FunctionGuidance",
    "GainTable",
    "Given",
    "Grid",
    "Guidance",
    "GuidedGaussian",
    "Jump",
    "KeepAll",
    "KeepEnds",
    "KeepEvery",
    "KeepStatistics",
    "LatePrior",
    "LateStart",
    "Latents",
    "LawTeleport",
    "Leg",
    "Noise",
    "NoisedStart",
    "Prior",
    "Recording",
    "Replay",
    "Route",
    "Sampler",
    "Samples",
    "SmallChange",
    "Solver",
    "Start",
    "Step",
    "StopRule",
    "Stops",
    "Teleport",
    "ToNative",
    "ToZero",
    "Trajectory",
    "TrajectoryStatistics",
    "calibrate",
    "combine",
    "corner_grid",
    "ddpm",
    "decode",
    "encode",
    "from_simplex",
    "grid_from_weights",
    "interpolate",
    "karras",
    "late_gaussian",
    "late_sampler",
    "late_start_grid",
    "load_trajectory",
    "log_snr",
    "moments_memory",
    "monotone_map",
    "noised_moments",
    "quadratic_grid",
    "reference_path",
    "save_trajectory",
    "spectral",
    "vanilla_grid",
    "vp_time",
    "weights_of",
]
