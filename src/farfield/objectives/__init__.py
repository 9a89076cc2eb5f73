"""Training objectives: what a network is asked to minimise, with noise and noise levels given from outside."""

from farfield.objectives.edm import EDMObjective

__all__ = ["EDMObjective"]
