"""Signal and noise scales as functions of time: ``x_t | x₀ ~ N(α(t) x₀, s(t)² I)`` for any α and s.

A :class:`~farfield.processes.TimeMap` is told by its ratio s/α, which must be finite; a schedule is told by the two scales
themselves, so that it may begin in pure noise (α = 0). Time is whatever the schedule calls time: σ itself for EDM.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.processes.time_maps import TimeMap


class Schedule(ABC):
    """Base class: subclasses give both scales and both rates at times of any shape, in float64."""

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α(t) and s(t)."""

    @abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """dα/dt and ds/dt."""


@dataclass(frozen=True)
class EDM(Schedule):
    """``α = 1, s = t``: variance-exploding coordinates with the noise level as time (Karras et al. 2022)."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 and t."""
        return torch.ones_like(t), t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """``α = 1 − t, s = t`` on [0, 1]: the straight interpolant of flow matching (Lipman et al. 2023; Liu et al. 2023)."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 − t and t."""
        return 1 - t, t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """−1 and 1."""
        return torch.full_like(t, -1.0), torch.ones_like(t)


@dataclass(frozen=True)
class Scales(Schedule):
    """Any pair of scales, given as functions of a float64 tensor; their rates are taken by differentiation.

    Args:
        alpha: α(t) ≥ 0, elementwise and made of PyTorch operations.
        std: s(t) ≥ 0, likewise.
    """

    alpha: Callable[[Tensor], Tensor]
    std: Callable[[Tensor], Tensor]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The two functions at t."""
        return self.alpha(t), self.std(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Their derivatives at t, by forward differentiation."""
        ones = torch.ones_like(t)
        return torch.func.jvp(self.alpha, (t,), (ones,))[1], torch.func.jvp(self.std, (t,), (ones,))[1]


@dataclass(frozen=True)
class FromTimeMap(Schedule):
    """The scales of a time map: VP, sub-VP, VE, DDPM."""

    map: TimeMap

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and α σ."""
        return self.map.alpha(t), self.map.std(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``α'`` and ``α' σ + α σ'``."""
        rate = self.map.alpha_derivative(t)
        return rate, rate * self.map.sigma(t) + self.map.alpha(t) * self.map.sigma_derivative(t)


def as_schedule(schedule: Schedule | TimeMap) -> Schedule:
    """A schedule as it is, a time map as one.

    Raises:
        ArgumentError: for anything else.
    """
    if isinstance(schedule, TimeMap):
        return FromTimeMap(schedule)
    if isinstance(schedule, Schedule):
        return schedule
    raise ArgumentError(f"schedule is a {type(schedule).__name__}; expected a Schedule or a TimeMap such as VP()")
