"""How a run ends: at zero noise, at the last level of the grid, or by a jump along the denoising trajectory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from farfield.errors import ArgumentError
from farfield.sampling.grids import Grid


class Finish(ABC):
    """Base class: turns the grid into the levels of the run; ``denoise`` asks for the denoiser's output at the last one."""

    name: ClassVar[str]
    denoise: ClassVar[bool] = False

    @abstractmethod
    def levels(self, grid: Grid) -> tuple[float, ...]:
        """The levels that the run visits."""

    def to_dict(self) -> dict[str, Any]:
        """The name and parameters, JSON-safe."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class ToZero(Finish):
    """All levels, then the solver's own step to σ = 0."""

    name: ClassVar[str] = "zero"

    def levels(self, grid: Grid) -> tuple[float, ...]:
        """The grid with its closing 0."""
        return grid.values


@dataclass(frozen=True)
class AtLastLevel(Finish):
    """Stop at the lowest positive level and return the state there, which still holds its noise."""

    name: ClassVar[str] = "last_level"

    def levels(self, grid: Grid) -> tuple[float, ...]:
        """The positive levels."""
        return grid.values[:-1]


@dataclass(frozen=True)
class Jump(Finish):
    """ODE-Jump: solve down to level ``at`` and return the denoiser's output there (Chen et al., section 3.2).

    The same as the grid cut off at ``at`` with an Euler step to 0. The levels of the grid below ``at`` are dropped, and
    ``at`` becomes the last one.
    """

    at: float
    name: ClassVar[str] = "jump"
    denoise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.at, int | float) or not 0 < self.at < math.inf:
            raise ArgumentError(f"at = {self.at!r}; expected a positive noise level")

    def levels(self, grid: Grid) -> tuple[float, ...]:
        """The levels above ``at``, then ``at``."""
        top = grid.levels[0]
        if not 0 < self.at <= top * (1 + 1e-9):
            raise ArgumentError(f"Jump(at={self.at:g}) lies outside the grid, which starts at {top:g}")
        above = [s for s in grid.levels if s > self.at * (1 + 1e-9)]
        # A node of the grid stays the very number it is, so that the jump equals the cut-off run to the bit.
        nodes = [s for s in grid.levels if abs(s - self.at) <= 1e-9 * self.at]
        return (*above, nodes[0] if nodes else self.at)


FINISHES: dict[str, type[Finish]] = {f.name: f for f in (ToZero, AtLastLevel, Jump)}
