"""Dormand and Prince's adaptive rule of order five, with steps of its own for every sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from scipy.integrate import RK45 as Pair
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Evaluate, Row, Solver

if TYPE_CHECKING:
    from farfield.distributions import Gaussian


def _table(value: object) -> list[list[float]]:
    """A coefficient array of SciPy's pair, as numbers."""
    return np.atleast_2d(np.asarray(value, dtype=np.float64)).tolist()  # type: ignore[no-any-return]


#: Nodes, stages, weights of the step (also the last stage's) and of the error estimate: those of SciPy.
_NODES = _table(Pair.C)[0]
_STAGES = [row[:k] for k, row in enumerate(_table(Pair.A))]
_STEP = _table(Pair.B)[0]
_ERROR = _table(Pair.E)[0]

#: A step is sized to meet this part of the tolerance, and changes by these factors at most.
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


@dataclass(frozen=True)
class RK45(Solver):
    """The embedded pair of Dormand & Prince (1980), order 5 with an error estimate of order 4. Adaptive.

    It integrates ``dx/du = x − D`` in ``u = log σ``, where the same accuracy takes fewer evaluations than in σ. A step is
    taken when the root mean square over a sample's coordinates of ``error/(atol + rtol max(|x|, |x'|))`` is at most 1,
    and the next one has its length times ``0.9 · norm^(−1/5)``, between 1/5 and 10 (Hairer, Nørsett & Wanner, Solving
    Ordinary Differential Equations I, section II.4, also for the first step). SciPy's integrator shares its steps among all
    it is given, so that a sample would depend on its batch; here error, steps and level are each sample's own, and the
    denoiser is asked at (B,) levels.

    The run goes from the first to the last positive level of the grid, and by Euler's step to 0. The levels between are
    passed over, and a trajectory holds the ends; with ``stops_at="grid"`` it stops at each of them, at the price of shorter
    steps. Evaluations are known only after a run, ``Samples.nfe``: six for each step tried and two at the start, for the sample
    that takes the most. A batch goes on until its last sample has arrived, at every stop, and waits for the device once a
    step; so with stops at the grid what a batch spends is more than any of its samples alone, and depends on the batch, as
    the samples do not.

    Args:
        rtol, atol: relative and absolute tolerance of a step, positive; in float32 no less than about 1e-6.
        stops_at: ``"ends"`` or ``"grid"``.
        max_steps: steps that may be tried between two stops.

    Raises:
        ArgumentError: for tolerances that are not positive or another ``stops_at``; in a run, if ``max_steps`` are not enough.
    """

    rtol: float = 1e-4
    atol: float = 1e-4
    stops_at: Literal["ends", "grid"] = "ends"
    max_steps: int = 10_000
    name: ClassVar[str] = "rk45"
    order: ClassVar[int] = 5
    evaluations_per_step: ClassVar[int] = 6
    adaptive: ClassVar[bool] = True
    row: ClassVar[Row] = Row(
        cost="6 for each step tried, and 2 at the start",
        startup="a first step from the slope and its change",
        source="Dormand & Prince 1980; Hairer, Nørsett & Wanner 1993, section II.4",
    )

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ArgumentError(f"{name} = {value!r}; expected a positive number")
        if self.stops_at not in ("ends", "grid"):
            raise ArgumentError(f"stops_at = {self.stops_at!r}; expected 'ends' or 'grid'")
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise ArgumentError(f"max_steps = {self.max_steps!r}; expected at least 1")

    def stops(self, levels: Sequence[float]) -> Sequence[float]:
        """The first and the last positive level, and 0 where the grid goes there; all of them for ``stops_at="grid"``."""
        if self.stops_at == "grid":
            return levels
        positive = [s for s in levels if s > 0]
        return list(dict.fromkeys((positive[0], positive[-1], *(s for s in levels if s == 0))))

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[tuple[float, float]]:
        """The ends of each leg."""
        return [(leg.start, leg.end) for leg in legs]

    def visits(self, legs: Sequence[Leg]) -> list[tuple[float, ...]]:
        """The ends of each leg: what lies between is not known beforehand."""
        return [(leg.start, leg.end) if leg.end else (leg.start,) for leg in legs]

    def step(
        self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Tensor | None, plan: tuple[float, float]
    ) -> tuple[Tensor, Tensor | None]:
        """All steps of a leg; the memory is the length of each sample's next one, (B,)."""
        start, end = plan
        if not end:
            return d, memory
        left = torch.full((len(x),), math.log(start / end), dtype=torch.float64, device=x.device)
        slope = x - d
        size = self._first_size(evaluate, x, slope, end, left) if memory is None else memory
        growth = torch.full_like(left, _GROW)
        for _ in range(self.max_steps):
            taken = torch.minimum(size, left)
            new, last, error = self._try(evaluate, x, slope, end, left, taken)
            norm = self._norm(error, torch.maximum(x.abs(), new.abs()))
            # What is not finite cannot get better: it goes to the end at once, where the run reports it.
            lost = ~torch.isfinite(norm)
            accepted = (norm <= 1) | lost
            here = _wide(accepted, x)
            x, slope = torch.where(here, new, x), torch.where(here, last, slope)
            left = torch.where(lost, 0.0, torch.where(accepted, left - taken, left))
            factor = (_SAFETY * norm.clamp(min=1e-10) ** -0.2).clamp(min=_SHRINK)
            sized = taken * torch.minimum(factor, growth)
            growth = torch.where(accepted, _GROW, 1.0)  # none right after a step that failed
            # A step cut short by the end says nothing against a longer one.
            size = torch.where(accepted & (taken < size), torch.maximum(size, sized), sized)
            if bool((left <= 0).all()):
                return x, size
        raise ArgumentError(
            f"rtol = {self.rtol:g}, atol = {self.atol:g}: {self.max_steps} steps from sigma = {start:g} to {end:g} were not "
            "enough; choose larger tolerances, float64 states, or more max_steps"
        )

    def _try(
        self, evaluate: Evaluate, x: Tensor, slope: Tensor, end: float, left: Tensor, taken: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The state after a step, the slope there, and the estimated error."""
        h = _wide(-taken.to(x.dtype), x)
        slopes = [slope]
        for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
            state = torch.addcmul(x, _combined(weights, slopes), h)
            slopes.append(_slope(evaluate, state, end, left - node * taken))
        new = torch.addcmul(x, _combined(_STEP, slopes), h)
        slopes.append(_slope(evaluate, new, end, left - taken))
        return new, slopes[-1], _combined(_ERROR, slopes).mul_(h)

    def _norm(self, value: Tensor, size: Tensor) -> Tensor:
        """Root mean square over a sample's coordinates, in units of the tolerance: (B,) in float64."""
        scaled = value / (size * self.rtol).add_(self.atol)
        return scaled.flatten(1).double().square_().mean(1).sqrt()

    def _first_size(self, evaluate: Evaluate, x: Tensor, slope: Tensor, end: float, left: Tensor) -> Tensor:
        """Hairer, Nørsett & Wanner's guess of the first step's length, (B,); one evaluation."""
        size = x.abs()
        steep = self._norm(slope, size).clamp(min=1e-30)
        probe = torch.minimum(0.01 * self._norm(x, size) / steep, left).clamp(min=1e-6)
        ahead = torch.addcmul(x, slope, _wide(-probe.to(x.dtype), x))
        bent = self._norm(_slope(evaluate, ahead, end, left - probe) - slope, size) / probe
        return torch.minimum(100 * probe, (0.01 / torch.maximum(steep, bent)) ** 0.2)


def _wide(value: Tensor, x: Tensor) -> Tensor:
    """(B,) as (B, 1, …), so that it broadcasts against the states."""
    return value.view(-1, *(1,) * (x.ndim - 1))


def _slope(evaluate: Evaluate, x: Tensor, end: float, left: Tensor) -> Tensor:
    """``x − D`` where ``left`` (B,) in log σ is left to the end."""
    return x - evaluate(x, (end * left.exp()).to(x.dtype))


def _combined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """A weighted sum; weights of 0 cost nothing."""
    total = slopes[0] * weights[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            total.add_(slope, alpha=weight)
    return total
