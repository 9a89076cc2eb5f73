"""PLMS: the multistep half of PNDM, with a first step of two evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Evaluate, Row
from farfield.sampling.solvers.ipndm import EqualSteps
from farfield.sampling.solvers.multistep import Memory, Plan


@dataclass(frozen=True)
class PLMS(EqualSteps):
    """Pseudo linear multistep (Liu et al. 2022, Eq. 12, with the start of the latent-diffusion program). Order 2.

    Adams-Bashforth with four slopes and the weights of equal steps. The first step is Heun's in ε, the mean of the slope
    at its start and at the end of Euler's step there, and costs two evaluations; the slope at the end is not remembered, and
    the next steps have two and three values. n steps cost ``n + 1`` evaluations, where the publications count n; a run of
    one step to σ = 0 is Euler's and costs one. On equal steps in σ the error falls like the fourth power over the usual range
    of step counts.
    """

    points: ClassVar[int] = 4
    name: ClassVar[str] = "plms"
    row: ClassVar[Row] = Row(
        startup="mean of ε at both ends, then 2 and 3 values",
        cost="1, and 2 in the first step",
        source="Liu et al. 2022, Eq. 12; Rombach et al. 2022, program",
    )

    def visits(self, legs: Sequence[Leg]) -> list[tuple[float, ...]]:
        """The first step asks at its end too, unless that is 0."""
        return [(leg.start, leg.end) if not k and leg.end else (leg.start,) for k, leg in enumerate(legs)]

    def step(
        self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Memory | None, plan: Plan
    ) -> tuple[Tensor, Memory]:
        """Adams-Bashforth; at the first step the mean of two slopes."""
        reached, after = super().step(evaluate, x, d, memory, plan)
        if memory is not None or plan.advance is None:
            return reached, after
        start, end, _ = plan.leg
        there = reached.sub(evaluate(reached, end)).mul_((end - start) / (2 * end))
        return torch.add(there, x).add_(after.values[0], alpha=(end - start) / (2 * start)), after
