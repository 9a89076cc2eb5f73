"""The Gaussian law, whose every function is one spectral filter ``μ + U f(λ, σ) Uᵀ (x − μ)``.

Denoiser ``f = λ/(λ + σ²)``, flow map of the sampling ODE ``f = sqrt((σ'² + λ)/(σ² + λ))``, colouring of white noise
``f = sqrt(λ + σ²)`` (Wang & Vastola 2024, Eqs. 12-17).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.distributions.base import Distribution, level
from farfield.distributions.curvature import check_count
from farfield.distributions.projection import GaussianProjection
from farfield.errors import ArgumentError, DataError
from farfield.numerics import arrays
from farfield.numerics.covariance_sums import MomentSums, Shifted
from farfield.numerics.shrinkage import Regulariser, Shrinkage
from farfield.numerics.spectrum import Spectrum, Tail

_TINY = 1e-300


def _is_wide(data: Tensor | Iterable[Any]) -> tuple[Tensor | Iterable[Any], bool]:
    """The data, whole again if they can be read only once, and whether they are float64."""
    first: Any = data
    if not hasattr(data, "dtype"):
        source = iter(data)
        first = next(source, None)
        if source is data and first is not None:
            data = itertools.chain([first], source)
    return data, str(getattr(first, "dtype", "")).endswith("float64")


class Gaussian(Distribution):
    """``N(mean, covariance)`` on events of any shape.

    Args:
        mean: (*event).
        covariance: (d, d) with d the number of coordinates, or a :class:`Spectrum`.

    Raises:
        ArgumentError: if the sizes disagree or a value is not finite.
    """

    mean: Tensor
    spectrum: Spectrum

    def __init__(self, mean: Tensor, covariance: Tensor | Spectrum) -> None:
        super().__init__(tuple(mean.shape))
        if not bool(torch.isfinite(mean).all()):
            raise ArgumentError("mean holds values that are not finite")
        spectrum = covariance if isinstance(covariance, Spectrum) else Spectrum.from_covariance(covariance)
        if spectrum.dim != self.dim:
            raise ArgumentError(f"covariance acts on {spectrum.dim} coordinates; mean has {self.dim}")
        mean = mean.detach()
        self.register_buffer("mean", mean.clone() if mean.dtype == torch.float64 else mean.to(torch.float32).clone())
        self.spectrum = spectrum if spectrum.values.device == mean.device else spectrum.to(mean.device)

    @classmethod
    def fit(
        cls,
        data: Tensor | Iterable[Any] | MomentSums,
        rank: int | float | None = None,
        basis: Literal["pca", "dct"] = "pca",
        tail: Tail = "mean",
        shrinkage: Shrinkage = None,
        correction: int = 0,
        jitter: float = 0.0,
    ) -> Gaussian:
        """The Gaussian with the data's mean and covariance (divisor N by default), in streaming passes.

        The mean is float64 where the data are, float32 otherwise; eigenvalues are always float64. With fewer points
        than coordinates the directions that the data do not span have variance 0, unless there is shrinkage.

        Args:
            data: (N, *event), a tensor or an array (which may be memory-mapped), an iterable of such blocks, or
                :class:`~farfield.numerics.covariance_sums.MomentSums` of them.
            rank: how many eigenvalues to keep one by one, or the fraction of the variance (between 0 and 1) that the
                fewest of them have to keep; all by default.
            basis: ``"pca"`` for the eigenvectors of the covariance; ``"dct"`` for a covariance that is diagonal in the
                cosine transform after a rotation of the channels, at the cost of O(d) memory.
            tail: what stands for the eigenvalues left out, their mean or zero.
            shrinkage: draw the covariance towards a multiple of the identity, ``(1 − ρ) Σ + ρ tr Σ / d``, before the
                rank is cut: ρ itself, or ``"ledoit_wolf"`` (Ledoit & Wolf 2004) or ``"oas"`` (Chen et al. 2010).
            correction: the divisor is N minus this.
            jitter: added to every eigenvalue.

        Raises:
            DataError: if the data are empty or hold values that are not finite.
            ArgumentError: if an option is unknown, or ``"pca"`` in more than 4096 dimensions comes without a rank.
        """
        from farfield.numerics import moments

        regulariser = Regulariser(shrinkage, correction, jitter)
        if basis not in ("pca", "dct"):
            raise ArgumentError(f"basis = {basis!r}; expected 'pca' or 'dct'")
        if isinstance(data, MomentSums):
            wide = data.dtype == torch.float64
        else:
            data, wide = _is_wide(data)
        if basis == "dct":
            mean, spectrum = moments.transformed(data, rank, tail, regulariser)
            spectrum = spectrum.double() if wide else spectrum.float()
        else:
            mean, spectrum = moments.principal(data, rank, tail, regulariser)
        return cls(mean if wide else mean.float(), spectrum)

    @classmethod
    def isotropic(cls, mean: Tensor, variance: float = 0.0) -> Gaussian:
        """``N(mean, variance I)``; with variance 0 the mean alone, whose denoiser is constant and score ``(μ − x)/σ²``.

        (Wang & Vastola 2024, Eq. 29.)
        """
        return cls(mean, Spectrum.isotropic(mean.numel(), variance))

    @classmethod
    def fit_isotropic(cls, data: Tensor | Iterable[Any], variance: bool = True) -> Gaussian:
        """The isotropic law with the data's mean and, with ``variance``, their mean variance ``tr Σ/d``: one pass.

        The mean is float64 where the data are, float32 otherwise. Arguments and errors as for :meth:`fit`.
        """
        data, wide = _is_wide(data)
        run, squares = Shifted(), 0.0
        for y in run.rows(data):
            squares += float(y.square().sum())
        mean = run.mean
        total = max(squares / run.count - float((run.total / run.count).square().sum()), 0.0)
        return cls.isotropic(mean if wide else mean.float(), total / mean.numel() if variance else 0.0)

    # -- the law ------------------------------------------------------------------------------------------------------

    def _gains(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, float | Tensor]:
        """λ/(λ + σ²) in float64, for the spectrum (r,) or (B, r) and for its tail; 0 where λ = σ = 0."""
        self.check_shape(x)
        s = level(sigma, self.spectrum.values.device, x.shape[0])
        s2 = s * s
        values, tail = self.spectrum.values, self.spectrum.tail
        return values / (values + s2 + _TINY), tail / (tail + s2 + _TINY)

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``μ + Σ (Σ + σ²)⁻¹ (x − μ)``, the posterior mean (Wang & Vastola 2024, Eq. 12)."""
        mean = self.mean.to(x.dtype).flatten()
        gains, tail = self._gains(x, sigma)
        return self.spectrum.filter(x.flatten(1) - mean, gains, tail, offset=mean).view(x.shape)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """``D(x, σ)`` and ``Σ (Σ + σ²)⁻¹ v``."""
        gains, tail = self._gains(x, sigma)
        return self(x, sigma), self.spectrum.filter(v.flatten(1), gains, tail).view(v.shape)

    def trace(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``Σ_k λ_k/(λ_k + σ²)``, (B,) in float64."""
        gains, tail = self._gains(x, sigma)
        total = gains.sum(-1)
        if self.spectrum.tail_dim:
            rest = tail.squeeze(-1) if isinstance(tail, Tensor) and tail.ndim else tail
            total = total + self.spectrum.tail_dim * rest
        return total.expand(x.shape[0])

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0, **condition: Any) -> Tensor:
        """``log N(x; μ, Σ + σ² I)``, assembled in float64: (B,).

        Raises:
            ArgumentError: at σ = 0 when the covariance is singular, for then there is no density.
        """
        self.check_shape(x)
        s = self._regular(sigma, "sigma", x.shape[0])
        values, tail_dim = self.spectrum.values, self.spectrum.tail_dim
        y = x.flatten(1).double() - self.mean.double().flatten()
        c = self.spectrum.project(y)
        spread = values + s * s
        total = (c * c / spread + spread.log()).sum(1) + self.dim * math.log(2 * math.pi)
        if tail_dim:
            rest = self.spectrum.tail + s * s
            # The residual itself, not a difference of squared norms, which cancels when x is near the span.
            residual = (y - self.spectrum.expand(c)).square().sum(1)
            if isinstance(rest, Tensor):
                rest = rest.squeeze(-1) if rest.ndim else rest
                total = total + residual / rest + tail_dim * rest.log()
            else:
                total = total + residual / rest + tail_dim * math.log(rest)
        return -0.5 * total

    def _regular(self, sigma: float | Tensor, name: str, rows: int | None = None) -> float | Tensor:
        if not isinstance(sigma, Tensor) and not (sigma > 0 or (sigma == 0 and self.spectrum.smallest > 0)):
            reason = "the covariance is singular" if sigma == 0 else "a noise level is not negative"
            raise ArgumentError(f"{name} = {sigma}: {reason}; expected a positive number")
        return level(sigma, self.spectrum.values.device, rows)

    def posterior_spectrum(
        self, x: Tensor, sigma: float | Tensor, count: int, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """``σ² λ_k/(λ_k + σ²)`` and the eigenvectors: the same for every state, as :meth:`Distribution.posterior_spectrum`."""
        self.check_shape(x)
        check_count(count, self.dim)
        spectrum, rows = self.spectrum, x.shape[0]
        s = level(sigma, spectrum.values.device, rows)
        s2 = torch.as_tensor(s * s, dtype=torch.float64, device=spectrum.values.device).expand(rows, 1)
        values, directions = spectrum.leading(count)
        vectors = directions.to(x.dtype).view(1, count, *self.event_shape)
        return s2 * values / (values + s2 + _TINY), vectors.expand(rows, *vectors.shape[1:])

    def project(self, x: Tensor, noise: Tensor | None = None, tail: Tail = "zero") -> GaussianProjection:
        """States projected once on the eigenvectors, for many levels and ranks: :mod:`farfield.distributions.projection`.

        Args:
            x: (B, *event); with ``noise`` z the clean part of the states ``x + σ z``.
            noise: (B, *event).
            tail: what stands for the eigenvalues beyond a rank asked for, zero or their mean.
        """
        self.check_shape(x)
        return GaussianProjection(self, x, noise, tail)

    def colour(self, z: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """White noise z (B, *event) to a draw of the law at level σ: ``μ + (Σ + σ²)^½ z``."""
        self.check_shape(z)
        s = level(sigma, self.spectrum.values.device, z.shape[0])
        gains, tail = (self.spectrum.values + s * s).sqrt(), (self.spectrum.tail + s * s) ** 0.5
        mean = self.mean.to(z.dtype).flatten()
        return self.spectrum.filter(z.flatten(1), gains, tail, offset=mean).view(z.shape)

    def sample(self, n: int, generator: torch.Generator | None = None, sigma: float = 0.0) -> Tensor:
        """``n`` draws of N(μ, Σ + σ² I), (n, *event)."""
        device = generator.device if generator is not None else self.mean.device
        z = torch.randn((n, *self.event_shape), generator=generator, dtype=self.mean.dtype, device=device)
        return self.colour(z.to(self.mean.device), sigma)

    # -- the flow -----------------------------------------------------------------------------------------------------

    def flow(self, x: Tensor, sigma_from: float | Tensor, sigma_to: float | Tensor) -> Tensor:
        """The exact solution of ``dx/dσ = (x − D)/σ`` from one level to another, in either direction.

        ``x' = μ + U sqrt((σ'² + λ)/(σ² + λ)) Uᵀ (x − μ)`` (Wang & Vastola 2024, Eqs. 14-17). ``sigma_to`` may be 0.

        Raises:
            ArgumentError: if ``sigma_from`` is 0 and the covariance is singular.
        """
        self.check_shape(x)
        a = self._regular(sigma_from, "sigma_from", x.shape[0])
        b = level(sigma_to, self.spectrum.values.device, x.shape[0])
        values, t = self.spectrum.values, self.spectrum.tail
        gains = ((values + b * b) / (values + a * a)).sqrt()
        tail = ((t + b * b) / (t + a * a)) ** 0.5 if self.spectrum.tail_dim else 1.0
        mean = self.mean.to(x.dtype).flatten()
        return self.spectrum.filter(x.flatten(1) - mean, gains, tail, offset=mean).view(x.shape)

    def flow_log_det(self, sigma_from: float | Tensor, sigma_to: float | Tensor) -> Tensor:
        """``log det`` of :meth:`flow`, () or (B,) in float64: ``log p(x; σ) = log p(x'; σ') + log det``."""
        a = self._regular(sigma_from, "sigma_from")
        b = level(sigma_to, self.spectrum.values.device)
        values, t = self.spectrum.values, self.spectrum.tail
        total = ((values + b * b) / (values + a * a)).log().sum(-1)
        if self.spectrum.tail_dim:
            ratio = torch.as_tensor((t + b * b) / (t + a * a), dtype=torch.float64, device=values.device)
            total = total + self.spectrum.tail_dim * (ratio.squeeze(-1) if ratio.ndim else ratio).log()
        return 0.5 * total

    # -- JSON ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary from which :meth:`from_dict` rebuilds the law bit for bit."""
        return {"type": "Gaussian", "mean": arrays.encode(self.mean), "covariance": self.spectrum.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Gaussian:
        """The law that :meth:`to_dict` wrote.

        Raises:
            DataError: if the dictionary does not hold a Gaussian.
        """
        if not isinstance(value, Mapping) or value.get("type") != "Gaussian":
            raise DataError("not a stored Gaussian: the field 'type' should be 'Gaussian'")
        mean, spectrum = arrays.decode(value.get("mean"), "mean"), Spectrum.from_dict(value.get("covariance", {}))
        try:
            return cls(mean, spectrum)
        except ArgumentError as error:
            raise DataError(f"not a stored Gaussian: {error}") from error
