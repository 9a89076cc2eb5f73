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

from farfield.distributions import Empirical, Gaussian
from farfield.distributions.empirical_calculus import flow_derivative
from farfield.errors import NonFiniteError
from farfield.numerics import streams
from farfield.processes.base import expand
from farfield.sampling.guidance import Guidance
from farfield.sampling.legs import Leg, Route
from farfield.sampling.recording import Recorder
from farfield.sampling.results import Samples, Step
from farfield.sampling.solvers import Solver
from farfield.sampling.solvers.base import Evaluate
from farfield.sampling.solvers.total_derivative import check_level_derivative, total_derivative
from farfield.sampling.stop_rules import Stopping

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

    def __init__(
        self, denoiser: Callable[..., Tensor], condition: dict[str, Any], guidance: Sequence[Guidance] = ()
    ) -> None:
        self.denoiser, self.condition, self.guidance = denoiser, condition, tuple(guidance)
        self.count = 0

    def ask(self, x: Tensor, sigma: float | Tensor, **replaced: Any) -> Tensor:
        """One call of the denoiser, under the run's conditions or others."""
        self.count += 1
        level = sigma.flatten() if isinstance(sigma, Tensor) and sigma.ndim else sigma
        return self.denoiser(x, level, **{**self.condition, **replaced})

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """``D(x, σ)``, corrected by every guidance in turn; levels (B,) reach the guidance as (B, 1, …)."""
        d = self.ask(x, sigma)
        for part in self.guidance:
            level = expand(sigma, x) if isinstance(sigma, Tensor) and sigma.ndim else sigma
            d = part.correct(x, level, d, self.ask)  # type: ignore[arg-type]
        return d

    def derivative(self, x: Tensor, sigma: float, slope: Tensor) -> Tensor:
        """``dD/dσ`` of the corrected output where the state moves along ``slope``; counted as one evaluation."""
        if isinstance(self.denoiser, Empirical) and self.denoiser.process.gaussian and not self.guidance:
            self.count += 1
            return flow_derivative(self.denoiser, x, sigma, self.condition.get("labels"))[1]
        check_level_derivative(self.denoiser)
        inner = Evaluations(self.denoiser, self.condition, self.guidance)
        rate = total_derivative(inner, x, sigma, slope)
        self.count += inner.count
        return rate


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
    recorder: Recorder | None = None,
    stopping: Stopping | None = None,
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
        recorder: takes in states and outputs; the caller asks it for what it kept.
        stopping: a rule that ends samples on the way, with its memory of this batch's ``rows``.
        callback: called after the first evaluation of each step.
        rows: how many rows are somebody's samples; the rest only fills the batch.

    Raises:
        NonFiniteError: if a sample is not finite.
    """
    shown = slice(rows)
    level = route.first
    previous: Tensor | None = None

    def seen(k: int, start: float, end: float, x: Tensor, d: Tensor, before: int) -> bool:
        """Show a step to recorder, callback and rule; whether the run ends here because all samples have stopped."""
        nonlocal previous
        x, d = x[shown], d[shown]
        if recorder is not None:
            states = (x, d) if stopping is None else (stopping.kept(x), stopping.kept(d))
            recorder.step(k, start, *states, before)
        if callback is None and stopping is None:
            return False
        step = Step(k, start, end, x, d, evaluate.count, first, previous)
        previous = d
        if callback is not None:
            callback(step)
        return stopping is not None and stopping.take(step)

    over = False
    for k, (leg, plan, memory) in enumerate(_steps(rule, route, x, covariance, past)):
        if leg.start > level:
            assert draws is not None
            x = draws.lift(x, level, leg.start, k)
            memory.moved(x)
        before = evaluate.count
        d = evaluate(x, leg.start)
        over = seen(k, leg.start, leg.level, x, d, before)
        if over:
            break
        x, memory.value = rule.step(evaluate, x, d, memory.value, plan)
        level = leg.end
    count, last = len(route.legs), 0.0 if jump or over else route.last
    if route.last > level and not over:
        assert draws is not None
        x = draws.lift(x, level, route.last, count)
    if jump:
        before = evaluate.count
        state, x = x, evaluate(x, route.last)
        seen(count, route.last, 0.0, state, x, before)
    x = x[shown] if stopping is None else stopping.kept(x[shown])
    if recorder is not None:
        recorder.end(last, x, evaluate.count)
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(
            f"{int((~torch.isfinite(x.flatten(1))).any(1).sum())} of {len(x)} samples are not finite; "
            f"the model's output was NaN or infinite between sigma = {route.first:g} and {last:g}"
        )
    return Samples(x, evaluate.count, stops=None if stopping is None else stopping.stops(evaluate.count))


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
