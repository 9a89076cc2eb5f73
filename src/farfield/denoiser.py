"""The one object of the library: the denoiser ``D(x, σ) = E[x₀ | x at noise level σ]``, and what follows from it.

In variance-exploding coordinates every deterministic sampler integrates ``dx/d log σ = x − D(x, σ)``. A network, a
Gaussian, a mixture and a training set are all denoisers; code written against this class works for each of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from farfield.errors import ArgumentError
from farfield.processes import Diffusion, Process
from farfield.processes.base import expand


class Denoiser(nn.Module, ABC):
    """Base class: subclasses write ``forward(x, sigma, **condition) -> x0``; the views below follow from it.

    Args:
        event_shape: the shape of one sample, e.g. (3, 32, 32) or (2,).
        sigma_min, sigma_max: the noise levels for which the denoiser is meant.
        process: the perturbation process it belongs to; Gaussian diffusion by default.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        process: Process | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(int(n) for n in event_shape)
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)
        self.process = process if process is not None else Diffusion()

    @property
    def dim(self) -> int:
        """The number of coordinates of one sample."""
        return math.prod(self.event_shape)

    @abstractmethod
    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """The posterior mean of the clean sample.

        Args:
            x: noisy states (B, *event).
            sigma: noise level, a number, () or (B,).
            **condition: what a conditional model takes, e.g. ``labels``.

        Returns:
            The denoised samples, shape of ``x``.
        """

    def check_shape(self, x: Tensor) -> None:
        """Raise ``ArgumentError`` unless ``x`` is (B, *event): a comparison of tuples, which waits for no device."""
        if x.shape[1:] != self.event_shape:
            expected = ", ".join(("B", *map(str, self.event_shape)))
            raise ArgumentError(f"x has shape {tuple(x.shape)}; expected ({expected})")

    def noise(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """The slope of the sampling ODE, ``dx/dσ = (x − D)/σ``; for diffusion the predicted noise ε."""
        return (x - self(x, sigma, **condition)) / expand(sigma, x)

    def score(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``∇ log p(x; σ) = (D − x)/σ²`` (Tweedie; Robbins 1956, Efron 2011).

        Raises:
            ArgumentError: for a process whose kernel is not Gaussian, where that quotient is not a score.
        """
        if not self.process.gaussian:
            raise ArgumentError(
                f"score is not defined through the denoiser for {self.process!r}: (D − x)/σ² is the field, not ∇ log p"
            )
        level = expand(sigma, x)
        return (self(x, sigma, **condition) - x) / (level * level)

    def velocity(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """The v-prediction of the variance-preserving twin, ``v = α ε − σ_vp x₀`` with ``α = 1/sqrt(1 + σ²)``.

        (Salimans & Ho 2022.) ``x`` is the variance-exploding state; ``σ_vp = σ α``.
        """
        d = self(x, sigma, **condition)
        level = expand(sigma, x)
        alpha = 1 / (1 + level * level) ** 0.5
        return alpha * ((x - d) / level - level * d)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """``D(x, σ)`` and the Jacobian product ``(∂D/∂x) v``, both shaped like ``x``."""

        def run(state: Tensor) -> Tensor:
            return self(state, sigma, **condition)

        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no forward derivative
            result: tuple[Tensor, Tensor] = torch.func.jvp(run, (x,), (v,))  # type: ignore[assignment]
        return result

    def vjp(self, x: Tensor, sigma: float | Tensor, v: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """``D(x, σ)`` and the transposed product ``(∂D/∂x)ᵀ v``, both shaped like ``x``."""
        with torch.enable_grad():
            state = x.detach().requires_grad_(True)
            value = self(state, sigma, **condition)
            (product,) = torch.autograd.grad(value, state, v)
        return value.detach(), product

    def divergence(
        self,
        x: Tensor,
        sigma: float | Tensor,
        method: Literal["exact", "hutchinson"] = "exact",
        probes: int = 1,
        generator: torch.Generator | None = None,
        **condition: Any,
    ) -> Tensor:
        """``tr ∂D/∂x`` for each sample, (B,).

        Args:
            x, sigma: as in :meth:`forward`.
            method: ``"exact"`` costs one product for each coordinate; ``"hutchinson"`` averages ``zᵀ J z`` over
                ``probes`` Rademacher vectors z (Hutchinson 1989), unbiased.
            probes: number of random vectors.
            generator: source of the random vectors.
        """
        total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        if method == "exact":
            for k in range(self.dim):
                v = torch.zeros_like(x).flatten(1)
                v[:, k] = 1
                total += self.jvp(x, sigma, v.view_as(x), **condition)[1].flatten(1)[:, k].double()
            return total
        if method == "hutchinson":
            if probes < 1:
                raise ArgumentError(f"probes = {probes}; expected at least 1")
            for _ in range(probes):
                coin = torch.randint(0, 2, x.shape, generator=generator, device=x.device)
                v = (2 * coin - 1).to(x.dtype)
                total += (v * self.jvp(x, sigma, v, **condition)[1]).flatten(1).sum(1).double()
            return total / probes
        raise ArgumentError(f"method = {method!r}; expected 'exact' or 'hutchinson'")


class FunctionDenoiser(Denoiser):
    """Any function ``f(x, sigma) -> x0`` as a denoiser; σ reaches it as a tensor, () or (B,)."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        event_shape: tuple[int, ...],
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        process: Process | None = None,
    ) -> None:
        super().__init__(event_shape, sigma_min, sigma_max, process)
        self.function = function

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``function(x, sigma)``."""
        if not isinstance(sigma, Tensor):
            sigma = torch.full((), sigma, dtype=x.dtype, device=x.device)
        return self.function(x, sigma, **condition)
