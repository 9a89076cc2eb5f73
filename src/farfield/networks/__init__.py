"""Networks that predict the clean sample: preconditioning, U-Net, MLP, and the files they are kept in."""

from farfield.networks.mlp import MLP, MLPConfig
from farfield.networks.preconditioning import Coefficients, Preconditioned, edm_coefficients
from farfield.networks.registry import NETWORKS, NetworkConfig, build_network
from farfield.networks.unet import SongUNet, SongUNetConfig

__all__ = [
    "MLP",
    "NETWORKS",
    "Coefficients",
    "MLPConfig",
    "NetworkConfig",
    "Preconditioned",
    "SongUNet",
    "SongUNetConfig",
    "build_network",
    "edm_coefficients",
]
