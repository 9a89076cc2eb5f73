"""Exact laws, which are denoisers too: Gaussian, mixture, the training set itself, toys."""

from farfield.distributions.base import Distribution
from farfield.distributions.empirical import Empirical
from farfield.distributions.gaussian import Gaussian
from farfield.distributions.gaussian_flow import GaussianFlow, GaussianPath
from farfield.distributions.jittered import Jittered
from farfield.distributions.mixture import GaussianMixture
from farfield.distributions.mixture_em import refine
from farfield.distributions.mixture_family import MixtureFamily, choose_components
from farfield.distributions.series import GaussianSeries, far_field_fuv
from farfield.distributions.toys import TOYS, toy

__all__ = [
    "TOYS",
    "Distribution",
    "Empirical",
    "Gaussian",
    "GaussianFlow",
    "GaussianMixture",
    "GaussianPath",
    "GaussianSeries",
    "Jittered",
    "MixtureFamily",
    "choose_components",
    "far_field_fuv",
    "refine",
    "toy",
]
