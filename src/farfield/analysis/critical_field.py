"""The denoiser about a state, averaged over noise, with its Jacobian products; and which multiple of it counts as critical.

The reverse dynamics of a linear process with signal scale α(t), read at a frozen time, is a gradient flow. With
``c = 1`` for the reverse SDE and ``c = 1/2`` for the probability-flow ODE its drift is ``c g² ∇log p − f X``, so that in
variance-exploding coordinates ``x = X/α`` (the origin of the process at 0)

    fixed points      D(x, σ) = κ(σ) x                 κ = 1 + (1/2c) d log α / d log σ
    stability         every eigenvalue of ∂D/∂x = Cov(x₀ | x)/σ² is below κ

κ is ``(1 + α²)/2`` for the SDE and ``α²`` for the ODE of a variance-preserving process and 1 for variance-exploding ones
(Raya & Ambrogioni 2023, Eqs. 12 and 45, for the SDE). With ``κ = 1``, the fixed points of Langevin dynamics at a frozen
level, they are the stationary points of the noisy density itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Distribution
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.numerics.krylov import Product
from farfield.processes import TimeMap

#: ``"sde"``: the reverse SDE; ``"ode"``: the probability-flow ODE; ``"langevin"``: the score alone, i.e. the density's modes.
Dynamics = Literal["sde", "ode", "langevin"]


def share_of_score(dynamics: Dynamics) -> float:
    """c, the multiple of ``g² ∇log p`` in the drift: 1 for the SDE, 1/2 for the ODE.

    Raises:
        ArgumentError: for another name, or Langevin dynamics, which knows no process.
    """
    if dynamics not in ("sde", "ode"):
        raise ArgumentError(f"dynamics = {dynamics!r}; expected 'sde' or 'ode'")
    return 1.0 if dynamics == "sde" else 0.5


def check_dynamics(dynamics: str) -> None:
    """Raise ``ArgumentError`` for a name that is not one of :data:`Dynamics`."""
    if dynamics not in get_args(Dynamics):
        raise ArgumentError(f"dynamics = {dynamics!r}; expected 'sde', 'ode' or 'langevin'")


def critical_ratio(process: TimeMap, sigma: float, dynamics: Dynamics = "sde") -> float:
    """κ(σ), the eigenvalue of ∂D/∂x at which a fixed point loses its stability.

    Args:
        process: the time map of the dynamics.
        sigma: noise level of the variance-exploding state, > 0.
        dynamics: see :data:`Dynamics`.
    """
    check_dynamics(dynamics)
    if dynamics == "langevin":
        return 1.0
    t = process.time(sigma)
    return 1 + process.drift(t) * sigma / process.sigma_derivative(t) / (2 * share_of_score(dynamics))


def noise_about(
    count: int, event_shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor | None:
    """``count`` standard normal draws in antithetic pairs, (count, *event), or None for 0: draw i is the same for any count.

    Raises:
        ArgumentError: for a negative or odd count.
    """
    if count < 0 or count % 2:
        raise ArgumentError(f"noise = {count}; expected 0 or an even number, for the draws come in pairs ±z")
    if count == 0:
        return None
    z = streams.normal(seed, range(count // 2), event_shape, purpose="critical noise", dtype=dtype).to(device)
    return torch.stack((z, -z), 1).flatten(0, 1)


#: Up to so many states a network's forward pass is kept for all products of an eigenvalue solver.
_RECORDED = 64


class AveragedField:
    """``D̄(x) = mean_i D(x + σ z_i, σ)`` for given draws, and products with its Jacobian.

    In many dimensions a network has only ever seen states a distance ``σ √d`` from the data; at a noiseless state its output
    means nothing. The average over noise puts it where it was trained. Without draws the field is D itself.

    Args:
        denoiser: any denoiser.
        sigma: noise level, > 0.
        noise: (n, *event), the draws z, or None.
        symmetric: take products with ``(J + Jᵀ)/2``, at two products each: a trained network's Jacobian is not symmetric. The
            Jacobian of an exact law is, and costs one.
        batch_size: states evaluated at once.

    Attributes:
        evaluations, products: how many states were denoised, and how many products with J or Jᵀ at a state were taken.
        transposed: the side whose products are cheaper: forward for the closed forms of exact laws, transposed for networks,
            whose backward pass costs about one evaluation and whose forward derivative four or five.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sigma: float,
        noise: Tensor | None = None,
        symmetric: bool = False,
        batch_size: int = 256,
    ) -> None:
        self.denoiser, self.sigma, self.noise = denoiser, float(sigma), noise
        self.symmetric, self.batch_size = symmetric and not isinstance(denoiser, Distribution), batch_size
        self.transposed = not isinstance(denoiser, Distribution)
        self.evaluations = self.products = 0

    def _around(self, x: Tensor) -> Tensor:
        """The states (B, n, *event) about x (B, *event)."""
        if self.noise is None:
            return x.unsqueeze(1)
        return x.unsqueeze(1) + self.sigma * self.noise.to(x).unsqueeze(0)

    def __call__(self, x: Tensor) -> Tensor:
        """``D̄(x)`` for states (B, *event)."""
        states = self._around(x)
        self.evaluations += states.shape[0] * states.shape[1]
        with torch.no_grad():
            parts = [self.denoiser(part, self.sigma) for part in states.flatten(0, 1).split(self.batch_size)]
        return torch.cat(parts).view(states.shape).mean(1)

    def products_at(self, x: Tensor, v: Tensor, transposed: bool = False) -> Tensor:
        """``J v`` at every draw: (B, n, p, *event) for states (B, *event) and vectors (B, p, *event)."""
        states = self._around(x)
        batch, draws, count = states.shape[0], states.shape[1], v.shape[1]
        full = (batch, draws, count, *x.shape[1:])
        flat_states = states.unsqueeze(2).expand(full).reshape(-1, *x.shape[1:])
        flat_vectors = v.unsqueeze(1).expand(full).reshape(-1, *x.shape[1:]).to(x)
        self.products += len(flat_states)
        take: Callable[..., tuple[Tensor, Tensor]] = self.denoiser.vjp if transposed else self.denoiser.jvp
        with torch.no_grad():
            parts = [
                take(a.contiguous(), self.sigma, b.contiguous())[1]
                for a, b in zip(flat_states.split(self.batch_size), flat_vectors.split(self.batch_size), strict=True)
            ]
        return torch.cat(parts).view(full)

    def product(self, x: Tensor) -> Product:
        """The Jacobian of D̄ at states (B, *event) as the krylov routines take it."""

        def multiply(v: Tensor) -> Tensor:
            forward = self.products_at(x, v).mean(1)
            if not self.symmetric:
                return forward
            return (forward + self.products_at(x, v, transposed=True).mean(1)) / 2

        return multiply

    def spectral_product(self, x: Tensor) -> Product:
        """The same for eigenvalue solvers, which see the symmetric part of J alone and are as well served by Jᵀ.

        For a network the forward pass is recorded once, so that each product costs one backward pass.
        """
        states = self._around(x)
        batch, draws = states.shape[:2]
        if not self.transposed or self.symmetric:
            return self.product(x)
        if batch * draws > _RECORDED:
            return lambda v: self.products_at(x, v, transposed=True).mean(1)
        with torch.enable_grad():
            leaf = states.detach().flatten(0, 1).requires_grad_(True)
            value = self.denoiser(leaf, self.sigma)

        def multiply(v: Tensor) -> Tensor:
            self.products += batch * draws * v.shape[1]
            found = []
            for k in range(v.shape[1]):
                along = v[:, k : k + 1].expand_as(states).flatten(0, 1).to(value)
                (product,) = torch.autograd.grad(value, leaf, along, retain_graph=True)
                found.append(product.view(states.shape).mean(1))
            return torch.stack(found, 1)

        return multiply
