"""The sampler: a value that says how to sample.

The evaluations are known before the run (:attr:`Sampler.nfe`) and counted in it. Each sample draws its noise from its own
stream, addressed by seed, sample number and step, so batch size, processes and interruptions change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser, FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.sampling import sampler_json
from farfield.sampling.batches import cut_rows, device_of, side_by_side
from farfield.sampling.checks import check_floating, check_model, check_parts
from farfield.sampling.finishes import Finish, Jump, ToZero
from farfield.sampling.grids import Grid, as_grid, karras
from farfield.sampling.guidance import Guidance, as_guidance
from farfield.sampling.legs import Route
from farfield.sampling.noise import Noise
from farfield.sampling.recording import KeepEnds, Recorder, Recording, as_recording
from farfield.sampling.results import Samples
from farfield.sampling.run import Callback, Draws, Evaluations, Past, solve
from farfield.sampling.small_batches import filled
from farfield.sampling.solvers import Solver, make_solver
from farfield.sampling.solvers.base import on_device
from farfield.sampling.starts import GaussianStart, Given, Prior, Start
from farfield.sampling.stop_rules import Budget, Stopping


@dataclass(frozen=True)
class Sampler:
    """How to sample: solver, noise grid, start, finish, noise, guidance. A value; it holds no state between runs.

    Args:
        solver: a name of the registry (``"euler"``, ``"heun"``, ``"dpmpp_2m"``, ``"whitened"``) or a solver.
        sigmas: a noise grid, or any decreasing sequence of levels (a closing 0 is implied).
        start: ``Prior()``, ``LateStart(gaussian, sigma)``, ``Teleport(gaussian, sigma)``, a start by class or by another
            law, or ``Given(x)``.
        finish: ``ToZero()``, ``AtLastLevel()`` or ``Jump(at)``, to a level or by a stop rule.
        covariance: the Gaussian whose flow the whitened solver integrates exactly.
        noise: ``Churn(s_churn)`` or ``Ancestral(eta)``; None for a deterministic run.
        guidance: guidances or functions ``f(x, sigma, D) -> D``, applied in this order; ``ClassifierFree(scale)``.

    Raises:
        ArgumentError: for unknown names, grids that do not decrease, or parts that do not fit together.
    """

    solver: Solver | str = "heun"
    sigmas: Grid | Sequence[float] = field(default_factory=lambda: karras(18))
    start: Start = field(default_factory=Prior)
    finish: Finish = field(default_factory=ToZero)
    covariance: Gaussian | None = None
    noise: Noise | None = None
    guidance: Sequence[Guidance | Callable[[Tensor, float, Tensor], Tensor]] = ()

    def __post_init__(self) -> None:
        if isinstance(self.solver, str):
            object.__setattr__(self, "solver", make_solver(self.solver))
        object.__setattr__(self, "sigmas", as_grid(self.sigmas))
        object.__setattr__(self, "guidance", as_guidance(self.guidance))
        if self.covariance is not None and not isinstance(self.covariance, Gaussian):
            raise ArgumentError(f"covariance is a {type(self.covariance).__name__}; expected a Gaussian")
        for name, part, kind in (
            ("solver", self.solver, Solver),
            ("start", self.start, Start),
            ("finish", self.finish, Finish),
            ("noise", self.noise, Noise),
        ):
            if not isinstance(part, kind) and not (name == "noise" and part is None):
                raise ArgumentError(f"{name} is a {type(part).__name__}; expected a {kind.__name__}")
        check_parts(self)

    @property
    def rule(self) -> Solver:
        """The solver as an object."""
        assert isinstance(self.solver, Solver)
        return self.solver

    @property
    def grid(self) -> Grid:
        """The noise grid as it was given."""
        assert isinstance(self.sigmas, Grid)
        return self.sigmas

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels that a run visits, after start and finish have had their say."""
        return self.finish.levels(self.start.grid(self.grid), self._cost)

    @property
    def parts(self) -> tuple[Guidance, ...]:
        """The guidance as objects."""
        return tuple(part for part in self.guidance if isinstance(part, Guidance))

    @property
    def route(self) -> Route:
        """The steps of a run, with the noise between them."""
        return self._route(self.levels)

    def _route(self, levels: tuple[float, ...]) -> Route:
        levels = tuple(self.rule.stops(levels))
        if self.noise is not None:
            return Route.of(levels, self.noise.steps(levels, len(self.grid.levels)))
        return Route.of(levels, pairwise(levels), self._seeds(levels))

    def _seeds(self, levels: Sequence[float]) -> list[float]:
        """Levels above the first whose outputs the start's law provides, in steps of log σ as long as the first one."""
        if not (self.start.seeds_history and self.rule.history and len(levels) > 1 and levels[1]):
            return []
        ratio = levels[0] / levels[1]
        return [levels[0] * ratio**k for k in range(self.rule.history, 0, -1)]

    def visits(self) -> list[float]:
        """The level of each evaluation that the solver asks for, in order, the one of a jump included.

        Of a solver that chooses its own steps, the levels between which it does.
        """
        return self._visits(self.route, self.finish.denoise)

    def _visits(self, route: Route, jump: bool) -> list[float]:
        found = [self.rule.visits(legs) for legs in route.passes()]
        if route.seeds:
            found[0] = found[0][len(route.seeds) :]
        levels = [level for part in found for leg in part for level in leg]
        return [*levels, route.last] if jump else levels

    def _evaluations(self, visits: Sequence[float]) -> int:
        if self.rule.adaptive:
            raise ArgumentError(
                f"solver {self.rule.name!r} chooses its own steps: its evaluations are known after a run, in Samples.nfe"
            )
        return sum(1 + sum(part.evaluations(level) for part in self.parts) for level in visits)

    def _cost(self, levels: tuple[float, ...]) -> int:
        """Evaluations of a run through these levels that jumps at the last."""
        return self._evaluations(self._visits(self._route(levels), True))

    @property
    def nfe(self) -> int:
        """Denoiser evaluations for each sample, known before the run; those of guidance are among them.

        A solver that chooses its own steps raises an ArgumentError: ``Samples.nfe`` has them after a run.
        Under a stop rule that looks at samples, the most that one can take: those of a sample that never stops.
        """
        return self._evaluations(self.visits())

    # -- running ------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        denoiser: Denoiser,
        n: int | None = None,
        seed: int = 0,
        *,
        first: int = 0,
        batch_size: int | None = None,
        trajectory: bool | str | Recording = False,
        callback: Callback | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **condition: Any,
    ) -> Samples:
        """Draw samples ``first … first + n − 1`` of a seed.

        Args:
            denoiser: the model.
            n: how many samples; may be left out with ``start=Given(x)``.
            seed: names the noise; the same seed gives the same samples.
            first: number of the first sample, to continue a set.
            batch_size: samples evaluated at once; all by default. It does not change the samples.
            trajectory: keep the states and denoiser outputs of every step, or what a recording says (``KeepEvery(k)``,
                ``KeepEnds()``, ``KeepStatistics()``, or their names).
            callback: called with a :class:`Step` after the first evaluation of each step.
            device: where to run; by default where the denoiser's parameters are.
            dtype: type of the states.
            **condition: passed to the denoiser; a tensor with n rows is cut along with the batch.

        Raises:
            ArgumentError: if a level lies outside the denoiser's range or shapes do not fit.
            NonFiniteError: if the samples are not finite.
        """
        if n is None:
            if not isinstance(self.start, Given):
                raise ArgumentError("n is missing: how many samples?")
            n = len(self.start.x)
        if n < 1 or first < 0:
            raise ArgumentError(f"n = {n}, first = {first}; expected n >= 1 and first >= 0")
        if batch_size is not None and batch_size < 1:
            raise ArgumentError(f"batch_size = {batch_size}; expected at least 1")
        if not dtype.is_floating_point:
            raise ArgumentError(f"dtype = {dtype}; expected a floating-point type such as torch.float32")
        if isinstance(self.start, Given) and len(self.start.x) < n:
            raise ArgumentError(f"n = {n}, but Given(x) holds {len(self.start.x)} states")
        check_model(self, denoiser, condition)
        device = device if device is not None else device_of(denoiser)
        kept, parts = as_recording(trajectory), []
        for low in range(0, n, batch_size or n):
            high = min(low + (batch_size or n), n)
            rows = high - low
            place = filled(torch.arange(rows, device=device), denoiser.dim)
            bound = {k: cut_rows(v, low, high, n, place) for k, v in condition.items()}
            ids = place + (first + low)
            if isinstance(self.start, Given):
                x = self.start.x[low:high].to(device=device, dtype=dtype)[place]
            else:
                z = streams.normal(seed, ids, denoiser.event_shape, purpose="start", dtype=dtype)
                x = self.start.state(z, self.grid.levels[0], denoiser.process, bound, self.parts)
            parts.append(self._solve(denoiser, x, bound, seed, ids, first + low, kept, callback, rows, drawn=True))
        return side_by_side(parts)

    def run(
        self,
        denoiser: Denoiser | Callable[..., Tensor],
        x: Tensor,
        *,
        seed: int = 0,
        first: int = 0,
        trajectory: bool | str | Recording = False,
        callback: Callback | None = None,
        **condition: Any,
    ) -> Samples:
        """The same from given states ``x`` (B, *event) at the first level that the run visits.

        Args:
            denoiser: the model, or a function ``f(x, sigma) -> D``.
            x: the states.
            seed, first: name the noise of the steps, where the sampler adds any; row k is sample ``first + k``.
            trajectory, callback, condition: as for a call.
        """
        if not isinstance(denoiser, Denoiser):
            denoiser = FunctionDenoiser(denoiser, tuple(x.shape[1:]))
        if tuple(x.shape[1:]) != denoiser.event_shape:
            raise ArgumentError(
                f"states have shape {tuple(x.shape)}; this model takes (B, {str(denoiser.event_shape)[1:]}"
            )
        check_floating("x", x)
        check_model(self, denoiser, condition)
        ids = torch.arange(first, first + len(x), device=x.device)
        kept = as_recording(trajectory)
        return self._solve(denoiser, x, condition, seed, ids, first, kept, callback, len(x), drawn=False)

    @torch.no_grad()
    def _solve(
        self,
        denoiser: Denoiser,
        x: Tensor,
        condition: dict[str, Any],
        seed: int,
        ids: Tensor,
        first: int,
        kept: Recording | None,
        callback: Callback | None,
        rows: int,
        *,
        drawn: bool,
    ) -> Samples:
        route = self.route
        past: Past | None = None
        if route.seeds:
            assert isinstance(self.start, GaussianStart)
            levels = [leg.start for leg in route.seeds]
            past = (self.start.past(x, route.first, levels), on_device(self.start.gaussian, x.device))

        def solved(recorder: Recorder | None, shown: Callback | None) -> Samples:
            rule = self.finish.rule
            return solve(
                Evaluations(denoiser, condition, self.parts),
                self.rule,
                route,
                x,
                jump=self.finish.denoise,
                covariance=self.covariance,
                draws=None if self.noise is None else self._draws(seed, ids),
                past=past,
                first=first,
                recorder=recorder,
                stopping=None if rule is None else Stopping(rule, x[:rows]),
                callback=shown,
                rows=rows,
            )

        if kept is None:
            return solved(None, callback)
        ends = None
        if kept.needs_ends:  # the same run once before: its noise is addressed
            before = KeepEnds().recorder()
            solved(before, None)
            assert before.trajectory is not None
            final, outputs = before.trajectory.states[-1], before.trajectory.denoised
            ends = (final, outputs[-1] if len(outputs) else final)
        recorder = kept.recorder(ends)
        out, path = solved(recorder, callback), recorder.trajectory
        if path is not None:
            path = replace(path, seed=seed, first=first, drawn=drawn)
        return replace(out, trajectory=path, statistics=recorder.statistics)

    def _draws(self, seed: int, ids: Tensor) -> Draws:
        """The noise of the samples ``ids``, for a sampler that adds some."""
        assert self.noise is not None
        return Draws(seed, ids, self.noise.inflation, self.noise.factors(self.levels))

    # -- plans --------------------------------------------------------------------------------------------------------

    def to_json(self, indent: int | None = 2) -> str:
        """The sampler as JSON text, its laws included, so that it can be used without the data.

        Raises:
            ArgumentError: if it starts from ``Given(x)``, or is guided or stopped by a function.
        """
        return sampler_json.dump(self, indent)

    @classmethod
    def from_json(cls, text: str) -> Sampler:
        """The sampler that :meth:`to_json` wrote.

        Raises:
            DataError: if the text is not such JSON.
            ArgumentError: if it names parts or options that do not exist.
        """
        return cls(**sampler_json.parse(text))

    def with_nfe(self, nfe: int) -> Sampler:
        """The same sampler with as many levels as the budget allows: the largest plan with at most ``nfe`` evaluations.

        Raises:
            ArgumentError: if the grid is explicit, or no plan is that cheap.
        """
        if not hasattr(self.grid, "n"):
            raise ArgumentError("an explicit grid cannot be planned to a budget; use karras, log_snr, vp_time or ddpm")
        if isinstance(self.finish, Jump) and isinstance(self.finish.at, Budget):
            raise ArgumentError("a jump at a budget has its own evaluations; with_nfe has nothing to plan")
        best = None
        # A start or finish may drop levels, so n can be far above the evaluations; the latter never fall as n grows.
        for n in range(1, 1024 + nfe):
            try:
                plan = replace(self, sigmas=replace(self.grid, n=n))  # type: ignore[type-var]
            except ArgumentError:
                if best is not None:
                    break
                continue
            if plan.nfe > nfe:
                break
            best = plan
        if best is None:
            raise ArgumentError(
                f"no plan of {self.rule.name!r} with this start and finish costs at most {nfe} evaluations"
            )
        return best
