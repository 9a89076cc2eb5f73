"""The networks by name: a configuration's ``kind`` picks the class that is built from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from farfield.errors import unknown_name
from farfield.networks.mlp import MLP, MLPConfig
from farfield.networks.unet import SongUNet, SongUNetConfig

NetworkConfig = SongUNetConfig | MLPConfig

#: kind → (configuration, builder from configuration and event shape).
NETWORKS: dict[str, tuple[type[Any], Callable[[Any, tuple[int, ...]], nn.Module]]] = {
    "song_unet": (SongUNetConfig, SongUNet),
    "mlp": (MLPConfig, MLP),
}


def build_network(config: NetworkConfig, event_shape: tuple[int, ...]) -> nn.Module:
    """The raw network of a configuration, with fresh weights from torch's global generator.

    Raises:
        ArgumentError: for an unknown kind, or an event shape that the network cannot take.
    """
    if config.kind not in NETWORKS:
        raise unknown_name("network kind", config.kind, NETWORKS)
    return NETWORKS[config.kind][1](config, tuple(event_shape))
