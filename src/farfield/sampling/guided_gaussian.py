"""Two Gaussians under classifier-free guidance: a linear field, whose flow is known where the covariances share a basis.

    D_w = D_null + w (D_cond − D_null),    D_• = μ_• + Σ_• (Σ_• + σ²)⁻¹ (x − μ_•)

Along a common eigenvector, with ``y = x − μ_null`` and ``δ = μ_cond − μ_null``, the flow from σ to σ' is

    y' = G(σ', σ) y + κ(σ', σ) δ,
    G(b, a) = ((b² + λ_n)/(a² + λ_n))^{(1−w)/2} ((b² + λ_c)/(a² + λ_c))^{w/2},
    κ(b, a) = ∫_{log b}^{log a} G(b, s) w s²/(s² + λ_c) d log s,

(derived from Wang & Vastola 2024, Eqs. 12-17, whose section 6 leaves guidance open); the integral is done by quadrature to
rounding. Covariances that do not commute have no such form, and the linear equation is integrated in steps. Neither costs
an evaluation of the network.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.processes.base import expand
from farfield.sampling.guidance import ClassifierFree
from farfield.sampling.solvers.exponential import nodes_and_weights

#: Columns of two bases count as one direction where the sine of their angle is below this: float32 bases reach 1e-6.
_SAME = 1e-4


class Common(NamedTuple):
    """Two spectra on one basis: that basis, and the eigenvalues of both on it and outside it."""

    basis: Spectrum
    first: Tensor
    second: Tensor
    tails: tuple[float, float]


def common_basis(first: Spectrum, second: Spectrum) -> Common | None:
    """Both spectra on one eigenbasis, or None where they have none: bases that share columns, or fixed transforms alike."""
    if first.rank < second.rank:
        swapped = common_basis(second, first)
        if swapped is None:
            return None
        return Common(swapped.basis, swapped.second, swapped.first, (swapped.tails[1], swapped.tails[0]))
    tails = (first.tail, second.tail)
    if second.rank == 0:  # a multiple of the identity, which any basis diagonalises
        return Common(first, first.values, torch.full_like(first.values, second.tail), tails)
    if first.kind != second.kind:
        return None
    if first.kind == "basis":
        assert first.basis is not None
        assert second.basis is not None
        overlap = (first.basis.double().T @ second.basis.double()).abs()
        best, place = overlap.max(0)
        # 1 − cos of an angle is half its square.
        if float(best.min()) < 1 - _SAME**2 or len(torch.unique(place)) < second.rank:
            return None
        values = torch.full_like(first.values, second.tail)
        values[place] = second.values
        return Common(first, first.values, values, tails)
    same = first.event_shape == second.event_shape and _same_rotation(first.channel_basis, second.channel_basis)
    return Common(first, first.values, second.values, tails) if same else None


def _same_rotation(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is None and b is None
    return bool(torch.allclose(a.double(), b.double(), rtol=0, atol=_SAME))


class GuidedGaussian(Denoiser):
    """The denoiser of a conditional and an unconditional Gaussian under guidance; see the head of this module.

    Args:
        conditional, null: the two Gaussians, on events of one shape.
        guidance: the scale and the interval.

    Raises:
        ArgumentError: if the shapes disagree.
    """

    def __init__(self, conditional: Gaussian, null: Gaussian, guidance: ClassifierFree) -> None:
        super().__init__(conditional.event_shape)
        if conditional.event_shape != null.event_shape:
            raise ArgumentError(
                f"null is a Gaussian of shape {null.event_shape}; the conditional one has {conditional.event_shape}"
            )
        self.conditional, self.null, self.guidance = conditional, null, guidance

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """``D_null + w (D_cond − D_null)``."""
        null, conditional = self.null(x, sigma), self.conditional(x, sigma)
        if not isinstance(sigma, Tensor):
            return torch.lerp(null, conditional, self.guidance.strength(sigma))
        scale = torch.full_like(sigma, self.guidance.scale)
        if self.guidance.interval is not None:
            low, high = self.guidance.interval
            scale = torch.where((low < sigma) & (sigma <= high), scale, 1.0)
        return null + torch.as_tensor(expand(scale, x)).to(x) * (conditional - null)

    def flow(self, x: Tensor, sigma_from: float, sigma_to: float, steps: int = 64) -> Tensor:
        """The solution of ``dx/dσ = (x − D_w)/σ`` from one level to a lower one, > 0.

        Args:
            x: states (B, *event) at ``sigma_from``.
            sigma_from, sigma_to: the levels.
            steps: of the numerical solution, where the covariances do not share a basis.

        Raises:
            ArgumentError: if the levels do not fall, or are not positive.
        """
        if not 0 < sigma_to <= sigma_from < math.inf:
            raise ArgumentError(
                f"sigma_from = {sigma_from}, sigma_to = {sigma_to}; expected 0 < sigma_to <= sigma_from"
            )
        modes = common_basis(self.conditional.spectrum, self.null.spectrum)
        for a, b, scale in self._pieces(sigma_from, sigma_to):
            if scale in (0, 1):
                x = (self.conditional if scale else self.null).flow(x, a, b)
            elif modes is not None:
                x = self._closed_form(modes, x, a, b, scale)
            else:
                x = self._numerical(x, a, b, scale, steps)
        return x

    def _pieces(self, high: float, low: float) -> list[tuple[float, float, float]]:
        """Intervals from ``high`` to ``low`` on which w is constant, with that w."""
        ends = self.guidance.interval or ()
        cuts = [high, *(s for s in sorted(ends, reverse=True) if low < s < high), low]
        return [(a, b, self.guidance.strength(math.sqrt(a * b))) for a, b in pairwise(cuts) if b < a]

    def _closed_form(self, modes: Common, x: Tensor, a: float, b: float, scale: float) -> Tensor:
        cond = torch.cat((modes.first, modes.first.new_tensor([modes.tails[0]]))).cpu()
        null = torch.cat((modes.second, modes.second.new_tensor([modes.tails[1]]))).cpu()
        gain, kappa = guided_gains(cond, null, a, b, scale)
        mean, centre = self.null.mean.to(x.dtype).flatten(), self.conditional.mean.to(x.dtype).flatten()

        def apply(y: Tensor, gains: Tensor, offset: Tensor | None = None) -> Tensor:
            return modes.basis.filter(y, gains[:-1].to(modes.first), float(gains[-1]), offset)

        shift = apply((centre - mean).unsqueeze(0), kappa).squeeze(0)
        return apply(x.flatten(1) - mean, gain, mean + shift).view(x.shape)

    def _numerical(self, x: Tensor, a: float, b: float, scale: float, steps: int) -> Tensor:
        from farfield.sampling.law_flow import law_flow

        law = GuidedGaussian(self.conditional, self.null, ClassifierFree(scale))
        return law_flow(law, x, a, b, steps=steps, gaussian=self.conditional)


def guided_gains(cond: Tensor, null: Tensor, a: float, b: float, scale: float) -> tuple[Tensor, Tensor]:
    """G and κ from σ = a to b, mode by mode: see the head of this module.

    Args:
        cond, null: eigenvalues λ_c and λ_n (r,), float64, ≥ 0.
        a, b: the levels, ``a > b > 0``.
        scale: w.
    """

    def gain(level: Tensor | float, low: float) -> Tensor:
        """G(low, level)."""
        square, end = level * level, low * low
        first = ((end + null) / (square + null)) ** ((1 - scale) / 2)
        return first * ((end + cond) / (square + cond)) ** (scale / 2)

    log_s, w = nodes_and_weights(math.log(b), math.log(a))
    s = torch.from_numpy(log_s).exp().unsqueeze(1)
    integrand = gain(s, b) * (scale * s * s / (s * s + cond))
    return gain(a, b), torch.from_numpy(w) @ integrand
