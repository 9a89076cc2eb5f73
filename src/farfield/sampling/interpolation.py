"""Interpolation of latents: which mixtures of two or more noise vectors are again noise that a model was trained on.

For independent a, b ~ N(0, T² I), their angle ψ and α ∈ [0, 1], every mode is ``c_a a + c_b b``:

| mode | c_a, c_b | variance / T² |
| --- | --- | --- |
| ``linear`` | 1 − α, α | (1 − α)² + α², 0.5 in the middle |
| ``slerp`` | sin((1 − α)ψ)/sin ψ, sin(αψ)/sin ψ | 1 asymptotically, see :func:`slerp_variance` |
| ``in-distribution`` | sqrt(1 − α²), α | 1 |
| ``n-linear`` | linear, divided by sqrt((1 − α)² + α²) | 1 |
| ``sine`` | sin((1 − α)π/2), sin(απ/2) | 1: the limit of slerp in high dimension |

(Chen et al., A geometric perspective on diffusion models, appendix E, Eqs. 50-57.) In high dimension noise lies on a thin
shell of radius T√d; linear mixtures leave it, and a denoiser answers them with blur. Any coefficients whose squares add up to
1 keep the law, whatever their number and whatever the covariance; about a mean μ other than 0 ``z − μ`` is mixed.

Errata: Eq. 53 prints ``α² + (1 − α²)``, which is 1; the coefficients above are meant. Slerp does not keep the law, because ψ
depends on the ends: the variance is above 1, infinite for d ≤ 3, and the mixture is not Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError, unknown_name
from farfield.sampling.checks import check_floating
from farfield.sampling.encoding import How, decode, encode
from farfield.sampling.results import Samples

Mode = Literal["linear", "slerp", "in-distribution", "n-linear", "sine"]
MODES: tuple[Mode, ...] = get_args(Mode)
Alphas = float | Sequence[float] | Tensor

#: Below this sine of the angle the great circle through two latents has no direction that rounding leaves.
_ALIGNED = 1e-6


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise unknown_name("interpolation mode", mode, MODES)


def _alphas(alphas: Alphas) -> Tensor:
    found = torch.as_tensor(alphas if isinstance(alphas, float | int | Tensor) else list(alphas), dtype=torch.float64)
    if found.ndim > 1 or not found.numel() or not bool(((found >= 0) & (found <= 1)).all()):
        raise ArgumentError(f"alphas = {alphas}; expected numbers in [0, 1]")
    return found.cpu()


def angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle ψ between latents, (B,) in float64, in [0, π]; π/2 where one of them is 0.

    ``2 atan2(‖â − b̂‖, ‖â + b̂‖)`` (Kahan 2006), which keeps its digits near 0 and π, where the arccosine loses half of them.

    Args:
        a, b: (B, *event).
    """
    u, v = (x.flatten(1).double() for x in (a, b))
    tiny = torch.finfo(torch.float64).tiny
    u, v = u / u.norm(dim=1, keepdim=True).clamp(min=tiny), v / v.norm(dim=1, keepdim=True).clamp(min=tiny)
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))


