"""The Fréchet distance between the Gaussians that fit two sets of features.

    d² = |μ_a − μ_b|² + tr A + tr B − 2 tr (A^{1/2} B A^{1/2})^{1/2}

(Dowson & Landau 1982; as a score of generative models: Heusel et al. 2017, FID). This is the squared 2-Wasserstein
distance of the two Gaussians; as everywhere in the field, the square is what is reported.

The square root of the product is never formed. With B = V diag(b) Vᵀ, the last trace is the sum of the square roots of
the eigenvalues of the symmetric ``diag(b)^{1/2} Vᵀ A V diag(b)^{1/2}``. Eigenvalues that rounding alone could have made
are set to zero *before* the root, which would blow an error of 1e-16 up to 1e-8: singular covariances are handled as
they are, with no multiple of the identity added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.errors import ArgumentError, DataError
from farfield.metrics.statistics import FeatureStatistics

Moments = FeatureStatistics | Tensor | tuple[Tensor, Tensor]


def _noise_floor(values: Tensor) -> float:
    """What rounding may leave of a zero eigenvalue."""
    return len(values) * torch.finfo(torch.float64).eps * float(values.abs().max()) if len(values) else 0.0


def _clean(values: Tensor) -> Tensor:
    """Eigenvalues of a positive semi-definite matrix, rounding errors about zero removed."""
    return torch.where(values > _noise_floor(values), values, 0.0)


def moments(features: Moments, unbiased: bool = True) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d), float64 on the CPU, of features (n, d), statistics, or such a pair.

    Raises:
        ArgumentError: for shapes that do not fit, or too few rows.
        DataError: for NaN or infinity.
    """
    if isinstance(features, Tensor):
        features = FeatureStatistics.of(features)
    if isinstance(features, FeatureStatistics):
        return features.mean(), features.covariance(unbiased)
    mean, covariance = (part.detach().to("cpu", torch.float64) for part in features)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ArgumentError(
            f"mean {tuple(mean.shape)} and covariance {tuple(covariance.shape)}; expected shapes (d,) and (d, d)"
        )
    if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise DataError("mean or covariance hold NaN or infinity")
    return mean, (covariance + covariance.T) / 2


@dataclass(frozen=True, eq=False)
class FrechetReference:
    """One side of the distance with its covariance factorised, for repeated comparisons.

    Args:
        mean: (d,) float64.
        root: (d, r) float64 with ``root rootᵀ`` = the covariance, r its rank.
        trace: the trace of the covariance.
    """

    mean: Tensor
    root: Tensor
    trace: float

    @classmethod
    def of(cls, features: Moments, unbiased: bool = True) -> FrechetReference:
        """Factorise; arguments as for :func:`frechet_distance`.

        Raises:
            ArgumentError: for a covariance with a clearly negative eigenvalue.
        """
        mean, covariance = moments(features, unbiased)
        values, vectors = torch.linalg.eigh(covariance)
        if float(values[0]) < -1e3 * max(_noise_floor(values), 1e-300):
            raise ArgumentError(f"the covariance has the eigenvalue {float(values[0]):g}; expected none below 0")
        values = _clean(values)
        keep = values > 0
        return cls(mean, vectors[:, keep] * values[keep].sqrt(), float(covariance.trace()))

    def distance(self, features: Moments, unbiased: bool = True) -> float:
        """The squared Fréchet distance to features (n, d), statistics or (mean, covariance); ≥ 0."""
        mean, covariance = moments(features, unbiased)
        if len(mean) != len(self.mean):
            raise ArgumentError(f"{len(mean)} features on one side, {len(self.mean)} on the other")
        inner = self.root.T @ covariance @ self.root
        fidelity = float(_clean(torch.linalg.eigvalsh((inner + inner.T) / 2)).sqrt().sum()) if inner.numel() else 0.0
        spread = float(covariance.trace()) + self.trace - 2 * fidelity
        return max(float((mean - self.mean).square().sum()) + spread, 0.0)


def frechet_distance(a: Moments, b: Moments, unbiased: bool = True) -> float:
    """The squared Fréchet distance between two sets of features; see the head of this module.

    The value depends on the number of samples: both covariances are estimates. Compare sets of one size, or use
    :func:`farfield.metrics.corrected_frechet`.

    Args:
        a, b: features (n, d), :class:`FeatureStatistics`, or (mean (d,), covariance (d, d)); any mixture of these.
        unbiased: covariances of samples are divided by n − 1 (True) or n.

    Returns:
        A number ≥ 0, in squared units of the features; accurate to about 1e-13 of the traces, and to about 1e-7 of
        them where eigenvalues of a covariance spread over more than eight decades.

    Raises:
        ArgumentError: for shapes that do not fit, too few samples, or a covariance that is not positive semi-definite.
        DataError: for NaN or infinity.
    """
    return FrechetReference.of(b, unbiased).distance(a, unbiased)
