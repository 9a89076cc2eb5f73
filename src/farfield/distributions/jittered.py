"""The training set with every point blurred by a little Gaussian noise: an imperfect model without a network.

    p₀ = (1/N) Σ_i N(y_i, δ² I),        s = √(σ² + δ²),
    D(x, σ) = x + σ²/(σ² + δ²) (m(x, s) − x),        log p(x; σ) = log p_data(x; s)

where m and p_data belong to the points themselves. The law is a mixture of N equal Gaussians, so all of it is the law of the
points at a raised level. Close to the data its denoiser differs from the training optimum m as a network's does: it
generalises by δ (in the setting of Chen et al., A geometric perspective on diffusion models, section 6).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.distributions.base import Distribution, level
from farfield.distributions.empirical import Empirical
from farfield.errors import ArgumentError
from farfield.processes.base import expand


class Jittered(Distribution):
    """The law of data points with ``N(0, δ² I)`` added, under Gaussian diffusion.

    Args:
        data: (N, *event), floating point, as for :class:`Empirical`; never copied.
        delta: δ > 0, the standard deviation of the jitter, in the data's units.
        labels: (N,) integer classes, to which ``forward(x, sigma, labels=…)`` can restrict the law.
        block: how many points are visited at a time.

    Raises:
        ArgumentError: for δ that is not positive and finite, and for data that :class:`Empirical` refuses.
    """

    def __init__(
        self,
        data: Tensor | np.ndarray,
        delta: float,
        labels: Tensor | np.ndarray | None = None,
        block: int = 4096,
    ) -> None:
        if not 0 < delta < math.inf:
            raise ArgumentError(
                f"delta = {delta}; expected a positive number: without jitter the law is Empirical(data)"
            )
        points = Empirical(data, labels=labels, block=block)
        super().__init__(points.event_shape)
        self.delta = float(delta)
        self.points = points

    def _raised(self, sigma: float | Tensor, rows: int) -> float | Tensor:
        """``√(σ² + δ²)``, a number or float64 () or (B,)."""
        if not isinstance(sigma, Tensor):
            level(sigma, torch.device("cpu"))  # refuses what is no level
            return math.hypot(sigma, self.delta)
        wide = level(sigma, sigma.device, rows)
        assert isinstance(wide, Tensor)
        return (wide.square() + self.delta**2).sqrt().reshape(sigma.shape)

    def _kept(self, sigma: float | Tensor, x: Tensor) -> float | Tensor:
        """``δ²/(σ² + δ²)``, how much of x the denoiser leaves: a number or float64 () or (B,)."""
        if not isinstance(sigma, Tensor):
            return self.delta**2 / (sigma**2 + self.delta**2)
        square = sigma.to(device=x.device, dtype=torch.float64).square()
        return self.delta**2 / (square + self.delta**2)

    def _between(self, kept: float | Tensor, near: Tensor, far: Tensor) -> Tensor:
        """``far + kept (near − far)``: small differences from ``far`` survive where x is large."""
        factor = expand(kept, near)
        return far + (factor.to(near.dtype) if isinstance(factor, Tensor) else factor) * (near - far)

    def forward(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None, **condition: Any) -> Tensor:
        """``x + σ²/(σ² + δ²) (m(x, √(σ² + δ²)) − x)``, shape and type of ``x``; at σ = 0 it is ``x`` to rounding."""
        mean = self.points(x, self._raised(sigma, x.shape[0]), labels=labels)
        return self._between(self._kept(sigma, x), x, mean)

    def log_prob(
        self, x: Tensor, sigma: float | Tensor = 0.0, labels: Tensor | None = None, **condition: Any
    ) -> Tensor:
        """``log p(x; σ)`` in nats, (B,) in float64: the log-density of the points at ``√(σ² + δ²)``."""
        return self.points.log_prob(x, self._raised(sigma, x.shape[0]), labels=labels)

    def jvp(
        self, x: Tensor, sigma: float | Tensor, v: Tensor, labels: Tensor | None = None, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """``D(x, σ)`` and ``(∂D/∂x) v = v + σ²/(σ² + δ²) ((∂m/∂x) v − v)``; one pass over the data."""
        mean, product = self.points.jvp(x, self._raised(sigma, x.shape[0]), v, labels=labels)
        kept = self._kept(sigma, x)
        return self._between(kept, x, mean), self._between(kept, v, product)

    def trace(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None, **condition: Any) -> Tensor:
        """``tr ∂D/∂x = d + σ²/(σ² + δ²) (tr ∂m/∂x − d)``, (B,) in float64."""
        kept, trace = self._kept(sigma, x), self.points.trace(x, self._raised(sigma, x.shape[0]), labels=labels)
        return trace + kept * (self.dim - trace)

    def posterior_spectrum(
        self, x: Tensor, sigma: float | Tensor, count: int, labels: Tensor | None = None, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """The leading eigenpairs of the posterior covariance, as :meth:`Distribution.posterior_spectrum`.

        ``a (δ² + a λ)`` with a = σ²/(σ² + δ²) and λ those of the points' weighted covariance, along the same directions.
        """
        values, vectors = self.points.posterior_spectrum(x, self._raised(sigma, x.shape[0]), count, labels=labels)
        share = 1 - self._kept(sigma, x)
        column = share.unsqueeze(1) if isinstance(share, Tensor) and share.ndim else share
        return column * (self.delta**2 + column * values), vectors

    def sample(self, n: int, generator: torch.Generator | None = None, sigma: float = 0.0) -> Tensor:
        """``n`` points drawn with replacement and jittered, at level σ: (n, *event)."""
        return self.points.sample(n, generator, math.hypot(sigma, self.delta))
