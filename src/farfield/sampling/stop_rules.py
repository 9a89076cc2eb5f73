"""When a jump is taken: rules known from the plan alone, and rules that look at each sample on its way.

A planned rule (an index, a budget of evaluations) cuts the grid before the run, so the evaluations stay known. A rule that
looks at samples decides for each sample on its own: one that has stopped keeps the output it had there, whatever becomes of the
rest of its batch, and the run ends once all have stopped. So samples do not depend on their batch. Rows that have stopped are
carried along until then, which costs no more than the batch costs anyway.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from farfield.errors import ArgumentError, unknown_name
from farfield.sampling.grids import Grid
from farfield.sampling.results import Step, Stops

#: The evaluations of a run through these levels that jumps at the last.
Cost = Callable[[tuple[float, ...]], int]


class StopRule(ABC):
    """Base class; subclasses are frozen dataclasses. Either planned or a :class:`SampleRule`."""

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The name and parameters, JSON-safe."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


class PlannedRule(StopRule):
    """A rule that needs no sample to decide."""

    @abstractmethod
    def levels(self, grid: Grid, cost: Cost) -> tuple[float, ...]:
        """The levels of the run; it jumps at the last.

        Raises:
            ArgumentError: if the grid has no such level.
        """


class SampleRule(StopRule):
    """A rule that looks at the samples."""

    @abstractmethod
    def stops(self, step: Step) -> Tensor:
        """Which samples of the batch stop here, (B,) bool; each decided from its own row alone."""


@dataclass(frozen=True)
class AtIndex(PlannedRule):
    """Jump at the n-th level from below: n = 1 is the lowest positive level (t_n of Chen et al., ALG 4 ``n_stop``).

    Args:
        n: ≥ 1; at n = 1 nothing is saved.
    """

    n: int
    name: ClassVar[str] = "index"

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1:
            raise ArgumentError(f"n = {self.n!r}; expected the number of a level from below, 1 for the lowest")

    def levels(self, grid: Grid, cost: Cost) -> tuple[float, ...]:
        """The levels down to the n-th from below."""
        if self.n > len(grid.levels):
            raise ArgumentError(f"n = {self.n}; the grid has {len(grid.levels)} levels left to visit")
        return grid.levels[: len(grid.levels) - self.n + 1]


@dataclass(frozen=True)
class Budget(PlannedRule):
    """Jump at the lowest level that can be reached with ``nfe`` evaluations, the jump's own among them.

    Args:
        nfe: ≥ 1, for each sample.
    """

    nfe: int
    name: ClassVar[str] = "budget"

    def __post_init__(self) -> None:
        if not isinstance(self.nfe, int) or isinstance(self.nfe, bool) or self.nfe < 1:
            raise ArgumentError(f"nfe = {self.nfe!r}; expected at least 1 evaluation")

    def levels(self, grid: Grid, cost: Cost) -> tuple[float, ...]:
        """The longest part of the grid that the budget pays for."""
        levels = grid.levels
        longest = bisect_right(range(1, len(levels) + 1), self.nfe, key=lambda k: cost(levels[:k]))
        if longest == 0:
            raise ArgumentError(f"nfe = {self.nfe}; the first jump costs {cost(levels[:1])} evaluations")
        return levels[:longest]


@dataclass(frozen=True)
class SmallChange(SampleRule):
    """Jump once the denoiser's output changes little: ``‖r_n − r_{n+1}‖ < tol ‖r_{n+1}‖`` between two steps.

    At high noise every output is close to the data's mean and changes little too. The rule therefore looks only at levels
    up to ``below``. How much an output changes depends on the length of the steps: a tolerance belongs to a grid.

    Args:
        tol: > 0.
        below: the highest level at which it stops; 1 suits data of about unit spread, None looks at all levels.
    """

    tol: float
    below: float | None = 1.0
    name: ClassVar[str] = "change"

    def __post_init__(self) -> None:
        for key in ("tol", "below"):
            value = getattr(self, key)
            if key == "below" and value is None:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ArgumentError(f"{key} = {value!r}; expected a positive number")

    def stops(self, step: Step) -> Tensor:
        """Where the relative change is below the tolerance; nowhere at the first step."""
        if step.previous is None or (self.below is not None and step.sigma > self.below):
            return torch.zeros(len(step.x), dtype=torch.bool, device=step.x.device)
        change = (step.denoised - step.previous).double().flatten(1).square().sum(1)
        return change < self.tol**2 * step.previous.double().flatten(1).square().sum(1)


@dataclass(frozen=True)
class StopFunction(SampleRule):
    """A function of the caller: ``f(step) -> bool`` for the whole batch, or a (B,) bool tensor with one answer a sample.

    Samples stay independent of their batch if each answer depends on its own row alone. The step holds state, output, the
    output before, level and evaluations, so that a person or a measure of quality may decide.
    """

    function: Callable[[Step], Tensor | bool]
    name: ClassVar[str] = "function"

    def stops(self, step: Step) -> Tensor:
        """What the function says, for each sample."""
        answer = torch.as_tensor(self.function(step), device=step.x.device)
        if answer.dtype != torch.bool or answer.shape not in ((), (len(step.x),)):
            raise ArgumentError(
                f"the stop rule gave {answer.dtype} of shape {tuple(answer.shape)}; expected a bool or ({len(step.x)},) bools"
            )
        return answer.expand(len(step.x))

    def to_dict(self) -> dict[str, Any]:
        """Refused.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            "a function as stop rule cannot be written to JSON; use an index, a budget or a small change"
        )


