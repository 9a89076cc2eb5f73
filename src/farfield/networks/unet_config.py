"""The sizes that the two published U-Nets have in common, with their bounds."""

from __future__ import annotations

from dataclasses import dataclass

from farfield.errors import ArgumentError
from farfield.networks.structure import check_bounds


@dataclass(frozen=True)
class UNetConfig:
    """The sizes that every U-Net has; meaning and defaults are told in the subclasses.

    Raises:
        ArgumentError: for sizes that make no network, or one that only a hostile or mistyped card asks for.
    """

    kind: str
    model_channels: int
    channel_mult: tuple[int, ...]
    channel_mult_emb: int
    num_blocks: int
    attn_resolutions: tuple[int, ...]
    dropout: float
    label_dim: int
    augment_dim: int
    label_dropout: float

    def __post_init__(self) -> None:
        bounds = {
            "model_channels": (self.model_channels, 4, 4096),
            "channel_mult_emb": (self.channel_mult_emb, 1, 64),
            "num_blocks": (self.num_blocks, 1, 64),
            "len(channel_mult)": (len(self.channel_mult), 1, 12),
            "label_dim": (self.label_dim, 0, 1_000_000),
            "augment_dim": (self.augment_dim, 0, 1000),
            "len(attn_resolutions)": (len(self.attn_resolutions), 0, 32),
        }
        check_bounds(bounds | {f"channel_mult[{i}]": (m, 1, 64) for i, m in enumerate(self.channel_mult[:12])})
        if self.model_channels % 4:
            raise ArgumentError(f"network.model_channels = {self.model_channels}; expected a multiple of 4")
        if not 0 <= self.dropout < 1:
            raise ArgumentError(f"network.dropout = {self.dropout}; expected a probability in [0, 1)")
        if not 0 <= self.label_dropout <= 1:
            raise ArgumentError(f"network.label_dropout = {self.label_dropout}; expected a probability in [0, 1]")


def check_images(kind: str, event_shape: tuple[int, ...], levels: int) -> None:
    """Raise ``ArgumentError`` unless images of this shape can be halved ``levels − 1`` times."""
    if len(event_shape) != 3 or event_shape[1] != event_shape[2] or event_shape[1] % 2 ** (levels - 1):
        raise ArgumentError(
            f"a {kind} of {levels} resolutions takes (channels, R, R), R divisible by {2 ** (levels - 1)}; "
            f"got event_shape {event_shape}"
        )
