"""Samplers: noise grids, step rules, starts and finishes, and the value that joins them."""

from farfield.sampling.finishes import AtLastLevel, Finish, Jump, ToZero
from farfield.sampling.grids import Grid, ddpm, karras, log_snr, vp_time
from farfield.sampling.results import Samples, Step, Trajectory
from farfield.sampling.sampler import Sampler
from farfield.sampling.solvers import SOLVERS, Solver
from farfield.sampling.spectral_grid import spectral
from farfield.sampling.starts import Given, LateStart, Prior, Start, Teleport

__all__ = [
    "SOLVERS",
    "AtLastLevel",
    "Finish",
    "Given",
    "Grid",
    "Jump",
    "LateStart",
    "Prior",
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
    "log_snr",
    "spectral",
    "vp_time",
]