RULES: dict[str, type[StopRule]] = {rule.name: rule for rule in (AtIndex, Budget, SmallChange)}


def rule_from_dict(spec: Mapping[str, Any]) -> StopRule:
    """The rule that :meth:`StopRule.to_dict` described.

    Raises:
        ArgumentError: for an unknown name or option.
    """
    options = dict(spec)
    name = options.pop("name", None)
    if name not in RULES:
        raise unknown_name("stop rule", name, RULES)
    known = [f.name for f in fields(RULES[name])]  # type: ignore[arg-type]
    for key in options:
        if key not in known:
            raise ArgumentError(f"stop rule {name!r} has no option {key!r}; it has: {', '.join(known)}")
    try:
        return RULES[name](**options)
    except TypeError as error:
        raise ArgumentError(f"stop rule {name!r} lacks an option; it has: {', '.join(known)}") from error


class Stopping:
    """The samples of a batch under a rule: which have stopped, where, and the outputs that they keep."""

    def __init__(self, rule: SampleRule, like: Tensor) -> None:
        n = len(like)
        self.rule = rule
        self.done = torch.zeros(n, dtype=torch.bool, device=like.device)
        self.output = torch.zeros_like(like)
        self.sigma = torch.zeros(n, dtype=torch.float64, device=like.device)
        self.nfe = torch.zeros(n, dtype=torch.int64, device=like.device)

    def kept(self, x: Tensor) -> Tensor:
        """``x`` (B, *event), with the kept output in the place of every sample that has stopped."""
        return torch.where(self.done.view(-1, *[1] * (x.ndim - 1)), self.output, x)

    def take(self, step: Step) -> bool:
        """Ask the rule; whether all samples have stopped. The one place where the host waits for the device."""
        now = self.rule.stops(step) & ~self.done
        self.output = torch.where(now.view(-1, *[1] * (step.x.ndim - 1)), step.denoised, self.output)
        self.sigma = torch.where(now, step.sigma, self.sigma)
        self.nfe = torch.where(now, step.nfe, self.nfe)
        self.done = self.done | now
        return bool(self.done.all())

    def stops(self, spent: int) -> Stops:
        """Where each sample stopped, after a run of ``spent`` evaluations."""
        return Stops(self.sigma.cpu(), torch.where(self.done, self.nfe, spent).cpu())
