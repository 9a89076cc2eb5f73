"""The objectives that came before EDM's, in variance-exploding coordinates: VP, VE and iDDPM, all with ``λ = 1/σ²``.

Each draws a uniform number and maps it to a noise level (Karras, Aittala, Aila, Laine 2022, table 1); ``λ = 1/σ²``
makes the loss of a network that predicts the noise a plain mean square. The uniform number is ``Φ(z)`` of the
standard normal number that every objective is given, so that all of them read the same stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.objectives.base import Objective, uniform
from farfield.processes import VE, VP


@dataclass(frozen=True)
class VPObjective(Objective):
    """Variance-preserving diffusion with time uniform on [ε, 1]: ``σ = sqrt(exp(½β_d t² + β_min t) − 1)``.

    (Song et al. 2021, "Score-based generative modeling through SDEs", as in EDM's table 1.)

    Args:
        beta_d: β_max − β_min of the rate ``β(t) = β_min + β_d t``, > 0.
        beta_min: β(0), ≥ 0.
        epsilon: smallest time, in (0, 1).
    """

    kind: Literal["vp"] = "vp"
    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if not self.beta_d > 0:
            raise ArgumentError(f"objective.beta_d = {self.beta_d}; expected a positive number")
        if not self.beta_min >= 0:
            raise ArgumentError(f"objective.beta_min = {self.beta_min}; expected a number of at least 0")
        if not 0 < self.epsilon < 1:
            raise ArgumentError(f"objective.epsilon = {self.epsilon}; expected a time between 0 and 1")

    def sigma(self, z: Tensor) -> Tensor:
        """``σ(ε + (1 − ε) Φ(z))``: (B,) to (B,)."""
        time = self.epsilon + (1 - self.epsilon) * uniform(z)
        return VP(self.beta_min, self.beta_min + self.beta_d).sigma(time).to(z.dtype)


@dataclass(frozen=True)
class VEObjective(Objective):
    """Variance-exploding diffusion: ``ln σ`` uniform between two levels.

    (Song et al. 2021, "Score-based generative modeling through SDEs", as in EDM's table 1.)

    Args:
        sigma_min, sigma_max: the levels, 0 < sigma_min < sigma_max.
    """

    kind: Literal["ve"] = "ve"
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ArgumentError(
                f"objective.sigma_min = {self.sigma_min}, objective.sigma_max = {self.sigma_max}; "
                "expected 0 < sigma_min < sigma_max"
            )

    def sigma(self, z: Tensor) -> Tensor:
        """``σ_min (σ_max/σ_min)^Φ(z)``: (B,) to (B,)."""
        return VE(self.sigma_min, self.sigma_max).sigma(uniform(z)).to(z.dtype)


@dataclass(frozen=True)
class IDDPMObjective(Objective):
    """The levels of the improved DDPM, ``σ = u_j`` with j uniform on 0 … M − 1.

    ``u_M = 0`` and ``u_{j−1} = sqrt((u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, C₁) − 1)`` with ``ᾱ_j = sin²(π/2 · j/(M(C₂ + 1)))``: the
    cosine schedule of Nichol & Dhariwal 2021 with each step's signal kept above C₁, as in EDM's table 1. ``u_0`` is the
    largest level.

    Args:
        levels: M, from 2 to a million.
        c1: C₁, the least ratio of consecutive ᾱ, in (0, 1).
        c2: C₂, which keeps the smallest level away from 0, > 0.
    """

    kind: Literal["iddpm"] = "iddpm"
    levels: int = 1000
    c1: float = 0.001
    c2: float = 0.008

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 1_000_000:
            raise ArgumentError(f"objective.levels = {self.levels}; expected 2 to a million")
        if not 0 < self.c1 < 1:
            raise ArgumentError(f"objective.c1 = {self.c1}; expected a number between 0 and 1")
        if not self.c2 > 0:
            raise ArgumentError(f"objective.c2 = {self.c2}; expected a positive number")

    @cached_property
    def table(self) -> Tensor:
        """``u_0 … u_{M−1}``, decreasing, float64 on the CPU."""
        bar = [math.sin(math.pi / 2 * j / (self.levels * (self.c2 + 1))) ** 2 for j in range(self.levels + 1)]
        u = [0.0] * (self.levels + 1)
        for j in range(self.levels, 0, -1):
            u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(bar[j - 1] / bar[j], self.c1) - 1)
        return torch.tensor(u[:-1], dtype=torch.float64)

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        return {}

    def sigma(self, z: Tensor) -> Tensor:
        """``u_j`` with ``j = ⌊M Φ(z)⌋``: (B,) to (B,)."""
        if z.device not in self._tables:
            self._tables[z.device] = self.table.to(z.device)
        j = (uniform(z) * self.levels).long().clamp_(max=self.levels - 1)
        return self._tables[z.device][j].to(z.dtype)
