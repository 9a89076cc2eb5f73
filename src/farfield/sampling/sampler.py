"""The sampler: a value that says how to sample, and the one loop that does it.

    for each level σ → σ':   d = D(x, σ);   x = step(x, d)

The evaluations are known before the run (:attr:`Sampler.nfe`) and counted in it. Each sample draws its noise from its own
stream, addressed by seed and sample number, so batch size, processes and interruptions change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser, FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError, FarfieldError, NonFiniteError, unknown_name
from farfield.numerics import streams
from farfield.sampling.finishes import FINISHES, Finish, ToZero
from farfield.sampling.grids import Grid, as_grid, grid_from_dict, karras
from farfield.sampling.results import Samples, Step, Trajectory
from farfield.sampling.solvers import Solver, make_solver
from farfield.sampling.starts import STARTS, GaussianStart, Given, Prior, Start

Callback = Callable[[Step], None]

#: Convolutions and matrix products take other kernels, with other last bits, for a handful of rows. Batches of small samples
#: are filled up to this many rows, so that a sample is the same to the bit whatever its batch.
MIN_ROWS = 16
SMALL = 4096


@dataclass(frozen=True)
class Sampler:
    """How to sample: solver, noise grid, start, finish. A value; it holds no state between runs.

    Args:
        solver: a name of the registry (``"euler"``, ``"heun"``, ``"dpmpp_2m"``, ``"whitened"``) or a solver.
        sigmas: a noise grid, or any decreasing sequence of levels (a closing 0 is implied).
        start: ``Prior()``, ``LateStart(gaussian, sigma)``, ``Teleport(gaussian, sigma)`` or ``Given(x)``.
        finish: ``ToZero()``, ``AtLastLevel()`` or ``Jump(at)``.
        covariance: the Gaussian whose flow the whitened solver integrates exactly.

    Raises:
        ArgumentError: for unknown names, grids that do not decrease, or parts that do not fit together.
    """

    solver: Solver | str = "heun"
    sigmas: Grid | Sequence[float] = field(default_factory=lambda: karras(18))
    start: Start = field(default_factory=Prior)
    finish: Finish = field(default_factory=ToZero)
    covariance: Gaussian | None = None

    def __post_init__(self) -> None:
        if isinstance(self.solver, str):
            object.__setattr__(self, "solver", make_solver(self.solver))
        object.__setattr__(self, "sigmas", as_grid(self.sigmas))
        if self.covariance is not None and not isinstance(self.covariance, Gaussian):
            raise ArgumentError(f"covariance is a {type(self.covariance).__name__}; expected a Gaussian")
        for name, part, kind in (
            ("solver", self.solver, Solver),
            ("start", self.start, Start),
            ("finish", self.finish, Finish),
        ):
            if not isinstance(part, kind):
                raise ArgumentError(f"{name} is a {type(part).__name__}; expected a {kind.__name__}")
        if self.covariance is not None and not self.rule.uses_covariance:
            raise ArgumentError(
                f"covariance is given, but solver {self.rule.name!r} makes no use of one; did you mean 'whitened'?"
            )
        if not self.levels:
            raise ArgumentError("the grid leaves no level to visit")

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
        return self.finish.levels(self.start.grid(self.grid))

    @property
    def nfe(self) -> int:
        """Denoiser evaluations for each sample, known before the run."""
        levels = self.levels
        steps = sum(self.rule.evaluations(a, b) for a, b in pairwise(levels))
        return steps + self.finish.denoise

    # -- running ------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        denoiser: Denoiser,
        n: int | None = None,
        seed: int = 0,
        *,
        first: int = 0,
        batch_size: int | None = None,
        trajectory: bool = False,
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
            trajectory: keep the states and denoiser outputs of every step.
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
        self._check_gaussians(denoiser)
        if n < 1 or first < 0:
            raise ArgumentError(f"n = {n}, first = {first}; expected n >= 1 and first >= 0")
        if batch_size is not None and batch_size < 1:
            raise ArgumentError(f"batch_size = {batch_size}; expected at least 1")
        if isinstance(self.start, Given) and len(self.start.x) < n:
            raise ArgumentError(f"n = {n}, but Given(x) holds {len(self.start.x)} states")
        device = device if device is not None else _device_of(denoiser)
        top, process = self.grid.levels[0], denoiser.process
        parts = []
        for low in range(0, n, batch_size or n):
            high = min(low + (batch_size or n), n)
            if isinstance(self.start, Given):
                x = self.start.x[low:high].to(device=device, dtype=dtype)
            else:
                ids = torch.arange(first + low, first + high, device=device)
                z = streams.normal(seed, ids, denoiser.event_shape, purpose="start", dtype=dtype)
                x = self.start.state(z, top, process)
            bound = {k: _rows(v, low, high, n) for k, v in condition.items()}
            rows = high - low
            if rows < MIN_ROWS and denoiser.dim <= SMALL:
                fill = torch.arange(MIN_ROWS, device=device).clamp(max=rows - 1)
                x = x[fill]
                bound = {k: v[fill.to(v.device)] if _cut(v, rows) else v for k, v in bound.items()}
            parts.append(self._solve(denoiser, x, first + low, trajectory, callback, bound, rows))
        return _join(parts)

    def run(
        self,
        denoiser: Denoiser | Callable[..., Tensor],
        x: Tensor,
        *,
        trajectory: bool = False,
        callback: Callback | None = None,
        **condition: Any,
    ) -> Samples:
        """The same from given states ``x`` (B, *event) at the first level that the run visits."""
        if not isinstance(denoiser, Denoiser):
            denoiser = FunctionDenoiser(denoiser, tuple(x.shape[1:]))
        return self._solve(denoiser, x, 0, trajectory, callback, condition)

    def _check_gaussians(self, denoiser: Denoiser) -> None:
        start = self.start.gaussian if isinstance(self.start, GaussianStart) else None
        for name, gaussian in (("covariance", self.covariance), (f"start {self.start.name!r}", start)):
            if gaussian is not None and gaussian.event_shape != denoiser.event_shape:
                raise ArgumentError(
                    f"{name} is a Gaussian of shape {gaussian.event_shape}; the model's samples have {denoiser.event_shape}"
                )

    @torch.no_grad()
    def _solve(
        self,
        denoiser: Denoiser,
        x: Tensor,
        first: int,
        keep: bool,
        callback: Callback | None,
        condition: dict[str, Any],
        rows: int | None = None,
    ) -> Samples:
        levels, rule, jump = self.levels, self.rule, self.finish.denoise
        if tuple(x.shape[1:]) != denoiser.event_shape:
            raise ArgumentError(
                f"states have shape {tuple(x.shape)}; this model takes (B, {str(denoiser.event_shape)[1:]}"
            )
        _check_levels(denoiser, levels)
        self._check_gaussians(denoiser)
        shown = slice(rows)  # the rows that are somebody's samples; the rest only fills the batch
        evaluate, count = _counted(denoiser, condition)
        plans = rule.plan(levels, x, self.covariance)
        states, outputs, spent = [x[shown]], [], [0]
        memory: Any = None
        for k, plan in enumerate(plans):
            d = evaluate(x, levels[k])
            if callback is not None:
                callback(Step(k, levels[k], levels[k + 1], x[shown], d[shown], count[0], first))
            x, memory = rule.step(evaluate, x, d, memory, plan)
            if keep:
                states.append(x[shown])
                outputs.append(d[shown])
                spent.append(count[0])
        if jump:
            state = x
            x = evaluate(state, levels[-1])
            if callback is not None:
                callback(Step(len(plans), levels[-1], 0.0, state[shown], x[shown], count[0], first))
            if keep:
                states.append(x[shown])
                outputs.append(x[shown])
                spent.append(count[0])
            levels = (*levels, 0.0)
        x = x[shown]
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError(
                f"{int((~torch.isfinite(x.flatten(1))).any(1).sum())} of {len(x)} samples are not finite; "
                f"the model's output was NaN or infinite between sigma = {levels[0]:g} and {levels[-1]:g}"
            )
        curves = Trajectory(levels, torch.stack(states), torch.stack(outputs), tuple(spent)) if keep else None
        return Samples(x, count[0], curves)

    # -- JSON ---------------------------------------------------------------------------------------------------------

    def to_json(self, indent: int | None = 2) -> str:
        """The sampler as JSON text, Gaussians included, so that it can be used without the data.

        Raises:
            ArgumentError: if it starts from ``Given(x)``.
        """
        gaussians: list[Gaussian] = []

        def reference(value: Any) -> Any:
            if not isinstance(value, Gaussian):
                return value
            if not any(value is g for g in gaussians):
                gaussians.append(value)
            return {"gaussian": next(k for k, g in enumerate(gaussians) if g is value)}

        spec = {
            "format": "farfield sampler 1",
            "solver": self.rule.to_dict(),
            "sigmas": self.grid.to_dict(),
            "start": {k: reference(v) for k, v in self.start.to_dict().items()},
            "finish": self.finish.to_dict(),
            "covariance": reference(self.covariance),
            "nfe": self.nfe,
        }
        spec["gaussians"] = [g.to_dict() for g in gaussians]
        return json.dumps(spec, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Sampler:
        """The sampler that :meth:`to_json` wrote.

        Raises:
            DataError: if the text is not such JSON.
            ArgumentError: if it names parts or options that do not exist.
        """
        try:
            spec = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"not a sampler: invalid JSON at line {error.lineno}: {error.msg}") from error
        if not isinstance(spec, dict) or spec.get("format") != "farfield sampler 1":
            raise DataError("not a sampler: the field 'format' should be 'farfield sampler 1'")
        try:
            gaussians = [Gaussian.from_dict(g) for g in spec.get("gaussians", [])]

            def resolve(value: Any) -> Any:
                if not isinstance(value, dict):
                    return value
                return dict(enumerate(gaussians))[value["gaussian"]]

            return cls(
                solver=make_solver(**spec["solver"]),
                sigmas=grid_from_dict(spec["sigmas"]),
                start=_part("start", _STORED_STARTS, {k: resolve(v) for k, v in spec["start"].items()}),
                finish=_part("finish", FINISHES, spec["finish"]),
                covariance=resolve(spec.get("covariance")),
            )
        except FarfieldError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise DataError(f"not a sampler: a field is missing or has the wrong type ({error!r})") from error

    def with_nfe(self, nfe: int) -> Sampler:
        """The same sampler with as many levels as the budget allows: the largest plan with at most ``nfe`` evaluations.

        Raises:
            ArgumentError: if the grid is explicit, or no plan is that cheap.
        """
        if not hasattr(self.grid, "n"):
            raise ArgumentError("an explicit grid cannot be planned to a budget; use karras, log_snr, vp_time or ddpm")
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


#: States are data; a stored sampler does not hold them.
_STORED_STARTS = {name: start for name, start in STARTS.items() if start is not Given}


def _part(kind: str, registry: dict[str, type[Any]], spec: dict[str, Any]) -> Any:
    fields = dict(spec)
    name = fields.pop("name", None)
    if name not in registry:
        raise unknown_name(kind, name, registry)
    return registry[name](**fields)


def _device_of(denoiser: Denoiser) -> torch.device:
    for tensor in (*denoiser.parameters(), *denoiser.buffers()):
        return tensor.device
    return torch.device("cpu")


def _cut(value: Any, n: int) -> bool:
    """Whether a condition has a row for each of n samples."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n


