"""Perturbation kernels, priors and time maps: the physics that carries data to noise."""

from farfield.processes.base import Diffusion, Process
from farfield.processes.time_maps import DDPM, VE, VP, SubVP, TimeMap

__all__ = ["DDPM", "VE", "VP", "Diffusion", "Process", "SubVP", "TimeMap"]
