"""Unexplained fractions that need no sampling: of a Gaussian's score by simpler Gaussians, exact on Gaussian data.

With all d eigenvalues λ_k of the covariance, ``L_k = λ_k/(λ_k + σ²)``, and queries x at the level σ:

    by the mean alone, x ~ N(μ, σ²):        Σ L_k² / Σ (1 − L_k)²
    by the mean alone, x noised data:       [Σ λ_k²/(λ_k + σ²)] / σ⁴ / Σ 1/(λ_k + σ²)
    by the r leading eigenvalues, the others taken as zero, x noised data: the second with the numerator's sum over k > r

(derived from Wang & Vastola 2024, Eqs. 6 and 28.) The last predicts the rank that a law needs at each level. It is not the
number of eigenvalues above σ²: many small ones leave more together than one large one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from farfield.analysis.noise_range import eigenvalues
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum


def _level(sigma: float) -> float:
    if not sigma > 0:
        raise ArgumentError(f"sigma = {sigma}; expected a positive number")
    return sigma * sigma


def isotropic_fuv(spectrum: Spectrum, sigma: float, protocol: Literal["noised", "noise"] = "noised") -> float:
    """How much of a Gaussian's score the mean alone leaves unexplained, as a ratio of means.

    It tends to ``Σ λ²/(d σ⁴)`` as σ grows, in either protocol.

    Args:
        spectrum: the covariance.
        sigma: noise level > 0.
        protocol: ``"noised"`` for noised draws of the Gaussian, ``"noise"`` for noise about its mean.
    """
    s2 = _level(sigma)
    values = eigenvalues(spectrum)
    if protocol == "noised":
        return float((values.square() / (values + s2)).sum() / (1 / (values + s2)).sum()) / s2**2
    gains = values / (values + s2)
    return float(gains.square().sum() / (1 - gains).square().sum())


def truncation_error(spectrum: Spectrum, sigma: float) -> Tensor:
    """``E‖s − s_r‖² = Σ_{k > r} λ_k²/(λ_k + σ²) / σ⁴`` of a Gaussian's score and that of its r leading eigenvalues, on
    noised draws of it, for r = 0 … d: (d + 1,) in float64."""
    s2 = _level(sigma)
    values = eigenvalues(spectrum).sort(descending=True).values
    left = (values.square() / (values + s2)).flip(0).cumsum(0).flip(0)
    return torch.cat((left, left.new_zeros(1))) / s2**2


def truncation_fuv(spectrum: Spectrum, sigma: float) -> Tensor:
    """:func:`truncation_error` over ``E‖s‖²``, (d + 1,): from :func:`isotropic_fuv` at rank 0 down to 0."""
    return truncation_error(spectrum, sigma) / (1 / (eigenvalues(spectrum) + _level(sigma))).sum()


def sufficient_rank(spectrum: Spectrum, sigma: float, unexplained: float = 1e-3) -> int:
    """The smallest rank at which truncation leaves less than a fraction unexplained."""
    return int((truncation_fuv(spectrum, sigma) >= unexplained).sum())


def modes_above(spectrum: Spectrum, sigma: float) -> int:
    """How many eigenvalues exceed σ²; a rule of thumb for the rank that undercounts (see :func:`sufficient_rank`)."""
    return int((eigenvalues(spectrum) > _level(sigma)).sum())