def _rows(value: Any, low: int, high: int, n: int) -> Any:
    return value[low:high] if _cut(value, n) else value


def _check_levels(denoiser: Denoiser, levels: Sequence[float]) -> None:
    for s in levels:
        if s > 0 and not denoiser.sigma_min * (1 - 1e-6) <= s <= denoiser.sigma_max * (1 + 1e-6):
            raise ArgumentError(
                f"noise level {s:g} of the grid lies outside the model's range "
                f"[{denoiser.sigma_min:g}, {denoiser.sigma_max:g}]"
            )


def _counted(denoiser: Denoiser, condition: dict[str, Any]) -> tuple[Callable[[Tensor, float], Tensor], list[int]]:
    """The denoiser with its conditions bound, and a count of its calls."""
    count = [0]

    def evaluate(x: Tensor, sigma: float) -> Tensor:
        count[0] += 1
        return denoiser(x, sigma, **condition)

    return evaluate, count


def _join(parts: list[Samples]) -> Samples:
    if len(parts) == 1:
        return parts[0]
    curves = [p.trajectory for p in parts if p.trajectory is not None]
    joined = None
    if curves:
        joined = Trajectory(
            curves[0].sigmas,
            torch.cat([c.states for c in curves], dim=1),
            torch.cat([c.denoised for c in curves], dim=1),
            curves[0].nfe,
        )
    return Samples(torch.cat([p.x for p in parts]), parts[0].nfe, joined)
