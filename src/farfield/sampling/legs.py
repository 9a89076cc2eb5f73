"""The route of a run: its steps, one by one, and the levels between which noise lifts the state.

Without noise each step starts where the one before ended. With noise a step may end below the level at which the next one
starts; the run then adds ``sqrt(σ_start² − σ_end²) z`` in between. A run that climbs back to a level above an earlier one
begins a new pass: what a multistep rule remembers ends there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Leg(NamedTuple):
    """One step.

    Attributes:
        start: the level at which the denoiser is evaluated first and the solver sets out.
        end: the level at which the solver arrives, lower than ``start``, possibly 0.
        level: the level once the noise that follows has been added: ``start`` of the next leg of the pass, and ``end``
            where no noise follows. Denoiser outputs along a pass are known at the starts, so this is how far the noise
            level really falls, and what a multistep rule extrapolates over.
    """

    start: float
    end: float
    level: float


@dataclass(frozen=True)
class Route:
    """All steps of a run.

    Attributes:
        first: the level of the state that the run begins with.
        legs: the steps.
        last: the level at which the run ends; above the end of the last leg noise is added once more.
        seeds: legs above ``first``, whose outputs are known from a law and only fill the memory of a multistep rule.
    """

    first: float
    legs: tuple[Leg, ...]
    last: float
    seeds: tuple[Leg, ...] = ()

    @classmethod
    def of(cls, levels: Sequence[float], steps: Iterable[tuple[float, float]], seeds: Sequence[float] = ()) -> Route:
        """The route through ``(start, end)`` steps from ``levels[0]`` to ``levels[-1]``.

        Args:
            levels: the levels of the run without noise, decreasing.
            steps: where each step starts and ends.
            seeds: levels above the first one, decreasing, at which outputs are known already.
        """
        chain, last = list(steps), levels[-1]
        following = [*(start for start, _ in chain[1:]), last][: len(chain)]
        # The next start belongs to the same pass only where it lies below this one.
        legs = tuple(
            Leg(start, end, after if after < start else end)
            for (start, end), after in zip(chain, following, strict=True)
        )
        return cls(levels[0], legs, last, legs_between((*seeds, levels[0])) if seeds else ())

    def passes(self) -> list[tuple[Leg, ...]]:
        """The legs in runs of falling starts; the seeds belong to the first."""
        found: list[list[Leg]] = [list(self.seeds)]
        for leg in self.legs:
            if found[-1] and leg.start >= found[-1][-1].start:
                found.append([])
            found[-1].append(leg)
        return [tuple(part) for part in found]


def legs_between(levels: Sequence[float]) -> tuple[Leg, ...]:
    """The legs through decreasing levels, without noise."""
    return tuple(Leg(a, b, b) for a, b in pairwise(levels))
