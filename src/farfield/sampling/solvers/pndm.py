"""PNDM: pseudo Runge-Kutta steps to begin with, then the pseudo multistep rule of order four."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.processes import DDPM
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.adams import EQUAL_STEPS
from farfield.sampling.solvers.base import Description, Evaluate, Row, Solver

if TYPE_CHECKING:
    from farfield.distributions import Gaussian

Past = tuple[Tensor, ...]

#: Weights of the present noise prediction and of the three before it.
_WEIGHTS = EQUAL_STEPS[4]


class Stage(NamedTuple):
    """Where a later stage of a Runge-Kutta step asks the denoiser: at ``scale · x`` and the level ``sigma``."""

    sigma: float
    scale: float = 1.0


class Plan(NamedTuple):
    """One step: its ends, and for a Runge-Kutta step the middle and the stages there and at the end."""

    start: float
    end: float
    middle: float = 0.0
    stages: tuple[Stage, ...] = ()


@lru_cache(maxsize=8)
def _table(timesteps: int, schedule: Literal["linear", "cosine"]) -> np.ndarray:
    """−log ᾱ at the indices −1, 0, …, increasing from 0."""
    log_sigmas = DDPM(timesteps, schedule).log_sigmas.numpy()
    return np.concatenate(([0.0], np.log1p(np.exp(2 * log_sigmas))))


@dataclass(frozen=True)
class PNDM(Solver):
    """The pseudo numerical method for diffusion models (Liu, Ren, Lin & Zhao 2022). Order 2.

    In the variance-exploding state the transfer map of PNDM is Euler's step with the noise prediction held fixed,
    ``φ(x, ε) = x + (σ' − σ) ε``, ``ε = (x − D)/σ``: that is DDIM. Three steps put the fourth-order Runge-Kutta mean of ε in
    it, with the middle half way in the *index* of the schedule and log ᾱ linear between two indices; from the fourth step on
    it is ``(55 ε − 59 ε₋₁ + 37 ε₋₂ − 9 ε₋₃)/24``. The weights are those of equal steps in the index, which is why the order
    is 2 and not 4. n steps cost ``4 min(n, 3) + max(0, n − 3)`` evaluations.

    With three steps or fewer the last one is a Runge-Kutta step that would ask for the noise of a clean image, which has
    none. By default that step is DDIM's and costs one evaluation, so that 3 steps cost 9; ``final="clamp"`` asks at index 0
    instead, as the authors' program does, for the 12 of the formula and a wrong answer even where the data are one point.

    Args:
        timesteps, schedule: of the DDPM schedule whose index halves the Runge-Kutta steps.
        final: ``"ddim"`` or ``"clamp"``.

    Raises:
        ArgumentError: for another ``final`` or a schedule that does not exist.
    """

    timesteps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"
    final: Literal["ddim", "clamp"] = "ddim"
    name: ClassVar[str] = "pndm"
    order: ClassVar[int] = 2
    row: ClassVar[Row] = Row(
        startup="three pseudo Runge-Kutta steps",
        cost="1, and 4 in each of the first three steps",
        source="Liu et al. 2022, Alg. 2",
    )

    def __post_init__(self) -> None:
        if self.final not in ("ddim", "clamp"):
            raise ArgumentError(f"final = {self.final!r}; expected 'ddim' or 'clamp'")
        _table(self.timesteps, self.schedule)

    @property
    def history(self) -> int:
        """Three."""
        return 3

    def describe(self) -> Description:
        """With the step to zero noise: the multistep rule's, or one of the two of a Runge-Kutta step."""
        final = "DDIM's" if self.final == "ddim" else "the Runge-Kutta step with index 0 for zero noise"
        return replace(super().describe(), final=f"the mean of four slopes; {final} in a run of three steps or fewer")

    def index(self, sigma: float) -> float:
        """The index of a level, −1 for 0: −log ᾱ is linear between two indices, and beyond the last one."""
        table, value = _table(self.timesteps, self.schedule), math.log1p(sigma * sigma)
        k = min(max(int(np.searchsorted(table, value, side="right")) - 1, 0), len(table) - 2)
        return float(k - 1 + (value - table[k]) / (table[k + 1] - table[k]))

    def sigma(self, index: float) -> float:
        """The level at an index from −1 on."""
        table = _table(self.timesteps, self.schedule)
        k = min(max(math.floor(index) + 1, 0), len(table) - 2)
        value = table[k] + (index + 1 - k) * (table[k + 1] - table[k])
        return math.sqrt(math.expm1(max(value, 0.0)))

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[Plan]:
        """Runge-Kutta for the first three steps, the multistep rule for the others."""
        return [self._plan(k, leg) for k, leg in enumerate(legs)]

    def _plan(self, number: int, leg: Leg) -> Plan:
        if number >= 3 or (not leg.end and self.final == "ddim"):
            return Plan(leg.start, leg.end)
        middle = self.sigma((self.index(leg.start) + self.index(leg.end)) / 2)
        half, last = self._stage(middle), self._stage(leg.end)
        return Plan(leg.start, leg.end, middle, (half, half, last))

    def _stage(self, sigma: float) -> Stage:
        lowest = self.sigma(0.0)
        if self.final == "ddim" or sigma >= lowest:
            return Stage(sigma)
        # The same VP state at index 0: the VE state is rescaled by the ratio of the signal scales.
        return Stage(lowest, math.sqrt((1 + lowest**2) / (1 + sigma**2)))

    def visits(self, legs: Sequence[Leg]) -> list[tuple[float, ...]]:
        """The start, and the stages of Runge-Kutta steps."""
        plans = [self._plan(k, leg) for k, leg in enumerate(legs)]
        return [(plan.start, *(stage.sigma for stage in plan.stages)) for plan in plans]

    def step(self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Past | None, plan: Plan) -> tuple[Tensor, Past]:
        """The mean noise prediction of the step, carried by DDIM's map."""
        start, end, middle, stages = plan
        noise = (x - d).div_(start)
        past = (noise, *(memory or ()))[:3]
        if stages:
            half, other, last = stages
            second = _noise(evaluate, torch.add(x, noise, alpha=middle - start), half)
            third = _noise(evaluate, torch.add(x, second, alpha=middle - start), other)
            fourth = _noise(evaluate, torch.add(x, third, alpha=end - start), last)
            mean = torch.add(noise, second, alpha=2).add_(third, alpha=2).add_(fourth).div_(6)
        elif memory is not None and len(memory) == 3:
            mean = torch.mul(noise, _WEIGHTS[0])
            for weight, old in zip(_WEIGHTS[1:], memory, strict=True):
                mean.add_(old, alpha=weight)
        else:
            return (d if not end else torch.add(x, noise, alpha=end - start)), past
        return mean.mul_(end - start).add_(x), past


def _noise(evaluate: Evaluate, x: Tensor, stage: Stage) -> Tensor:
    state = x if stage.scale == 1 else x * stage.scale
    return torch.sub(state, evaluate(state, stage.sigma)).div_(stage.sigma)
