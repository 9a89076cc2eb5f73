"""Diversity of samples over labels, whichever classifier or attribute function gives them.

    share p_k of each label,   H = −Σ p_k log p_k,   H/log K in [0, 1],   coverage = labels that occur / K,
    total variation to a reference = ½ Σ |p_k − r_k|

Few deterministic steps favour the majority, and entropy falls (Raya & Ambrogioni 2023, section 5.1; entropy in nats here
unless another base is asked for, which the source leaves open). Labels are another model's estimates, and what is said of
the samples' diversity is no better than they are. Intervals: percentile bootstrap over the samples. The entropy of a sample
of n is too small by about (K − 1)/2n nats; compare equal n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.metrics.label_statistics import class_histogram
from farfield.numerics import streams

#: Samples (n, *event) to labels (n,), or to scores or probabilities (n, K) whose largest is the label.
Labeller = Callable[[Tensor], Tensor]

Interval = tuple[float, float]


def entropy(shares: Tensor, base: float = math.e) -> float:
    """``−Σ p log p`` of shares (K,), 0 log 0 = 0.

    Raises:
        ArgumentError: for shares that are negative or do not sum to 1, or a base not above 1.
    """
    p = shares.detach().double().cpu()
    if p.ndim != 1 or not bool((p >= 0).all()) or abs(float(p.sum()) - 1) > 1e-6 or not base > 1:
        raise ArgumentError(
            f"shares {tuple(p.shape)} of sum {float(p.sum()):g}, base = {base}; expected shares, base > 1"
        )
    return max(-float(torch.xlogy(p, p).sum()) / math.log(base), 0.0)


def labels_of(samples: Tensor, labeller: Labeller, batch_size: int = 512) -> Tensor:
    """The label of each sample, (n,) int64 on the CPU.

    Args:
        samples: (n, *event).
        labeller: see :data:`Labeller`.
        batch_size: samples given to it at once.

    Raises:
        ArgumentError: if what it returns is neither (n,) integers nor (n, K).
    """
    parts = []
    with torch.no_grad():
        for part in samples.split(batch_size):
            found = labeller(part)
            if found.ndim == 2 and len(found) == len(part) and found.shape[1] > 0:
                found = found.argmax(1)
            if found.shape != (len(part),) or found.is_floating_point():
                raise ArgumentError(
                    f"the labeller returned {tuple(found.shape)} {found.dtype}; expected (n,) or (n, K)"
                )
            parts.append(found.long().cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class LabelDiversity:
    """The figures, each with its 95 % interval.

    Attributes:
        shares: of each label; ``share_intervals`` for each.
        entropy: in the units of ``base``.
        normalised: H/log K.
        coverage: the fraction of the K labels that occur.
        total_variation: to the reference's shares, None without one.
        reference: those shares, or None.
        base: of the logarithm.
        n: samples.
    """

    shares: tuple[float, ...]
    share_intervals: tuple[Interval, ...]
    entropy: float
    entropy_interval: Interval
    normalised: float
    coverage: float
    coverage_interval: Interval
    total_variation: float | None
    total_variation_interval: Interval | None
    reference: tuple[float, ...] | None
    base: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {
            "shares": list(self.shares),
            "share_intervals": [list(v) for v in self.share_intervals],
            "entropy": self.entropy,
            "entropy_interval": list(self.entropy_interval),
            "normalised": self.normalised,
            "coverage": self.coverage,
            "coverage_interval": list(self.coverage_interval),
            "total_variation": self.total_variation,
            "total_variation_interval": (
                None if self.total_variation_interval is None else list(self.total_variation_interval)
            ),
            "reference": None if self.reference is None else list(self.reference),
            "base": self.base,
            "n": self.n,
        }


def label_diversity(
    labels: Tensor,
    classes: int,
    *,
    reference: Tensor | None = None,
    base: float = math.e,
    resamples: int = 500,
    seed: int = 0,
) -> LabelDiversity:
    """Shares, entropy, coverage and total variation of labels, with bootstrap intervals.

    Args:
        labels: (n,) integers from 0 to ``classes`` − 1, e.g. of :func:`labels_of`.
        classes: K, at least 2.
        reference: (K,) shares to compare with, e.g. those of the training set.
        base: of the logarithm.
        resamples: of the bootstrap, at least 20.
        seed: of the bootstrap.

    Raises:
        ArgumentError: for labels out of range, a reference of the wrong length, or other values out of range.
    """
    if classes < 2 or resamples < 20 or (reference is not None and tuple(reference.shape) != (classes,)):
        shape = None if reference is None else tuple(reference.shape)
        raise ArgumentError(
            f"classes = {classes}, resamples = {resamples}, reference {shape}; expected >= 2, >= 20 and (K,)"
        )
    shares = class_histogram(labels.long().cpu(), classes)
    own = entropy(shares, base)
    n, target = len(labels), None if reference is None else reference.detach().double().cpu()
    if target is not None:
        entropy(target)  # refuses what are no shares
    # A multinomial of the observed shares is what resampling labels with replacement amounts to.
    generator = np.random.default_rng(streams.derive(seed, "label bootstrap"))
    drawn = torch.from_numpy(generator.multinomial(n, (shares / shares.sum()).numpy(), size=resamples)).double() / n
    entropies = -torch.xlogy(drawn, drawn).sum(1) / math.log(base)
    away = None if target is None else (drawn - target).abs().sum(1) / 2
    return LabelDiversity(
        shares=tuple(shares.tolist()),
        share_intervals=tuple(_interval(column) for column in drawn.T),
        entropy=own,
        entropy_interval=_interval(entropies),
        normalised=own * math.log(base) / math.log(classes),
        coverage=float((shares > 0).double().mean()),
        coverage_interval=_interval((drawn > 0).double().mean(1)),
        total_variation=None if target is None else float((shares - target).abs().sum() / 2),
        total_variation_interval=None if away is None else _interval(away),
        reference=None if target is None else tuple(target.tolist()),
        base=float(base),
        n=n,
    )


def _interval(values: Tensor) -> Interval:
    return float(values.quantile(0.025)), float(values.quantile(0.975))


@dataclass(frozen=True)
class ModeMasses:
    """How samples spread over the modes of a law.

    Attributes:
        masses: (K,) the fraction of samples at each mode.
        outside: the fraction farther than the radius from every one.
        errors: (K,) binomial standard errors.
        n: samples.
    """

    masses: tuple[float, ...]
    outside: float
    errors: tuple[float, ...]
    n: int


def mode_masses(samples: Tensor, centres: Tensor, radius: float | None = None) -> ModeMasses:
    """The fraction of samples whose nearest centre is each mode, within a radius: minority coverage of a known mixture.

    Args:
        samples: (n, *event).
        centres: (K, *event).
        radius: distance beyond which a sample belongs to no mode; None for no limit.

    Raises:
        ArgumentError: for shapes that do not fit or a radius that is not positive.
    """
    if samples.shape[1:] != centres.shape[1:] or len(samples) == 0 or len(centres) == 0:
        raise ArgumentError(f"samples {tuple(samples.shape)}, centres {tuple(centres.shape)}; expected the same events")
    if radius is not None and not radius > 0:
        raise ArgumentError(f"radius = {radius}; expected a positive distance or None")
    distances = torch.cdist(samples.flatten(1).double(), centres.flatten(1).to(samples.device).double())
    near, mode = distances.min(1)
    inside = torch.ones_like(near, dtype=torch.bool) if radius is None else near <= radius
    masses = torch.bincount(mode[inside].cpu(), minlength=len(centres)).double() / len(samples)
    errors = (masses * (1 - masses) / len(samples)).sqrt()
    return ModeMasses(
        tuple(masses.tolist()), 1 - float(inside.double().mean()), tuple(errors.tolist()), len(samples)
    )  # fmt: skip
