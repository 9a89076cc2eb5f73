"""The one loop that samples: evaluate, step, and add noise where the route asks for it.

for each leg:   d = D(x, start);   x = step(x, d);   x += sqrt(level² − end²) z
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import NonFiniteError
from farfield.numerics import streams
from farfield.sampling.guidance import Guidance
from farfield.sampling.legs import Leg, Route
from farfield.sampling.results import Samples, Step, Trajectory
from farfield.sampling.solvers import Solver
from farfield.sampling.solvers.base import Evaluate

Callback = Callable[[Step], None]

#: The states and outputs of the legs above a run, as a law knows them, and that law.
Past = tuple[Sequence[tuple[Tensor, Tensor]], Evaluate]


@dataclass(frozen=True)
class Draws:
    """Whose noise a batch gets: sample i of a seed has its own stream, and each step its own block of it.

    Args:
        seed: the run's.
        ids: (B,) numbers of the samples.
        factor: on the standard deviation.
        factors: one for each step instead.
    """

    seed: int
    ids: Tensor
    factor: float = 1.0
    factors: tuple[float, ...] | None = None

    def lift(self, x: Tensor, low: float, high: float, step: int) -> Tensor:
        """``x + factor · sqrt(σ_high² − σ_low²) z``, with the noise of this step."""
        z = streams.normal(self.seed, self.ids, x.shape[1:], purpose="noise", step=step, dtype=x.dtype)
        factor = self.factor if self.factors is None else self.factors[step]
        return torch.add(x, z, alpha=factor * ((high - low) * (high + low)) ** 0.5)


class Evaluations:
    """The denoiser with its conditions bound and its outputs corrected, and a count of its calls."""

    def __init__(self, denoiser: Denoiser, condition: dict[str, Any], guidance: Sequence[Guidance] = ()) -> None:
        self.denoiser, self.condition, self.guidance = denoiser, condition, tuple(guidance)
        self.count = 0

    def ask(self, x: Tensor, sigma: float, **replaced: Any) -> Tensor:
        """One call of the denoiser, under the run's conditions or others."""
        self.count += 1
        return self.denoiser(x, sigma, **{**self.condition, **replaced})

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """``D(x, σ)``, corrected by every guidance in turn."""
        d = self.ask(x, sigma)
        for part in self.guidance:
            d = part.correct(x, sigma, d, self.ask)
        return d


@dataclass
class _Record:
    """What is kept of a run when its trajectory was asked for; ``rows`` are the ones that are somebody's samples."""

    keep: bool
    rows: slice
    states: list[Tensor]
    outputs: list[Tensor]
    spent: list[int]

    def state(self, x: Tensor, spent: int) -> None:
        if self.keep:
            self.states.append(x[self.rows])
            self.spent.append(spent)

    def output(self, d: Tensor) -> None:
        if self.keep:
            self.outputs.append(d[self.rows])


def solve(
    evaluate: Evaluations,
    rule: Solver,
    route: Route,
    x: Tensor,
    *,
    jump: bool = False,
    covariance: Gaussian | None = None,
    draws: Draws | None = None,
    past: Past | None = None,
    first: int = 0,
    keep: bool = False,
    callback: Callback | None = None,
    rows: int | None = None,
) -> Samples:
    """Take a batch along a route.

    Args:
        evaluate: the denoiser.
        rule: the solver.
        route: the steps.
        x: states (B, *event) at ``route.first``.
        jump: replace the state at the end of the route by the denoiser's output there.
        covariance: for solvers that use one.
        draws: the noise; needed where the route has any.
        past: states and outputs of ``route.seeds``.
        first: number of the batch's first sample, for the callback.
        keep: return the trajectory.
        callback: called after the first evaluation of each step.
        rows: how many rows are somebody's samples; the rest only fills the batch.

    Raises:
        NonFiniteError: if a sample is not finite.
    """
    shown = slice(rows)
    record = _Record(keep, shown, [], [], [])
    level = route.first
    for k, (leg, plan, memory) in enumerate(_steps(rule, route, x, covariance, past)):
        if leg.start > level:
            assert draws is not None
            x = draws.lift(x, level, leg.start, k)
            memory.moved(x)
        record.state(x, evaluate.count)
        d = evaluate(x, leg.start)
        record.output(d)
        if callback is not None:
            callback(Step(k, leg.start, leg.level, x[shown], d[shown], evaluate.count, first))
        x, memory.value = rule.step(evaluate, x, d, memory.value, plan)
        level = leg.end
    count, levels = len(route.legs), (*(leg.start for leg in route.legs), route.last)
    if route.last > level:
        assert draws is not None
        x = draws.lift(x, level, route.last, count)
    if jump:
        record.state(x, evaluate.count)
        state, x = x, evaluate(x, route.last)
        record.output(x)
        if callback is not None:
            callback(Step(count, route.last, 0.0, state[shown], x[shown], evaluate.count, first))
        levels = (*levels, 0.0)
    record.state(x, evaluate.count)
    x = x[shown]
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(
            f"{int((~torch.isfinite(x.flatten(1))).any(1).sum())} of {len(x)} samples are not finite; "
            f"the model's output was NaN or infinite between sigma = {levels[0]:g} and {levels[-1]:g}"
        )
    curves = None
    if keep:
        curves = Trajectory(levels, torch.stack(record.states), torch.stack(record.outputs), tuple(record.spent))
    return Samples(x, evaluate.count, curves)


class _Memory:
    """What a rule remembers in the present pass."""

    def __init__(self, rule: Solver) -> None:
        self.rule, self.value = rule, None

    def moved(self, x: Tensor) -> None:
        if self.value is not None:
            self.value = self.rule.moved(self.value, x)


def _steps(
    rule: Solver, route: Route, x: Tensor, covariance: Gaussian | None, past: Past | None
) -> Iterator[tuple[Leg, Any, _Memory]]:
    """Every leg with its plan and the memory of its pass; the plans of all passes are made before the first step."""
    passes = []
    for number, legs in enumerate(route.passes()):
        memory, plans, known = _Memory(rule), rule.plan(legs, x, covariance), 0
        if number == 0 and past is not None:
            (states, law), known = past, len(route.seeds)
            for (state, d), plan in zip(states, plans[:known], strict=True):
                memory.moved(state)
                _, memory.value = rule.step(law, state, d, memory.value, plan)
            memory.moved(x)
        passes.append([(leg, plan, memory) for leg, plan in zip(legs[known:], plans[known:], strict=True)])
    return chain.from_iterable(passes)
