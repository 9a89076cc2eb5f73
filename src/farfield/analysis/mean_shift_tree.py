"""How modes merge as the bandwidth grows: from one for each distinct point to a single one.

The modes at one bandwidth are the starts at the next larger one, which makes a tree (clustering by scale space: Leung, Zhang
& Xu 2000): its leaves are the points, its root the one mode that is left above some bandwidth. In the order of sampling, with
falling noise, the same tree tells where modes split. On a line a Gaussian kernel makes no mode on the way up (Silverman
1981); in more dimensions it can, rarely, and such a mode is not seen from below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from farfield.analysis.mean_shift import STEPS
from farfield.analysis.mean_shift_modes import MERGE, Modes, modes
from farfield.data.progress import track
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class ModeTree:
    """Modes by bandwidth.

    Attributes:
        bandwidths: (L,) decreasing, as sampling goes through them.
        levels: the modes at each; their ``assignment`` is that of the modes of the next smaller bandwidth (of the starts, at
            the last).
        sizes: starts below each mode, (M,) for each level: of all leaves, not of the modes that met there.
        single: the bandwidth below which the one mode splits, between the last single level and the next; None where the
            largest bandwidth has several modes, or all have one.
    """

    bandwidths: tuple[float, ...]
    levels: tuple[Modes, ...]
    sizes: tuple[Tensor, ...]
    single: float | None

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of modes at each bandwidth."""
        return tuple(level.count for level in self.levels)

    def parents(self, k: int) -> Tensor:
        """For each mode of level k + 1 the mode of level k, of the next larger bandwidth, that it belongs to."""
        return self.levels[k].assignment


def mode_tree(
    law: Empirical,
    bandwidths: Sequence[float],
    starts: Tensor | None = None,
    *,
    tolerance: float = 1e-5,
    steps: int = STEPS,
    merge: float = MERGE,
    locate: float = 0.01,
    progress: bool = False,
) -> ModeTree:
    """Follow the modes from the smallest bandwidth to the largest.

    Args:
        law: the data set.
        bandwidths: decreasing.
        starts: (B, *event); all points by default.
        tolerance, steps, merge: as for :func:`modes`.
        locate: relative accuracy of ``single``, found by bisection between two levels.
        progress: show it on standard error.

    Raises:
        ArgumentError: for bandwidths that are not positive and decreasing.
    """
    levels = tuple(float(h) for h in bandwidths)
    if not levels or min(levels) <= 0 or any(b >= a for a, b in pairwise(levels)):
        raise ArgumentError(f"bandwidths = {list(levels)}; expected positive numbers that decrease")
    found: list[Modes] = []
    sizes: list[Tensor] = []
    state = law.data if starts is None else starts
    weight = torch.ones(len(state), dtype=torch.int64, device=state.device)
    for h in track(levels[::-1], len(levels), "modes", 0 if progress else len(levels) + 1):
        own = modes(law, h, state, tolerance=tolerance, steps=steps, merge=merge, rates=False)
        weight = torch.zeros(own.count, dtype=torch.int64, device=state.device).index_add_(0, own.assignment, weight)
        found.append(own)
        sizes.append(weight)
        state = own.states
    found.reverse()
    sizes.reverse()
    tree = ModeTree(levels, tuple(found), tuple(sizes), None)
    return ModeTree(levels, tree.levels, tree.sizes, _single(law, tree, locate, tolerance, steps, merge))


def _single(law: Denoiser, tree: ModeTree, locate: float, tolerance: float, steps: int, merge: float) -> float | None:
    """Where one mode becomes several, by bisection in log h from the modes below."""
    counts = tree.counts
    k = next((k for k, n in enumerate(counts) if n > 1), len(counts))
    if k in (0, len(counts)):
        return None
    high, low = math.log(tree.bandwidths[k - 1]), math.log(tree.bandwidths[k])
    state = tree.levels[k].states
    while high - low > locate:
        middle = (high + low) / 2
        own = modes(law, math.exp(middle), state, tolerance=tolerance, steps=steps, merge=merge, rates=False)
        if own.count > 1:
            low, state = middle, own.states
        else:
            high = middle
    return math.exp((high + low) / 2)
