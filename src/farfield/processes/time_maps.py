"""Time maps ``t ↔ (α, σ)``: where other parameterisations of diffusion meet the variance-exploding coordinates.

A linear process ``dx = f(t) x dt + g(t) dw`` has the kernel ``x_t | x₀ ~ N(α(t) x₀, s(t)² I)``. Dividing the state by α
gives the variance-exploding state ``x = x_t/α`` at noise level ``σ(t) = s(t)/α(t)``, and

    f = d log α / dt,        g² = α² dσ²/dt,        log-SNR = −2 log σ.

Every map gives σ and α, their derivatives, the coefficients f and g, and the inverse ``t(σ)``, in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.processes.base import expand

Value = TypeVar("Value", float, Tensor)


def _elementwise(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Any], Any]:
    """Let a method on float64 tensors take and return plain numbers too."""

    def wrapped(self: Any, value: Any) -> Any:
        if isinstance(value, Tensor):
            return method(self, value.double())
        return float(method(self, torch.tensor(float(value), dtype=torch.float64)))

    wrapped.__doc__, wrapped.__name__ = method.__doc__, method.__name__
    return wrapped


def _scale(alpha: float | Tensor, x: Tensor, name: str) -> float | Tensor:
    """α shaped to meet ``x`` (B, *event), in its type and on its device."""
    try:
        scale = expand(alpha, x)
    except ArgumentError:
        assert isinstance(alpha, Tensor)
        raise ArgumentError(f"{name} has shape {tuple(alpha.shape)}; expected () or ({x.shape[0]},)") from None
    return scale.to(x) if isinstance(scale, Tensor) else scale


class TimeMap(ABC):
    """A monotone map from time to noise level. Times and levels are floats or tensors; results are float64."""

    #: The times between which the map is defined.
    t_min: float
    t_max: float

    @abstractmethod
    def sigma(self, t: Value) -> Value:
        """The noise level σ(t) = s/α of the variance-exploding state."""

    @abstractmethod
    def sigma_derivative(self, t: Value) -> Value:
        """dσ/dt."""

    @abstractmethod
    def time(self, sigma: Value) -> Value:
        """The inverse of :meth:`sigma`."""

    @abstractmethod
    def alpha(self, t: Value) -> Value:
        """The signal scale α(t)."""

    @abstractmethod
    def drift(self, t: Value) -> Value:
        """f(t) = d log α/dt of the forward process ``dx = f x dt + g dw``."""

    def alpha_derivative(self, t: Value) -> Value:
        """dα/dt = α f."""
        return self.alpha(t) * self.drift(t)

    def std(self, t: Value) -> Value:
        """The noise scale s(t) = α σ of the native kernel N(α x₀, s² I)."""
        return self.alpha(t) * self.sigma(t)

    def diffusion(self, t: Value) -> Value:
        """g(t) = α sqrt(2 σ dσ/dt)."""
        return self.alpha(t) * (2 * self.sigma(t) * self.sigma_derivative(t)) ** 0.5

    def log_snr(self, t: Value) -> Value:
        """log(α²/s²) = −2 log σ."""
        s = self.sigma(t)
        return -2 * s.log() if isinstance(s, Tensor) else -2 * math.log(s)

    def to_ve(self, x: Tensor, t: Value) -> tuple[Tensor, Value]:
        """The variance-exploding state and level of a native state: ``(x/α, σ)``.

        Args:
            x: (B, *event); the state keeps its type and device.
            t: a number, () or (B,). The level is a number, or a tensor of the type and on the device of ``x``.

        Raises:
            ArgumentError: if ``t`` is neither scalar nor one value for each row of ``x``.
        """
        scale, sigma = _scale(self.alpha(t), x, "t"), self.sigma(t)
        return x / scale, sigma.to(x) if isinstance(sigma, Tensor) else sigma

    def from_ve(self, x: Tensor, sigma: Value) -> tuple[Tensor, Value]:
        """The native state and time of a variance-exploding state: ``(α x, t)``.

        Args:
            x: (B, *event); the state keeps its type and device.
            sigma: a number, () or (B,). The time is a number, or a float64 tensor on the device of ``x``.

        Raises:
            ArgumentError: if ``sigma`` is neither scalar nor one value for each row of ``x``.
        """
        t = self.time(sigma)
        return x * _scale(self.alpha(t), x, "sigma"), t.to(x.device) if isinstance(t, Tensor) else t


@dataclass(frozen=True)
class VP(TimeMap):
    """Variance-preserving diffusion with linear β (Song et al. 2021, Eq. 11 and 32).

    ``β(t) = β_min + t (β_max − β_min)`` on t ∈ [0, 1], ``B(t) = ∫β``, ``α = exp(−B/2)``, ``σ = sqrt(e^B − 1)``.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min < self.beta_max:
            raise ArgumentError(f"expected 0 <= beta_min < beta_max; got {self.beta_min} and {self.beta_max}")

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def _solve(self, integral: Tensor) -> Tensor:
        """t with B(t) = integral, in the form of the quadratic formula that does not cancel at small t."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())

    @_elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """``sqrt(expm1(B))``."""
        return torch.expm1(self._integral(t)).sqrt()

    @_elementwise
    def sigma_derivative(self, t: Tensor) -> Tensor:
        """``β e^B / 2σ``."""
        b = self._integral(t)
        return self._beta(t) * b.exp() / (2 * torch.expm1(b).sqrt())

    @_elementwise
    def time(self, sigma: Tensor) -> Tensor:
        """``B = log(1 + σ²)``, then the positive root of the quadratic B(t)."""
        return self._solve(torch.log1p(sigma * sigma))

    @_elementwise
    def alpha(self, t: Tensor) -> Tensor:
        """``exp(−B/2)``."""
        return (-self._integral(t) / 2).exp()

    @_elementwise
    def drift(self, t: Tensor) -> Tensor:
        """``−β/2``."""
        return -self._beta(t) / 2


@dataclass(frozen=True)
class SubVP(VP):
    """Sub-VP diffusion (Song et al. 2021, Eq. 12): α as in VP, noise scale ``s = 1 − e^{−B}``, so ``σ = 2 sinh(B/2)``."""

    @_elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """``2 sinh(B/2)``."""
        return 2 * torch.sinh(self._integral(t) / 2)

    @_elementwise
    def sigma_derivative(self, t: Tensor) -> Tensor:
        """``β cosh(B/2)``."""
        return self._beta(t) * torch.cosh(self._integral(t) / 2)

    @_elementwise
    def time(self, sigma: Tensor) -> Tensor:
        """``B = 2 asinh(σ/2)``, then the positive root of the quadratic B(t)."""
        return self._solve(2 * torch.asinh(sigma / 2))


@dataclass(frozen=True)
class VE(TimeMap):
    """Variance-exploding diffusion with a geometric schedule (Song et al. 2021, Eq. 9): ``σ = σ_min (σ_max/σ_min)^t``."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ArgumentError(f"expected 0 < sigma_min < sigma_max; got {self.sigma_min} and {self.sigma_max}")

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @_elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """``σ_min (σ_max/σ_min)^t``."""
        return self.sigma_min * (self._rate * t).exp()

    @_elementwise
    def sigma_derivative(self, t: Tensor) -> Tensor:
        """``σ log(σ_max/σ_min)``."""
        return self._rate * self.sigma_min * (self._rate * t).exp()

    @_elementwise
    def time(self, sigma: Tensor) -> Tensor:
        """``log(σ/σ_min) / log(σ_max/σ_min)``."""
        return (sigma / self.sigma_min).log() / self._rate

    @_elementwise
    def alpha(self, t: Tensor) -> Tensor:
        """1: the signal is never scaled."""
        return torch.ones_like(t)

    @_elementwise
    def drift(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)


