"""What a classifier says about samples: which classes they have, and how sure it is of them.

With p(y|x) the class probabilities of a sample and p(y) their mean over the samples:

    classes     the fraction of samples whose most probable class is y, and the entropy of that histogram
    balance     KL(classes of the samples ‖ classes of the data), 0 where the proportions are kept
    confidence  the mean of max_y p(y|x)
    score       exp E KL(p(y|x) ‖ p(y)), from 1 to the number of classes

The last is the Inception score (Salimans et al. 2016) with the classifier at hand in Inception's place. It is high for
samples that are each clearly of one class and together of all; it does not look at the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.errors import ArgumentError


@dataclass(frozen=True)
class LabelStatistics:
    """The figures; see the head of this module.

    Args:
        histogram: fraction of each class, summing to 1.
        entropy: of the histogram, in nats, 0 to ln K.
        balance: KL to the data's classes, in nats, ≥ 0; infinite where a class occurs that the data lack.
        confidence: in [1/K, 1].
        score: in [1, K].
        n: number of samples.
    """

    histogram: tuple[float, ...]
    entropy: float
    balance: float
    confidence: float
    score: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; an infinite balance, which JSON cannot write, is None."""
        return {
            "histogram": list(self.histogram),
            "entropy": self.entropy,
            "balance": self.balance if math.isfinite(self.balance) else None,
            "confidence": self.confidence,
            "score": self.score,
            "n": self.n,
        }


def class_histogram(classes: Tensor, count: int) -> Tensor:
    """The fraction of each of ``count`` classes in (N,) int64: (count,) float64.

    Raises:
        ArgumentError: for no samples, or a class outside 0 to count − 1.
    """
    if classes.ndim != 1 or len(classes) == 0 or int(classes.min()) < 0 or int(classes.max()) >= count:
        raise ArgumentError(f"classes has shape {tuple(classes.shape)}; expected (N,), N >= 1, values below {count}")
    return torch.bincount(classes, minlength=count).double() / len(classes)


def label_statistics(probabilities: Tensor, data_histogram: Tensor) -> LabelStatistics:
    """The figures for samples with the given class probabilities.

    Args:
        probabilities: (N, K), rows summing to 1.
        data_histogram: (K,), the fraction of each class in the data, from :func:`class_histogram`.

    Raises:
        ArgumentError: for shapes that do not fit, or rows that are not probabilities.
    """
    if probabilities.ndim != 2 or len(probabilities) == 0 or data_histogram.shape != probabilities.shape[1:]:
        raise ArgumentError(
            f"probabilities {tuple(probabilities.shape)} and data_histogram {tuple(data_histogram.shape)}; "
            "expected (N, K) with N >= 1, and (K,)"
        )
    p = probabilities.detach().cpu().double()
    if not bool(((p >= 0).all(1) & ((p.sum(1) - 1).abs() < 1e-6)).all()):
        raise ArgumentError("probabilities has rows that are negative, not finite or do not sum to 1")
    histogram, base = class_histogram(p.argmax(1), p.shape[1]), data_histogram.detach().cpu().double()
    mean = p.mean(0)
    # 0 log 0 = 0 throughout; a class of the mean that has no weight has none in any row.
    gain = torch.xlogy(p, p).sum(1) - torch.xlogy(p, mean.clamp(min=torch.finfo(torch.float64).tiny)).sum(1)
    present = histogram > 0
    balance = float((histogram[present] * (histogram[present] / base[present]).log()).sum())
    return LabelStatistics(
        tuple(histogram.tolist()),
        -float(torch.xlogy(histogram, histogram).sum()) + 0.0,
        max(balance, 0.0),
        float(p.amax(1).mean()),
        math.exp(max(float(gain.mean()), 0.0)),
        len(p),
    )
