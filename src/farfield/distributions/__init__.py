"""Exact laws, which are denoisers too: Gaussian, mixture, the training set itself, toys."""

from farfield.distributions.base import Distribution
from farfield.distributions.empirical import Empirical
from farfield.distributions.gaussian import Gaussian
from farfield.distributions.mixture import GaussianMixture
from farfield.distributions.toys import TOYS, toy

__all__ = ["TOYS", "Distribution", "Empirical", "Gaussian", "GaussianMixture", "toy"]
