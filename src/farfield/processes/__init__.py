"""Perturbation kernels, priors and time maps: the physics that carries data to noise."""

from farfield.processes.base import Diffusion, Process
from farfield.processes.schedules import EDM, FlowMatching, Scales, Schedule, as_schedule
from farfield.processes.time_maps import DDPM, VE, VP, SubVP, TimeMap

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "Diffusion",
    "FlowMatching",
    "Process",
    "Scales",
    "Schedule",
    "SubVP",
    "TimeMap",
    "as_schedule",
]
