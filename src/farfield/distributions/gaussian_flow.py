"""The exact sampling flow of a Gaussian law, for any schedule of signal and noise: state, denoiser, ε, score, v, velocity.

For ``x_t | x₀ ~ N(α x₀, s² I)`` the probability flow of N(μ, Σ) is linear and decouples over the components u_k of Σ. With
``c_k = u_k·(x_T − α_T μ)`` and ``n_k(t) = sqrt(s² + α²λ_k)`` every quantity on the way has the form

    a(t) μ + Σ_k f_k(t) c_k u_k

    state  α, n/n_T          denoiser  1, αλ/(n n_T)      noise ε  0, s/(n n_T)      score  0, −1/(n n_T)
    velocity dx/dt  α', (s s' + αα'λ)/(n n_T)             v = αε − sD  −s, αs(1 − λ)/(n n_T)

(Wang & Vastola 2024, Eqs. 14-20, 44-110; ε, v and velocity by the same algebra.) Directions outside the span of U are
components of variance ``tail``, projected by I − U Uᵀ. One projection of x_T serves any number of times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.distributions import gaussian_modes as modes
from farfield.distributions.gaussian import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.processes.schedules import EDM, Schedule, as_schedule
from farfield.processes.time_maps import TimeMap

Times = float | Sequence[float] | Tensor
Quantity = Literal["state", "denoised", "noise", "score", "velocity", "v"]

_CLOCK = EDM()


@dataclass(frozen=True, eq=False)
class GaussianPath:
    """The flow through given states, ready to be read at any time: a projection done once.

    Each method takes a time, and returns (B, *event) in the type of the states, or a sequence of L times, and returns
    (L, B, *event). Made by :meth:`GaussianFlow.path`.

    Attributes:
        flow: the law and the schedule.
        coefficients: c = Uᵀ(x_T − α_T μ), (B, r).
        outside: the part of x_T − α_T μ outside the span of U, (B, d); None where there is none.
        spread: n_k(T), (r,) or, with the tail's as the last, (r + 1,), float64.
    """

    flow: GaussianFlow
    coefficients: Tensor
    outside: Tensor | None
    spread: Tensor

    def state(self, t: Times) -> Tensor:
        """x(t)."""
        return self._read("state", t)

    def denoised(self, t: Times) -> Tensor:
        """D(t), the endpoint as it is estimated at time t."""
        return self._read("denoised", t)

    def noise(self, t: Times) -> Tensor:
        """ε(t) = (x − α D)/s, finite at s = 0 too."""
        return self._read("noise", t)

    def score(self, t: Times) -> Tensor:
        """∇ log p(x; t) = −ε/s; infinite at s = 0 where a component has no variance."""
        return self._read("score", t)

    def velocity(self, t: Times) -> Tensor:
        """dx/dt in the schedule's own time (dx/dσ for EDM).

        Raises:
            ArgumentError: where the rates of the schedule are not finite, as those of VP at t = 0.
        """
        return self._read("velocity", t)

    def v(self, t: Times) -> Tensor:
        """α ε − s D, the v-prediction (Salimans & Ho 2022) of the schedule's own scales."""
        return self._read("v", t)

    def endpoint(self) -> Tensor:
        """x₀ = μ + Σ_k sqrt(λ_k)/n_k(T) c_k u_k, (B, *event): the clean sample at the end of the flow."""
        root = modes.all_variances(self.flow.gaussian.spectrum).sqrt()
        return self._lift(torch.ones_like(root[:0].sum()), root / self.spread)

    def coordinates(self, t: Times, of: Quantity = "state") -> Tensor:
        """The quantity's coefficients Uᵀ(· − a μ), (B, r) or (L, B, r): the whole flow without lifting it."""
        _, gains = self._gains(of, t)
        return gains[..., None, : self.coefficients.shape[1]].to(self.coefficients) * self.coefficients

    def _read(self, of: Quantity, t: Times) -> Tensor:
        return self._lift(*self._gains(of, t))

    def _gains(self, of: Quantity, t: Times) -> tuple[Tensor, Tensor]:
        """The mean's weight, () or (L,), and the components' gains, (…, r) or with the tail (…, r + 1), in float64."""
        alpha, std = self.flow.scales(t)
        a, s = alpha.unsqueeze(-1), std.unsqueeze(-1)
        variance = modes.all_variances(self.flow.gaussian.spectrum)
        root, none = variance.sqrt(), torch.zeros_like(alpha)
        if of == "state":
            return alpha, modes.spread(variance, s, a) / self.spread
        noise, signal = modes.noise_share(variance, s, a), modes.signal_share(variance, s, a)
        if of == "denoised":
            return torch.ones_like(alpha), root * signal / self.spread
        if of == "noise":
            return none, noise / self.spread
        if of == "score":
            return none, -1 / (modes.spread(variance, s, a) * self.spread)
        if of == "v":
            return -std, (a * noise - s * root * signal) / self.spread
        if of == "velocity":
            signal_rate, noise_rate = self.flow.rates(t)
            gain = noise_rate.unsqueeze(-1) * noise + signal_rate.unsqueeze(-1) * root * signal
            return signal_rate, gain / self.spread
        raise ArgumentError(f"of = {of!r}; expected state, denoised, noise, score, velocity or v")

    def _lift(self, offset: Tensor, gains: Tensor) -> Tensor:
        """``a μ + U f c + f_tail y_perp``."""
        law, c = self.flow.gaussian, self.coefficients
        rank, shape = c.shape[1], law.event_shape
        inner = gains[..., None, :rank].to(c) * c
        rows = inner.reshape(math.prod(inner.shape[:-1]), rank)
        result = law.spectrum.expand(rows).view(*inner.shape[:-1], law.dim)
        result = result + offset.to(c)[..., None, None] * law.mean.to(c).flatten()
        if self.outside is not None:
            result = result + gains[..., None, rank:].to(c) * self.outside
        return result.view(*inner.shape[:-1], *shape)


