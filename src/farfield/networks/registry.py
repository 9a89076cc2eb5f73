"""The networks by name: a configuration's ``kind`` picks the class that is built from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from farfield.errors import unknown_name
from farfield.networks.dhariwal_unet import DhariwalUNet, DhariwalUNetConfig
from farfield.networks.mlp import MLP, MLPConfig
from farfield.networks.unet import SongUNet, SongUNetConfig

NetworkConfig = SongUNetConfig | DhariwalUNetConfig | MLPConfig

#: kind → (configuration, builder from configuration, event shape and number of output channels).
NETWORKS: dict[str, tuple[type[Any], Callable[[Any, tuple[int, ...], int | None], nn.Module]]] = {
    "song_unet": (SongUNetConfig, SongUNet),
    "dhariwal_unet": (DhariwalUNetConfig, DhariwalUNet),
    "mlp": (MLPConfig, MLP),
}


def build_network(config: NetworkConfig, event_shape: tuple[int, ...], out_channels: int | None = None) -> nn.Module:
    """The raw network of a configuration, with fresh weights from torch's global generator.

    Args:
        config: its sizes.
        event_shape: the shape of one sample.
        out_channels: size of the output's first axis, by default that of the input.

    Raises:
        ArgumentError: for an unknown kind, or an event shape that the network cannot take.
    """
    if config.kind not in NETWORKS:
        raise unknown_name("network kind", config.kind, NETWORKS)
    return NETWORKS[config.kind][1](config, tuple(event_shape), out_channels)
