"""What :func:`~farfield.analysis.shape.shape_statistics` found: curves, derived numbers, their table and their sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from farfield.analysis.shape_rows import Coordinates
from farfield.analysis.shape_sums import Curve
from farfield.analysis.tables import Cell, Table

#: Published for EDM on CIFAR-10 at 32×32, 50,000 samples (Chen et al., section 3.2 and Figs. 2, 14): the ratios 16/4428 and
#: 7/26 of the states and the denoiser's outputs, the levels of their peaks, and the smallest cosine.
PUBLISHED_RATIO, PUBLISHED_DENOISED_RATIO = 0.0036, 0.27
PUBLISHED_PEAK, PUBLISHED_DENOISED_PEAK = 10.0, 5.0
PUBLISHED_COSINE = 0.98

_DERIVED = (
    "straightness", "denoised_straightness", "turning_point", "denoised_turning_point", "monotone", "denoised_monotone",
    "denoised_ahead", "lowest_cosine",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TrajectoryShape:
    """Shape statistics of a batch of trajectories; levels run downwards, as sampling does.

    Attributes:
        sigmas: (N + 1,) the levels, the last usually 0. Curves of the denoising trajectory have N values.
        distance, deviation, magnitude: of the sampling trajectory, N + 1 values each. A deviation is the distance from the
            infinite line through both ends.
        denoised_distance, denoised_deviation, denoised_magnitude: of the denoising trajectory.
        cosine: of the angle between the direction of the step and the direction to the final sample, N values.
        turning: angle between a step and the next at the N − 1 inner levels, degrees.
        bending: how fast the path's direction turns between the N positive levels, degrees for each factor e in σ, from the
            denoising ODE ``dr/dσ = −σ x''``.
        total_turning: of all steps of a trajectory together, degrees; one value.
        endpoint, denoised_endpoint: mean distance between the two ends.
        straightness_interval, denoised_straightness_interval: of the two ratios, by the delta method.
        tightness: the largest ratio of deviation to its bound over samples and levels; at most 1 for Euler.
        bound_violations: how often, of ``samples · N``, the deviation exceeds its bound.
        angle_violations: how often the cosine is below ``sqrt(1 − (‖r − x_0‖/‖x − x_0‖)²)``; ``angle_checked`` of
            ``samples · N`` states are near enough to tell. None is possible but by rounding.
        closer, denoised_closer: share of the trajectories that come closer to their end at every step. In expectation is all
            that is claimed; for a single path it takes a positive cosine.
        forward: share of the trajectories whose cosine is positive at every level.
        samples, nfe: trajectories, and evaluations of each.
        coordinates: in which states were measured.
        confidence: of the intervals.
    """

    sigmas: tuple[float, ...]
    distance: Curve
    deviation: Curve
    magnitude: Curve
    denoised_distance: Curve
    denoised_deviation: Curve
    denoised_magnitude: Curve
    cosine: Curve
    turning: Curve
    bending: Curve
    total_turning: Curve
    endpoint: float
    denoised_endpoint: float
    straightness_interval: tuple[float, float]
    denoised_straightness_interval: tuple[float, float]
    tightness: float
    bound_violations: int
    angle_violations: int
    angle_checked: int
    closer: float
    denoised_closer: float
    forward: float
    samples: int
    nfe: int
    coordinates: Coordinates
    confidence: float

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
        return self.sigmas[argmax(self.deviation.mean)]

    @property
    def denoised_turning_point(self) -> float:
        """The level σ of the largest mean deviation of the denoising trajectory."""
        return self.sigmas[argmax(self.denoised_deviation.mean)]

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
        return {**asdict(self), **{name: getattr(self, name) for name in _DERIVED}}

    def summary(self) -> str:
        """How straight the paths are, beside the published ratios, where they turn, and whether they come closer."""
        low, high = (percent(v) for v in self.straightness_interval)
        r_low, r_high = (percent(v) for v in self.denoised_straightness_interval)
        twin = " of the variance-preserving twin" if self.coordinates == "vp" else ""
        words = [
            f"The states{twin} leave the straight line from noise to sample by at most {percent(self.straightness)} % of its "
            f"length ({low} to {high}), at σ = {self.turning_point:.3g}",
            f"the denoiser's outputs theirs by {percent(self.denoised_straightness)} % ({r_low} to {r_high}), "
            f"at σ = {self.denoised_turning_point:.3g}",
        ]
        published = (
            f"Published for CIFAR-10 at 32×32: {percent(PUBLISHED_RATIO)} % near σ = {PUBLISHED_PEAK:g}, "
            f"{percent(PUBLISHED_DENOISED_RATIO)} % near σ = {PUBLISHED_DENOISED_PEAK:g}."
        )
        both = {
            (True, True): "Both come closer to their ends on average at every step",
            (True, False): "On average the states come closer to the sample at every step, the outputs do not",
            (False, True): "On average the outputs come closer to the sample at every step, the states do not",
            (False, False): "Neither comes closer to its end at every step, even on average",
        }[self.monotone, self.denoised_monotone]
        single = (
            f"{percent(self.closer)} % of the single paths and {percent(self.denoised_closer)} % of their outputs do so"
        )
        return (
            f"{'; '.join(words)}. {published} {both}; {single}. "
            f"The mean cosine between a step and the way to the sample is at least {self.lowest_cosine:.4f}."
        )

    def rows(self) -> list[tuple[str, Cell, Cell]]:
        """The headline numbers, of the states and of the denoiser's outputs."""
        yes = {True: "yes", False: "no"}
        return [
            ("largest deviation ÷ distance between the ends", self.straightness, self.denoised_straightness),
            ("  from", self.straightness_interval[0], self.denoised_straightness_interval[0]),
            ("  to", self.straightness_interval[1], self.denoised_straightness_interval[1]),
            ("published, CIFAR-10 at 32×32", PUBLISHED_RATIO, PUBLISHED_DENOISED_RATIO),
            ("at noise level σ", self.turning_point, self.denoised_turning_point),
            ("largest mean deviation", max(self.deviation.mean), max(self.denoised_deviation.mean)),
            ("mean distance between the ends", self.endpoint, self.denoised_endpoint),
            ("closer to the end at every step, on average", yes[self.monotone], yes[self.denoised_monotone]),
            ("share of single trajectories for which this holds", self.closer, self.denoised_closer),
            ("smallest mean cosine", self.lowest_cosine, None),
            ("turning of all steps together, degrees", self.total_turning.mean[0], None),
            ("deviation over its bound, largest", self.tightness, None),
            ("violations of the deviation bound", self.bound_violations, None),
            ("violations of the angle bound", self.angle_violations, None),
        ]

    def tables(self) -> list[Table]:
        """The headline numbers, and the curves level by level with the intervals of the deviations."""
        about = (
            f"{self.samples} trajectories of {self.nfe} evaluations, {self.coordinates.upper()} coordinates; intervals "
            f"{100 * self.confidence:g} % by Student's t"
        )
        head = Table(f"shape of the trajectories, {about}", ("", "state x", "denoiser output D"), tuple(self.rows()))
        columns = (
            "σ", "‖x − x_0‖", "deviation of x", "from", "to", "‖D − D_1‖", "deviation of D", "from", "to", "cosine",
            "turning, °", "‖x‖", "‖D‖",
        )  # fmt: skip
        rows = []
        for k, sigma in enumerate(self.sigmas):
            last = k >= len(self.cosine.mean)
            inner = 0 < k <= len(self.turning.mean)
            d, r = self.deviation, self.denoised_deviation
            states = (self.distance.mean[k], d.mean[k], d.low[k], d.high[k])
            outputs: tuple[Cell, ...] = (None,) * 4
            if not last:
                outputs = (self.denoised_distance.mean[k], r.mean[k], r.low[k], r.high[k])
            cosine = None if last else self.cosine.mean[k]
            turn = self.turning.mean[k - 1] if inner else None
            size = None if last else self.denoised_magnitude.mean[k]
            rows.append((sigma, *states, *outputs, cosine, turn, self.magnitude.mean[k], size))
        return [head, Table("shape by noise level, means over the trajectories", columns, tuple(rows))]

    def plot(self, ax: Any = None) -> Any:
        """Deviation and distance to the end against σ: means, their intervals, and one standard deviation. The figure.

        Args:
            ax: two axes, or None for a new figure.
        """
        from farfield.analysis.shape_plot import draw

        return draw(self, ax)


def percent(value: float) -> str:
    """A share in percent to three significant digits."""
    return f"{100 * value:.3g}"


def argmax(values: Sequence[float]) -> int:
    """The place of the largest value, the first of equals."""
    return max(range(len(values)), key=values.__getitem__)


def _falling(values: Sequence[float]) -> bool:
    slack = 1e-12 * max(values)
    return all(b <= a + slack for a, b in pairwise(values))


def spread(values: Sequence[float]) -> str:
    """The range of a few repetitions in words: ``0.0031 to 0.0033``, or one number where they agree."""
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
