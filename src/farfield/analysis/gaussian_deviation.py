"""How two Gaussian flows part, computed in coefficients: nothing is lifted to the d coordinates.

A path and its denoiser output are ``μ + g y + U ((f − g) ∘ Uᵀy)`` with ``y = x_T − μ``, gains f along the basis and g
outside it. With ``m = μ_a − μ_b`` the difference of two such vectors is

    (1 − g_b) m + (g_a − g_b) y_a + U_a α − U_b β,

whose norm needs only the products of its four parts: ``Uᵀy``, ``Uᵀm``, ``‖y‖²`` and ``U_aᵀ U_b``, each formed once for all
noise levels (Wang & Vastola 2024, Eqs. 14-17 and section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.sampling.grids import validated

_TINY = 1e-300


def can_compare(a: object, b: object) -> bool:
    """Whether two laws are Gaussians whose bases are held as matrices."""
    return all(isinstance(law, Gaussian) and law.spectrum.kind == "basis" for law in (a, b))


def _gains(values: Tensor | float, top: float, sigma: float) -> tuple[Tensor, Tensor]:
    """ψ and ξ of the eigenvalues, float64: the gains of state and denoiser output at σ for a start at ``top``."""
    wide = torch.as_tensor(values, dtype=torch.float64)
    state = ((wide + sigma**2) / (wide + top**2)).sqrt()
    return state, wide / (wide + sigma**2 + _TINY) * state


def gaussian_deviation(a: Gaussian, b: Gaussian, x: Tensor, sigmas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean squared difference of the states, and of the denoiser outputs, of two Gaussian flows from the same start.

    Cancellation leaves an absolute error of about 1e-15 of the squared size of the parts.

    Args:
        a, b: the laws, whose bases are matrices (``spectrum.kind == "basis"``).
        x: states (B, *event) at ``sigmas[0]``.
        sigmas: the levels, decreasing; may end with 0.

    Returns:
        Two tensors (L, B), float64: the means over coordinates of ``(x_a − x_b)²`` and ``(D_a − D_b)²``.

    Raises:
        ArgumentError: for another kind of basis, or shapes that differ.
    """
    if not can_compare(a, b):
        raise ArgumentError("the coefficients of two Gaussians are compared where both bases are matrices")
    if a.event_shape != b.event_shape:
        raise ArgumentError(f"the Gaussians have shapes {a.event_shape} and {b.event_shape}; expected the same")
    a.check_shape(x)
    zero = bool(len(sigmas) and sigmas[-1] == 0)
    levels = validated(sigmas[:-1] if zero else sigmas)
    top = levels[0]
    ua, ub = (law.spectrum.basis.double() for law in (a, b) if law.spectrum.basis is not None)
    mean = (a.mean.double() - b.mean.double()).flatten()
    ya = x.double().flatten(1) - a.mean.double().flatten()
    yb = ya + mean
    ca, cb = ya @ ua, yb @ ub
    ma, mb = mean @ ua, mean @ ub
    gram = ua.T @ ub
    same = gram.shape[0] == gram.shape[1] and bool(torch.equal(ua, ub))
    yy, ym, mm = ya.square().sum(1), ya @ mean, float(mean @ mean)
    yb_a = cb - mb  # U_bᵀ y_a

    def squared(fa: Tensor, ga: float, fb: Tensor, gb: float) -> Tensor:
        alpha, beta = ca * (fa - ga), cb * (fb - gb)
        p, q = 1 - gb, ga - gb
        if same:
            cross = alpha - beta
            inner = cross.square().sum(1)
            linear = p * (cross @ ma) + q * (ca * cross).sum(1)
        else:
            inner = alpha.square().sum(1) + beta.square().sum(1) - 2 * ((alpha @ gram) * beta).sum(1)
            linear = p * (alpha @ ma - beta @ mb) + q * ((ca * alpha).sum(1) - (yb_a * beta).sum(1))
        total = inner + 2 * linear + p * p * mm + q * q * yy + 2 * p * q * ym
        return total.clamp(min=0) / a.dim

    states, outputs = [], []
    for sigma in (*levels, *((0.0,) if zero else ())):
        (sa, da), (sb, db) = _gains(a.spectrum.values, top, sigma), _gains(b.spectrum.values, top, sigma)
        (ta, ea), (tb, eb) = _gains(a.spectrum.tail, top, sigma), _gains(b.spectrum.tail, top, sigma)
        states.append(squared(sa, float(ta), sb, float(tb)))
        outputs.append(squared(da, float(ea), db, float(eb)))
    return torch.stack(states), torch.stack(outputs)
