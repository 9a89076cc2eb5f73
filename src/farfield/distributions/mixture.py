"""Mixtures of Gaussians, evaluated for all components at once.

With ``A_i = Σ_i + σ² I`` and responsibilities ``w = softmax_i(log π_i + log N(x; μ_i, A_i))``:

    D = Σ_i w_i d_i,   d_i = μ_i + Σ_i A_i⁻¹ (x − μ_i),   s_i = −A_i⁻¹ (x − μ_i)
    ∂D/∂x v = Σ_i w_i Σ_i A_i⁻¹ v + Σ_i w_i (s_i·v − Σ_j w_j s_j·v) d_i

(Wang & Vastola 2024, Eqs. 133-142.) Every ``Σ_i = U_i diag(λ_i) U_iᵀ + τ_i (I − U_i U_iᵀ)``; the bases lie side by
side in one matrix, so that a batch costs two matrix products and the B×K×d residuals are never formed. Densities are
assembled in float64: their terms are squared distances over σ², which float32 cannot hold at small σ. A posterior mean
needs only the weights that matter, and :mod:`farfield.distributions.mixture_pruning` tells which those are from one
product in float32; it is used on the CPU, for large mixtures, wherever no derivative is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from farfield.distributions import mixture_pruning
from farfield.distributions.base import Distribution, level
from farfield.distributions.curvature import check_count, mixture_spectrum
from farfield.distributions.mixture_pruning import Pruned
from farfield.distributions.mixture_terms import Terms
from farfield.distributions.projection import MixtureProjection
from farfield.distributions.stacking import Bases, stack
from farfield.errors import ArgumentError, DataError
from farfield.numerics import arrays
from farfield.numerics.shrinkage import Regulariser, Shrinkage
from farfield.numerics.spectrum import Spectrum, Tail


def _derive_anew(law: nn.Module, keys: Any) -> None:
    """After a state has been loaded; a function of its own, so that a law can be copied and pickled."""
    assert isinstance(law, GaussianMixture)
    law._derive()


class GaussianMixture(Distribution):
    """``Σ_i π_i N(μ_i, Σ_i)``.

    Memory: the bases (K, d, r) in the type of the means, float32 or float64, and for float32 a correction (K, r, r); the
    remaining statistics are float64 whatever ``.to(dtype)`` says. Float64 states on float32 bases cost no second copy;
    float32 states on float64 bases cost a float32 one, made at the first call: ``.float()`` makes it the only one.

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
    log_weights: Tensor
    centre: Tensor
    centred: Tensor
    half_norms: Tensor
    values: Tensor
    mask: Tensor
    tails: Tensor
    tail_dims: Tensor
    basis_means: Tensor
    stacked: Bases

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
        dtype = torch.float64 if means.dtype == torch.float64 else torch.float32
        stacked, values, mask, tails = stack(covariances, count, self.dim, dtype, means.device)
        self.components = count
        self.rank = values.shape[1]
        self.register_buffer("means", means.detach().to(dtype).clone())
        for name, value in {"weights_": pi, "values": values, "mask": mask, "tails": tails}.items():
            self.register_buffer(name, value)
        self.stacked = stacked
        self._derive()
        self.register_load_state_dict_post_hook(_derive_anew)

    def _derive(self) -> None:
        """What follows from weights, means and covariances and is no part of the state."""
        centre = self.weights_ @ self.means.double().flatten(1)
        centred = self.means.double().flatten(1) - centre
        tail_dims = self.dim - self.mask.sum(1)
        # Known now, so that no later call has to wait for the device to learn it.
        low = torch.where(self.mask > 0, self.values, torch.inf).amin().item() if self.values.numel() else math.inf
        self.smallest = min(low, torch.where(tail_dims > 0, self.tails, torch.inf).amin().item())
        for name, value in {
            "log_weights": self.weights_.log(),
            "centre": centre,
            "centred": centred,
            "half_norms": centred.square().sum(1) / 2,
            "tail_dims": tail_dims,
        }.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("basis_means", self._basis_means(), persistent=False)

    def _basis_means(self) -> Tensor:
        """U_iᵀ (μ_i − centre), (K, r)."""
        own = [self.stacked.project(self.centred[k : k + 1], slice(k, k + 1))[0] for k in range(self.components)]
        return torch.cat(own)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GaussianMixture:
        # The statistics stay in float64 through a change of type.
        before = {name: value for name, value in self._buffers.items() if name != "means" and value is not None}
        dtype = self.stacked.rows.dtype
        super()._apply(fn, recurse)
        for name, value in before.items():
            now = self._buffers[name]
            if now is not None and now.dtype != value.dtype:
                self._buffers[name] = value.to(now.device)
        if self.stacked.rows.dtype != dtype and not self.stacked.rows.is_meta:
            self.basis_means = self._basis_means()
        return self

    @property
    def bases(self) -> Tensor:
        """U_i for every component, (K, d, r); columns beyond a component's own rank are zero."""
        return self.stacked.rows.transpose(1, 2)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def _terms(self, x: Tensor, sigma: float | Tensor, index: Tensor | None = None) -> Terms:
        """The batch met with every component in float64, or with those of an index."""
        s = level(sigma, x.device, x.shape[0])
        s2 = s * s
        return Terms(self, x, s2.unsqueeze(-1) if isinstance(s2, Tensor) and s2.ndim else s2, index)

    def _prunes(self, x: Tensor, sigma: float | Tensor) -> bool:
        """Whether components are to be ruled out first: for large products on the CPU of which nothing is recorded."""
        self.check_shape(x)
        level(sigma, x.device, x.shape[0])
        size = x.shape[0] * self.components * self.rank * self.dim
        if x.device.type != "cpu" or size < mixture_pruning.SMALL or self.components == 1:
            return False
        if x.dtype not in (torch.float32, torch.float64) or (x.dtype == self.stacked.rows.dtype == torch.float64):
            return False
        tensors = [x, sigma] if isinstance(sigma, Tensor) else [x]
        if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
            return False
        recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if recorded or any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
            return False
        return bool(torch.as_tensor(sigma).amin() > 0)

    def _batches(self, call: Callable[..., Tensor], x: Tensor, sigma: float | Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return torch.cat([call(self, part, s2) for part, s2 in mixture_pruning.batches(self, x, sigma)])

    def _logits(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        if self._prunes(x, sigma):
            return self._batches(mixture_pruning.logits, x, sigma)
        return self._terms(x, sigma).logits

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``Σ_i w_i (μ_i + Σ_i A_i⁻¹ (x − μ_i))``, shape and type of ``x``.

        For float32 states weights are right to about 1e-5 and components that have less than 1e-9 together are left out.
        """
        if self._prunes(x, sigma):
            return self._batches(mixture_pruning.mean, x, sigma).view(x.shape)
        terms = self._terms(x, sigma)
        w = terms.logits.softmax(1)
        result = self.centre.to(x.dtype)
        for part in terms.parts():
            result = result + terms.mean(part, w, x.dtype)
        return result.view(x.shape)

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0, **condition: Any) -> Tensor:
        """``log Σ_i π_i N(x; μ_i, Σ_i + σ² I)``, (B,) in float64.

        Raises:
            ArgumentError: at σ = 0 when a covariance is singular, for then there is no density.
        """
        if not isinstance(sigma, Tensor) and not (sigma > 0 or (sigma == 0 and self.smallest > 0)):
            raise ArgumentError(f"sigma = {sigma}: a covariance is singular or the level negative; expected sigma > 0")
        return self._logits(x, sigma).logsumexp(1)

    def weights(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Responsibilities w, (B, K) in float64: the probability that x came from component i.

        Components that are certain to have less than 1e-30 together may get exactly 0.
        """
        return self._logits(x, sigma).softmax(1)

    def prune(self, x: Tensor, sigma: float | Tensor, eps: float = 1e-9) -> Pruned:
        """Which components can matter: those left out have, for each state, at most ``eps`` of the weight together.

        One product with the bases in float32, with a bound on its rounding; see
        :mod:`farfield.distributions.mixture_pruning`.

        Args:
            x: (B, *event).
            sigma: a positive number, () or (B,).
            eps: in (0, 1).

        Raises:
            ArgumentError: if ``eps`` or ``sigma`` is out of range.
        """
        if not 0 < eps < 1:
            raise ArgumentError(f"eps = {eps}; expected a number between 0 and 1")
        self.check_shape(x)
        level(sigma, x.device, x.shape[0])
        if not bool((torch.as_tensor(sigma) > 0).all()):
            raise ArgumentError(f"sigma = {sigma}; expected a positive level")
        if not len(x):
            return Pruned(x.new_zeros(0, self.components, dtype=torch.bool), x.new_zeros(0, dtype=torch.float64))
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            found = [
                mixture_pruning.Screen(self, part.flatten(1).double() - self.centre, s2, eps)
                for part, s2 in mixture_pruning.batches(self, x, sigma)
            ]
        return Pruned(torch.cat([s.kept for s in found]), torch.cat([s.discarded for s in found]))

    def _alive(self, x: Tensor, sigma: float | Tensor) -> Tensor | None:
        """The components that matter to any of the states, or None for all."""
        if not self._prunes(x, sigma):
            return None
        return torch.nonzero(self.prune(x, sigma, 1e-15).kept.any(0)).squeeze(1)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """``D(x, σ)`` and ``(∂D/∂x) v`` in closed form."""
        value, product = self._terms(x, sigma, self._alive(x, sigma)).jvp(v, x.dtype)
        return value.view(x.shape), product.view(x.shape)

    def trace(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``tr ∂D/∂x = Σ w_i tr(Σ_i A_i⁻¹) + σ² (Σ w_i ‖s_i‖² − ‖Σ w_i s_i‖²)``, (B,) in float64."""
        return self._terms(x, sigma, self._alive(x, sigma)).trace()

    def posterior_spectrum(
        self, x: Tensor, sigma: float | Tensor, count: int, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`Distribution.posterior_spectrum`, from the bases and means of the components that carry weight."""
        self.check_shape(x)
        check_count(count, self.dim)
        values, vectors = mixture_spectrum(self, x, sigma, count)
        return values, vectors.to(x.dtype).view(x.shape[0], count, *self.event_shape)

    def project(self, x: Tensor, noise: Tensor | None = None, tail: Tail = "zero") -> MixtureProjection:
        """States projected once on all bases, for many levels and ranks: :mod:`farfield.distributions.projection`.

        Args:
            x: (B, *event); with ``noise`` z the clean part of the states ``x + σ z``.
            noise: (B, *event).
            tail: what stands for the eigenvalues beyond a rank asked for, zero or their mean.
        """
        self.check_shape(x)
        return MixtureProjection(self, x, noise, tail)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator | None = None, sigma: float = 0.0) -> Tensor:
        """``n`` draws at noise level σ, (n, *event)."""
        device = generator.device if generator is not None else self.means.device
        choice = torch.zeros(0, dtype=torch.int64, device=device)
        if n:
            choice = torch.multinomial(self.weights_.to(device), n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, generator=generator, dtype=self.means.dtype, device=device)
        choice, z = choice.to(self.means.device), z.to(self.means.device)
        tail = (self.tails + sigma**2).sqrt()
        result = self.means.flatten(1)[choice] + tail[choice].unsqueeze(1).to(z.dtype) * z
        if self.rank:
            for k in torch.unique(choice).tolist():
                rows, basis = choice == k, self.stacked.straight(k).to(z.dtype)
                gain = ((self.values[k] + sigma**2).sqrt() - tail[k]) * self.mask[k]
                result[rows] += ((z[rows] @ basis) * gain.to(z.dtype)) @ basis.T
        return result.view(n, *self.event_shape)

    # -- fitting ------------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        data: Tensor | np.ndarray,
        components: int,
        rank: int | float | None = None,
        seed: int = 0,
        tail: Tail = "mean",
        floor: float = 0.0,
        shrinkage: Shrinkage = None,
        shared_basis: bool = False,
        refine: int = 0,
        correction: int = 0,
        jitter: float = 0.0,
    ) -> GaussianMixture:
        """Mini-batch k-means, then mean, covariance (divisor N_i) and frequency of every cluster.

        (Wang & Vastola 2024, A.5.) Without a rank the mixture has exactly the data's mean and covariance. Empty
        clusters are dropped; a cluster of one point is a point mass. With ``tail="mean"`` every component is the
        probabilistic PCA of its cluster (Tipping & Bishop 1999). For many K and ranks see ``MixtureFamily``.

        Args:
            data: (N, *event), which may be memory-mapped.
            components: the number of clusters asked for.
            rank: eigenvalues kept for each component, or the fraction of its variance (between 0 and 1) that they
                have to keep; all by default.
            seed: of the clustering.
            tail: what stands for the eigenvalues left out, their mean or zero.
            floor: no eigenvalue is smaller than this.
            shrinkage: of each covariance towards a multiple of the identity, as for :meth:`Gaussian.fit`.
            shared_basis: make all components diagonal in the principal axes of the whole set, ``rank`` of them.
            refine: how many iterations of expectation maximisation follow; see ``mixture_em.refine``.
            correction: the divisor is N_i minus this; for single points it makes no difference.
            jitter: added to every eigenvalue.
        """
        from farfield.distributions.mixture_fit import fit

        regulariser = Regulariser(shrinkage, correction, jitter)
        return cls(*fit(data, components, rank, seed, tail, floor, regulariser, shared_basis, refine))

    @classmethod
    def per_class(
        cls,
        data: Tensor | np.ndarray,
        labels: Tensor | Sequence[int],
        rank: int | float | None = None,
        tail: Tail = "mean",
        floor: float = 0.0,
        shrinkage: Shrinkage = None,
        minimum: int = 0,
        correction: int = 0,
        jitter: float = 0.0,
    ) -> GaussianMixture:
        """One component for each label (N,) that occurs, in ascending order; arguments as for :meth:`fit`.

        A class of fewer than ``minimum`` points gets the covariance within the classes, pooled over all of them.
        """
        from farfield.distributions.mixture_fit import per_class

        regulariser = Regulariser(shrinkage, correction, jitter)
        return cls(*per_class(data, labels, rank, tail, floor, regulariser, minimum))

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
        if means.ndim < 2:
            raise DataError(f"means has shape {tuple(means.shape)}; expected (K, *event)")
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
