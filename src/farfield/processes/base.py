"""Isotropic perturbation processes: how data become noise, in variance-exploding coordinates.

A process answers four questions at noise level σ: how to perturb a point (``perturb``), how likely a displacement of a
given length is (``log_kernel``), what the law looks like at the far end (``prior``) and how to go back up (``renoise``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from farfield.errors import ArgumentError


def expand(sigma: float | Tensor, x: Tensor) -> Tensor | float:
    """σ as a number, () or (B,), shaped so that it broadcasts against ``x`` (B, *event).

    Raises:
        ArgumentError: if σ is neither scalar nor one value for each row of ``x``.
    """
    if not isinstance(sigma, Tensor) or sigma.ndim == 0:
        return sigma
    if sigma.ndim == 1 and sigma.shape[0] in (1, x.shape[0]):
        return sigma.reshape(-1, *(1,) * (x.ndim - 1)).to(x.device)
    raise ArgumentError(
        f"sigma has shape {tuple(sigma.shape)}; expected () or ({x.shape[0]},) for x of shape {tuple(x.shape)}"
    )


class Process(ABC):
    """A perturbation process with an isotropic kernel ``p(x | x₀, σ) = k(‖x − x₀‖; σ)``."""

    #: True where ``(D − x)/σ²`` is the gradient of the log-density (Tweedie's formula).
    gaussian: bool

    @abstractmethod
    def perturb(self, x0: Tensor, sigma: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw of x given x₀ at noise level σ: same shape as ``x0`` (B, *event)."""

    @abstractmethod
    def log_kernel(self, squared_distance: Tensor, sigma: float | Tensor, dim: int) -> Tensor:
        """log p(x | x₀) up to a term that does not depend on x₀.

        Args:
            squared_distance: ‖x − x₀‖², any shape.
            sigma: noise level, broadcastable against ``squared_distance``.
            dim: the dimension of the data.
        """

    @abstractmethod
    def log_normalizer(self, sigma: float | Tensor, dim: int) -> Tensor | float:
        """The term that ``log_kernel`` leaves out: ``log p(x | x₀) = log_kernel + log_normalizer``."""

    @abstractmethod
    def prior(self, shape: Sequence[int], sigma: float, generator: torch.Generator | None = None) -> Tensor:
        """A draw from the far-field law at noise level σ: ``shape`` = (B, *event)."""

    @abstractmethod
    def renoise(
        self, x: Tensor, sigma_from: float, sigma_to: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Raise the noise level of a state from ``sigma_from`` to ``sigma_to`` ≥ ``sigma_from``."""


class Diffusion(Process):
    """Gaussian diffusion: ``x = x₀ + σ z`` with z standard normal (Song et al. 2021; Karras et al. 2022)."""

    gaussian = True

    def __repr__(self) -> str:
        return "Diffusion()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Diffusion)

    def __hash__(self) -> int:
        return hash(Diffusion)

    def perturb(self, x0: Tensor, sigma: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``x₀ + σ z``."""
        z = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        return x0 + expand(sigma, x0) * z

    def log_kernel(self, squared_distance: Tensor, sigma: float | Tensor, dim: int) -> Tensor:
        """``−‖x − x₀‖² / 2σ²``."""
        return squared_distance / (-2 * sigma * sigma)

    def log_normalizer(self, sigma: float | Tensor, dim: int) -> Tensor | float:
        """``−(d/2) log(2πσ²)``."""
        if isinstance(sigma, Tensor):
            return -dim * (0.5 * math.log(2 * math.pi) + sigma.double().log())
        return -dim * (0.5 * math.log(2 * math.pi) + math.log(sigma))

    def prior(self, shape: Sequence[int], sigma: float, generator: torch.Generator | None = None) -> Tensor:
        """``σ z``: the data's own mean and spread are negligible at the prior's noise level."""
        device = generator.device if generator is not None else None
        return sigma * torch.randn(*shape, generator=generator, device=device)

    def renoise(
        self, x: Tensor, sigma_from: float, sigma_to: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """``x + sqrt(σ_to² − σ_from²) z``."""
        if not 0 <= sigma_from <= sigma_to:
            raise ArgumentError(f"renoise needs 0 <= sigma_from <= sigma_to; got {sigma_from} and {sigma_to}")
        # The product form keeps the digits that a difference of squares loses when the two levels are close.
        spread = math.sqrt((sigma_to - sigma_from) * (sigma_to + sigma_from))
        return x + spread * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
