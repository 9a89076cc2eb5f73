"""The shape of sampling trajectories: how straight they are, where they turn, what the denoiser's output does meanwhile.

For a run x_N … x_0 with denoiser outputs r_N … r_1 (Chen et al., A geometric perspective on diffusion models, section 3):

    distance to the end   ‖x_n − x_0‖,              ‖r_n − r_1‖
    deviation             distance of x_n from the line through x_0 and x_N;  of r_n from the line through r_1 and r_N
    angle                 cos(r_n − x_n, x_0 − x_n)
    bound                 dev(x_n) ≤ (1 − σ_n/σ_N) max_{m ≥ n} ‖r_m − x_0‖

The bound is exact for the flow and for Euler steps; it does not grow with σ_N, which is why the paths look straight. Ratios
are a maximum of expectations over an expectation. All statistics are taken in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, Trajectory


@dataclass(frozen=True)
class Curve:
    """Mean and standard deviation (divisor n − 1) over the samples, along the levels of the run."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class TrajectoryShape:
    """Shape statistics of a batch of trajectories; levels run downwards, as sampling does.

    Attributes:
        sigmas: (N + 1,) the levels, the last usually 0. Curves of the denoising trajectory have N values.
        distance, deviation, magnitude: of the sampling trajectory, N + 1 values each.
        denoised_distance, denoised_deviation, denoised_magnitude: of the denoising trajectory.
        cosine: of the angle between the direction of the step and the direction to the final sample, N values.
        endpoint, denoised_endpoint: mean distance between the two ends.
        tightness: the largest ratio of deviation to its bound over samples and levels; at most 1 for Euler.
        samples, nfe: trajectories, and evaluations of each.
    """

    sigmas: tuple[float, ...]
    distance: Curve
    deviation: Curve
    magnitude: Curve
    denoised_distance: Curve
    denoised_deviation: Curve
    denoised_magnitude: Curve
    cosine: Curve
    endpoint: float
    denoised_endpoint: float
    tightness: float
    samples: int
    nfe: int

    @property
    def straightness(self) -> float:
        """Largest mean deviation over the mean distance of the ends; 0 is a straight line. (0.0036 for EDM on CIFAR-10.)"""
        return max(self.deviation.mean) / self.endpoint if self.endpoint > 0 else 0.0

    @property
    def denoised_straightness(self) -> float:
        """The same of the denoising trajectory. (0.27 for EDM on CIFAR-10.)"""
        return max(self.denoised_deviation.mean) / self.denoised_endpoint if self.denoised_endpoint > 0 else 0.0

    @property
    def turning_point(self) -> float:
        """The level σ of the largest mean deviation of the sampling trajectory."""
        return self.sigmas[_argmax(self.deviation.mean)]

    @property
    def denoised_turning_point(self) -> float:
        """The level σ of the largest mean deviation of the denoising trajectory."""
        return self.sigmas[_argmax(self.denoised_deviation.mean)]

    @property
    def monotone(self) -> bool:
        """Whether the mean distance to the end never grows along the sampling trajectory."""
        return _falling(self.distance.mean)

    @property
    def denoised_monotone(self) -> bool:
        """Whether the mean distance to the end never grows along the denoising trajectory."""
        return _falling(self.denoised_distance.mean)

    @property
    def denoised_ahead(self) -> bool:
        """Whether the denoising trajectory is closer to its end at every level above the last."""
        pairs = zip(self.denoised_distance.mean[:-1], self.distance.mean, strict=False)
        return all(r < x for r, x in pairs)

    @property
    def lowest_cosine(self) -> float:
        """The smallest mean cosine."""
        return min(self.cosine.mean)

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived numbers as plain values."""
        derived = (
            "straightness", "denoised_straightness", "turning_point", "denoised_turning_point",
            "monotone", "denoised_monotone", "denoised_ahead", "lowest_cosine",
        )  # fmt: skip
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}

    def plot(self, ax: Any = None) -> Any:
        """Deviation (left) and distance to the end (right) against σ, mean ± one standard deviation. Returns the figure.

        Args:
            ax: two axes, or None for a new figure.
        """
        left, right = axes_for(ax, 2, width=9.2, height=3.8)
        shown = [k for k, s in enumerate(self.sigmas) if s > 0]
        kept = [k for k in shown if k < len(self.denoised_deviation.mean)]
        for axes, sampling, denoising, title in (
            (left, self.deviation, self.denoised_deviation, "distance from the straight line"),
            (right, self.distance, self.denoised_distance, "distance to the end"),
        ):
            axes.set_xscale("log")
            for curve, levels, colour, name in (
                (sampling, shown, PALETTE[0], "state x"),
                (denoising, kept, PALETTE[1], "denoiser output D(x, σ)"),
            ):
                if axes is right:
                    levels = [k for k in levels if curve.mean[k] > 0]
                s = [self.sigmas[k] for k in levels]
                mean = [curve.mean[k] for k in levels]
                low = [max(curve.mean[k] - curve.std[k], 0.0) for k in levels]
                high = [curve.mean[k] + curve.std[k] for k in levels]
                axes.fill_between(s, low, high, color=colour, alpha=0.18, linewidth=0)
                axes.plot(s, mean, color=colour, linewidth=2, label=name)
            axes.set_xlim(self.sigmas[0], min(self.sigmas[k] for k in shown))
            dress(axes, "noise level σ  (sampling runs to the right)", "Euclidean distance", title)
        right.set_yscale("log")
        floor = min((v for c in (self.distance, self.denoised_distance) for v in c.mean if v > 0), default=1e-3)
        right.set_ylim(bottom=max(floor / 2, max(self.distance.mean) * 1e-6, 1e-12))
        left.legend(frameon=False, fontsize=9, labelcolor=INK)
        return left.figure


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _falling(values: Sequence[float]) -> bool:
    slack = 1e-12 * max(values)
    return all(b <= a + slack for a, b in pairwise(values))


def _unit(v: Tensor) -> Tensor:
    """v/‖v‖ by rows, 0 where v is 0."""
    norm = v.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, v / norm.clamp(min=torch.finfo(v.dtype).tiny), torch.zeros_like(v))


def _off_line(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Distance (B,) of p (B, d) from the line through a and b."""
    u, v = _unit(b - a), p - a
    return (v - (v * u).sum(-1, keepdim=True) * u).norm(dim=-1)


