"""Training objectives: what a network is asked to minimise, with noise and noise levels given from outside."""

from farfield.objectives.base import Objective
from farfield.objectives.classic import IDDPMObjective, VEObjective, VPObjective
from farfield.objectives.edm import EDMObjective
from farfield.objectives.stable_target import Diagnostics, stable_target
from farfield.objectives.targets import StableTargets, TargetConfig
from farfield.objectives.uncertainty import Uncertainty

#: Any objective, as a configuration names it by its ``kind``.
ObjectiveConfig = EDMObjective | VPObjective | VEObjective | IDDPMObjective

__all__ = [
    "Diagnostics",
    "EDMObjective",
    "IDDPMObjective",
    "Objective",
    "ObjectiveConfig",
    "StableTargets",
    "TargetConfig",
    "Uncertainty",
    "VEObjective",
    "VPObjective",
    "stable_target",
]
