"""Mean and covariance of a stream of features, in float64, the same to the last bit however the stream is cut.

Rows are accumulated about a shift c, the first row of the stream, which keeps the digits that raw second moments lose:

    mean = c + s/n,    s = Σ (x − c);        covariance = (Σ (x − c)(x − c)ᵀ − s sᵀ/n) / (n − 1).

Incoming rows wait in a buffer and enter the sums in blocks of a fixed number, so the arithmetic, and with it the
result, does not depend on the batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from farfield.errors import ArgumentError, DataError

_BLOCK = 1024


class FeatureStatistics:
    """Streaming mean and covariance of features in ``dim`` dimensions.

    Example: ``FeatureStatistics(40).update(first).update(second).covariance()``.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ArgumentError(f"dim = {dim}; expected at least 1")
        self.dim = dim
        self.count = 0
        self._shift = torch.zeros(dim, dtype=torch.float64)
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._outer = torch.zeros(dim, dim, dtype=torch.float64)
        self._pending: list[Tensor] = []
        self._waiting = 0

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """The statistics of features (n, d) held in memory."""
        if features.ndim != 2:
            raise ArgumentError(f"features have shape {tuple(features.shape)}; expected (n, d)")
        return cls(features.shape[1]).update(features)

    def update(self, features: Tensor) -> FeatureStatistics:
        """Take in a batch (n, dim) of any size, on any device; returns self.

        Raises:
            ArgumentError: for another shape.
            DataError: for NaN or infinity.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ArgumentError(f"features have shape {tuple(features.shape)}; expected (n, {self.dim})")
        rows = features.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(rows).all()):
            raise DataError("features hold NaN or infinity")
        if self.count == 0 and len(rows):
            self._shift = rows[0].clone()
        self.count += len(rows)
        while len(rows):
            take = min(len(rows), _BLOCK - self._waiting)
            self._pending.append((rows[:take] - self._shift).contiguous())
            self._waiting += take
            rows = rows[take:]
            if self._waiting == _BLOCK:
                block = torch.cat(self._pending)
                self._sum += block.sum(0)
                self._outer += block.T @ block
                self._pending, self._waiting = [], 0
        return self

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Σ (x − c) and Σ (x − c)(x − c)ᵀ over all rows, those that wait included; nothing is changed."""
        if not self._pending:
            return self._sum, self._outer
        block = torch.cat(self._pending)
        return self._sum + block.sum(0), self._outer + block.T @ block

    def mean(self) -> Tensor:
        """The mean, (dim,) float64.

        Raises:
            ArgumentError: before the first row.
        """
        if self.count < 1:
            raise ArgumentError("the mean needs at least one row")
        return self._shift + self._moments()[0] / self.count

    def covariance(self, unbiased: bool = True) -> Tensor:
        """The covariance, (dim, dim) float64, symmetric.

        Args:
            unbiased: divide by n − 1, as FID implementations do, rather than by n.

        Raises:
            ArgumentError: with fewer than two rows (one, where not ``unbiased``).
        """
        if self.count < 1 + unbiased:
            raise ArgumentError(f"{self.count} rows have no covariance; at least {1 + unbiased} are needed")
        total, outer = self._moments()
        matrix = (outer - torch.outer(total, total) / self.count) / (self.count - unbiased)
        return (matrix + matrix.T) / 2

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both streams together, as a new object; exact up to rounding (Chan et al. 1979).

        Raises:
            ArgumentError: for another dimension.
        """
        if other.dim != self.dim:
            raise ArgumentError(f"dim = {other.dim}; expected {self.dim} to merge")
        out = FeatureStatistics(self.dim)
        out.count = self.count + other.count
        out._shift = (self if self.count else other)._shift.clone()
        for part in (self, other):
            total, outer = part._moments()
            step = part._shift - out._shift
            cross = torch.outer(step, total)
            out._sum += total + part.count * step
            out._outer += outer + cross + cross.T + part.count * torch.outer(step, step)
        return out