@dataclass
class _Rows:
    """Per-sample statistics of a batch, levels first: (L, B) float64."""

    distance: Tensor
    deviation: Tensor
    magnitude: Tensor
    denoised_distance: Tensor
    denoised_deviation: Tensor
    denoised_magnitude: Tensor
    cosine: Tensor
    tightness: Tensor


def _rows(run: Trajectory) -> _Rows:
    def flat(t: Tensor) -> Tensor:
        return t.double().flatten(1)

    x_end, x_top = flat(run.states[-1]), flat(run.states[0])
    r_end, r_top = flat(run.denoised[-1]), flat(run.denoised[0])
    distance, deviation, magnitude = [], [], []
    r_distance, r_deviation, r_magnitude, cosine, tightness = [], [], [], [], []
    reach = torch.zeros(len(x_end), dtype=torch.float64, device=x_end.device)
    for k, state in enumerate(run.states):
        x = flat(state)
        distance.append((x - x_end).norm(dim=1))
        deviation.append(_off_line(x, x_end, x_top))
        magnitude.append(x.norm(dim=1))
        if k == len(run.denoised):
            break
        r = flat(run.denoised[k])
        r_distance.append((r - r_end).norm(dim=1))
        r_deviation.append(_off_line(r, r_end, r_top))
        r_magnitude.append(r.norm(dim=1))
        ahead, home = _unit(r - x), _unit(x_end - x)
        # A state that has arrived has no direction left to be wrong about.
        there = (ahead.square().sum(1) == 0) | (home.square().sum(1) == 0)
        cosine.append(torch.where(there, 1.0, (ahead * home).sum(1)))
        reach = torch.maximum(reach, (r - x_end).norm(dim=1))
        bound = (1 - run.sigmas[k] / run.sigmas[0]) * reach
        rounding = 1e-9 * distance[0]
        tightness.append(deviation[-1] / (bound + rounding))
    stacked = (distance, deviation, magnitude, r_distance, r_deviation, r_magnitude, cosine, tightness)
    return _Rows(*(torch.stack(part) for part in stacked))


def _joined(parts: Sequence[_Rows], sigmas: tuple[float, ...], nfe: int) -> TrajectoryShape:
    def column(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=1)

    def curve(name: str) -> Curve:
        values = column(name)
        std = values.std(1) if values.shape[1] > 1 else torch.zeros(values.shape[0], dtype=torch.float64)
        return Curve(tuple(values.mean(1).tolist()), tuple(std.tolist()))

    names = (
        "distance", "deviation", "magnitude", "denoised_distance", "denoised_deviation", "denoised_magnitude", "cosine"
    )  # fmt: skip
    curves = {name: curve(name) for name in names}
    return TrajectoryShape(
        sigmas=sigmas,
        **curves,
        endpoint=curves["distance"].mean[0],
        denoised_endpoint=curves["denoised_distance"].mean[0],
        tightness=float(column("tightness").max()),
        samples=column("distance").shape[1],
        nfe=nfe,
    )


def trajectory_shape(trajectory: Trajectory) -> TrajectoryShape:
    """The shape statistics of recorded trajectories.

    Args:
        trajectory: of a run with ``trajectory=True``: states (N + 1, B, *event), denoiser outputs (N, B, *event).

    Raises:
        ArgumentError: if it holds no step.
    """
    if len(trajectory.denoised) == 0 or len(trajectory.states) < 2:
        raise ArgumentError("the trajectory holds no step; run the sampler with trajectory=True")
    return _joined([_rows(trajectory)], tuple(map(float, trajectory.sigmas)), trajectory.nfe[-1])


def shape_statistics(
    denoiser: Denoiser,
    sampler: Sampler | None = None,
    n: int = 256,
    seed: int = 0,
    *,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
) -> TrajectoryShape:
    """Sample ``n`` trajectories of a model and measure their shape.

    Args:
        denoiser: the model.
        sampler: how to sample; by default Heun on the 18-level Karras grid within the model's range.
        n, seed: the trajectories, by number and seed; batches do not change them.
        batch_size: trajectories held at once.
        dtype: of the states; the statistics are taken in float64 all the same.
    """
    if n < 1 or batch_size < 1:
        raise ArgumentError(f"n = {n}, batch_size = {batch_size}; expected at least 1")
    if sampler is None:
        from farfield.analysis.entrants import baseline

        sampler = baseline(denoiser)
    parts: list[_Rows] = []
    sigmas: tuple[float, ...] = ()
    for first in range(0, n, batch_size):
        count = min(batch_size, n - first)
        run = sampler(denoiser, count, seed, first=first, trajectory=True, dtype=dtype).trajectory
        assert run is not None
        sigmas = tuple(map(float, run.sigmas))
        parts.append(_rows(run))
    return _joined(parts, sigmas, sampler.nfe)
