"""Noise grids: the decreasing levels σ_0 > σ_1 > … > σ_{n−1} > 0 that a sampler visits, followed by 0.

A grid is a value: a sequence of floats that knows its formula, so that it can be written to JSON and rebuilt to start at a
lower level. ``n`` counts the positive levels, hence the steps down to zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, overload

from farfield.errors import ArgumentError, unknown_name
from farfield.processes import DDPM, VP


class Grid(ABC, Sequence[float]):
    """Base class: subclasses are frozen dataclasses that compute ``levels`` (positive, decreasing)."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def levels(self) -> tuple[float, ...]:
        """The positive noise levels, decreasing."""

    @abstractmethod
    def starting_at(self, sigma: float) -> Grid:
        """The same rule and number of levels between ``sigma`` and the lowest level."""

    def truncated(self, sigma: float) -> Grid:
        """``sigma`` followed by the levels of this grid below it: fewer steps, the rest unchanged."""
        below = [s for s in self.levels if s < sigma * (1 - 1e-9)]
        return Explicit((sigma, *below))

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The levels with the closing 0."""
        return (*validated(self.levels), 0.0)

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[float]: ...
    def __getitem__(self, index: int | slice) -> float | Sequence[float]:
        return self.values[index]

    def __iter__(self) -> Iterator[float]:
        return iter(self.values)

    def to_dict(self) -> dict[str, Any]:
        """The name and parameters, JSON-safe."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


def validated(levels: Sequence[float]) -> tuple[float, ...]:
    """The levels as floats, after a check that they are finite, positive and strictly decreasing.

    Raises:
        ArgumentError: naming the first level that is out of order.
    """
    values = tuple(float(s) for s in levels)
    if not values:
        raise ArgumentError("a noise grid needs at least one positive level")
    for k, s in enumerate(values):
        if not math.isfinite(s) or s <= 0:
            raise ArgumentError(f"noise level {k} of the grid is {s!r}; expected finite, positive levels")
        if k and s >= values[k - 1]:
            raise ArgumentError(
                f"noise levels must decrease: level {k} is {s:g} after {values[k - 1]:g}; did you pass them ascending?"
            )
    return values


#: A bound against typing errors and hand-edited files.
MAX_LEVELS = 100_000


def check_count(n: int) -> None:
    """Raise ``ArgumentError`` unless a grid can have ``n`` levels."""
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_LEVELS:
        raise ArgumentError(f"n = {n!r}; a grid has 1 to {MAX_LEVELS:,} levels")


def check_range(low: float, high: float, n: int) -> None:
    """Raise ``ArgumentError`` unless the ends are in order and ``n`` is a number of levels."""
    check_count(n)
    if not (0 < low < high < math.inf):
        raise ArgumentError(f"expected 0 < sigma_min < sigma_max; got sigma_min = {low} and sigma_max = {high}")


def _spaced(n: int) -> list[float]:
    """0 … 1 in n values; a single level is the highest one."""
    return [k / (n - 1) for k in range(n)] if n > 1 else [0.0]


