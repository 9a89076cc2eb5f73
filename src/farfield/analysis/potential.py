"""The potential whose gradient drives generation at a frozen time, for exact laws and for networks.

A linear process ``dY = f Y dt + g dW`` is reversed by an SDE and by an ODE, both with a drift that is a gradient:

    reverse SDE     dX = −∇u dt + g dW      u = −g² log p(X, t) + f ‖X‖²/2          (Raya & Ambrogioni 2023, Eqs. 3-4)
    reverse ODE     dX = −∇u dt             u = −(g²/2) log p(X, t) + f ‖X‖²/2
    Langevin        dX = −∇u dt + √2 dW     u = −log p(X, t)

For a variance-preserving process ``u = −β [log p + ‖X‖²/4]`` of the SDE (their Eq. 21). u is a function of the *forward*
time t: t_min is data and t_max is noise; dt above runs towards the data. ``X = α (y − o) + s z`` is the native state about
the origin o of the process. All of it follows from the denoiser D at ``x = o + X/α``, ``σ = s/α``, with
``J = ∂D/∂x``, ``a = g²`` (SDE), ``g²/2`` (ODE), 1 (Langevin, where f = 0):

    −∇u = a (α (D − o) − X)/s² − f X        ∇∇u = (f + a/s²) 1 − (a/s²) J

The SDE's potential splits before the density does: frozen, its stationary law is ``exp(−2u/g²)``, for a
variance-preserving process ``p² e^{‖X‖²/2}``, and not p.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.critical_field import AveragedField, Dynamics, check_dynamics, share_of_score
from farfield.denoiser import Denoiser
from farfield.distributions import Distribution
from farfield.errors import ArgumentError
from farfield.numerics.krylov import Eigenpairs, leading_eigenpairs, random_start
from farfield.processes import VP, TimeMap
from farfield.processes.base import expand

#: A forward time: a number, or a tensor () or (B,).
Time = Any


class Potential:
    """u(X, t), its gradient and its Hessian's products.

    Args:
        denoiser: any denoiser of Gaussian diffusion.
        process: the time map, :class:`VP` by default.
        dynamics: whose drift: ``"sde"``, ``"ode"`` or ``"langevin"``.
        origin: (*event), the point of data space towards which the process contracts; 0 by default.

    Raises:
        ArgumentError: for an unknown name, another process than Gaussian diffusion, or an origin of the wrong shape.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        process: TimeMap | None = None,
        dynamics: Dynamics = "sde",
        origin: Tensor | None = None,
    ) -> None:
        check_dynamics(dynamics)
        if not denoiser.process.gaussian:
            raise ArgumentError(f"a potential needs a score; {denoiser.process!r} has a field instead")
        if origin is not None and tuple(origin.shape) != denoiser.event_shape:
            raise ArgumentError(f"origin has shape {tuple(origin.shape)}; expected {denoiser.event_shape}")
        self.denoiser = denoiser
        self.process = process if process is not None else VP()
        self.dynamics: Dynamics = dynamics
        self.origin = origin

    # -- coefficients -------------------------------------------------------------------------------------------------

    def rate(self, t: Time) -> Time:
        """g(t)², which is β(t) for a variance-preserving process: the unit in which u is often quoted; 1 for Langevin."""
        if self.dynamics == "langevin":
            return torch.ones_like(t, dtype=torch.float64) if isinstance(t, Tensor) else 1.0
        return self.process.diffusion(t) ** 2

    def _coefficients(self, x: Tensor, t: Time) -> tuple[Time, Time, Time, Time]:
        """a, f, s² and α, shaped to meet X."""
        alpha = self.process.alpha(t)
        spread = self.process.std(t) ** 2
        if self.dynamics == "langevin":
            gain, drift = self.rate(t), 0.0
        else:
            gain, drift = share_of_score(self.dynamics) * self.rate(t), self.process.drift(t)
        shaped = [expand(value, x) for value in (gain, drift, spread, alpha)]
        a, f, s2, scale = (value.to(x) if isinstance(value, Tensor) else value for value in shaped)
        return a, f, s2, scale

    def to_data(self, x: Tensor, t: Time) -> tuple[Tensor, Time]:
        """A native state and time as the denoiser takes them: ``(o + X/α, σ)``."""
        state, sigma = self.process.to_ve(x, t)
        return (state if self.origin is None else state + self.origin.to(state)), sigma

    # -- u and its derivatives ----------------------------------------------------------------------------------------

    def value(self, x: Tensor, t: Time) -> Tensor:
        """u(X, t), (B,) in float64, for a denoiser that knows its density.

        Args:
            x: native states (B, *event).
            t: forward time, a number, () or (B,).

        Raises:
            ArgumentError: for a denoiser without ``log_prob``: a network has potential *differences* only, as the integral
                of :meth:`gradient` along a path.
        """
        if not isinstance(self.denoiser, Distribution):
            raise ArgumentError(
                "this denoiser has no log_prob, so its potential is known up to a constant only: integrate the gradient"
            )
        state, sigma = self.to_data(x, t)
        a, f, _, alpha = self._coefficients(x.flatten(1)[:, :1].double(), t)
        log_scale = alpha.log() if isinstance(alpha, Tensor) else math.log(alpha)
        log_p = self.denoiser.log_prob(state, sigma).unsqueeze(1) - self.denoiser.dim * log_scale
        square = x.flatten(1).double().square().sum(1, keepdim=True)
        return (f * square / 2 - a * log_p).squeeze(1)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """``−∇u``, the drift of generation for a clock that runs towards the data: shape and type of ``x``."""
        a, f, s2, alpha = self._coefficients(x, t)
        state, sigma = self.to_data(x, t)
        with torch.no_grad():
            clean = self.denoiser(state, sigma)
        if self.origin is not None:
            clean = clean - self.origin.to(clean)
        return a * (alpha * clean - x) / s2 - f * x

    def gradient(self, x: Tensor, t: Time) -> Tensor:
        """``∇u``, (B, *event)."""
        return -self.drift(x, t)

    def hessian_product(self, x: Tensor, t: Time, v: Tensor, transposed: bool = False) -> Tensor:
        """``∇∇u v``, (B, *event); one Jacobian product. ``transposed`` takes ``Jᵀ`` where a network's J is not symmetric."""
        a, f, s2, _ = self._coefficients(x, t)
        state, sigma = self.to_data(x, t)
        take: Callable[..., tuple[Tensor, Tensor]] = self.denoiser.vjp if transposed else self.denoiser.jvp
        with torch.no_grad():
            moved = take(state, sigma, v)[1]
        return (f + a / s2) * v - (a / s2) * moved

    def laplacian(
        self,
        x: Tensor,
        t: Time,
        method: Literal["exact", "hutchinson"] = "exact",
        probes: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``tr ∇∇u``, (B,) in float64; the arguments are those of :meth:`Denoiser.divergence`."""
        state, sigma = self.to_data(x, t)
        a, f, s2, _ = self._coefficients(x.flatten(1)[:, :1].double(), t)
        with torch.no_grad():
            trace = self.denoiser.divergence(state, sigma, method, probes, generator).unsqueeze(1)
        total: Tensor = (f + a / s2) * self.denoiser.dim - (a / s2) * trace
        return total.squeeze(1)

    def lowest_curvatures(
        self,
        x: Tensor,
        t: float,
        count: int = 1,
        *,
        steps: int = 50,
        tolerance: float = 1e-8,
        symmetric: bool = True,
        seed: int = 0,
    ) -> Eigenpairs:
        """The lowest eigenvalues of the Hessian with their directions, (B, count) and (B, count, *event), by Lanczos.

        They are ``f + (a/s²)(1 − μ)`` for the largest eigenvalues μ of J; residuals and errors are scaled alike. A state is
        unstable where the first is negative.

        Args:
            x: native states (B, *event).
            t: forward time.
            count, steps, tolerance, seed: see :func:`farfield.numerics.krylov.leading_eigenpairs`; the start is random.
            symmetric: see :class:`AveragedField`.
        """
        a, f, s2, _ = self._coefficients(x, t)
        state, sigma = self.to_data(x, t)
        field = AveragedField(self.denoiser, float(sigma), symmetric=symmetric)
        start = random_start((len(x), count, *x.shape[1:]), seed, x.dtype, x.device)
        found = leading_eigenpairs(field.product(state), start, steps=steps, tolerance=tolerance, seed=seed)
        gain = a / s2
        return Eigenpairs(
            values=f + gain * (1 - found.values),
            vectors=found.vectors,
            residuals=gain * found.residuals,
            errors=gain * found.errors,
            ritz=f + gain * (1 - found.ritz),
            products=field.products // len(x),
        )


def symmetry_error(
    potential: Potential, transform: Callable[[Tensor], Tensor], x: Tensor, t: Time
) -> tuple[float, float]:
    """How far a linear isometry h is from a symmetry: the largest ``|u(h x) − u(x)|`` and ``‖∇u(h x) − h ∇u(x)‖``.

    Both vanish where h belongs to the symmetry group (Raya & Ambrogioni 2023, Eq. 5); for a data set, where h permutes it.
    The first is 0 for denoisers without a density, whose values are not known.

    Args:
        potential: the potential.
        transform: h on native states (B, *event).
        x: states to try, e.g. random ones.
        t: forward time.
    """
    moved = transform(x)
    value = 0.0
    if isinstance(potential.denoiser, Distribution):
        value = float((potential.value(moved, t) - potential.value(x, t)).abs().max())
    gap = potential.gradient(moved, t) - transform(potential.gradient(x, t))
    return value, float(gap.flatten(1).norm(dim=1).max())
