"""Feature maps for distances between sets: what they have in common, and the principal components of a reference set.

Published Fréchet distances use a network's features (``farfield.metrics.network_features``). Where none fits the data,
and beside one that does, the leading principal components of the training pixels serve: they are fixed by the reference
set alone, need no weights, and keep covariances small enough for a few hundred samples.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.metrics.statistics import FeatureStatistics


@runtime_checkable
class Features(Protocol):
    """A fixed map from samples (N, *event) to features (N, dim); the features of a sample depend on it alone.

    Attributes:
        name: what the features are called in records, e.g. ``"classifier:digits"``.
        dim: their number.
        digest: a SHA-256 of the weights or numbers that define the map.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def dim(self) -> int: ...  # noqa: D102

    @property
    def digest(self) -> str: ...  # noqa: D102

    def __call__(self, x: Tensor) -> Tensor: ...  # noqa: D102


def identify(features: Features) -> dict[str, Any]:
    """Name, dimension and digest of a feature map: what every figure made with it is recorded with."""
    return {"name": features.name, "dim": features.dim, "digest": features.digest}


class PCAFeatures:
    """The map ``f(x) = Wᵀ(x − μ)`` onto principal components, computed and returned in float64.

    Args:
        mean: (d,) float64.
        basis: (d, k) float64, orthonormal columns.
        variances: (k,) the variance of the reference data along each column, descending.
        total_variance: the trace of the reference covariance.
    """

    def __init__(self, mean: Tensor, basis: Tensor, variances: Tensor, total_variance: float) -> None:
        self.mean, self.basis, self.variances = mean, basis, variances
        self.total_variance = total_variance

    @property
    def components(self) -> int:
        """The number k of features."""
        return self.basis.shape[1]

    @property
    def name(self) -> str:
        """``"pca:k"``."""
        return f"pca:{self.components}"

    @property
    def dim(self) -> int:
        """The number k of features."""
        return self.components

    @cached_property
    def digest(self) -> str:
        """SHA-256 of mean and basis, to their last bit."""
        total = hashlib.sha256()
        for part in (self.mean, self.basis):
            total.update(part.detach().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()

    @property
    def explained(self) -> float:
        """The fraction of the reference variance that the components hold, in [0, 1]."""
        return float(self.variances.sum()) / self.total_variance if self.total_variance > 0 else 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Features (N, k) float64 of samples (N, *event).

        Raises:
            ArgumentError: if the samples do not have the reference's number of coordinates.
        """
        if x.ndim < 2 or math.prod(x.shape[1:]) != len(self.mean):
            raise ArgumentError(f"x has shape {tuple(x.shape)}; expected {len(self.mean)} coordinates a sample")
        mean, basis = self.mean.to(x.device), self.basis.to(x.device)
        blocks = [(block.flatten(1).double() - mean) @ basis for block in x.split(4096)]
        return torch.cat(blocks) if blocks else torch.empty(0, self.components, dtype=torch.float64)

    def to_dict(self) -> dict[str, Any]:
        """The map's description, without its arrays."""
        return {"features": "pca", "components": self.components, "explained": self.explained}


def pca_features(data: Tensor, components: int = 40) -> PCAFeatures:
    """The principal components of ``data`` as a fixed feature map.

    The covariance (divided by N − 1) is accumulated in float64; the sign of each component is chosen so that its entry
    of largest magnitude is positive, which makes the map a function of the data alone.

    Args:
        data: (N, *event), N ≥ 2.
        components: k, from 1 to the number of coordinates.

    Raises:
        ArgumentError: for fewer than two samples or an impossible ``components``.
    """
    from scipy.linalg import eigh

    dim = math.prod(data.shape[1:])
    if not 1 <= components <= dim:
        raise ArgumentError(f"components = {components}; expected 1 to {dim}, the number of coordinates")
    statistics = FeatureStatistics(dim)
    for block in data.split(4096):
        statistics.update(block.flatten(1))
    covariance = statistics.covariance()
    values, vectors = eigh(covariance.numpy(), subset_by_index=(dim - components, dim - 1))
    basis = torch.from_numpy(vectors.copy()).flip(1)
    lead = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * torch.where(lead < 0, -1.0, 1.0)
    variances = torch.from_numpy(values.copy()).flip(0).clamp_(min=0)
    return PCAFeatures(statistics.mean(), basis.contiguous(), variances, float(covariance.trace()))
