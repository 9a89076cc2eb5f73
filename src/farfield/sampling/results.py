"""What a run returns: the samples, the evaluations they cost, and the trajectory when it was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What a callback sees at each step, before the step is taken.

    Attributes:
        index: number of the step, from 0.
        sigma, sigma_next: the levels it leads from and to; the last callback of a jump has ``sigma_next = 0``.
        x: the state at ``sigma`` (B, *event).
        denoised: the x₀-prediction ``D(x, σ)`` there.
        nfe: evaluations spent so far, the one of ``denoised`` included.
        first: number of the batch's first sample.
    """

    index: int
    sigma: float
    sigma_next: float
    x: Tensor
    denoised: Tensor
    nfe: int
    first: int


@dataclass(frozen=True)
class Trajectory:
    """The two coupled curves of a run (Chen et al., section 3).

    Attributes:
        sigmas: (N + 1,) the levels visited, decreasing.
        states: (N + 1, B, *event) the sampling trajectory, the final sample last.
        denoised: (N, B, *event) the denoising trajectory: ``D`` at the start of each step.
        nfe: (N + 1,) evaluations spent to reach each state.
    """

    sigmas: tuple[float, ...]
    states: Tensor
    denoised: Tensor
    nfe: tuple[int, ...]

    def to(self, device: torch.device | str) -> Trajectory:
        """The same on another device."""
        return Trajectory(self.sigmas, self.states.to(device), self.denoised.to(device), self.nfe)


@dataclass(frozen=True)
class Samples:
    """The result of a run.

    Attributes:
        x: (n, *event) the samples.
        nfe: denoiser evaluations for each sample.
        trajectory: the states and denoiser outputs on the way, or None.
    """

    x: Tensor
    nfe: int
    trajectory: Trajectory | None = None

    def __len__(self) -> int:
        return self.x.shape[0]
