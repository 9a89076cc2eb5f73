"""A bifurcation diagram: branches of fixed points by noise level, and the points where they are born or change stability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.critical_field import Dynamics
from farfield.analysis.plotting import PALETTE, axes_for, dress, label_ends
from farfield.processes import TimeMap

Birth = Literal["far field", "bifurcation", "fold"]
Axis = Literal["theta", "time", "sigma"]


@dataclass(frozen=True, eq=False)
class Branch:
    """A curve of fixed points.

    Attributes:
        sigmas: (n,) the levels, descending.
        states: (n, *event) variance-exploding states.
        ratios: (n, k) leading eigenvalues of ∂D/∂x over κ.
        born: where it comes from.
    """

    sigmas: Tensor
    states: Tensor
    ratios: Tensor
    born: Birth

    @property
    def unstable(self) -> Tensor:
        """(n,) the number of unstable directions among those followed."""
        return (self.ratios > 1 + 1e-9).sum(1)


@dataclass(frozen=True, eq=False)
class Bifurcation:
    """Where the stability of a branch changes, or a branch is born in a fold.

    Attributes:
        sigma, theta, time: the level.
        bracket: uncertainty of σ.
        kind: ``"loss"`` or ``"gain"`` of stability along the direction with falling noise, or ``"fold"``.
        branch: number of the branch that it happens to.
        state, direction: (*event), where, and the eigenvector.
    """

    sigma: float
    theta: float
    time: float
    bracket: float
    kind: Literal["loss", "gain", "fold"]
    branch: int
    state: Tensor
    direction: Tensor


@dataclass(frozen=True, eq=False)
class BifurcationDiagram:
    """All branches found, and their bifurcations by falling noise."""

    dynamics: Dynamics
    process: TimeMap
    origin: Tensor
    branches: tuple[Branch, ...]
    bifurcations: tuple[Bifurcation, ...]
    levels: tuple[float, ...] = field(repr=False, default=())

    def coordinates(self, branch: int, direction: Tensor) -> Tensor:
        """Native coordinates ``α v·(x − o)`` of a branch along a direction v (*event), (n,) in float64."""
        found = self.branches[branch]
        v = (direction / direction.norm()).flatten().double().to(found.states.device)
        along = (found.states - self.origin).flatten(1).double() @ v
        alpha = self.process.alpha(self.process.time(found.sigmas)).to(along.device)
        return along * (alpha if self.dynamics != "langevin" else 1.0)

    def stable_at(self, sigma: float) -> int:
        """How many stable states the level of the grid nearest to σ has."""
        near = min(self.levels, key=lambda level: abs(math.log(level / sigma)))
        total = 0
        for branch in self.branches:
            at = (branch.sigmas - near).abs() < 1e-9 * near
            total += int(((branch.unstable == 0) & at.to(branch.ratios.device)).sum())
        return total

    def to_dict(self) -> dict[str, Any]:
        """Plain values, states as lists."""
        return {
            "dynamics": self.dynamics,
            "branches": [
                {
                    "born": b.born,
                    "sigma": b.sigmas.tolist(),
                    "states": b.states.flatten(1).tolist(),
                    "ratios": b.ratios.tolist(),
                }
                for b in self.branches
            ],
            "bifurcations": [
                {
                    "sigma": e.sigma,
                    "theta": e.theta,
                    "time": e.time,
                    "bracket": e.bracket,
                    "kind": e.kind,
                    "branch": e.branch,
                    "direction": e.direction.flatten().tolist(),
                }
                for e in self.bifurcations
            ],
        }

    def plot(self, ax: Any = None, direction: Tensor | None = None, axis: Axis = "theta") -> Any:
        """Every branch's coordinate along a direction, solid where stable and dashed where not.

        Args:
            ax: axes, or None for a new figure.
            direction: (*event); by default that of the first bifurcation, or the first coordinate.
            axis: what runs from noise to data: ``"theta"``, ``"time"`` or ``"sigma"``.
        """
        (axes,) = axes_for(ax, width=7.2, height=4.2)
        if direction is None:
            direction = self.bifurcations[0].direction if self.bifurcations else _first_axis(self.origin)
        for k, branch in enumerate(self.branches):
            x = self._positions(branch.sigmas, axis)
            y = self.coordinates(k, direction).tolist()
            stable = (branch.unstable == 0).tolist()
            for event, first in self._ends(k):
                where = self._place(event, direction, axis)
                end = 0 if first else len(x)
                x.insert(end, where[0])
                y.insert(end, where[1])
                stable.insert(end, stable[0 if first else -1])
            for run, calm in _runs(stable):
                style = {"color": PALETTE[0], "linewidth": 2.0} if calm else {"color": PALETTE[7], "linewidth": 1.2}
                axes.plot(x[run], y[run], linestyle="-" if calm else (0, (4, 2)), **style)
        seen = {}
        for event in self.bifurcations:
            at, place = self._place(event, direction, axis)
            colour = PALETTE[2] if event.kind == "fold" else PALETTE[1]
            label = {"fold": "fold", "loss": "loss of stability", "gain": "gain of stability"}[event.kind]
            axes.plot([at], [place], "o", color=colour, markersize=5, label=None if label in seen else label)
            seen[label] = True
        if axis != "theta":
            axes.invert_xaxis()
        if axis == "sigma":
            axes.set_xscale("log")
        names = {"theta": "signal scale θ", "time": "forward time s", "sigma": "noise level σ"}
        dress(axes, names[axis], "fixed point, along the direction")
        if seen:
            axes.legend(frameon=False, fontsize=9, loc="upper left")
        if self.branches:
            final = [(self.coordinates(k, direction)[-1].item(), b) for k, b in enumerate(self.branches)]
            calm_ends = [y for y, b in final if int(b.unstable[-1]) == 0]
            if calm_ends:
                label_ends(axes, [(max(calm_ends), "stable", PALETTE[0])])
        return axes.figure

    def _ends(self, k: int) -> list[tuple[Bifurcation, bool]]:
        """The bifurcations in which a branch begins (True) or ends (False), between the levels of the grid."""
        branch, found = self.branches[k], list[tuple[Bifurcation, bool]]()
        first, last = float(branch.sigmas[0]), float(branch.sigmas[-1])
        above = min((s for s in self.levels if s > first * (1 + 1e-9)), default=math.inf)
        born = [e for e in self.bifurcations if first <= e.sigma <= above and e.kind != "gain"]
        if branch.born != "far field" and born:
            found.append((min(born, key=lambda e: float((e.state - branch.states[0]).norm())), True))
        found += [(e, False) for e in self.bifurcations if e.kind == "fold" and e.branch == k and e.sigma <= last]
        return found

    def _place(self, event: Bifurcation, direction: Tensor, axis: Axis) -> tuple[float, float]:
        """Where an event is drawn."""
        at = self._positions(torch.tensor([event.sigma], dtype=torch.float64), axis)[0]
        scale = self.process.alpha(event.time) if self.dynamics != "langevin" else 1.0
        v = (direction / direction.norm()).double()
        return at, float(((event.state - self.origin).double() * v.to(event.state.device)).sum()) * scale

    def _positions(self, sigmas: Tensor, axis: Axis) -> list[float]:
        times = self.process.time(sigmas.double().cpu())
        if axis == "sigma":
            return sigmas.tolist()
        return (self.process.alpha(times) if axis == "theta" else times).tolist()


def _first_axis(like: Tensor) -> Tensor:
    unit = torch.zeros_like(like).flatten()
    unit[0] = 1
    return unit.view(like.shape)


def _runs(flags: Sequence[bool]) -> list[tuple[slice, bool]]:
    """Maximal stretches of equal flags, each reaching to the first point of the next so that lines have no gaps."""
    result, start = [], 0
    for k in range(1, len(flags) + 1):
        if k == len(flags) or flags[k] != flags[start]:
            result.append((slice(start, min(k + 1, len(flags))), flags[start]))
            start = k
    return result