class GaussianFlow:
    """The probability flow of a Gaussian under a schedule.

    Args:
        gaussian: the law of the data; its spectrum may be dense, of low rank, diagonal or in a fixed transform.
        schedule: a :class:`~farfield.processes.schedules.Schedule`, or a time map: ``VP()``, ``DDPM()`` …; by default EDM's,
            where time is the noise level itself.

    Raises:
        ArgumentError: if either is something else.
    """

    def __init__(self, gaussian: Gaussian, schedule: Schedule | TimeMap = _CLOCK) -> None:
        if not isinstance(gaussian, Gaussian):
            raise ArgumentError(f"gaussian is a {type(gaussian).__name__}; expected a Gaussian")
        self.gaussian = gaussian
        self.schedule = as_schedule(schedule)

    # -- the schedule -------------------------------------------------------------------------------------------------

    @staticmethod
    def _time(t: Times) -> Tensor:
        time = torch.as_tensor(t if isinstance(t, float | int | Tensor) else list(t), dtype=torch.float64)
        if time.ndim > 1:
            raise ArgumentError(f"t has shape {tuple(time.shape)}; expected one time or a sequence of times")
        return time

    def scales(self, t: Times) -> tuple[Tensor, Tensor]:
        """α(t) and s(t), () or (L,), float64, where the law is.

        Raises:
            ArgumentError: for a time at which a scale is negative or not finite.
        """
        pair = self.schedule.scales(self._time(t))
        for name, value in zip(("alpha", "std"), pair, strict=True):
            self._check(name, value, t, value >= 0)
        device = self.gaussian.mean.device
        return pair[0].to(device), pair[1].to(device)

    def rates(self, t: Times) -> tuple[Tensor, Tensor]:
        """dα/dt and ds/dt, () or (L,), float64.

        Raises:
            ArgumentError: for a time at which one of them is not finite.
        """
        pair = self.schedule.rates(self._time(t))
        for name, value in zip(("the rate of alpha", "the rate of std"), pair, strict=True):
            self._check(name, value, t, value == value)
        device = self.gaussian.mean.device
        return pair[0].to(device), pair[1].to(device)

    def _check(self, name: str, value: Tensor, t: Times, valid: Tensor) -> None:
        # Values on another device stay unread: that would wait for it.
        if value.device.type == "cpu" and not bool((valid & value.isfinite()).all()):
            worst = value[~(valid & value.isfinite())].flatten()[0] if value.ndim else value
            raise ArgumentError(
                f"t = {t}: {name} is {float(worst):g} there; expected times inside the schedule's range"
            )

    # -- the flow -----------------------------------------------------------------------------------------------------

    def path(self, x: Tensor, t: float) -> GaussianPath:
        """The flow through states x (B, *event) at time t, to be read at other times.

        Raises:
            ArgumentError: for a wrong shape, or where the law at time t is singular (s = 0 and a variance 0).
        """
        self.gaussian.check_shape(x)
        alpha, _ = self.scales(float(t))
        return self._path(x.flatten(1) - alpha.to(x) * self.gaussian.mean.to(x).flatten(), t)

    def _path(self, y: Tensor, t: float) -> GaussianPath:
        spectrum = self.gaussian.spectrum
        alpha, std = self.schedule.scales(self._time(t))
        if not float(std) > 0 and not (float(alpha) > 0 and spectrum.smallest > 0):
            raise ArgumentError(f"t = {t}: the law is singular there; expected a time with noise")
        alpha, std = alpha.to(spectrum.values.device), std.to(spectrum.values.device)
        c = spectrum.project(y)
        outside = y - spectrum.expand(c) if spectrum.tail_dim else None
        return GaussianPath(self, c, outside, modes.spread(modes.all_variances(spectrum), std, alpha))

    def transport(self, x: Tensor, t_from: float, t_to: Times) -> Tensor:
        """The states that x (B, *event) at ``t_from`` becomes, or came from, at ``t_to``; exchanging the times inverts it."""
        return self.path(x, t_from).state(t_to)

    def push(self, v: Tensor, t_from: float, t_to: float | None = None) -> Tensor:
        """The flow's Jacobian times v (B, *event): what a small change of the state at ``t_from`` becomes.

        Args:
            v: changes of the state.
            t_from: where they are made.
            t_to: where they are seen; by default at the endpoint, the clean sample.
        """
        self.gaussian.check_shape(v)
        path = self._path(v.flatten(1), t_from)
        spread_to = modes.all_variances(self.gaussian.spectrum).sqrt()
        if t_to is not None:
            alpha, std = self.scales(float(t_to))
            spread_to = modes.spread(modes.all_variances(self.gaussian.spectrum), std, alpha)
        return path._lift(torch.zeros((), dtype=torch.float64), spread_to / path.spread)

    def log_det(self, t_from: float, t_to: float) -> Tensor:
        """``log det ∂x(t_to)/∂x(t_from) = Σ_k ln ψ_k``, () in float64: ``log p(x; t_from) = log p(x'; t_to) + log det``."""
        spectrum = self.gaussian.spectrum
        variance = modes.all_variances(spectrum)
        (a, s), (b, r) = self.scales(float(t_from)), self.scales(float(t_to))
        gain = modes.spread(variance, r, b).log() - modes.spread(variance, s, a).log()
        return (gain * modes.multiplicities(spectrum)).sum()

    # -- the laws -----------------------------------------------------------------------------------------------------

    def marginal(self, t: float) -> Gaussian:
        """The law at time t, ``N(α μ, α² Σ + s² I)``, as a Gaussian that shares the basis."""
        alpha, std = self.scales(float(t))
        spread = modes.spread(modes.all_variances(self.gaussian.spectrum), std, alpha)
        return Gaussian(self.gaussian.mean * alpha.to(self.gaussian.mean), self._with(spread.square()))

    def image(self, t_from: float, t_to: float) -> Gaussian:
        """The law at ``t_to`` of the flow started in pure noise, N(0, s_T² I), instead of the exact marginal.

        Mean ``α μ − α_T M μ``, covariance ``s_T² M²`` with M the flow's matrix: the variance along a component is short by
        the factor ``s_T²/(s_T² + α_T² λ)`` (Wang & Vastola 2024 start so; their section 3.2).
        """
        law = self.gaussian
        variance = modes.all_variances(law.spectrum)
        (a, s), (b, r) = self.scales(float(t_from)), self.scales(float(t_to))
        gain = modes.spread(variance, r, b) / modes.spread(variance, s, a)
        mean = law.mean.double().unsqueeze(0)
        moved = self.push(mean, t_from, t_to)[0]
        shifted = (b * mean[0] - a * moved).to(law.mean)
        return Gaussian(shifted, self._with((s * gain).square()))

    def _with(self, values: Tensor) -> Spectrum:
        """The spectrum with other eigenvalues, the tail's last."""
        old = self.gaussian.spectrum
        rank = old.rank
        tail = float(values[rank]) if old.tail_dim else 0.0
        channels = old.channel_basis if isinstance(old.channel_basis, Tensor) else None
        return Spectrum(old.kind, old.dim, values[:rank].clone(), tail, old.basis, old.event_shape, channels)

    # -- at given states ----------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, t: float) -> Tensor:
        """``log N(x; α μ, α² Σ + s² I)``, (B,) in float64."""
        return self.marginal(t).log_prob(x)

    def denoised(self, x: Tensor, t: float) -> Tensor:
        """E[x₀ | x_t] at any states x (B, *event): ``μ + α Σ (α² Σ + s²)⁻¹ (x − α μ)`` (Eq. 100)."""
        return self.path(x, t).denoised(t)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """dx/dt at any states x (B, *event), in the schedule's own time."""
        return self.path(x, t).velocity(t)
