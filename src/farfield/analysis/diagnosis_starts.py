"""Where the two paths of a diagnosis start: pure noise, noised data, or data that the model's own ODE has encoded.

    gaussian   x_N = σ_N z
    noised     x_N = y_i + σ_N z
    encoded    x_N = the model's ODE run upwards from y_i + σ_1 z

(Chen et al., A geometric perspective on diffusion models, section 6 and figures 15 and 19, whose "forward diffusion to obtain
its encoding" may mean either of the last two.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError, unknown_name
from farfield.numerics import streams
from farfield.sampling import karras
from farfield.sampling.encoding import encode

StartKind = Literal["gaussian", "noised", "encoded"]
_KINDS = ("gaussian", "noised", "encoded")

#: Karras levels of an encoding by Heun's rule.
ENCODING_LEVELS = 64


@dataclass(frozen=True, eq=False)
class StartStates:
    """States at the highest level.

    Attributes:
        x: (n, *event).
        origins: (n,) the data point that each came from, or None.
        classes: (n,) the class of each, or None where classes play no part.
    """

    x: Tensor
    origins: Tensor | None
    classes: Tensor | None

    @property
    def condition(self) -> dict[str, Tensor]:
        """The classes as denoisers take them."""
        return {} if self.classes is None else {"labels": self.classes}


def start_states(
    kind: StartKind | Tensor,
    model: Denoiser,
    law: Empirical,
    n: int,
    seed: int,
    levels: tuple[float, float],
    *,
    conditional: bool = False,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> StartStates:
    """Starts 0 … n − 1 of a seed; start i is the same for any n and batch size.

    Args:
        kind: see the head of this module; or states (n, *event) to start from.
        model: encodes.
        law: the data, with labels where ``conditional``.
        n, seed: number and name of the starts.
        levels: the lowest and the highest level.
        conditional: give each start a class: that of its data point, or classes in the data's proportion.
        batch_size, dtype: of the states.

    Raises:
        ArgumentError: for an unknown kind, or states of another shape or number.
    """
    low, high = levels
    device = law.data.device
    ids = torch.arange(n, device=device)
    order = streams.permutation(seed, law.count, purpose="diagnosis data").to(device)
    rows = order[ids % law.count]
    classes = law.labels[rows] if conditional and isinstance(law.labels, Tensor) else None
    if isinstance(kind, Tensor):
        if kind.shape != (n, *law.event_shape):
            raise ArgumentError(f"starts have shape {tuple(kind.shape)}; expected {(n, *law.event_shape)}")
        return StartStates(kind.to(device), None, classes)
    if kind not in _KINDS:
        raise unknown_name("starts", kind, _KINDS)
    condition: dict[str, Any] = {} if classes is None else {"labels": classes}
    if kind == "encoded":
        latents = encode(
            model, law.data[rows].to(dtype), karras(ENCODING_LEVELS, low, high), lift="noised", estimate=False, seed=seed,
            batch_size=batch_size, **condition,
        )  # fmt: skip
        return StartStates(latents.z, rows, classes)
    z = streams.normal(seed, ids, law.event_shape, purpose="start", dtype=dtype)
    if kind == "gaussian":
        return StartStates(high * z, None, classes)
    return StartStates(law.data[rows].to(dtype) + high * z, rows, classes)
