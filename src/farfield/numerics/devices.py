"""Which device to compute on."""

from __future__ import annotations

import torch

from farfield.errors import ArgumentError


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU, or else the CPU.

    Raises:
        ArgumentError: if the name is none of torch's, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"device = {name!r} cannot be used here; expected auto, cpu or cuda") from error
    return device
