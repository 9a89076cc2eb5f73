"""Grids of whole DDPM indices: the late-start grid, the vanilla grid and the quadratic one.

Raya & Ambrogioni (2023) start a sampler of n steps at an index s of the noise schedule: their grid holds the n whole numbers
``floor(k s / (n − 1))``, both ends included. The vanilla grid takes multiples of ``floor(N/n)``; it ends at 900 for 10 steps
and at 800 for 5, although the state there is drawn from N(0, I). An index i is the noise level ``σ_i = sqrt(1/ᾱ_i − 1)`` of the
variance-exploding state, and the closing 0 of a grid is the clean image, index −1.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from farfield.errors import ArgumentError
from farfield.processes import DDPM
from farfield.sampling.grids import GRIDS, Grid, check_count

Schedule = Literal["linear", "cosine"]

#: Indices so near a whole number are that number: what is left of a conversion to σ and back.
_SNAP = 1e-6


def whole(index: float) -> float:
    """The index, made whole where only rounding keeps it from being so."""
    nearest = round(index)
    return float(nearest) if abs(index - nearest) < _SNAP else float(index)


class IndexGrid(Grid):
    """Base class: subclasses have the fields ``timesteps`` and ``schedule`` and compute ``indices``, decreasing."""

    timesteps: int
    schedule: Schedule

    @property
    @abstractmethod
    def indices(self) -> tuple[float, ...]:
        """The indices of the schedule, decreasing; whole below the first."""

    @property
    def table(self) -> DDPM:
        """The schedule."""
        return DDPM(self.timesteps, self.schedule)

    @property
    def levels(self) -> tuple[float, ...]:
        """``σ_i = sqrt(1/ᾱ_i − 1)`` at the indices."""
        table = self.table
        return tuple(table.sigma(i) for i in self.indices)

    def _index(self, sigma: float) -> float:
        """The index of a level inside the schedule.

        Raises:
            ArgumentError: for a level outside it.
        """
        index = whole(self.table.time(float(sigma)))
        if not 0 <= index <= self.timesteps - 1:
            raise ArgumentError(f"sigma = {sigma:g} has no index in a schedule of {self.timesteps} steps")
        return index


def _check_last(name: str, last: float, timesteps: int) -> None:
    if isinstance(last, bool) or not isinstance(last, int | float) or not 0 <= last <= timesteps - 1:
        raise ArgumentError(f"{name} = {last!r}; expected an index from 0 to {timesteps - 1}")


@dataclass(frozen=True, eq=True)
class LateStartGrid(IndexGrid):
    """``floor(k s/(n − 1))``, k = n − 1 … 0: n whole indices from ``s_start`` down to 0.

    With n = 1 the one index is ``s_start`` itself (the formula would give 0 alone). A start between two whole indices is kept
    as it is, the indices below it are whole.

    Args:
        n: number of indices, hence of steps.
        s_start: the highest index.
        timesteps, schedule: of the DDPM schedule.

    Raises:
        ArgumentError: for an index outside the schedule, or more steps than there are indices up to it.
    """

    n: int
    s_start: float = 999
    timesteps: int = 1000
    schedule: Schedule = "linear"
    name: ClassVar[str] = "ddpm_late_start"

    def __post_init__(self) -> None:
        check_count(self.n)
        _check_last("s_start", self.s_start, self.timesteps)
        if self.n > int(self.s_start) + 1:
            raise ArgumentError(f"n = {self.n} steps from s_start = {self.s_start}, which has {int(self.s_start) + 1}")

    @property
    def indices(self) -> tuple[float, ...]:
        """The formula in whole numbers, which no rounding can shift."""
        first = whole(self.s_start)
        if first != int(first):
            inner = [int(k * first / (self.n - 1)) for k in range(self.n - 2, -1, -1)]
        else:
            inner = [k * int(first) // (self.n - 1) for k in range(self.n - 2, -1, -1)]
        return (first, *map(float, inner))

    def starting_at(self, sigma: float) -> Self:
        """The same with ``s_start`` at the index of ``sigma``."""
        return replace(self, s_start=self._index(sigma))


@dataclass(frozen=True, eq=True)
class VanillaGrid(IndexGrid):
    """The lowest n multiples of ``floor(N/n)``: the default start of a sampler of n steps.

    For n = 10 and 5 of 1000 these are the late-start grids from 900 and 800. For n = 3 the source's formula gives four
    indices, 0, 333, 666 and 999, while its tables compare with a start at 700: here n = 3 of 1000 is 0, 350, 700. The
    source's other choices are ``late_start_grid(3, 666)`` and ``late_start_grid(4, 999)``.

    Args:
        n: number of indices.
        timesteps, schedule: of the DDPM schedule.

    Raises:
        ArgumentError: for more indices than the schedule has.
    """

    n: int
    timesteps: int = 1000
    schedule: Schedule = "linear"
    name: ClassVar[str] = "ddpm_vanilla"

    def __post_init__(self) -> None:
        check_count(self.n)
        if self.n > self.timesteps:
            raise ArgumentError(f"n = {self.n} levels asked of a DDPM schedule with {self.timesteps} indices")

    @property
    def indices(self) -> tuple[float, ...]:
        """Multiples of the stride, decreasing."""
        stride = 350 if (self.n, self.timesteps) == (3, 1000) else self.timesteps // self.n
        return tuple(float(k * stride) for k in range(self.n - 1, -1, -1))

    def starting_at(self, sigma: float) -> LateStartGrid:
        """The late-start grid from ``sigma``."""
        return LateStartGrid(self.n, self._index(sigma), self.timesteps, self.schedule)


@dataclass(frozen=True, eq=True)
class QuadraticGrid(IndexGrid):
    """Squares of n equal steps from 0 to ``sqrt(0.8 N)``, truncated: fine near the image, coarse near the noise.

    (Song, Meng & Ermon 2021, appendix D.3.) With many steps several squares share an index at the lower end; each index is
    visited once, so that the grid then has fewer than n levels.

    Args:
        n: number of squares.
        last: the highest index, 0.8 N by default.
        timesteps, schedule: of the DDPM schedule.
    """

    n: int
    last: float | None = None
    timesteps: int = 1000
    schedule: Schedule = "linear"
    name: ClassVar[str] = "ddpm_quadratic"

    def __post_init__(self) -> None:
        check_count(self.n)
        if self.last is not None:
            _check_last("last", self.last, self.timesteps)

    @property
    def indices(self) -> tuple[float, ...]:
        """The truncated squares, decreasing, each once."""
        last = self.timesteps * 4 // 5 if self.last is None else whole(self.last)
        inner = [int(k * k * last / max((self.n - 1) ** 2, 1)) for k in range(self.n - 2, -1, -1)]
        return (float(last), *(float(i) for i in dict.fromkeys(inner) if i < last))

    def starting_at(self, sigma: float) -> Self:
        """The same with ``last`` at the index of ``sigma``."""
        return replace(self, last=self._index(sigma))


GRIDS.update({g.name: g for g in (LateStartGrid, VanillaGrid, QuadraticGrid)})


def late_start_grid(n: int, s_start: float = 999, timesteps: int = 1000, schedule: Schedule = "linear") -> Grid:
    """n whole indices from ``s_start`` down to 0, then the clean image. See :class:`LateStartGrid`."""
    return LateStartGrid(n, s_start, timesteps, schedule)


def vanilla_grid(n: int, timesteps: int = 1000, schedule: Schedule = "linear") -> Grid:
    """The default indices of a sampler of n steps, then the clean image. See :class:`VanillaGrid`."""
    return VanillaGrid(n, timesteps, schedule)


def quadratic_grid(n: int, timesteps: int = 1000, schedule: Schedule = "linear") -> Grid:
    """n truncated squares up to 0.8 of the schedule, then the clean image. See :class:`QuadraticGrid`."""
    return QuadraticGrid(n, None, timesteps, schedule)
