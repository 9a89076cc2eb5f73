"""Sections of the potential along the circular path through two states.

    x(α) = cos α x₁ + sin α x₂      x₁ at α = 0, x₂ at α = π/2
    ũ(α) = ∫ ∇u(x(α')) · x'(α') dα'  from α₀, in units of g²,   x' = −sin α x₁ + cos α x₂

(Raya & Ambrogioni 2023, section 4.2 and supplement B.2.1, whose tangent ends in ``cos α x₁`` by a slip: that is not the
derivative of the path.) States are native ones of a process about its origin, where network and potential live, and not
images scaled to [0, 1]. Between states of equal norm and right angles, which noise in many dimensions nearly has, the path
keeps the norm; in general it does not (:func:`path_norms`).

Laws with a density give u itself. A network gives its gradient, which is integrated by the trapezoid rule, or by the
source's rectangle rule, whose error on 200 points is a hundred times larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from farfield.analysis.potential import Potential, Time
from farfield.denoiser import Denoiser
from farfield.distributions import Distribution
from farfield.errors import ArgumentError
from farfield.numerics import streams

#: How ũ is found: ``"exact"`` from the density, the others by integrating the gradient.
Rule = Literal["exact", "trapezoid", "rectangle"]
#: ``"convex"`` between the endpoints; one well, not convex; two wells or more; none inside the section.
Shape = Literal["convex", "single well", "double well", "no well"]

#: The source's range of angles: a fifth of π beyond either end.
RANGE = (-math.pi / 5, 7 * math.pi / 10)
MIDDLE = math.pi / 4
#: Half the distance of the two gradients whose difference is a network's curvature, in radians.
STEP = 0.05
#: Second differences down to this fraction of the largest one, below zero, are taken for rounding.
_FLAT = 1e-3


@dataclass(frozen=True, eq=False)
class PotentialSections:
    """Sections of one potential at one time, one for each pair of states.

    Attributes:
        angles: (A,) in radians, float64, increasing.
        values: (P, A) ``(u(x(α)) − u(x(α₀)))/g²``, float64.
        norms: (P, A) ``‖x(α)‖²``.
        time: forward time.
        rule: how the values were found.
    """

    angles: Tensor
    values: Tensor
    norms: Tensor
    time: float
    rule: Rule

    @property
    def mean(self) -> Tensor:
        """The section averaged over the pairs, (A,)."""
        return self.values.mean(0)

    @property
    def minima(self) -> Tensor:
        """Local minima inside each section, (P,)."""
        return interior_minima(self.values)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shape of each section."""
        return tuple(section_shape(self.angles, row) for row in self.values)

    @property
    def mean_shape(self) -> Shape:
        """The shape of the average."""
        return section_shape(self.angles, self.mean)


def device_of(denoiser: Denoiser) -> torch.device:
    """Where a denoiser's tensors are; the CPU for one without any."""
    for tensor in (*denoiser.parameters(), *denoiser.buffers()):
        return tensor.device
    return torch.device("cpu")


def section_angles(count: int = 200) -> Tensor:
    """``count`` angles, evenly from −π/5 to 7π/10 with both ends: (count,) in float64.

    Raises:
        ArgumentError: for fewer than 9.
    """
    if count < 9:
        raise ArgumentError(f"angles = {count}; expected at least 9")
    return torch.linspace(*RANGE, count, dtype=torch.float64)


def all_pairs(n: int, count: int | None = None, seed: int = 0) -> Tensor:
    """Unordered pairs of n members, (P, 2): all of them, or ``count`` chosen by a seed where there are more.

    Raises:
        ArgumentError: for fewer than two members, or a count below 1.
    """
    if n < 2 or (count is not None and count < 1):
        raise ArgumentError(f"n = {n}, pairs = {count}; expected n >= 2 and at least 1 pair")
    pairs = torch.tensor(list(combinations(range(n), 2)))
    if count is None or count >= len(pairs):
        return pairs
    return pairs[streams.permutation(seed, len(pairs), purpose="section pairs")[:count].sort().values]


def path_norms(first: Tensor, second: Tensor, angles: Tensor) -> Tensor:
    """``‖x(α)‖² = cos²α ‖x₁‖² + sin²α ‖x₂‖² + sin 2α x₁·x₂``, (P, A) in float64.

    Args:
        first, second: x₁ and x₂, (P, *event).
        angles: (A,) in radians.
    """
    a, b = first.flatten(1).double(), second.flatten(1).double()
    angles = angles.to(a)
    squares = [(u * v).sum(1, keepdim=True) for u, v in ((a, a), (b, b), (a, b))]
    return angles.cos() ** 2 * squares[0] + angles.sin() ** 2 * squares[1] + (2 * angles).sin() * squares[2]


