"""Samplers: noise grids, step rules, starts, finishes, noise and guidance, and the value that joins them."""

from farfield.sampling.class_start import ClassTeleport
from farfield.sampling.finishes import AtLastLevel, Finish, Jump, ToZero
from farfield.sampling.grids import Grid, ddpm, karras, log_snr, vp_time
from farfield.sampling.guidance import ClassifierFree, DynamicThreshold, FunctionGuidance, Guidance
from farfield.sampling.guided_gaussian import GuidedGaussian
from farfield.sampling.index_grids import late_start_grid, quadratic_grid, vanilla_grid
from farfield.sampling.late import late_sampler
from farfield.sampling.late_moments import late_gaussian, moments_memory, noised_moments
from farfield.sampling.late_starts import LatePrior, NoisedStart
from farfield.sampling.legs import Leg, Route
from farfield.sampling.mixture_start import LawTeleport
from farfield.sampling.noise import Ancestral, Churn, DDPMNoise, Noise
from farfield.sampling.reference_ode import monotone_map, reference_path
from farfield.sampling.results import Samples, Step, Trajectory
from farfield.sampling.sampler import Sampler
from farfield.sampling.solvers import SOLVERS, Solver
from farfield.sampling.spectral_grid import spectral
from farfield.sampling.starts import Given, LateStart, Prior, Start, Teleport

__all__ = [
    "SOLVERS",
    "Ancestral",
    "AtLastLevel",
    "Churn",
    "ClassTeleport",
    "ClassifierFree",
    "DDPMNoise",
    "DynamicThreshold",
    "Finish",
    "FunctionGuidance",
    "Given",
    "Grid",
    "Guidance",
    "GuidedGaussian",
    "Jump",
    "LatePrior",
    "LateStart",
    "LawTeleport",
    "Leg",
    "Noise",
    "NoisedStart",
    "Prior",
    "Route",
    "Sampler",
    "Samples",
    "Solver",
    "Start",
    "Step",
    "Teleport",
    "ToZero",
    "Trajectory",
    "ddpm",
    "karras",
    "late_gaussian",
    "late_sampler",
    "late_start_grid",
    "log_snr",
    "moments_memory",
    "monotone_map",
    "noised_moments",
    "quadratic_grid",
    "reference_path",
    "spectral",
    "vanilla_grid",
    "vp_time",
]
