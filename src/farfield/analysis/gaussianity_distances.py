"""How far the noisy marginal of a law on the line is from a normal law, by quadrature.

With p the density of ``X = α y + s z``: excess kurtosis, ``KL(p ‖ N)`` in nats and total variation ``½ ∫ |p − N|``, where N is
N(0, 1), from which samplers start, or the normal law with the moments of p, from which a Gaussian late start does.

Started at time s from N, exact reverse dynamics end at a total variation from the data of at most the one at s, for a
Markov kernel brings laws no further apart (data-processing inequality): :attr:`NormalDistance.total_variation` bounds what a
late start can cost.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from farfield.distributions import Distribution
from farfield.errors import ArgumentError
from farfield.processes import VP, TimeMap


@dataclass(frozen=True)
class NormalDistance:
    """The noisy marginal beside a normal law.

    Attributes:
        time, theta: forward time and signal scale.
        mean, variance: of the marginal.
        kurtosis: its excess kurtosis, 0 for a normal law.
        divergence: KL(p ‖ N) in nats.
        total_variation: in [0, 1].
    """

    time: float
    theta: float
    mean: float
    variance: float
    kurtosis: float
    divergence: float
    total_variation: float

    def to_dict(self) -> dict[str, float]:
        """All fields as plain values."""
        return asdict(self)


def normal_distance(
    law: Distribution,
    t: float,
    process: TimeMap | None = None,
    *,
    matched: bool = False,
    reach: float = 12.0,
    points: int = 20001,
) -> NormalDistance:
    """Moments of the native marginal of a law on the line at time t, and its distances from a normal law.

    Args:
        law: in one dimension, with a density.
        t: forward time; s(t) must be positive.
        process: the time map, :class:`VP` by default.
        matched: compare with the normal law of the same mean and variance instead of N(0, 1).
        reach: half the width of the interval of quadrature, in native units; it has to hold both laws.
        points: of the trapezoid rule, which is exact to rounding for densities smooth on its spacing.

    Raises:
        ArgumentError: for a law of other than one dimension, or one whose mass the interval does not hold.
    """
    if law.dim != 1:
        raise ArgumentError(f"the law has {law.dim} coordinates; the quadrature is for one")
    process = process if process is not None else VP()
    x = torch.linspace(-reach, reach, points, dtype=torch.float64)
    state, sigma = process.to_ve(x.view(-1, *law.event_shape), t)
    log_p = law.log_prob(state, sigma) - math.log(process.alpha(t))
    h, p = float(x[1] - x[0]), log_p.exp()
    mass = float(p.sum() * h)
    if not abs(mass - 1) < 1e-6:
        raise ArgumentError(f"reach = {reach:g}, points = {points} hold a mass of {mass:.6g} instead of 1")
    mean = float((p * x).sum() * h)
    centred = x - mean
    variance = float((p * centred**2).sum() * h)
    fourth = float((p * centred**4).sum() * h)
    m, v = (mean, variance) if matched else (0.0, 1.0)
    log_n = -((x - m) ** 2) / (2 * v) - math.log(2 * math.pi * v) / 2
    return NormalDistance(
        time=float(t),
        theta=float(process.alpha(t)),
        mean=mean,
        variance=variance,
        kurtosis=fourth / variance**2 - 3,
        divergence=max(float((p * (log_p - log_n)).sum() * h), 0.0),
        total_variation=float((p - log_n.exp()).abs().sum() * h / 2),
    )


def density_modes(law: Distribution, t: float, process: TimeMap | None = None, reach: float = 6.0) -> int:
    """How many maxima the noisy marginal of a law on the line has at time t, on a grid of 20,001 positions."""
    process = process if process is not None else VP()
    x = torch.linspace(-reach, reach, 20001, dtype=torch.float64)
    state, sigma = process.to_ve(x.view(-1, *law.event_shape), t)
    log_p = law.log_prob(state, sigma)
    return int(((log_p[1:-1] > log_p[:-2]) & (log_p[1:-1] >= log_p[2:])).sum())
