"""Networks that predict the clean sample: preconditioning, U-Nets, MLP, and the files they are kept in."""

from farfield.networks.dhariwal_unet import DhariwalUNet, DhariwalUNetConfig
from farfield.networks.mlp import MLP, MLPConfig
from farfield.networks.precondition_config import PRECONDITIONINGS, Preconditioning
from farfield.networks.preconditioning import Coefficients, Preconditioned, edm_coefficients
from farfield.networks.registry import NETWORKS, NetworkConfig, build_network
from farfield.networks.score_preconditioning import (
    IDDPMPreconditioned,
    VEPreconditioned,
    VPPreconditioned,
    iddpm_levels,
    vp_sigma,
    vp_time,
)
from farfield.networks.unet import SongUNet, SongUNetConfig

__all__ = [
    "MLP",
    "NETWORKS",
    "PRECONDITIONINGS",
    "Coefficients",
    "DhariwalUNet",
    "DhariwalUNetConfig",
    "IDDPMPreconditioned",
    "MLPConfig",
    "NetworkConfig",
    "Preconditioned",
    "Preconditioning",
    "SongUNet",
    "SongUNetConfig",
    "VEPreconditioned",
    "VPPreconditioned",
    "build_network",
    "edm_coefficients",
    "iddpm_levels",
    "vp_sigma",
    "vp_time",
]
