"""How a run ends: at zero noise, at the last level of the grid, or by a jump along the denoising trajectory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from farfield.errors import ArgumentError
from farfield.sampling.grids import Grid
from farfield.sampling.results import Step
from farfield.sampling.stop_rules import Cost, PlannedRule, SampleRule, StopFunction, StopRule, rule_from_dict


class Finish(ABC):
    """Base class: turns the grid into the levels of the run."""

    name: ClassVar[str]

    @property
    def denoise(self) -> bool:
        """Whether the run returns the denoiser's output at its last level."""
        return False

    @property
    def rule(self) -> SampleRule | None:
        """What ends samples on the way, one by one."""
        return None

    @abstractmethod
    def levels(self, grid: Grid, cost: Cost) -> tuple[float, ...]:
        """The levels that the run visits.

        Args:
            grid: what the start has left of the sampler's grid.
            cost: the evaluations of a run through some levels that jumps at the last.
        """

    def to_dict(self) -> dict[str, Any]:
        """The name and parameters, JSON-safe."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class ToZero(Finish):
    """All levels, then the solver's own step to σ = 0."""

    name: ClassVar[str] = "zero"

    def levels(self, grid: Grid, cost: Cost) -> tuple[float, ...]:
        """The grid with its closing 0."""
        return grid.values


@dataclass(frozen=True)
class AtLastLevel(Finish):
    """Stop at the lowest positive level and return the state there, which still holds its noise."""

    name: ClassVar[str] = "last_level"

    def levels(self, grid: Grid, cost: Cost) -> tuple[float, ...]:
        """The positive levels."""
        return grid.values[:-1]


@dataclass(frozen=True)
class Jump(Finish):
    """ODE-Jump: solve part of the way and return the denoiser's output there (Chen et al., section 3.2 and ALG 4).

    At a level it is the same as the grid cut off there with an Euler step to 0: levels of the grid below ``at`` are dropped,
    and ``at`` becomes the last one. An index or a budget names that level by what it is or by what it costs. A rule that looks
    at samples ends each one on its own; :attr:`Sampler.nfe` is then the evaluations of a sample that never stops, which
    goes on to σ = 0 by the solver's own steps, and :attr:`Samples.stops` says where each one did.

    Args:
        at: a noise level > 0, a rule (``AtIndex(n)``, ``Budget(nfe)``, ``SmallChange(tol)``), or a function
            ``f(step) -> bool or (B,) bools``.

    Raises:
        ArgumentError: for anything else.
    """

    at: float | StopRule | Callable[[Step], Tensor | bool]
    name: ClassVar[str] = "jump"

    def __post_init__(self) -> None:
        if isinstance(self.at, Mapping):
            object.__setattr__(self, "at", rule_from_dict(self.at))
        elif callable(self.at):
            object.__setattr__(self, "at", StopFunction(self.at))
        elif not isinstance(self.at, StopRule) and (
            not isinstance(self.at, int | float) or isinstance(self.at, bool) or not 0 < self.at < math.inf
        ):
            raise ArgumentError(f"at = {self.at!r}; expected a positive noise level, a stop rule or a function")

    @property
    def denoise(self) -> bool:
        """Whether all samples jump at the last level."""
        return self.rule is None

    @property
    def rule(self) -> SampleRule | None:
        """The rule, if it looks at samples."""
        return self.at if isinstance(self.at, SampleRule) else None

    def levels(self, grid: Grid, cost: Cost) -> tuple[float, ...]:
        """The levels down to the jump, or all of them where only the samples can tell.

        Raises:
            ArgumentError: if the grid has no such level.
        """
        if isinstance(self.at, PlannedRule):
            return self.at.levels(grid, cost)
        if not isinstance(self.at, int | float):
            return grid.values
        top = grid.levels[0]
        if not 0 < self.at <= top * (1 + 1e-9):
            raise ArgumentError(f"Jump(at={self.at:g}) lies outside the grid, which starts at {top:g}")
        above = [s for s in grid.levels if s > self.at * (1 + 1e-9)]
        # A node of the grid stays the very number it is, so that the jump equals the cut-off run to the bit.
        nodes = [s for s in grid.levels if abs(s - self.at) <= 1e-9 * self.at]
        return (*above, nodes[0] if nodes else self.at)

    def to_dict(self) -> dict[str, Any]:
        """Name and level or rule, JSON-safe.

        Raises:
            ArgumentError: if the rule is a function.
        """
        return {"name": self.name, "at": self.at.to_dict() if isinstance(self.at, StopRule) else self.at}


FINISHES: dict[str, type[Finish]] = {f.name: f for f in (ToZero, AtLastLevel, Jump)}
