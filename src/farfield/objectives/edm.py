"""The denoising objective of EDM: ``E λ(σ) ‖D(y + σ z, σ) − y‖²``, with ln σ normal and λ = (σ² + σ_d²)/(σ σ_d)².

(Karras, Aittala, Aila, Laine 2022, equations 2 and 8, table 1.) With EDM's preconditioning the weight makes the loss
of the raw network a plain mean square against a target of unit variance at every σ. The minimiser is the posterior
mean ``E[y | x; σ]``; for Gaussian data with covariance eigenvalues μᵢ the least unweighted loss is ``Σ μᵢσ²/(μᵢ +
σ²)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.objectives.base import Objective


@dataclass(frozen=True)
class EDMObjective(Objective):
    """The distribution of training noise levels, ``ln σ ~ N(p_mean, p_std²)``.

    Args:
        p_mean: mean of ln σ; −1.2 in the source, where σ_d = 0.5.
        p_std: standard deviation of ln σ, > 0.
    """

    kind: Literal["edm"] = "edm"
    p_mean: float = -1.2
    p_std: float = 1.2

    def __post_init__(self) -> None:
        if not self.p_std > 0:
            raise ArgumentError(f"objective.p_std = {self.p_std}; expected a positive number")

    def sigma(self, z: Tensor) -> Tensor:
        """Noise levels from standard normal numbers, ``exp(p_mean + p_std z)``: (B,) to (B,)."""
        return torch.exp(self.p_mean + self.p_std * z)

    def weight(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """``λ(σ) = (σ² + σ_d²)/(σ σ_d)²``, the shape of σ."""
        return (sigma * sigma + sigma_data**2) / (sigma * sigma_data) ** 2