@dataclass(frozen=True)
class DDPM(TimeMap):
    """The discrete schedules of DDPM, indices 0 … timesteps − 1, ``α_i = sqrt(ᾱ_i)``, ``σ_i = sqrt(1/ᾱ_i − 1)``.

    ``schedule="linear"`` (Ho et al. 2020): β from ``beta_start`` to ``beta_end`` in equal steps. ``"cosine"`` (Nichol &
    Dhariwal 2021, Eq. 17): ``ᾱ(t) ∝ cos²((t/T + 0.008)/1.008 · π/2)`` with β at most 0.999. Between two indices log σ is
    linear in t, so the map has a derivative and an inverse; at an index it is exact.

    Raises:
        ArgumentError: unless ``0 < beta_start <= beta_end < 1``, ``timesteps >= 2`` and the schedule is known.
    """

    timesteps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine"):
            raise ArgumentError(f"schedule = {self.schedule!r}; expected 'linear' or 'cosine'")
        if self.timesteps < 2:
            raise ArgumentError(f"timesteps = {self.timesteps}; expected at least 2")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ArgumentError(
                f"expected 0 < beta_start <= beta_end < 1; got beta_start = {self.beta_start}, beta_end = {self.beta_end}"
            )

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """Index 0."""
        return 0.0

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """Index ``timesteps − 1``."""
        return float(self.timesteps - 1)

    @cached_property
    def betas(self) -> Tensor:
        """(timesteps,) the variances β_i added at each step."""
        if self.schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=torch.float64)
        t = torch.arange(self.timesteps + 1, dtype=torch.float64) / self.timesteps
        bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)

    @cached_property
    def log_sigmas(self) -> Tensor:
        """(timesteps,) log σ_i; increasing."""
        log_bar = torch.log1p(-self.betas).cumsum(0)
        return (torch.log(-torch.expm1(log_bar)) - log_bar) / 2

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        return {}

    def _table(self, device: torch.device) -> Tensor:
        """log σ_i on a device, copied there once."""
        if device not in self._tables:
            self._tables[device] = self.log_sigmas.to(device)
        return self._tables[device]

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left = t.floor().clamp(0, self.timesteps - 2).long()
        table = self._table(t.device)
        return table[left], table[left + 1], t - left

    @_elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """σ at an index, geometric between two."""
        low, high, part = self._segment(t)
        return (low + part * (high - low)).exp()

    @_elementwise
    def sigma_derivative(self, t: Tensor) -> Tensor:
        """``σ (log σ_{i+1} − log σ_i)`` on the segment to the right of t."""
        low, high, part = self._segment(t)
        return (high - low) * (low + part * (high - low)).exp()

    @_elementwise
    def time(self, sigma: Tensor) -> Tensor:
        """The index, with its fraction, whose level is σ."""
        level = sigma.log()
        table = self._table(sigma.device)
        left = (torch.searchsorted(table, level.contiguous(), right=True) - 1).clamp(0, self.timesteps - 2)
        return left + (level - table[left]) / (table[left + 1] - table[left])

    @_elementwise
    def alpha(self, t: Tensor) -> Tensor:
        """``1/sqrt(1 + σ²)``."""
        s = self.sigma(t)
        return (1 + s * s).rsqrt()

    @_elementwise
    def drift(self, t: Tensor) -> Tensor:
        """``−σ σ' / (1 + σ²)``."""
        s = self.sigma(t)
        return -s * self.sigma_derivative(t) / (1 + s * s)
