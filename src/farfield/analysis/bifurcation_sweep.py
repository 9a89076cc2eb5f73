"""Following branches of fixed points from level to level; see :mod:`farfield.analysis.bifurcation`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from farfield.analysis.bifurcation_result import Bifurcation, Birth, Branch
from farfield.analysis.critical_branches import Probe
from farfield.analysis.critical_field import AveragedField, Dynamics, critical_ratio
from farfield.analysis.fixed_points import FixedPointMap, anderson, newton
from farfield.denoiser import Denoiser
from farfield.numerics.krylov import leading_eigenpairs, random_start
from farfield.processes import TimeMap

#: Two states closer than this, relative to their size, are one.
_SAME = 1e-5
#: Levels for which the sides of a new instability are looked for.
_TRIES = 6


@dataclass(eq=False)
class _Point:
    sigma: float
    x: Tensor  # (1, *event)
    values: Tensor  # (k,) eigenvalues over κ
    vectors: Tensor  # (k, *event)

    @property
    def unstable(self) -> int:
        return int((self.values > 1 + 1e-9).sum())


@dataclass(eq=False)
class _Line:
    """A branch while it is followed.

    ``span`` is how far from another state it was born; ``pending`` are the directions whose sides are still looked for, with
    the tries left.
    """

    born: Birth
    points: list[_Point]
    alive: bool = True
    span: float = 0.0
    pending: dict[int, int] = field(default_factory=dict)


class Sweep:
    """The search; arguments as for :func:`farfield.analysis.bifurcation.bifurcation_diagram`."""

    def __init__(
        self,
        denoiser: Denoiser,
        process: TimeMap,
        dynamics: Dynamics,
        origin: Tensor,
        directions: int,
        max_branches: int,
        tolerance: float,
        seed: int,
        fold_accuracy: float = 1e-5,
    ) -> None:
        self.fold_accuracy = fold_accuracy
        self.denoiser, self.process, self.dynamics = denoiser, process, dynamics
        self.origin, self.directions, self.max_branches = origin.unsqueeze(0), directions, max_branches
        self.tolerance, self.seed = tolerance, seed
        self.lines: list[_Line] = []
        self.events: list[Bifurcation] = []

    # -- one state ----------------------------------------------------------------------------------------------------

    def _map(self, sigma: float) -> FixedPointMap:
        kappa = critical_ratio(self.process, sigma, self.dynamics)
        return FixedPointMap(AveragedField(self.denoiser, sigma), kappa, self.origin[0])

    def _size(self, x: Tensor, sigma: float) -> float:
        return max(float((x - self.origin).norm()), sigma)

    def _point(self, step: FixedPointMap, x: Tensor, near: _Point | None) -> _Point:
        """A fixed point with its spectrum."""
        start = random_start((1, self.directions, *x.shape[1:]), self.seed, x.dtype, x.device)
        if near is not None:
            # A little of the random start, so that eigenvectors that were not followed so far can come in.
            start = near.vectors.unsqueeze(0) + 0.02 * start / start.flatten(2).norm(dim=2).view(
                1, -1, *(1,) * (x.ndim - 1)
            )
        found = leading_eigenpairs(step.field.product(x), start, tolerance=1e-7, seed=self.seed)
        return _Point(step.field.sigma, x, found.values[0] / step.kappa, found.vectors[0])

    def _move(self, step: FixedPointMap, guess: Tensor, last: Tensor, stable: bool, reach: float) -> Tensor | None:
        """The fixed point near a guess, or None if there is none within reach of the last state."""
        sigma = step.field.sigma
        size = self._size(last, sigma)
        x = guess
        if stable:
            for _ in range(6):
                rest = anderson(step, x, tolerance=1e-4 * size, steps=20)
                x = rest.x
                if float((x - last).norm()) > 2 * reach:
                    return None
                if float(rest.residuals[0]) <= 1e-4 * size:
                    break
        found = newton(step, x, tolerance=0.01 * self.tolerance * size, steps=12, reach=0.3 * reach)
        fits = float(found.residuals[0]) <= self.tolerance * size and float((found.x - last).norm()) <= reach
        return found.x if fits else None

    def _carry(
        self, x: Tensor, top: float, sigma: float, reach: float, stable: bool = True, halvings: int = 5
    ) -> Tensor | None:
        """A state taken from level ``top`` to another, in smaller steps where it moves far; None where it jumps."""
        found = self._move(self._map(sigma), x, x, stable, reach)
        if found is not None or halvings == 0:
            return found
        middle = math.sqrt(top * sigma)
        half = self._carry(x, top, middle, reach, stable, halvings - 1)
        return None if half is None else self._carry(half, middle, sigma, reach, stable, halvings - 1)

    def _reach(self, line: _Line) -> float:
        """How far a state may move from one level to the next."""
        last = line.points[-1]
        kappa = critical_ratio(self.process, last.sigma, self.dynamics)
        wide = math.sqrt(max(float(last.values[0]), 0.0) * kappa) * last.sigma
        if len(line.points) > 1:
            moved = float((last.x - line.points[-2].x).norm())
        else:
            moved = line.span if line.span > 0 else self._size(last.x, last.sigma)
        return 4 * moved + 0.3 * wide

    # -- downwards ----------------------------------------------------------------------------------------------------

    def down(self, levels: tuple[float, ...]) -> None:
        """The branch of the far field and all that come off it."""
        step = self._map(levels[0])
        x = anderson(step, self.origin, tolerance=1e-6 * self.tolerance * levels[0], steps=500).x
        x = newton(step, x, tolerance=0.01 * self.tolerance * levels[0], steps=12).x
        point = self._point(step, x, None)
        first = _Line("far field", [point], pending=dict.fromkeys(range(point.unstable), _TRIES))
        self.lines.append(first)
        self.lines += self._open(first, step)
        for sigma in levels[1:]:
            self._advance(self._map(sigma), [line for line in self.lines if line.alive])

    def _advance(self, step: FixedPointMap, lines: list[_Line]) -> None:
        """Every line by one level."""
        new: list[_Line] = []
        for line in lines:
            last = line.points[-1]
            guess = self._extrapolate(line, step.field.sigma)
            stable = last.unstable == 0
            sigma, reach = step.field.sigma, self._reach(line)
            if stable:
                x = self._carry(last.x, last.sigma, sigma, reach)
            else:
                x = self._move(step, guess, last.x, False, reach)
                if x is None or self._taken(x, sigma, but=line) is not None:  # Newton's method has found another state
                    x = self._carry(last.x, last.sigma, sigma, reach / 8, stable=False)
            if x is None or self._taken(x, sigma, but=line) is not None:
                line.alive = False
                self._ended(line, step)
                continue
            point = self._point(step, x, last)
            line.points.append(point)
            self._compare(line, step)
            new += self._open(line, step)
        self.lines += new

    def _extrapolate(self, line: _Line, sigma: float) -> Tensor:
        last = line.points[-1]
        if len(line.points) < 2:
            return last.x
        before = line.points[-2]
        share = math.log(sigma / last.sigma) / math.log(last.sigma / before.sigma)
        return last.x + share * (last.x - before.x)

    def _taken(self, x: Tensor, sigma: float, but: _Line | None = None) -> _Line | None:
        """The other line that has this state at this level, if there is one."""
        for other in self.lines:
            if other is but:
                continue
            for point in other.points:
                close = abs(point.sigma - sigma) < 1e-9 * sigma
                if close and float((point.x - x).norm()) <= _SAME * self._size(x, sigma):
                    return other
        return None

    def _compare(self, line: _Line, step: FixedPointMap) -> None:
        """Record the instabilities that have come or gone since the last level."""
        before, after = line.points[-2:]
        for k in range(min(before.unstable, after.unstable), max(before.unstable, after.unstable)):
            grown = after.unstable > before.unstable
            sigma, bracket, x, vector = self._locate(before, after, k)
            self._event(sigma, bracket, "loss" if grown else "gain", line, x, vector)
            if grown:
                line.pending[k] = _TRIES

    def _event(
        self,
        sigma: float,
        bracket: float,
        kind: Literal["loss", "gain", "fold"],
        line: _Line,
        x: Tensor,
        vector: Tensor,
    ) -> None:
        time = self.process.time(sigma)
        number = next((k for k, other in enumerate(self.lines) if other is line), len(self.lines))
        alpha = self.process.alpha(time)
        self.events.append(Bifurcation(sigma, alpha, time, bracket, kind, number, x, vector))

    def _locate(self, before: _Point, after: _Point, k: int) -> tuple[float, float, Tensor, Tensor]:
        """The level between two points of a line at which eigenvalue k passes 1: σ, its bracket, the state, the direction."""
        a, b = math.log(before.sigma), math.log(after.sigma)
        ends = {a: before, b: after}
        fa, fb = (math.log(max(float(p.values[k]), 1e-12)) for p in (before, after))
        for _ in range(30):
            u = (a * fb - b * fa) / (fb - fa)
            share = (u - math.log(before.sigma)) / (math.log(after.sigma) - math.log(before.sigma))
            guess = before.x + share * (after.x - before.x)
            step = self._map(math.exp(u))
            x = self._move(step, guess, guess, False, self._size(guess, before.sigma))
            if x is None:
                break
            point = self._point(step, x, after)
            f = math.log(max(float(point.values[k]), 1e-12))
            if abs(f) < 1e-10 or abs(b - a) < 1e-10:
                return math.exp(u), math.exp(u) * max(abs(f), 1e-12), x[0], point.vectors[k]
            ends[u] = point
            if (f > 0) == (fb > 0):
                b, fb, fa = u, f, fa / 2
            else:
                a, fa, fb = u, f, fb / 2
        near = ends[b] if abs(fb) < abs(fa) else ends[a]
        return near.sigma, near.sigma * abs(b - a), near.x[0], near.vectors[k]

    def _open(self, line: _Line, step: FixedPointMap) -> list[_Line]:
        """New lines to the sides of directions that have become unstable."""
        found: list[_Line] = []
        point = line.points[-1]
        for k in sorted(line.pending):
            line.pending[k] -= 1
            if line.pending[k] < 0 or k >= point.unstable:
                del line.pending[k]
                continue
            wide = math.sqrt(float(point.values[k]) * step.kappa) * point.sigma
            probe = Probe(step, point.vectors[k : k + 1], point.vectors[:k], wide, 400)
            sides = probe.search(point.x)
            complete = True
            for side in range(2):
                if sides.kinds[side] != "stable":
                    complete = False
                    continue
                x = sides.states[side : side + 1]
                polished = newton(
                    step, x, tolerance=0.01 * self.tolerance * self._size(x, point.sigma), reach=0.2 * wide
                )
                fits = float(polished.residuals[0]) <= self.tolerance * self._size(x, point.sigma)
                known = self._taken(polished.x, point.sigma) is not None or any(
                    float((polished.x - other.points[0].x).norm()) <= _SAME * self._size(x, point.sigma)
                    for other in found
                )
                if fits and not known and len(self.lines) + len(found) < self.max_branches:
                    born = self._point(step, polished.x, point)
                    found.append(_Line("bifurcation", [born], span=float((born.x - point.x).norm())))
            if complete:
                del line.pending[k]
        return found

    def _ended(self, line: _Line, step: FixedPointMap) -> None:
        """A line that cannot be followed further down has met another one in a fold."""
        last = line.points[-1]
        sigma, bracket, best = self._edge(last, step.field.sigma, self._reach(line))
        self._event(sigma, bracket, "fold", line, best.x[0], best.vectors[0])

    def _edge(self, best: _Point, beyond: float, reach: float) -> tuple[float, float, _Point]:
        """Where a state is lost between its level and one beyond: σ, the uncertainty, and the last point that had it."""
        known, lost, stable = best.sigma, beyond, best.unstable == 0
        while abs(math.log(lost / known)) > self.fold_accuracy:
            middle = math.sqrt(known * lost)
            # In steps while the bracket is wide, for a state may move far without being lost.
            wide = abs(math.log(lost / known)) > 1e-3
            x = self._carry(best.x, best.sigma, middle, reach, stable, 4 if wide else 0)
            point = None if x is None else self._point(self._map(middle), x, best)
            if point is None or (point.unstable == 0) != stable:
                lost = middle
            else:
                known, best = middle, point
        return math.sqrt(known * lost), abs(known - lost), best

    # -- upwards ------------------------------------------------------------------------------------------------------

    def up(self, levels: tuple[float, ...], starts: Tensor) -> None:
        """Branches that end at the attractors of given states at the lowest level, followed up to where they are born."""
        step = self._map(levels[-1])
        size = max(float((starts - self.origin).flatten(1).norm(dim=1).max()), levels[-1])
        resting = anderson(step, starts, tolerance=1e-6 * size, steps=500, window=0)
        for x in resting.x.unsqueeze(1):
            reach = 0.1 * self._size(x, levels[-1])
            settled = self._move(step, x, x, True, reach)
            if settled is None or self._taken(settled, levels[-1]) is not None or len(self.lines) >= self.max_branches:
                continue
            line = _Line("fold", [self._point(step, settled, None)])
            self.lines.append(line)
            self._trace_up(line, levels)

    def _trace_up(self, line: _Line, levels: tuple[float, ...]) -> None:
        """Up to the fold, or until it turns out to be another branch."""
        line.alive = False
        for sigma in reversed(levels[:-1]):
            last = line.points[0]
            reach = self._reach(_Line(line.born, line.points[1::-1]))
            x = self._carry(last.x, last.sigma, sigma, reach)
            owner = None if x is None else self._taken(x, sigma, but=line)
            if x is not None and owner is not None:
                if any(abs(p.sigma - last.sigma) < 1e-9 * p.sigma and p.unstable for p in owner.points):
                    return  # a side of an instability that is known
                self._fold(line, sigma, 0.5 * float((x - last.x).norm()))
                return
            point = None if x is None else self._point(self._map(sigma), x, last)
            if point is None or point.unstable:
                self._fold(line, sigma, reach)
                return
            line.points.insert(0, point)

    def _fold(self, line: _Line, above: float, reach: float) -> None:
        """Locate the fold between the top of a line and the level above, and follow the saddle born with it."""
        sigma, bracket, best = self._edge(line.points[0], above, reach)
        self._event(sigma, bracket, "fold", line, best.x[0], best.vectors[0])
        saddle = self._partner(line)
        if saddle is not None and len(self.lines) < self.max_branches:
            partner = _Line("fold", [saddle], span=float((saddle.x - line.points[0].x).norm()))
            self.lines.append(partner)
            for lower in [point.sigma for point in line.points[1:]]:
                if partner.alive:
                    self._advance(self._map(lower), [partner])
            partner.alive = False

    def _partner(self, line: _Line) -> _Point | None:
        """The unstable state next to the top of a line that begins in a fold."""
        top = line.points[0]
        step = self._map(top.sigma)
        wide = math.sqrt(max(float(top.values[0]), 1e-12) * step.kappa) * top.sigma
        for distance in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
            for sign in (1, -1):
                guess = top.x + sign * distance * wide * top.vectors[:1]
                x = self._move(step, guess, guess, False, 4 * distance * wide)
                if x is None or float((x - top.x).norm()) <= 10 * _SAME * self._size(x, top.sigma):
                    continue
                point = self._point(step, x, top)
                if point.unstable == 1 and self._taken(x, top.sigma) is None:
                    return point
        return None

    def finished(self) -> list[Branch]:
        """The branches, in the order in which they were found."""
        return [
            Branch(
                sigmas=torch.tensor([p.sigma for p in line.points], dtype=torch.float64),
                states=torch.cat([p.x for p in line.points]),
                ratios=torch.stack([p.values for p in line.points]),
                born=line.born,
            )
            for line in self.lines
        ]
