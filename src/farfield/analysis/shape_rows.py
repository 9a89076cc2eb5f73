"""The shape of each single trajectory of a recorded batch: distances, angles and bounds, level by level, in float64.

Differences of the states themselves are taken, never of inner products: a path of length 4400 leaves its line by 16, and the
squares of a Gram matrix would keep only half of those digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.analysis.planarity import vp_alpha
from farfield.sampling import Trajectory

#: ``"ve"``: states as they are. ``"vp"``: of the variance-preserving twin, ``x/sqrt(1 + σ²)``.
Coordinates = Literal["ve", "vp"]

#: What is averaged over the samples; the number of levels of each follows from the run.
CURVES = (
    "distance", "deviation", "magnitude", "denoised_distance", "denoised_deviation", "denoised_magnitude", "cosine",
    "turning", "bending", "total_turning",
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Statistics of a batch of B trajectories of N steps, levels first.

    Attributes:
        curves: by the names of :data:`CURVES`; (N + 1, B) for the states, (N, B) for the outputs and the cosine, (N − 1, B)
            for what compares neighbours (none for a single step), (1, B) for a total.
        tightness: deviation over its bound, (N, B).
        angle_gap: cosine minus its bound, (N, B); infinite where the bound says nothing.
        closer, denoised_closer: whether the distance to the end never grows, (B,).
        forward: whether the cosine is positive at every level, (B,).
    """

    curves: dict[str, Tensor]
    tightness: Tensor
    angle_gap: Tensor
    closer: Tensor
    denoised_closer: Tensor
    forward: Tensor


def unit(v: Tensor) -> Tensor:
    """v/‖v‖ along the last axis, 0 where v is 0."""
    norm = v.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, v / norm.clamp(min=torch.finfo(v.dtype).tiny), torch.zeros_like(v))


def across(v: Tensor, u: Tensor) -> Tensor:
    """What v has beside the unit vector u."""
    return v - (v * u).sum(-1, keepdim=True) * u


def off_line(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Distance of p (…, d) from the infinite line through a and b; from a itself where they coincide."""
    return across(p - a, unit(b - a)).norm(dim=-1)


def angle_between(u: Tensor, v: Tensor) -> Tensor:
    """The angle of two unit vectors in degrees, exact for small ones too; 0 where one of them is 0."""
    there = (u.square().sum(-1) > 0) & (v.square().sum(-1) > 0)
    angle = 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)).rad2deg()
    return torch.where(there, angle, 0.0)


def _flat(t: Tensor) -> Tensor:
    return t.double().flatten(1)


def rows_of(run: Trajectory, coordinates: Coordinates = "ve") -> Rows:
    """The statistics of recorded trajectories.

    Bounds and bending are those of the variance-exploding path in either case, for they are statements about it.

    Args:
        run: states (N + 1, B, *event), outputs (N, B, *event), N ≥ 1.
        coordinates: in which distances, deviations, angles and magnitudes of the states are measured.
    """
    steps = len(run.denoised)
    scales = [vp_alpha(s) if coordinates == "vp" else 1.0 for s in run.sigmas]
    x_end, x_top = _flat(run.states[-1]), _flat(run.states[0])
    y_end, y_top = scales[-1] * x_end, scales[0] * x_top
    r_end, r_top = _flat(run.denoised[-1]), _flat(run.denoised[0])
    kept: dict[str, list[Tensor]] = {name: [] for name in CURVES}
    tightness, gaps = [], []
    reach = torch.zeros(len(x_end), dtype=torch.float64, device=x_end.device)
    length = (x_top - x_end).norm(dim=1)
    # Below this a deviation is rounding: of the sums here, or of the states' own type.
    rounding = max(1e-9, 8 * torch.finfo(run.states.dtype).eps) * length
    before: tuple[Tensor, Tensor, Tensor] | None = None  # state, output and direction of the step before
    for k, state in enumerate(run.states):
        x = _flat(state)
        y = scales[k] * x
        kept["distance"].append((y - y_end).norm(dim=1))
        kept["deviation"].append(off_line(y, y_end, y_top))
        kept["magnitude"].append(y.norm(dim=1))
        chord = unit(y - before[0]) if before is not None else torch.zeros_like(y)
        if k > 1 and before is not None:
            kept["turning"].append(angle_between(before[2], chord))
        if k == steps:
            break
        r = _flat(run.denoised[k])
        kept["denoised_distance"].append((r - r_end).norm(dim=1))
        kept["denoised_deviation"].append(off_line(r, r_end, r_top))
        kept["denoised_magnitude"].append(r.norm(dim=1))
        if k > 0 and before is not None:
            kept["bending"].append(_bending(before[0] / scales[k - 1], before[1], x, r, run.sigmas[k - 1 : k + 1]))
        ahead, home = unit(r - x), unit(x_end - x)
        cosine = _cosine(ahead, home)
        distance = (x - x_end).norm(dim=1)
        away = (r - x_end).norm(dim=1)
        share = away / distance.clamp(min=torch.finfo(torch.float64).tiny)
        bound = (1 - share.square()).clamp(min=0).sqrt()
        gaps.append(torch.where(share < 1, cosine - bound, torch.inf))
        if coordinates == "vp":  # −dy/dσ of y = α x points along D − α² x
            cosine = _cosine(unit(r - scales[k] * y), unit(y_end - y))
        kept["cosine"].append(cosine)
        reach = torch.maximum(reach, away)
        deviation = off_line(x, x_end, x_top) if coordinates == "vp" else kept["deviation"][-1]
        tightness.append(deviation / ((1 - run.sigmas[k] / run.sigmas[0]) * reach + rounding))
        before = (y, r, chord)
    curves = {name: torch.stack(part) for name, part in kept.items() if part}
    empty = torch.zeros(0, len(x_end), dtype=torch.float64, device=x_end.device)
    curves = {name: curves.get(name, empty) for name in CURVES}
    curves["total_turning"] = curves["turning"].sum(0, keepdim=True)
    slack = max(1e-12, 8 * torch.finfo(run.states.dtype).eps)
    return Rows(
        curves,
        torch.stack(tightness),
        torch.stack(gaps),
        _falling(curves["distance"], slack),
        _falling(curves["denoised_distance"], slack),
        (curves["cosine"] > 0).all(0),
    )


def _cosine(u: Tensor, v: Tensor) -> Tensor:
    """Of two unit vectors; 1 where one is 0: a state that has arrived has no direction left to be wrong about."""
    there = (u.square().sum(-1) == 0) | (v.square().sum(-1) == 0)
    return torch.where(there, 1.0, (u * v).sum(-1))


def _falling(distances: Tensor, slack: float) -> Tensor:
    """Whether (L, B) distances never grow by more than a share of the first, (B,)."""
    return (distances[1:] <= distances[:-1] + slack * distances[0]).all(0)


def _bending(x: Tensor, r: Tensor, x_next: Tensor, r_next: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """``‖(dr/d ln σ)_⊥‖/‖x − r‖``, degrees, from two neighbours: outputs' difference beside the mean slope (B,)."""
    a, b = sigmas
    gap = abs(math.log(a / b))
    if gap == 0:
        return torch.zeros(len(x), dtype=x.dtype, device=x.device)
    slope = (x - r) / a + (x_next - r_next) / b  # twice dx/dσ
    length = slope.norm(dim=1) * (a * b) ** 0.5 / 2
    rate = across(r - r_next, unit(slope)).norm(dim=1) / gap
    return torch.where(length > 0, rate / length.clamp(min=torch.finfo(r.dtype).tiny), 0.0).rad2deg()