@dataclass(frozen=True, eq=True)
class Karras(Grid):
    """``σ_k = (σ_max^{1/ρ} + k/(n−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ`` (Karras et al. 2022, Eq. 5)."""

    n: int
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    name: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        check_range(self.sigma_min, self.sigma_max, self.n)
        if not 0.1 <= self.rho < math.inf:
            raise ArgumentError(f"rho = {self.rho}; expected an exponent of at least 0.1 (7 is usual)")

    @property
    def levels(self) -> tuple[float, ...]:
        """The positive levels; the two ends are exact."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        inner = [(high + s * (low - high)) ** self.rho for s in _spaced(self.n)[1:-1]]
        return (self.sigma_max, *inner, *((self.sigma_min,) if self.n > 1 else ()))

    def starting_at(self, sigma: float) -> Self:
        """The same with ``sigma_max = sigma``."""
        return replace(self, sigma_max=float(sigma))


@dataclass(frozen=True, eq=True)
class LogSNR(Grid):
    """Levels uniform in log σ, that is in log-SNR (Lu et al. 2022): the limit ρ → ∞ of the Karras grid."""

    n: int
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    name: ClassVar[str] = "log_snr"

    def __post_init__(self) -> None:
        check_range(self.sigma_min, self.sigma_max, self.n)

    @property
    def levels(self) -> tuple[float, ...]:
        """The positive levels; the two ends are exact."""
        ratio = self.sigma_min / self.sigma_max
        inner = [self.sigma_max * ratio**s for s in _spaced(self.n)[1:-1]]
        return (self.sigma_max, *inner, *((self.sigma_min,) if self.n > 1 else ()))

    def starting_at(self, sigma: float) -> Self:
        """The same with ``sigma_max = sigma``."""
        return replace(self, sigma_max=float(sigma))


@dataclass(frozen=True, eq=True)
class VPTime(Grid):
    """Levels uniform in the time of the linear-β VP process (Song et al. 2021), from ``t_max`` to ``t_min``."""

    n: int
    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    name: ClassVar[str] = "vp_time"

    def __post_init__(self) -> None:
        check_count(self.n)
        if not 0 < self.t_min < self.t_max:
            raise ArgumentError(f"expected 0 < t_min < t_max; got t_min = {self.t_min} and t_max = {self.t_max}")

    @property
    def levels(self) -> tuple[float, ...]:
        """``σ(t_k) = sqrt(exp(B(t_k)) − 1)``."""
        time_map = VP(self.beta_min, self.beta_max)
        return tuple(time_map.sigma(self.t_max + s * (self.t_min - self.t_max)) for s in _spaced(self.n))

    def starting_at(self, sigma: float) -> Self:
        """The same with ``t_max`` at the time of ``sigma``."""
        return replace(self, t_max=VP(self.beta_min, self.beta_max).time(float(sigma)))


@dataclass(frozen=True, eq=True)
class DDPMTimesteps(Grid):
    """Levels at ``n`` evenly spaced indices of a DDPM schedule, from ``last`` (default: the highest index) down to 0.

    The closing 0 of the grid is the clean image, one step below index 0. (Ho et al. 2020; Nichol & Dhariwal 2021.)
    """

    n: int
    timesteps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"
    last: float | None = None
    name: ClassVar[str] = "ddpm"

    def __post_init__(self) -> None:
        check_count(self.n)
        highest = self._last
        if not 0 < highest <= self.timesteps - 1:
            raise ArgumentError(f"last = {self.last}; expected an index in (0, {self.timesteps - 1}]")
        if self.n > math.floor(highest) + 1:
            raise ArgumentError(f"n = {self.n} levels asked of a DDPM schedule with {math.floor(highest) + 1} indices")

    @property
    def _last(self) -> float:
        return self.timesteps - 1 if self.last is None else self.last

    @property
    def indices(self) -> tuple[float, ...]:
        """The schedule's indices, rounded to whole ones below the first."""
        inner = [round(self._last * (1 - s)) for s in _spaced(self.n)[1:]]
        return (float(self._last), *map(float, inner))

    @property
    def levels(self) -> tuple[float, ...]:
        """``σ_i = sqrt(1/ᾱ_i − 1)`` at the indices."""
        table = DDPM(self.timesteps, self.schedule)
        return tuple(table.sigma(i) for i in self.indices)

    def starting_at(self, sigma: float) -> Self:
        """The same with ``last`` at the (fractional) index of ``sigma``."""
        return replace(self, last=DDPM(self.timesteps, self.schedule).time(float(sigma)))


@dataclass(frozen=True, eq=True)
class Explicit(Grid):
    """Levels given one by one; a closing 0 may be left out."""

    given: tuple[float, ...]
    name: ClassVar[str] = "explicit"

    def __post_init__(self) -> None:
        levels = [float(s) for s in self.given]
        if levels and levels[-1] == 0:
            levels.pop()
        object.__setattr__(self, "given", validated(levels))

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels as they were given."""
        return self.given

    def starting_at(self, sigma: float) -> Grid:
        """Explicit levels follow no rule, so this is :meth:`truncated`."""
        return self.truncated(sigma)


GRIDS: dict[str, type[Grid]] = {g.name: g for g in (Karras, LogSNR, VPTime, DDPMTimesteps, Explicit)}


def karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Karras:
    """The grid of Karras et al. (2022): n positive levels, then 0. See :class:`Karras`."""
    return Karras(n, sigma_min, sigma_max, rho)


def log_snr(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> LogSNR:
    """n levels uniform in log σ, then 0. See :class:`LogSNR`."""
    return LogSNR(n, sigma_min, sigma_max)


def vp_time(n: int, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3, t_max: float = 1.0) -> VPTime:
    """n levels uniform in VP time, then 0. See :class:`VPTime`."""
    return VPTime(n, beta_min, beta_max, t_min, t_max)


def ddpm(n: int, timesteps: int = 1000, schedule: Literal["linear", "cosine"] = "linear") -> DDPMTimesteps:
    """n levels of a DDPM schedule, then 0. See :class:`DDPMTimesteps`."""
    return DDPMTimesteps(n, timesteps, schedule)


def as_grid(sigmas: Grid | Sequence[float]) -> Grid:
    """A grid as it is; any decreasing sequence as an :class:`Explicit` grid."""
    return sigmas if isinstance(sigmas, Grid) else Explicit(tuple(sigmas))


def grid_from_dict(spec: dict[str, Any]) -> Grid:
    """The grid that ``to_dict`` wrote.

    Raises:
        ArgumentError: for an unknown name or parameter.
    """
    fields = dict(spec)
    name = fields.pop("name", None)
    if name not in GRIDS:
        raise unknown_name("noise grid", name, GRIDS)
    try:
        if name == "explicit":
            return Explicit(tuple(fields.pop("given")), **fields)
        return GRIDS[name](**fields)
    except (TypeError, KeyError) as error:
        raise ArgumentError(f"noise grid {name!r} does not take these parameters: {error}") from error
