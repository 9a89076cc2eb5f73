"""Mixtures of Gaussians, evaluated for all components at once.

With ``A_i = Σ_i + σ² I`` and responsibilities ``w = softmax_i(log π_i + log N(x; μ_i, A_i))``:

    D = Σ_i w_i d_i,   d_i = μ_i + Σ_i A_i⁻¹ (x − μ_i),   s_i = −A_i⁻¹ (x − μ_i)
    ∂D/∂x v = Σ_i w_i Σ_i A_i⁻¹ v + Σ_i w_i (s_i·v − Σ_j w_j s_j·v) d_i

(Wang & Vastola 2024, Eqs. 133-142.) Every ``Σ_i = U_i diag(λ_i) U_iᵀ + τ_i (I − U_i U_iᵀ)``; the bases lie side by
side in one matrix, so that a batch costs two matrix products and the B×K×d residuals are never formed. Densities are
assembled in float64: their terms are squared distances over σ², which float32 cannot hold at small σ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.distributions.base import Distribution, level
from farfield.distributions.stacking import stack
from farfield.errors import ArgumentError, DataError
from farfield.numerics import arrays
from farfield.numerics.spectrum import Spectrum, Tail

_TINY = 1e-300
#: Coefficients B·K·r held at a time: 128 MB in float64.
_CHUNK = 1 << 24


@dataclass
class _Part:
    """Components [start, stop): squared distances (B, k), coefficients c (B, k, r) and gains, all in float64."""

    start: int
    stop: int
    c: Tensor
    spread: Tensor
    rest: Tensor
    residual: Tensor


class GaussianMixture(Distribution):
    """``Σ_i π_i N(μ_i, Σ_i)``.

    Args:
        weights: π, (K,), non-negative; normalised to sum 1.
        means: (K, *event).
        covariances: (K, d, d); or K spectra; or one spectrum shared by all; or a stack ``(bases (K, d, r), values
            (K, r), tails (K,))`` of low-rank covariances with orthonormal columns. Rank 0 with a tail is isotropic.

    Raises:
        ArgumentError: if the sizes disagree, a weight is negative, or a value is not finite.
    """

    weights_: Tensor
    means: Tensor
    centre: Tensor
    columns: Tensor
    values: Tensor
    mask: Tensor
    tails: Tensor
    tail_dims: Tensor

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor,
        covariances: Tensor | Spectrum | Sequence[Spectrum] | tuple[Tensor, Tensor, Tensor],
    ) -> None:
        super().__init__(tuple(means.shape[1:]))
        pi = torch.as_tensor(weights, dtype=torch.float64, device=means.device).detach()
        count = means.shape[0]
        if pi.shape != (count,) or count == 0:
            raise ArgumentError(f"weights has shape {tuple(pi.shape)} for {count} means; expected ({count},)")
        if not bool((pi >= 0).all()) or not 0 < float(pi.sum()) < math.inf:
            raise ArgumentError("weights are not finite, non-negative and of positive sum")
        if not bool(torch.isfinite(means).all()):
            raise ArgumentError("means holds values that are not finite")
        pi = pi / pi.sum()
        bases, values, mask, tails = stack(covariances, count, self.dim, means.device)
        centre = (pi @ means.detach().double().flatten(1)).detach()
        centred = means.detach().double().flatten(1) - centre
        self.components = count
        self.rank = values.shape[1]
        # Known now, so that no later call has to wait for the device to learn it.
        tail_dims = self.dim - mask.sum(1)
        low = torch.where(mask > 0, values, torch.inf).amin().item() if values.numel() else math.inf
        low_tail = torch.where(tail_dims > 0, tails, torch.inf).amin().item()
        self.smallest = min(low, low_tail)
        wide = means.detach().dtype == torch.float64
        self.register_buffer("means", means.detach().clone() if wide else means.detach().float().clone())
        for name, value in {
            "weights_": pi,
            "log_weights": pi.log(),
            "centre": centre,
            "centred": centred,
            "half_norms": centred.square().sum(1) / 2,
            # All bases side by side, (d, K·r): a slice of columns serves a matrix product without a copy.
            "columns": bases.permute(1, 0, 2).reshape(self.dim, -1).contiguous(),
            "values": values,
            "mask": mask,
            "tails": tails,
            "tail_dims": tail_dims,
            "basis_means": torch.einsum("kdr,kd->kr", bases, centred),
        }.items():
            self.register_buffer(name, value, persistent=False)
        self._lift: Tensor | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GaussianMixture:
        # The statistics stay in float64 through a change of type.
        before = {name: value for name, value in self._buffers.items() if name != "means" and value is not None}
        super()._apply(fn, recurse)
        for name, value in before.items():
            now = self._buffers[name]
            if now is not None and now.dtype != value.dtype:
                self._buffers[name] = value.to(now.device)
        self._lift = None
        return self

    @property
    def bases(self) -> Tensor:
        """U_i for every component, (K, d, r) in float64; columns beyond a component's own rank are zero."""
        return self.columns.view(self.dim, self.components, self.rank).permute(1, 0, 2)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def _levels(self, sigma: float | Tensor, x: Tensor) -> Tensor | float:
        """σ² as a number or (B, 1, 1) in float64."""
        s = level(sigma, x.device, x.shape[0])
        return (s * s).reshape(-1, 1, 1) if isinstance(s, Tensor) else s * s

    def _parts(self, y: Tensor, s2: Tensor | float) -> Iterator[_Part]:
        half = y.square().sum(1, keepdim=True) / 2
        step = max(1, _CHUNK // max(1, y.shape[0] * self.rank))
        for i in range(0, self.components, step):
            j = min(i + step, self.components)
            squared = 2 * (half + self._buf("half_norms")[i:j] - y @ self._buf("centred")[i:j].T).clamp(min=0)
            rest = self.tails[i:j] + (s2.squeeze(-1) if isinstance(s2, Tensor) else s2)
            spread = self.values[i:j] + s2
            if self.rank:
                c = (y @ self.columns[:, i * self.rank : j * self.rank]).view(-1, j - i, self.rank)
                c = c - self._buf("basis_means")[i:j]
                residual = (squared - c.square().sum(-1)).clamp(min=0)
            else:
                c, residual = y.new_zeros(y.shape[0], j - i, 0), squared
            residual = torch.where(self.tail_dims[i:j] > 0, residual, 0.0)
            yield _Part(i, j, c, spread, rest, residual)

    def _buf(self, name: str) -> Tensor:
        value = self._buffers[name]
        assert value is not None
        return value

    def _logits(self, part: _Part) -> Tensor:
        """``log π_i + log N(x; μ_i, A_i)``, (B, k)."""
        i, j = part.start, part.stop
        tail_dims = self.tail_dims[i:j]
        total = part.residual / (part.rest + _TINY) + tail_dims * torch.where(tail_dims > 0, part.rest, 1.0).log()
        if self.rank:
            total = total + (part.c.square() / (part.spread + _TINY)).sum(-1)
            total = total + torch.where(self.mask[i:j] > 0, part.spread, 1.0).log().sum(-1)
        return self._buf("log_weights")[i:j] - 0.5 * (total + self.dim * math.log(2 * math.pi))

    def _prepare(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor | float, list[_Part] | None, Tensor]:
        """Centred states, σ², the parts when they fit in memory together, and the logits (B, K)."""
        self.check_shape(x)
        y = x.flatten(1).double() - self.centre
        s2 = self._levels(sigma, x)
        keep: list[_Part] | None = [] if y.shape[0] * self.components * self.rank <= _CHUNK else None
        logits = []
        for part in self._parts(y, s2):
            logits.append(self._logits(part))
            if keep is not None:
                keep.append(part)
        return y, s2, keep, torch.cat(logits, 1)

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``Σ_i w_i (μ_i + Σ_i A_i⁻¹ (x − μ_i))``, shape and type of ``x``."""
        y, s2, keep, logits = self._prepare(x, sigma)
        w = logits.softmax(1)
        result = self.centre.to(x.dtype)
        for part in keep if keep is not None else self._parts(y, s2):
            result = result + self._mean(part, w[:, part.start : part.stop], y, x.dtype)
        return result.view(x.shape)

    def _mean(self, part: _Part, w: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        """``Σ_i w_i (d_i − centre)`` over one part, for any weights: (B, d)."""
        i, j = part.start, part.stop
        tail = self.tails[i:j] / (part.rest + _TINY)
        result = ((w * (1 - tail)) @ self._buf("centred")[i:j]).to(dtype)
        result = result + ((w * tail).sum(1, keepdim=True) * y).to(dtype)
        if self.rank:
            gain = self.values[i:j] / (part.spread + _TINY) - tail.unsqueeze(-1)
            result = result + self._raise((w.unsqueeze(-1) * gain * part.c).flatten(1), i, j, dtype)
        return result

    def _raise(self, coefficients: Tensor, i: int, j: int, dtype: torch.dtype) -> Tensor:
        """``Σ_i U_i a_i`` from coefficients (B, k·r)."""
        columns = self.columns
        if dtype != columns.dtype:
            if self._lift is None or self._lift.dtype != dtype or self._lift.device != columns.device:
                # An ordinary tensor, of use outside of inference mode too.
                with torch.inference_mode(False):
                    self._lift = columns.to(dtype)
            columns = self._lift
        return coefficients.to(dtype) @ columns[:, i * self.rank : j * self.rank].T

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0, **condition: Any) -> Tensor:
        """``log Σ_i π_i N(x; μ_i, Σ_i + σ² I)``, (B,) in float64.

        Raises:
            ArgumentError: at σ = 0 when a covariance is singular, for then there is no density.
        """
        if not isinstance(sigma, Tensor) and not (sigma > 0 or (sigma == 0 and self.smallest > 0)):
            raise ArgumentError(f"sigma = {sigma}: a covariance is singular or the level negative; expected sigma > 0")
        return self._prepare(x, sigma)[3].logsumexp(1)

    def weights(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Responsibilities w, (B, K) in float64: the probability that x came from component i."""
        return self._prepare(x, sigma)[3].softmax(1)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """``D(x, σ)`` and ``(∂D/∂x) v`` in closed form."""
        y, s2, keep, logits = self._prepare(x, sigma)
        w = logits.softmax(1)
        u = v.flatten(1).double()
        parts = keep if keep is not None else list[_Part]()
        slopes = []
        for part in parts or self._parts(y, s2):
            slopes.append(self._slope(part, y, u)[0])
        slope = torch.cat(slopes, 1)
        tilt = w * (slope - (w * slope).sum(1, keepdim=True))
        value, product = self.centre.to(x.dtype), torch.zeros_like(x).flatten(1)
        for part in parts or self._parts(y, s2):
            i, j = part.start, part.stop
            value = value + self._mean(part, w[:, i:j], y, x.dtype)
            product = product + self._mean(part, tilt[:, i:j], y, x.dtype)
            tail = self.tails[i:j] / (part.rest + _TINY)
            product = product + ((w[:, i:j] * tail).sum(1, keepdim=True) * u).to(x.dtype)
            if self.rank:
                gain = self.values[i:j] / (part.spread + _TINY) - tail.unsqueeze(-1)
                moved = w[:, i:j].unsqueeze(-1) * gain * self._slope(part, y, u)[1]
                product = product + self._raise(moved.flatten(1), i, j, x.dtype)
        return value.view(x.shape), product.view(x.shape)

    def _slope(self, part: _Part, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """``s_i · u`` (B, k) and ``U_iᵀ u`` (B, k, r)."""
        i, j = part.start, part.stop
        along = (y * u).sum(1, keepdim=True) - u @ self._buf("centred")[i:j].T
        if not self.rank:
            return -along / (part.rest + _TINY), part.c
        c = (u @ self.columns[:, i * self.rank : j * self.rank]).view(-1, j - i, self.rank)
        along = torch.where(self.tail_dims[i:j] > 0, along - (part.c * c).sum(-1), 0.0)
        return -(along / (part.rest + _TINY) + (part.c * c / (part.spread + _TINY)).sum(-1)), c

    def trace(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``tr ∂D/∂x = Σ w_i tr(Σ_i A_i⁻¹) + σ² (Σ w_i ‖s_i‖² − ‖Σ w_i s_i‖²)``, (B,) in float64."""
        y, s2, keep, logits = self._prepare(x, sigma)
        w = logits.softmax(1)
        flat = s2.view(-1) if isinstance(s2, Tensor) else s2
        total, mean = torch.zeros_like(y[:, 0]), torch.zeros_like(y)
        for part in keep if keep is not None else self._parts(y, s2):
            i, j = part.start, part.stop
            wi = w[:, i:j]
            own = self.tail_dims[i:j] * (self.tails[i:j] / (part.rest + _TINY))
            norm = part.residual / (part.rest + _TINY) ** 2
            if self.rank:
                own = own + (self.values[i:j] / (part.spread + _TINY)).sum(-1)
                norm = norm + (part.c / (part.spread + _TINY)).square().sum(-1)
            total = total + (wi * (own + flat_column(flat) * norm)).sum(1)
            mean = mean + self._mean(part, wi, y, torch.float64)
        score = (mean - y).square().sum(1) / flat
        return total - score

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator | None = None, sigma: float = 0.0) -> Tensor:
        """``n`` draws at noise level σ, (n, *event)."""
        device = generator.device if generator is not None else self.means.device
        choice = torch.multinomial(self.weights_.to(device), n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, generator=generator, dtype=self.means.dtype, device=device)
        choice, z = choice.to(self.means.device), z.to(self.means.device)
        tail = (self.tails + sigma**2).sqrt()
        result = self.means.flatten(1)[choice] + tail[choice].unsqueeze(1).to(z.dtype) * z
        if self.rank:
            for k in torch.unique(choice).tolist():
                rows, basis = choice == k, self.bases[k].to(z.dtype)
                gain = ((self.values[k] + sigma**2).sqrt() - tail[k]) * self.mask[k]
                result[rows] += ((z[rows] @ basis) * gain.to(z.dtype)) @ basis.T
        return result.view(n, *self.event_shape)

    # -- fitting ------------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        data: Tensor | np.ndarray,
        components: int,
        rank: int | None = None,
        seed: int = 0,
        tail: Tail = "mean",
        floor: float = 0.0,
    ) -> GaussianMixture:
        """Mini-batch k-means, then mean, covariance (divisor N_i) and frequency of every cluster.

        (Wang & Vastola 2024, A.5.) Without a rank the mixture has exactly the data's mean and covariance. Empty
        clusters are dropped; a cluster of one point is a point mass.

        Args:
            data: (N, *event).
            components: the number of clusters asked for.
            rank: eigenvalues kept for each component; all by default.
            seed: of the clustering.
            tail: what stands for the eigenvalues left out, their mean or zero.
            floor: no eigenvalue is smaller than this.
        """
        from farfield.distributions.mixture_fit import fit

        return cls(*fit(data, components, rank, seed, tail, floor))

    @classmethod
    def per_class(
        cls,
        data: Tensor | np.ndarray,
        labels: Tensor | Sequence[int],
        rank: int | None = None,
        tail: Tail = "mean",
        floor: float = 0.0,
    ) -> GaussianMixture:
        """One component for each label (N,) that occurs, in ascending order; arguments as for :meth:`fit`."""
        from farfield.distributions.mixture_fit import per_class

        return cls(*per_class(data, labels, rank, tail, floor))

    # -- JSON ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary for :meth:`from_dict`."""
        fields = {"weights": self.weights_, "means": self.means, "bases": self.bases, "values": self.values}
        fields |= {"mask": self.mask, "tails": self.tails}
        return {"type": "GaussianMixture"} | {name: arrays.encode(value) for name, value in fields.items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> GaussianMixture:
        """The mixture that :meth:`to_dict` wrote.

        Raises:
            DataError: if the dictionary does not hold a mixture.
        """
        if not isinstance(value, Mapping) or value.get("type") != "GaussianMixture":
            raise DataError("not a stored mixture: the field 'type' should be 'GaussianMixture'")
        means = arrays.decode(value.get("means"), "means")
        count, dim = means.shape[0], math.prod(means.shape[1:])
        values = arrays.decode(value.get("values"), "values")
        rank = values.shape[-1] if values.ndim == 2 else 0
        bases = arrays.decode(value.get("bases"), "bases", (count, dim, rank))
        mask = arrays.decode(value.get("mask"), "mask", (count, rank))
        tails = arrays.decode(value.get("tails"), "tails", (count,))
        weights = arrays.decode(value.get("weights"), "weights", (count,))
        try:
            own = [mask[k] > 0 for k in range(count)]
            spectra = [Spectrum.low_rank(bases[k][:, own[k]], values[k][own[k]], float(tails[k])) for k in range(count)]
            return cls(weights, means, spectra)
        except ArgumentError as error:
            raise DataError(f"not a stored mixture: {error}") from error


def flat_column(s2: Tensor | float) -> Tensor | float:
    """σ² (B,) as a column, a number as it is."""
    return s2.unsqueeze(1) if isinstance(s2, Tensor) else s2
