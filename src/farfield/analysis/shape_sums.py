"""Means and spreads of many trajectories' statistics, a batch at a time, without keeping the trajectories.

Welford's update in the form that takes whole batches (Chan, Golub, LeVeque 1983): with batch mean b, squared deviations S_b
and ``δ = b − a`` beside the state's mean a,

    a ← a + δ n_b/n,        S ← S + S_b + δ² n_a n_b/n,        C ← C + C_b + δ δ' n_a n_b/n

for the co-moment C with a reference of each sample, from which the error of a ratio of means follows. All in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.errors import ArgumentError


@dataclass(frozen=True)
class Curve:
    """A statistic along the levels of a run: over the samples, mean and standard deviation (divisor n − 1).

    Attributes:
        mean, std: at each level.
        low, high: the interval of the mean at the confidence of the measurement, by Student's t: ``mean ± t s/√n``. A single
            sample has none; its ends are the mean.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def student(samples: int, confidence: float) -> float:
    """Student's two-sided quantile for a mean of ``samples`` values; 0 for a single one.

    Raises:
        ArgumentError: unless ``confidence`` lies between 0 and 1.
    """
    from scipy.special import stdtrit

    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence = {confidence}; expected a number between 0 and 1, e.g. 0.95")
    return float(stdtrit(samples - 1, (1 + confidence) / 2)) if samples > 1 else 0.0


class Running:
    """Running mean and squared deviations of (L, B) values over all batches, and their co-moments with a reference."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = self.shared = torch.zeros((), dtype=torch.float64)
        self.reference_mean = self.reference_squares = torch.zeros((), dtype=torch.float64)

    def update(self, values: Tensor, reference: Tensor) -> None:
        """Take in a batch.

        Args:
            values: (L, B), a statistic at each level.
            reference: (B,), one number of each sample.
        """
        v, r = values.double(), reference.double()
        n, mean, other = v.shape[1], v.mean(1), r.mean()
        apart, aside = v - mean[:, None], r - other
        squares, shared, own = apart.square().sum(1), (apart * aside).sum(1), aside.square().sum()
        if self.count == 0:
            self.mean, self.squares, self.shared = mean, squares, shared
            self.reference_mean, self.reference_squares = other, own
        else:
            total = self.count + n
            weight = self.count * n / total
            step, aside_step = mean - self.mean, other - self.reference_mean
            self.squares = self.squares + squares + weight * step.square()
            self.shared = self.shared + shared + weight * step * aside_step
            self.reference_squares = self.reference_squares + own + weight * aside_step.square()
            self.mean = self.mean + step * (n / total)
            self.reference_mean = self.reference_mean + aside_step * (n / total)
        self.count += n

    def curve(self, confidence: float) -> Curve:
        """The statistic with its intervals."""
        std = (self.squares / (self.count - 1)).sqrt() if self.count > 1 else torch.zeros_like(self.squares)
        half = student(self.count, confidence) * std / math.sqrt(self.count)
        low, high = self.mean - half, self.mean + half
        return Curve(tuple(self.mean.tolist()), tuple(std.tolist()), tuple(low.tolist()), tuple(high.tolist()))

    def ratio_interval(self, level: int, confidence: float) -> tuple[float, float]:
        """The interval of ``E[value at level] / E[reference]`` by the delta method, by Student's t.

        The level is taken as given; that it was chosen as the largest is not accounted for, which matters only where the
        curve is flat beside its errors.
        """
        under = float(self.reference_mean)
        if not under > 0:
            return 0.0, 0.0
        ratio = float(self.mean[level]) / under
        if self.count < 2:
            return ratio, ratio
        square = float(self.squares[level] - 2 * ratio * self.shared[level] + ratio**2 * self.reference_squares)
        error = math.sqrt(max(square, 0.0) / (self.count - 1) / self.count) / under
        half = student(self.count, confidence) * error
        return max(ratio - half, 0.0), ratio + half
