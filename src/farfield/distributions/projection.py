"""States projected once on the bases of a law: afterwards every noise level, and every rank, costs O(r) a state.

    c_i = U_iᵀ (x − μ_i),  ρ_i = ‖x − μ_i‖² − ‖c_i‖²,  x = y + σ z  ⇒  c_i(σ) = U_iᵀ (y − μ_i) + σ U_iᵀ z

A Gaussian is a mixture of one component here. Log-densities, responsibilities and the denoiser's coordinates in the
bases are sums over k ≤ r of ``c_ik²`` and ``c_ik`` with multipliers that depend on (λ_ik, σ) alone (Wang & Vastola 2024,
Eqs. 12 and 138-139), so that many levels and ranks together are one small matrix product. Only :meth:`Projection.denoise`
and what is made of it returns to d coordinates.

    p = law.project(y, noise=z)                 # the one product with the bases (two with noise)
    p.log_prob(sigmas[:, None])                 # (L, B), densities of y + σ z at every level
    p.logits(sigma, ranks=[1, 4, 16])           # (R, B, K), as if every covariance were truncated to rank 1, 4, 16
    p.error(network(p.state(sigma), sigma), sigma, ranks=[1, 4, 16])    # (R, B), ‖D_network − D_law‖²

``sigma`` is everywhere a number, () or (B,), one level a row; methods that say so also take (L, 1), L levels for all rows,
or (L, B), and then have L in front of B. With ``ranks`` there is an axis R in front of all others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from farfield.distributions.mixture_pruning import combine
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Tail

if TYPE_CHECKING:
    from farfield.distributions.gaussian import Gaussian
    from farfield.distributions.mixture import GaussianMixture

_TINY = 1e-300


class Projection(ABC):
    """What :meth:`Gaussian.project` and :meth:`GaussianMixture.project` return.

    Memory is B·K·r float64 numbers, twice that with noise, and as much again for each rank where every row has a level of
    its own: hand a large batch over in parts.

    Args:
        x: states (B, *event), or the clean part y of noised states ``y + σ z``.
        noise: z, shaped like ``x``, or None.
        c: coefficients ``U_iᵀ (x − μ_i)``, (B, K, r) float64, eigenvalues of every component in descending order.
        cz: ``U_iᵀ z``, (B, K, r), or None.
        residuals: ``‖x − μ_i‖² − ‖c‖²`` (B, K), and with noise ``2 [z·(x − μ_i) − c·cz]`` and ``‖z‖² − ‖cz‖²``.
        values, mask: eigenvalues (K, r) and which of them exist.
        tails: eigenvalue outside of the basis, (K,).
        log_weights: log π, (K,).
        tail: what stands for the eigenvalues beyond a rank that a method is asked for, zero or their mean.
    """

    def __init__(
        self,
        x: Tensor,
        noise: Tensor | None,
        c: Tensor,
        cz: Tensor | None,
        residuals: Sequence[Tensor],
        values: Tensor,
        mask: Tensor,
        tails: Tensor,
        log_weights: Tensor,
        tail: Tail,
    ) -> None:
        if tail not in ("mean", "zero"):
            raise ArgumentError(f"tail = {tail!r}; expected 'mean' or 'zero'")
        self.x, self.noise, self.c, self.cz, self.residuals = x, noise, c, cz, residuals
        self.values, self.mask, self.tails, self.log_weights, self.tail = values, mask, tails, log_weights, tail
        self.rows, self.components, self.rank = c.shape
        self.dim = math.prod(x.shape[1:])
        self.own = mask.sum(1)

    # -- levels and ranks ---------------------------------------------------------------------------------------------

    def _level(self, sigma: float | Tensor, many: bool = True) -> Tensor:
        """σ in float64: (), (B,) or, where there may be many, (L, 1) or (L, B)."""
        s = torch.as_tensor(sigma, dtype=torch.float64, device=self.c.device)
        if s.ndim > (2 if many else 1) or (s.ndim and s.shape[-1] not in (1, self.rows)):
            more = f", (L, 1) or (L, {self.rows})" if many else ""
            raise ArgumentError(f"sigma has shape {tuple(s.shape)}; expected (), ({self.rows},){more}")
        if not isinstance(sigma, Tensor) and not sigma >= 0:
            raise ArgumentError(f"sigma = {sigma}: a noise level is not negative; expected a number >= 0")
        return s.squeeze(-1) if s.ndim == 1 and self.rows != 1 and s.shape[0] == 1 else s

    def _tails(self, ranks: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """Eigenvalue beyond each rank and whether an eigenvalue is kept: (R, K) and (R, K, r); R = 1 without ranks."""
        if ranks is None:
            return self.tails.unsqueeze(0), self.mask.unsqueeze(0) > 0
        if not all(0 <= n <= self.dim for n in ranks) or not len(ranks):
            raise ArgumentError(f"ranks = {list(ranks)}; expected at least one number, each from 0 to {self.dim}")
        wanted = torch.tensor(list(ranks), device=self.c.device)
        kept = (torch.arange(self.rank, device=self.c.device) < wanted[:, None])[:, None] & (self.mask > 0)
        if self.tail == "zero":
            return self.tails.new_zeros(len(wanted), self.components), kept
        total = (self.values * ~kept).sum(-1) + self.tails * (self.dim - self.own)
        return total / (self.dim - kept.sum(-1)).clamp(min=1), kept

    def _sum(self, multipliers: Tensor, rest: Tensor, s: Tensor) -> Tensor:
        """``Σ_k m_k c_k(σ)² + m_rest ρ(σ)``.

        Args:
            multipliers: (R, L, rows or 1, K, r) with L = 1 where σ has no axis for it; ``rest`` the same without r.
            s: σ as from :meth:`_level`.

        Returns:
            (R, L, B, K).
        """
        grid = s if s.ndim == 2 else s.reshape(1, -1)  # (L, B or 1)
        factors = (torch.ones_like(grid), grid, grid * grid)
        c, cz = self.c, self.cz
        squares = [c * c] if cz is None else [c * c, 2 * c * cz, cz * cz]
        total = torch.zeros((), dtype=torch.float64, device=c.device)
        for square, residual, factor in zip(squares, self.residuals, factors, strict=False):
            if multipliers.shape[2] == 1:
                # One set for all rows: a product of (B, r) with (r, R L) in every component.
                flat = multipliers.flatten(0, 2)  # (R L, K, r)
                part = torch.einsum("bkr,nkr->nbk", square, flat).unflatten(0, multipliers.shape[:2])
            else:
                part = torch.einsum("bkr,nbkr->nbk", square, multipliers.flatten(0, 1))
                part = part.unflatten(0, multipliers.shape[:2])
            total = total + factor[..., None] * (part + rest * residual)
        return total

    def _state(self, sigma: float | Tensor, ranks: Sequence[int] | None, many: bool = True) -> _Gains:
        s = self._level(sigma, many)
        tails, kept = self._tails(ranks)
        grid = s if s.ndim == 2 else s.reshape(1, -1)
        s2 = (grid * grid)[None, :, :, None]  # (1, L, rows or 1, 1)
        outside = tails[:, None, None] + s2  # (R, L, rows or 1, K)
        inside = torch.where(kept[:, None, None], self.values + s2.unsqueeze(-1), outside.unsqueeze(-1))
        return _Gains(s, tails, kept, inside, outside)

    def _shape(self, result: Tensor, s: Tensor, ranks: Sequence[int] | None) -> Tensor:
        """(R, L, B, …) without the axes that were not asked for."""
        result = result if s.ndim == 2 else result.squeeze(1)
        return result if ranks is not None else result.squeeze(0)

    # -- the law, O(K r) a state ----------------------------------------------------------------------------------------

    def logits(self, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """``log π_i + log N(x; μ_i, Σ_i + σ² I)``, (R, L, B, K) in float64, without the axes R or L not asked for.

        Args:
            sigma: levels, also (L, 1) or (L, B).
            ranks: the covariances are truncated to each of these ranks, as by :meth:`Spectrum.truncate`; by default
                they are what they are.
        """
        g = self._state(sigma, ranks)
        quadratic = self._sum(1 / (g.inside + _TINY), 1 / (g.outside + _TINY), g.s)
        inside = torch.where(g.kept[:, None, None], g.inside, 1.0).log().sum(-1)
        count = self.dim - g.kept.sum(-1)[:, None, None]
        outside = count * torch.where(count > 0, g.outside, 1.0).log()
        logits = self.log_weights - 0.5 * (quadratic + inside + outside + self.dim * math.log(2 * math.pi))
        return self._shape(logits, g.s, ranks)

    def log_prob(self, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """``log p(x; σ)``, (R, L, B) in float64; arguments as for :meth:`logits`.

        At σ = 0 with a singular covariance it is infinite.
        """
        return self.logits(sigma, ranks).logsumexp(-1)

    def weights(self, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """Responsibilities, (R, L, B, K) in float64; arguments as for :meth:`logits`. A Gaussian has K = 1."""
        return self.logits(sigma, ranks).softmax(-1)

    def coefficients(self, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """``U_iᵀ (d_i − μ_i)``, the denoiser of every component in its own basis: (R, L, B, K, r) in float64.

        With zero tails ``D = Σ_i w_i (μ_i + U_i coefficients_i)``.
        """
        g = self._state(sigma, ranks)
        inside = torch.where(g.kept[:, None, None], self.values, g.tails[:, None, None, :, None])
        grid = g.s if g.s.ndim == 2 else g.s.reshape(1, -1)
        c = self.c if self.cz is None else self.c + grid[..., None, None] * self.cz
        return self._shape(inside / (g.inside + _TINY) * c, g.s, ranks)

    # -- back in d coordinates ----------------------------------------------------------------------------------------

    def state(self, sigma: float | Tensor) -> Tensor:
        """x, or ``y + σ z`` where there is noise: (B, *event)."""
        if self.noise is None:
            return self.x
        s = self._level(sigma, many=False).to(self.x.dtype)
        return self.x + s.reshape(-1, *(1,) * (self.x.ndim - 1)) * self.noise

    @abstractmethod
    def denoise(self, sigma: float | Tensor, rank: int | None = None) -> Tensor:
        """D(x, σ) at one level a row, (B, *event) in the type of the states: one product with the bases."""

    def score(self, sigma: float | Tensor, rank: int | None = None) -> Tensor:
        """``(D − x)/σ²`` at one level a row, (B, *event)."""
        s = self._level(sigma, many=False).reshape(-1, *(1,) * (self.x.ndim - 1))
        x = self.state(sigma)
        return (self.denoise(sigma, rank) - x) / (s * s).to(x.dtype)

    @abstractmethod
    def score_squared(self, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """``‖s(x, σ)‖²``, (R, B) in float64; O(r) for a Gaussian, one lift a rank for a mixture."""

    @abstractmethod
    def error(self, target: Tensor, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """``‖target − D(x, σ)‖²``, (R, B) in float64, for a network's output or any other (B, *event).

        The unexplained variance of a score is this over ``‖target − x‖²`` (Wang & Vastola 2024, Eq. 28). A Gaussian
        projects the target once and has every rank from that; a mixture lifts once a rank.
        """


class _Gains:
    """σ, the eigenvalues beyond each rank, which are kept, and λ + σ² inside and outside of the kept bases."""

    def __init__(self, s: Tensor, tails: Tensor, kept: Tensor, inside: Tensor, outside: Tensor) -> None:
        self.s, self.tails, self.kept, self.inside, self.outside = s, tails, kept, inside, outside


def _flat(x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """States and noise as (B, d) in float64."""
    if noise is not None and noise.shape != x.shape:
        raise ArgumentError(f"noise has shape {tuple(noise.shape)}; expected that of x, {tuple(x.shape)}")
    return x.detach().flatten(1).double(), None if noise is None else noise.detach().flatten(1).double()


class GaussianProjection(Projection):
    """States projected on the eigenvectors of one covariance: ``Gaussian.project``."""

    def __init__(self, law: Gaussian, x: Tensor, noise: Tensor | None = None, tail: Tail = "zero") -> None:
        self.law = law
        spectrum = law.spectrum
        order = torch.argsort(spectrum.values, descending=True, stable=True)
        self.order = None if spectrum.kind == "basis" else order
        y, z = _flat(x, noise)
        y = y - law.mean.double().flatten()
        c, e = self._split(y)
        cz, ez = (None, None) if z is None else self._split(z)
        residuals = [_dot(e, e, c)]
        if z is not None:
            residuals += [2 * _dot(e, ez, c), _dot(ez, ez, c)]
        one = spectrum.values.new_ones(1, spectrum.rank)
        super().__init__(
            x.detach(), None if noise is None else noise.detach(), c.unsqueeze(1),
            None if cz is None else cz.unsqueeze(1), residuals, spectrum.values[order].unsqueeze(0), one,
            spectrum.values.new_full((1,), spectrum.tail if spectrum.tail_dim else 0.0),
            spectrum.values.new_zeros(1), tail,
        )  # fmt: skip

    def _split(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coefficients in descending order, and what the basis leaves out."""
        spectrum = self.law.spectrum
        c = spectrum.project(y)
        # The residual itself: a difference of squared norms cancels when a state is near the span.
        rest = y - spectrum.expand(c) if spectrum.tail_dim else None
        return c if self.order is None else c[:, self.order], rest

    def _raise(self, c: Tensor) -> Tensor:
        if self.order is not None:
            c = torch.zeros_like(c).index_copy_(1, self.order, c)
        return self.law.spectrum.expand(c)

    def denoise(self, sigma: float | Tensor, rank: int | None = None) -> Tensor:
        """``μ + U g c``, with the tail's gain outside of U."""
        s = self._level(sigma, many=False)
        g = self._state(sigma, None if rank is None else [rank], many=False)
        outside = g.tails[0] / (g.outside[0, 0] + _TINY)  # (rows or 1, 1)
        kept = torch.where(g.kept[0, 0], self.values[0] / (g.inside[0, 0, :, 0] + _TINY) - outside, 0.0)
        c = self.c[:, 0] if self.cz is None else self.c[:, 0] + s.reshape(-1, 1) * self.cz[:, 0]
        x = self.state(sigma)
        mean = self.law.mean.to(x.dtype).flatten()
        result = self._raise((kept * c).to(x.dtype)) + mean
        if self.law.spectrum.tail_dim or rank is not None:
            result = result + outside.to(x.dtype) * (x.flatten(1) - mean)
        return result.view(x.shape)

    def score_squared(self, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """``Σ c_k²/(λ_k + σ²)² + ρ/(tail + σ²)²``, (R, L, B) in float64; also for many levels."""
        g = self._state(sigma, ranks)
        total = self._sum(1 / (g.inside + _TINY) ** 2, 1 / (g.outside + _TINY) ** 2, g.s).squeeze(-1)
        return self._shape(total, g.s, ranks)

    def denoiser_squared(self, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """``‖D − μ‖²``, (R, L, B) in float64; also for many levels. Over σ⁴ it is the isotropic score's error."""
        g = self._state(sigma, ranks)
        tails = g.tails[:, None, None]
        inside = torch.where(g.kept[:, None, None], self.values, tails.unsqueeze(-1))
        total = self._sum((inside / (g.inside + _TINY)) ** 2, (tails / (g.outside + _TINY)) ** 2, g.s).squeeze(-1)
        return self._shape(total, g.s, ranks)

    def error(self, target: Tensor, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """``‖target − D(x, σ)‖²``, (R, B) in float64: one projection of the target, then O(r) a rank."""
        self.law.check_shape(target)
        g = self._state(sigma, ranks, many=False)
        mean = self.law.mean.double().flatten()
        t = target.detach().flatten(1).double() - mean
        ct, et = self._split(t)
        c = self.c[:, 0] if self.cz is None else self.c[:, 0] + g.s.reshape(-1, 1) * self.cz[:, 0]
        inside = torch.where(g.kept[:, None, 0], self.values[0], g.tails[:, None]) / (g.inside[:, 0, :, 0] + _TINY)
        total = (ct - inside * c).square().sum(-1)
        if et is not None:
            y = self.state(sigma).flatten(1).double() - mean
            outside = g.tails[:, None] / (g.outside[:, 0] + _TINY)  # (R, rows or 1, 1)
            rest = y - self._raise(c)
            total = total + (et - outside * rest).square().sum(-1)
        return total if ranks is not None else total.squeeze(0)


def _dot(a: Tensor | None, b: Tensor | None, like: Tensor) -> Tensor:
    """Inner products of rows, (B, 1); zero where a basis leaves nothing out."""
    if a is None or b is None:
        return like.new_zeros(like.shape[0], 1)
    return (a * b).sum(1, keepdim=True)


class MixtureProjection(Projection):
    """States projected on the bases of all components: ``GaussianMixture.project``."""

    def __init__(self, law: GaussianMixture, x: Tensor, noise: Tensor | None = None, tail: Tail = "zero") -> None:
        self.law = law
        y, z = _flat(x, noise)
        y = y - law.centre
        means, basis_means = law.centred, law.basis_means
        both = law.stacked.project(y if z is None else torch.cat((y, z)))
        c = both[: y.shape[0]] - basis_means
        squared = 2 * (y.square().sum(1, keepdim=True) / 2 + law.half_norms - y @ means.T).clamp(min=0)
        open_ = law.tail_dims > 0
        residuals = [torch.where(open_, (squared - c.square().sum(-1)).clamp(min=0), 0.0)]
        cz = None
        if z is not None:
            cz = both[y.shape[0] :]
            along = (z * y).sum(1, keepdim=True) - z @ means.T - (c * cz).sum(-1)
            rest = (z.square().sum(1, keepdim=True) - cz.square().sum(-1)).clamp(min=0)
            residuals += [torch.where(open_, 2 * along, 0.0), torch.where(open_, rest, 0.0)]
        super().__init__(
            x.detach(), None if noise is None else noise.detach(), c, cz, residuals, law.values, law.mask,
            law.tails, law.log_weights, tail,
        )  # fmt: skip

    def denoise(self, sigma: float | Tensor, rank: int | None = None) -> Tensor:
        """``Σ_i w_i (μ_i + U_i g_i c_i)`` with the tails' gains outside; components of no weight are not lifted."""
        ranks = None if rank is None else [rank]
        s = self._level(sigma, many=False)
        g = self._state(sigma, ranks, many=False)
        logits = self.logits(s, ranks)
        weights = logits.softmax(-1) if rank is None else logits[0].softmax(-1)
        outside = g.tails[0] / (g.outside[0, 0] + _TINY)
        kept = torch.where(g.kept[0], self.values / (g.inside[0, 0] + _TINY) - outside.unsqueeze(-1), 0.0)
        c = self.c if self.cz is None else self.c + s.reshape(-1, 1, 1) * self.cz
        x = self.state(sigma)
        return combine(self.law, x, weights, outside, kept * c).view(x.shape)

    def score_squared(self, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """``‖(D − x)/σ²‖²``, (R, B) in float64: one lift a rank."""
        s = self._level(sigma, many=False)
        return self.error(self.state(sigma), sigma, ranks) / s**4

    def error(self, target: Tensor, sigma: float | Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """``‖target − D(x, σ)‖²``, (R, B) in float64: one lift a rank, of the components that have weight."""
        self.law.check_shape(target)
        flat = target.detach().flatten(1).double()
        each = [None] if ranks is None else list(ranks)
        errors = [(flat - self.denoise(sigma, rank).flatten(1).double()).square().sum(1) for rank in each]
        return errors[0] if ranks is None else torch.stack(errors)