def coefficients(alphas: Alphas, mode: Mode = "n-linear", psi: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """c_a and c_b, float64: () or (F,), and for slerp with angles (B,) then (B,) or (F, B).

    Exactly (1, 0) at α = 0 and (0, 1) at α = 1, in every mode.

    Args:
        alphas: a number or F of them, in [0, 1].
        mode: see the head of this module.
        psi: the angle between the latents, () or (B,), for slerp. Where its sine is below 1e-6 slerp has no plane to turn in:
            near 0 its limit is linear, and that is what it becomes; near π, where every way round is as long, it becomes
            n-linear. (The source's rule, n-linear in both, would lengthen equal latents by up to √2.)

    Raises:
        ArgumentError: for an unknown mode, an α outside [0, 1], or slerp without an angle.
    """
    _check_mode(mode)
    alpha = _alphas(alphas)
    rest = 1 - alpha
    if mode == "linear":
        return rest, alpha
    if mode == "n-linear":
        norm = torch.hypot(rest, alpha)
        return rest / norm, alpha / norm
    if mode == "in-distribution":
        return ((1 - alpha) * (1 + alpha)).sqrt(), alpha
    if mode == "sine":
        return (rest * (math.pi / 2)).sin(), (alpha * (math.pi / 2)).sin()
    if psi is None:
        raise ArgumentError("psi is missing: slerp depends on the angle between the latents")
    psi = torch.as_tensor(psi, dtype=torch.float64)
    if psi.ndim:
        alpha, rest = (x.to(psi.device).unsqueeze(-1) for x in (alpha, rest))
    sine = psi.sin()
    flat = sine.abs() < _ALIGNED
    safe = torch.where(flat, 1.0, sine)
    norm = torch.where(psi < 1, torch.ones_like(alpha), torch.hypot(rest, alpha))
    return (
        torch.where(flat, rest / norm, (rest * psi).sin() / safe),
        torch.where(flat, alpha / norm, (alpha * psi).sin() / safe),
    )


def interpolate(a: Tensor, b: Tensor, alphas: Alphas, mode: Mode = "n-linear", centre: Tensor | None = None) -> Tensor:
    """The mixtures of two batches of latents at each α: (F, B, *event), or (B, *event) for a single number.

    Args:
        a, b: (B, *event), states at one noise level.
        alphas: where between them; 0 returns a, 1 returns b, exactly.
        mode: ``"linear"``, ``"slerp"``, ``"in-distribution"`` (whose α is λ, biased towards a), ``"n-linear"``, ``"sine"``.
        centre: (*event) the mean of the latents' law, where it is not 0, as at a level below the top.

    Raises:
        ArgumentError: for shapes that differ, latents that are not finite, an unknown mode, or an α outside [0, 1].
    """
    _check_pair(a, b)
    c_a, c_b = coefficients(alphas, mode, angle(*_centred(a, b, centre)) if mode == "slerp" else None)
    frames = tuple(_alphas(alphas).shape)
    shape = (*frames, *((len(a),) if mode == "slerp" else (1,)), *(1,) * (a.ndim - 1))
    c_a, c_b = c_a.to(a).view(shape), c_b.to(a).view(shape)
    if centre is None:
        return c_a * a + c_b * b
    # In this form the ends stay exact: the centre's own coefficient is 0 there.
    return c_a * a + c_b * b + (1 - c_a - c_b) * centre.to(a)


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.ndim < 2 or a.shape != b.shape:
        raise ArgumentError(f"a has shape {tuple(a.shape)}, b {tuple(b.shape)}; expected two of (B, *event)")
    check_floating("a", a)
    check_floating("b", b)
    if not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
        raise ArgumentError("a or b holds NaN or infinity; expected finite latents")


def _centred(a: Tensor, b: Tensor, centre: Tensor | None) -> tuple[Tensor, Tensor]:
    return (a, b) if centre is None else (a - centre.to(a), b - centre.to(b))


def from_simplex(weights: Tensor | Sequence[Any]) -> Tensor:
    """``w/‖w‖``: coefficients whose squares add up to 1 from weights that add up to 1; n-linear for any number of latents.

    Args:
        weights: (M,) or (F, M), ≥ 0, each row adding up to 1.

    Returns:
        The same shape, float64.
    """
    w = torch.as_tensor(weights, dtype=torch.float64)
    if not w.numel() or not bool((w >= 0).all()) or not bool(((w.sum(-1) - 1).abs() < 1e-6).all()):
        raise ArgumentError(f"weights = {w.tolist()}; expected rows of numbers that are not negative and add up to 1")
    return w / w.norm(dim=-1, keepdim=True)


def combine(latents: Tensor, factors: Tensor | Sequence[Any], centre: Tensor | None = None) -> Tensor:
    """``Σ_m c_m z_m`` of M latents, for F sets of coefficients whose squares add up to 1: the law is kept (derived).

    Args:
        latents: (M, *event), or (M, B, *event) for B independent sets.
        factors: (F, M), or (M,) for one mixture; :func:`from_simplex` makes them from weights.
        centre: the mean of the latents' law, where it is not 0.

    Returns:
        (F, *event) or (F, B, *event); without the leading F for factors (M,).

    Raises:
        ArgumentError: for numbers that do not fit, or squares that do not add up to 1.
    """
    check_floating("latents", latents)
    c = torch.as_tensor(factors, dtype=torch.float64)
    if c.ndim not in (1, 2) or c.shape[-1] != len(latents):
        raise ArgumentError(f"factors have shape {tuple(c.shape)} for {len(latents)} latents; expected (F, M) or (M,)")
    total = c.square().sum(-1)
    if not bool(((total - 1).abs() < 1e-6).all()):
        raise ArgumentError(
            f"the squares of factors add up to {total.flatten()[0]:.4g}; expected 1, as from_simplex(weights) makes them"
        )
    mixed = torch.tensordot(c.to(latents), latents, dims=1)
    if centre is None:
        return mixed
    rest = (1 - c.sum(-1)).to(latents)
    return mixed + rest.view(*rest.shape, *(1,) * (latents.ndim - 1)) * centre.to(latents)


def corner_grid(
    corners: Tensor, rows: int, columns: int, mode: Mode = "n-linear", centre: Tensor | None = None
) -> Tensor:
    """A sheet between four latents: (rows, columns, *event), its corners at the corners.

    Along each row between the ends of the row, which lie between the corners of their column. For every mode but slerp these
    are the coefficients of :func:`combine`; the modes that keep the law of two latents keep it here.

    Args:
        corners: (4, *event): top left, top right, bottom left, bottom right.
        rows, columns: at least 2 each.
        mode, centre: as for :func:`interpolate`.
    """
    if len(corners) != 4 or rows < 2 or columns < 2:
        raise ArgumentError(f"{len(corners)} corners, {rows} × {columns}; expected 4 corners, at least 2 × 2 latents")
    down, across = (torch.linspace(0, 1, n, dtype=torch.float64) for n in (rows, columns))
    sides = interpolate(corners[:2], corners[2:], down, mode, centre)  # (rows, 2, *event)
    return interpolate(sides[:, 0], sides[:, 1], across, mode, centre).transpose(0, 1)


# -- what becomes of the law --------------------------------------------------------------------------------------------


def variance_factor(alphas: Alphas, mode: Mode, psi: float | Tensor | None = None) -> Tensor:
    """``c_a² + c_b²``: the variance of a coordinate over T², for independent latents and, with slerp, a fixed angle.

    1 for in-distribution, n-linear and sine; for linear the square of the radius factor ``sqrt((1 − α)² + α²)``. For slerp in
    the middle ``1/(2 cos²(ψ/2))`` (Eq. 55, whose printed ``2 sec²(ψ/2)`` is four times that); over random angles see
    :func:`slerp_variance`.
    """
    c_a, c_b = coefficients(alphas, mode, psi)
    return c_a.square() + c_b.square()


def magnitude_factor(alphas: Alphas, mode: Mode, psi: float | Tensor) -> Tensor:
    """``‖z‖²/C²`` of two latents of equal norm C at an angle ψ: ``c_a² + c_b² + 2 c_a c_b cos ψ`` (Remarks 7-8).

    Slerp: 1. Linear: ``1 − 2α(1 − α)(1 − cos ψ)``. In-distribution: ``1 + 2λ sqrt(1 − λ²) cos ψ``.
    """
    c_a, c_b = coefficients(alphas, mode, psi)
    psi = torch.as_tensor(psi, dtype=torch.float64)
    if psi.ndim and mode != "slerp":
        c_a, c_b = c_a.to(psi.device).unsqueeze(-1), c_b.to(psi.device).unsqueeze(-1)
    return c_a.square() + c_b.square() + 2 * c_a * c_b * psi.cos()


def slerp_variance(dim: int, alpha: float = 0.5) -> float:
    """The variance of a coordinate of slerp between independent normal latents, over T²: ≥ 1, infinite for d ≤ 3.

        1 − (1 − κ) E[2 sin((1−α)ψ) sin(αψ) cos ψ/sin²ψ],    κ = (E χ_d)²/d,    density of ψ ∝ sin^{d−2} ψ

    (derived; in the middle ``1 + (1 − κ)/(d − 3)``). It is not the mean of :func:`variance_factor` over ψ, in the middle
    (d − 2)/(d − 3), since the norms do not depend on the angle but the two latents, given the angle, do on each other.

    Args:
        dim: d ≥ 2.
        alpha: in [0, 1].
    """
    from scipy.integrate import quad
    from scipy.special import betaln, gammaln

    if not isinstance(dim, int) or dim < 2 or not 0 <= alpha <= 1:
        raise ArgumentError(f"dim = {dim}, alpha = {alpha}; expected a dimension of at least 2 and alpha in [0, 1]")
    if alpha in (0, 1):
        return 1.0
    if dim <= 3:
        return math.inf
    kappa_less = -math.expm1(math.log(2 / dim) + 2 * float(gammaln((dim + 1) / 2) - gammaln(dim / 2)))
    if alpha == 0.5:
        return 1 + kappa_less / (dim - 3)
    scale = float(betaln((dim - 1) / 2, 0.5))

    def integrand(psi: float) -> float:
        product = 2 * math.sin((1 - alpha) * psi) * math.sin(alpha * psi) * math.cos(psi)
        return product * math.exp((dim - 4) * math.log(math.sin(psi)) - scale)

    # The density is a peak of width 1/√d in the middle; panels about it find it in any dimension.
    edges = sorted({0.0, math.pi, *(math.pi / 2 + k / math.sqrt(dim) for k in (-12, -3, 0, 3, 12))})
    edges = [e for e in edges if 0 <= e <= math.pi]
    total = math.fsum(
        quad(integrand, low, high, epsabs=1e-13, epsrel=1e-11, limit=200)[0] for low, high in pairwise(edges)
    )
    return 1 - kappa_less * total


def angle_deviation(dim: int) -> float:
    """The standard deviation of the angle between independent normal latents: ``sqrt(ψ₁(d/2)/2)``, ψ₁ the trigamma function.

    (Derived; close to ``1/√d``. Their mean angle is π/2.)
    """
    from scipy.special import polygamma

    if not isinstance(dim, int) or dim < 1:
        raise ArgumentError(f"dim = {dim}; expected a dimension of at least 1")
    return math.sqrt(float(polygamma(1, dim / 2)) / 2)


# -- between samples ----------------------------------------------------------------------------------------------------


def morph(
    denoiser: Denoiser,
    a: Tensor,
    b: Tensor,
    alphas: Alphas,
    how: How,
    *,
    mode: Mode = "n-linear",
    centre: Tensor | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Samples:
    """Frames between clean samples: encode both, interpolate the latents, decode all frames together.

    Args:
        denoiser: the model.
        a, b: clean samples (B, *event).
        alphas: F numbers in [0, 1]; at 0 and 1 the frames are the samples themselves, encoded and decoded.
        how: the grid or sampler, as for :func:`farfield.sampling.encoding.encode`.
        mode, centre: as for :func:`interpolate`.
        batch_size: states evaluated at once; all frames by default.
        **options: ``solver``, ``covariance``, ``lift``, ``seed`` of the encoding and its conditions, the same for all frames.

    Returns:
        The frames (F, B, *event), and the evaluations for each frame and encoded sample together.
    """
    _check_pair(a, b)
    positions = _alphas(alphas).reshape(-1)
    encoded = encode(denoiser, torch.cat((a, b)), how, estimate=False, batch_size=batch_size, **options)
    start, end = encoded.z.chunk(2)
    frames = interpolate(start, end, positions, mode, centre)
    down = {k: v for k, v in options.items() if k != "lift"}
    found = decode(denoiser, frames.flatten(0, 1), how, batch_size=batch_size, **down)
    return Samples(found.x.view(frames.shape), found.nfe + encoded.nfe)
