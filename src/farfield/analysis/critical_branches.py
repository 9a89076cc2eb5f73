"""What an instability leads to: stable states to both sides of it, runaway, or modes of the density.

A negative curvature of the potential is no evidence of several modes: a Gaussian wider than ``λ = 2`` makes the centre
of the reverse SDE unstable at ``θ² = 1/(λ − 1)``, and there is nothing to choose between. Three questions tell:

- does the drift turn back on either side, so that stable states lie there (a wide Gaussian runs away for ever);
- from which level on are both of them stable (without the symmetry that is a fold, above or below the crossing);
- does the noisy density itself split along the direction, ``vᵀ Cov(x₀|x) v > σ²``, at a lower level. Where it is
  log-concave, as that of a Gaussian of any width, it never does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.analysis.critical_path import CentralPath, Level, project
from farfield.analysis.critical_search import Root, next_sigma, refine
from farfield.analysis.fixed_points import FixedPointMap, anderson

Side = Literal["stable", "runaway", "none"]

#: Draws of the noise over which the drift beside the centre is averaged.
_DRAWS = slice(0, 8)
#: Steps after which an iteration is asked whether it is still on its side.
_ROUND = 20
#: Steps left of an iteration beside the centre, in posterior standard deviations: without noise, and averaged over draws that
#: place the state a hundred times less exactly.
_SETTLED, _SETTLED_ON_DRAWS = 3e-4, 3e-3
#: Distances along the direction that are tried, in posterior standard deviations.
_REACH = tuple(0.25 * 2 ** (j / 2) for j in range(27))


@dataclass(frozen=True, eq=False)
class Sides:
    """What lies to both sides of the centre along a direction v, the negative one first.

    Attributes:
        sigma: the level.
        kinds: a stable state, a drift that never turns back, or neither (the drift leads to the other side).
        offsets: ``v·(x − centre)`` of the stable states, NaN where there is none.
        states: (2, *event), the stable states; the centre where there is none.
    """

    sigma: float
    kinds: tuple[Side, Side]
    offsets: tuple[float, float]
    states: Tensor

    @property
    def stable(self) -> int:
        """How many of the two sides have a stable state."""
        return self.kinds.count("stable")


def look_aside(
    path: CentralPath, root: Root, order: int, sigma: float, near: Sides | None = None, steps: int = 200
) -> Sides:
    """Follow the dynamics from the centre to both sides of a direction, the directions before it held at the centre.

    Args:
        path, root, order: the path, the crossing and the number of its direction.
        sigma: the level to look at.
        near: the sides at a neighbouring level, to follow from there and look for no others.
        steps: iterations at most.
    """
    level = root.level
    examined = level.vectors[: order + 1]
    step = path.map_at(sigma, examined, _DRAWS)
    centre, _ = path.centre(step, examined, level.x)
    probe = Probe(step, examined[order:], examined[:order], _width(level, order), *_effort(path, steps))
    found = probe.search(centre) if near is None else probe.follow(centre, near)
    path.count(step)
    return found


def _effort(path: CentralPath, steps: int) -> tuple[int, float]:
    """``steps`` and ``settled`` of a :class:`Probe`: fewer and looser where draws of noise place the state less exactly."""
    return (steps, _SETTLED) if path.noise is None else (min(steps, 3 * _ROUND), _SETTLED_ON_DRAWS)


def _width(level: Level, order: int) -> float:
    """The posterior standard deviation along a direction."""
    return math.sqrt(max(float(level.values[order]), 1e-30)) * level.sigma


@dataclass(frozen=True, eq=False)
class Probe:
    """The dynamics at one level to both sides of a centre along a direction.

    Attributes:
        step: the map of the level.
        unit: (1, *event), the direction.
        before: (k, *event), directions in which states are held where they are.
        wide: the unit of length, the posterior standard deviation along the direction.
        steps: iterations at most.
        settled: the step that an iteration may leave, in units of ``wide``.
    """

    step: FixedPointMap
    unit: Tensor
    before: Tensor
    wide: float
    steps: int
    settled: float = _SETTLED

    def search(self, centre: Tensor) -> Sides:
        """Start where the drift along a ray from the centre (1, *event) first turns back."""
        distances = self.wide * torch.tensor(_REACH, dtype=centre.dtype, device=centre.device)
        rays = torch.cat((-distances, distances)).view(-1, *(1,) * (centre.ndim - 1)) * self.unit.to(centre)
        moves = self.step(centre + rays) - centre - rays
        outward = (moves * rays).flatten(1).sum(1).view(2, -1) > 0
        kinds: list[Side] = []
        starts = []
        for side in range(2):
            out = outward[side].tolist()
            turns = [j for j in range(1, len(out)) if out[j - 1] and not out[j]]
            kinds.append("stable" if turns else "runaway" if out[-1] else "none")
            starts.append(rays[side * len(out) + turns[0]] if turns else torch.zeros_like(centre[0]))
        return self._settle(centre, centre + torch.stack(starts), kinds)

    def follow(self, centre: Tensor, near: Sides) -> Sides:
        """Start from the sides of a neighbouring level."""
        return self._settle(centre, near.states, list(near.kinds))

    def _free(self, x: Tensor) -> Tensor:
        move = self.step(x) - x
        return x + move - project(move, self.before)

    def _settle(self, centre: Tensor, x: Tensor, kinds: list[Side]) -> Sides:
        """Iterate to rest; a side whose state is lost, ends on the other side or is unstable becomes "none"."""
        offsets = [math.nan, math.nan]
        states = centre.expand_as(x).clone()
        for side in range(2):
            if kinds[side] != "stable":
                continue
            found = self._rest(centre, x[side : side + 1], 1 if side else -1)
            if found is None:
                kinds[side] = "none"
            else:
                states[side], offsets[side] = found[0], self._place(found, centre)
        return Sides(self.step.field.sigma, (kinds[0], kinds[1]), (offsets[0], offsets[1]), states)

    def _place(self, x: Tensor, centre: Tensor) -> float:
        """``v·(x − centre)``."""
        return float(((x - centre) * self.unit).sum())

    def _rest(self, centre: Tensor, x: Tensor, sign: int) -> Tensor | None:
        """The stable state (1, *event) that an iteration from x leads to, or None if it is not on that side."""
        left, found = self.steps, None
        while left > 0 and (found is None or float(found.residuals) > self.settled * self.wide):
            found = anderson(self._free, x, tolerance=self.settled * self.wide, steps=min(_ROUND, left))
            x, left = found.x, left - _ROUND
            if self._place(x, centre) * sign <= 0.02 * self.wide:
                return None
        nudge = 0.01 * self.wide * self.unit.to(x)
        # One step of the map from either side of the state: shrinking means stable.
        there, back = self._free(torch.cat((x + nudge, x - nudge)))
        ahead = float(((there - back) * self.unit).sum()) / (0.02 * self.wide)
        return x if ahead < 1 and found is not None and float(found.residuals) < 3 * self.settled * self.wide else None


def _climb(
    look: Callable[[float, Sides], Sides], found: Sides, ceiling: float, tolerance: float
) -> tuple[Sides, float]:
    """Follow states up in σ until one is lost: the sides at the last level that had them, and the first that had not."""
    wanted, high = found.stable, math.inf
    while high / found.sigma > 1 + 2 * tolerance:
        sigma = math.sqrt(found.sigma * high) if math.isfinite(high) else 1.04 * found.sigma
        if sigma > ceiling:
            return found, found.sigma
        again = look(sigma, found)
        if again.stable >= wanted:
            found = again
        else:
            high = sigma
    return found, high


def bistable_from(path: CentralPath, root: Root, order: int, near: Sides) -> float | None:
    """The highest level with stable states on both sides of the direction, near the crossing, or None.

    With the symmetry it is the crossing itself. Without it one side is the continuation of the single state at high noise,
    and the other is born beside it in a fold.

    Args:
        path, root, order: as in :func:`look_aside`.
        near: the sides just below the crossing.

    Returns:
        σ to half a percent, or to two where it is averaged over draws of noise.
    """
    if "runaway" in near.kinds:
        return None
    if abs(float(root.level.push[order])) < 1e-5 * _width(root.level, order) and near.stable == 2:
        return root.sigma
    while near.stable < 2:
        if near.sigma < 0.4 * root.sigma:
            return None
        near = look_aside(path, root, order, 0.92 * near.sigma)

    def look(sigma: float, last: Sides) -> Sides:
        return look_aside(path, root, order, sigma, last)

    found, lost = _climb(look, near, 2 * root.sigma, 0.005 if path.noise is None else 0.02)
    return math.sqrt(found.sigma * lost)


@dataclass(frozen=True, eq=False)
class Fold:
    """A second stable state is born beside one that stays stable.

    Attributes:
        sigma: the level, and ``bracket`` its uncertainty.
        centre, state: (*event), the state that was there and the new one.
    """

    sigma: float
    bracket: float
    centre: Tensor
    state: Tensor


def fold_aside(path: CentralPath, level: Level, floor: float, tolerance: float = 1e-3) -> Fold | None:
    """The level at which a second stable state appears beside a centre that does not lose its stability, or None.

    So it is for laws without symmetry, such as two clusters of unequal weight. The second state is looked for along the
    leading direction of a level above, in steps of 8 % down from there, and followed up again to where it is born.

    Args:
        path: the path.
        level: where to begin.
        floor: the lowest level to look at.
        tolerance: relative to σ.
    """
    unit, wide = level.vectors[:1], _width(level, 0)
    nothing, centre = unit[:0], level.x

    def look(sigma: float, last: Sides | None) -> Sides:
        nonlocal centre
        step = path.map_at(sigma, unit, _DRAWS)
        centre, _ = path.fixed_point(step, nothing, centre)
        probe = Probe(step, unit, nothing, wide, *_effort(path, 200))
        found = probe.search(centre) if last is None else probe.follow(centre, last)
        path.count(step)
        return found

    sigma = level.sigma
    while not (found := look(sigma, None)).stable:
        if sigma <= floor:
            return None
        sigma = max(floor, 0.92 * sigma)
    found, lost = _climb(look, found, level.sigma, tolerance)
    side = found.kinds.index("stable")
    middle = math.sqrt(found.sigma * lost)
    return Fold(middle, max(middle - found.sigma, tolerance * middle), centre[0], found.states[side])


@dataclass(frozen=True)
class Split:
    """The level below which the noisy density is split along a direction, or None, and the lowest level looked at."""

    sigma: float | None
    floor: float


def density_split(path: CentralPath, root: Root, order: int, bottom: float) -> Split:
    """Where an eigenvalue of Cov(x₀|x) at the centre first exceeds σ² with falling σ, near a given direction.

    There ``∇∇ log p`` has a positive eigenvalue. The variance σ² that this takes must still be half of what it was at the
    crossing: below that the law has narrowed, and what splits is something smaller, in a data set single points in the end.

    Args:
        path: a path with Langevin dynamics, whose critical eigenvalue is 1.
        root, order: the crossing and the number of its direction.
        bottom: the lowest level of the horizon.
    """
    direction = root.level.vectors[order]
    floor = max(bottom, math.sqrt(max(float(root.level.values[order]), 0.0) / 2) * root.level.sigma)
    few = path.noise is not None

    def visit(sigma: float, near: Level) -> Level:
        return path.level(sigma, order, near, coarse=few)

    upper = visit(root.sigma, root.level)
    if upper.excess(order) >= 0:
        return Split(root.sigma, root.sigma)
    while True:
        sigma = max(floor, next_sigma(path, upper, order))
        lower = visit(sigma, upper)
        if lower.excess(order) >= 0:
            break
        if sigma <= floor:
            return Split(None, floor)
        upper = lower
    found = refine(visit, order, upper, lower, max(path.tolerance, 1e-2 if few else 0.0), 0.5 * floor)
    if found is None:
        return Split(None, floor)
    # Nearly equal eigenvalues leave their vectors free to turn into each other.
    close = found.level.vectors[(found.level.values > 0.9 * found.level.values[order]).to(direction.device)]
    share = float(project(direction.unsqueeze(0), close).norm())
    return Split(found.sigma if share > 0.5 else None, floor)