def _along(turn: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """x(α) and x'(α) for one angle a row, each (B, *event); the angles are float64 until they meet the states."""
    shape = (-1, *[1] * (first.ndim - 1))
    cos, sin = (part.to(first).view(shape) for part in (turn.cos(), turn.sin()))
    return cos * first + sin * second, cos * second - sin * first


def path_slopes(potential: Potential, first: Tensor, second: Tensor, angles: Tensor, t: Time) -> Tensor:
    """``∇u(x(α)) · x'(α) / g²`` for one angle and one pair of states in each row, (B,) in float64.

    Args:
        potential: the potential.
        first, second: x₁ and x₂, (B, *event).
        angles: (B,) in radians.
        t: forward time, a number or (B,).
    """
    states, tangents = _along(angles, first, second)
    slopes = torch.linalg.vecdot(potential.gradient(states, t).flatten(1), tangents.flatten(1)).double()
    rate = potential.rate(t)
    return slopes / (rate.to(slopes) if isinstance(rate, Tensor) else rate)


def check_pairs(potential: Potential, first: Tensor, second: Tensor) -> None:
    """Raise ``ArgumentError`` unless both are (P, *event) of the denoiser's events, P >= 1."""
    if first.shape != second.shape or tuple(first.shape[1:]) != potential.denoiser.event_shape or len(first) == 0:
        raise ArgumentError(
            f"first is {tuple(first.shape)}, second {tuple(second.shape)}; expected the same number of states "
            f"{potential.denoiser.event_shape}, at least one"
        )


def potential_sections(
    potential: Potential,
    first: Tensor,
    second: Tensor,
    t: float,
    *,
    angles: int | Tensor = 200,
    rule: Rule | None = None,
    batch_size: int = 512,
) -> PotentialSections:
    """The sections through pairs of states: one denoiser call for each ``batch_size`` rows of pairs × angles.

    Args:
        potential: u of a law or a network, for one of its dynamics.
        first, second: (P, *event) native states at time ``t``, x₁ and x₂ of each pair.
        t: forward time.
        angles: how many, over −π/5 to 7π/10, or the angles themselves (A,), evenly spaced.
        rule: ``"exact"`` for laws with a density, ``"trapezoid"`` or ``"rectangle"``; by default exact where possible.
        batch_size: rows of one call.

    Raises:
        ArgumentError: for states that do not fit, too few angles, or ``"exact"`` of a denoiser without a density.
    """
    check_pairs(potential, first, second)
    turns = section_angles(angles) if isinstance(angles, int) else angles.double().cpu()
    chosen = rule if rule is not None else default_rule(potential)
    values = section_values(potential, first, second, t, turns, rule=chosen, batch_size=batch_size)
    return PotentialSections(turns, values, path_norms(first, second, turns).cpu(), float(t), chosen)


def default_rule(potential: Potential) -> Rule:
    """``"exact"`` where the denoiser knows its density, ``"trapezoid"`` elsewhere."""
    return "exact" if isinstance(potential.denoiser, Distribution) else "trapezoid"


def section_values(
    potential: Potential,
    first: Tensor,
    second: Tensor,
    t: Time,
    angles: Tensor,
    *,
    rule: Rule = "trapezoid",
    batch_size: int = 512,
) -> Tensor:
    """ũ at evenly spaced angles (A,), 0 at the first: (P, A) in float64 on the CPU. ``t`` may be one time a pair, (P,).

    Raises:
        ArgumentError: as :func:`potential_sections`.
    """
    if rule not in ("exact", "trapezoid", "rectangle"):
        raise ArgumentError(f"rule = {rule!r}; expected 'exact', 'trapezoid' or 'rectangle'")
    if angles.ndim != 1 or len(angles) < 2 or batch_size < 1:
        raise ArgumentError(
            f"angles has shape {tuple(angles.shape)}, batch_size = {batch_size}; expected (A,) and >= 1"
        )
    pairs, count = len(first), len(angles)
    rows, turned = torch.arange(pairs * count, device=first.device), angles.to(first.device)
    rate = potential.rate(t)
    found = torch.empty(pairs * count, dtype=torch.float64, device=first.device)
    with torch.no_grad():
        for part in rows.split(batch_size):
            pair = part // count
            when, a, b, turn = at_rows(t, pair), first[pair], second[pair], turned[part % count]
            if rule == "exact":
                found[part] = potential.value(_along(turn, a, b)[0], when) / at_rows(rate, pair)
            else:
                found[part] = path_slopes(potential, a, b, turn, when)
    table = found.view(pairs, count).cpu()
    return table - table[:, :1] if rule == "exact" else integrate(table, angles, rule)


def at_rows(value: Time, rows: Tensor) -> Time:
    """A number or () as it is; of (P,) the chosen rows, on their device."""
    return value.to(rows.device)[rows] if isinstance(value, Tensor) and value.ndim else value


def integrate(slopes: Tensor, angles: Tensor, rule: Rule = "trapezoid") -> Tensor:
    """The running integral of slopes (P, A) over evenly spaced angles (A,), 0 at the first: (P, A).

    The rectangle rule takes each interval's value at its right end, as the source's sum does.
    """
    height = slopes[:, 1:] if rule == "rectangle" else (slopes[:, 1:] + slopes[:, :-1]) / 2
    steps = height * (angles[1:] - angles[:-1]).to(slopes)
    return torch.cat((torch.zeros_like(slopes[:, :1]), steps.cumsum(1)), 1)


def both_ways(values: Tensor) -> Tensor:
    """Sections (P, A) averaged with those of the same pairs in the other order, which run backwards on :func:`section_angles`.

    ũ of ``(x₂, x₁)`` at α is ũ of ``(x₁, x₂)`` at ``π/2 − α``, so the average over pairs loses, at no cost, what only the
    order in which they were taken has put into it. Each section is taken relative to its mean over the angles.
    """
    centred = values - values.mean(-1, keepdim=True)
    return (centred + centred.flip(-1)) / 2


def interior_minima(values: Tensor) -> Tensor:
    """How many values of each row are smaller than both neighbours: (P,) of (P, A)."""
    falls, rises = values[:, 1:-1] < values[:, :-2], values[:, 1:-1] <= values[:, 2:]
    return (falls & rises).sum(1)


def section_shape(angles: Tensor, values: Tensor) -> Shape:
    """The shape of one section (A,): its minima decide, and convexity is asked for between the two states, 0 to π/2."""
    if int(interior_minima(values[None])) >= 2:
        return "double well"
    between = values[(angles >= -1e-9) & (angles <= math.pi / 2 + 1e-9)]
    bends = between[2:] - 2 * between[1:-1] + between[:-2]
    if len(bends) and float(bends.min()) >= -_FLAT * float(bends.abs().max()):
        return "convex"
    return "single well" if int(interior_minima(values[None])) else "no well"


def section_curvature(
    potential: Potential, first: Tensor, second: Tensor, t: Time, *, angle: float = MIDDLE, batch_size: int = 512
) -> Tensor:
    """``ũ''(α)`` in units of g², (P,) in float64; at π/4 its sign tells one well from two.

    For a law ``x'ᵀ (∇∇u) x' − ∇u·x``, since ``x'' = −x``; for a network the difference of two gradients 0.1 rad apart, which
    costs two evaluations a pair and no Jacobian product.

    Args:
        potential: the potential.
        first, second: (P, *event) native states.
        t: forward time, a number or (P,).
        angle: α.
        batch_size: rows of one call.

    Raises:
        ArgumentError: for states that do not fit.
    """
    check_pairs(potential, first, second)
    parts = []
    with torch.no_grad():
        for rows in torch.arange(len(first), device=first.device).split(batch_size):
            a, b, when = first[rows], second[rows], at_rows(t, rows)
            turn = torch.full((len(rows),), angle, dtype=torch.float64, device=first.device)
            if isinstance(potential.denoiser, Distribution):
                states, tangents = _along(turn, a, b)
                bend = (potential.hessian_product(states, when, tangents) * tangents).flatten(1).sum(1)
                pull = (potential.gradient(states, when) * states).flatten(1).sum(1)
                rate = potential.rate(when)
                parts.append((bend - pull).double() / (rate.to(a.device) if isinstance(rate, Tensor) else rate))
            else:
                high, low = (path_slopes(potential, a, b, turn + h, when) for h in (STEP, -STEP))
                parts.append((high - low) / (2 * STEP))
    return torch.cat(parts).cpu()
