"""From a data set's covariance and its rounding to the noise levels a model should be trained on.

*The highest level.* Sampling starts from N(0, σ²) where the exact law is p_σ. The sampling flow is a bijection, so what
the start gets wrong is what the samples get wrong, in nats: with mean μ and covariance eigenvalues λ,

    KL(p_σ ‖ N(0, σ²)) = ‖μ‖²/2σ² + ½ Σ_i [λ_i/σ² − ln(1 + λ_i/σ²)],

exact for a Gaussian and right to O(σ⁻⁶) for any other law. By Pinsker's inequality at most a share sqrt(KL/2) of the samples
differs; σ_max is where that is 3 %. (The 3 % is a choice; σ_max goes like its inverse.)

*The lowest level.* Below the rounding noise of the data there is nothing to learn: σ_min = Δ/√12, the standard deviation of
a rounding error, for data on a lattice of step Δ. Data without a lattice, or with a finer one, are held to eight bits
over the range of their values, R/(255 √12). (A convention: what an 8-bit image could show.)

*Where to train.* For a Gaussian law ``mmse(σ) = Σ λσ²/(λ + σ²)``, and without correlations between coordinates, v = Σ λ/d,
it would be ``d v σ²/(v + σ²)``. The ratio falls short of 1 by what the correlations let a denoiser remove,

    r(σ) = 1 − [Σ_i λ_i/(λ_i + σ²)] (v + σ²)/(d v)    in [0, 1), 0 at both ends,

a lower bound for any law with this covariance. An error of the network's normalised output at level σ, over a step d ln σ,
moves the state by σ√v/√(σ² + v) d ln σ, and relative to the state's own scale by

    w(σ) = σ√v/(σ² + v) = ½ sech(ln σ − ln √v);

the flow keeps relative displacements. If the excess error at σ after training falls like r(σ)/q(σ) with the share q of
samples spent there, the least total ``∫ w² r/q d ln σ`` is at ``q ∝ w √r``. P_mean and P_std are mean and standard
deviation of ln σ under that density on [σ_min, σ_max], with r held at 1 % at least: less says nothing about where to train,
and for a law without correlations q ∝ w. (The rate of learning is the heuristic part.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.distributions import Gaussian
from farfield.errors import DataError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum

#: Share of the samples that may differ because of the start.
START_ERROR = 0.03
#: A smaller share of removable error is not told from none.
_FLOOR = 0.01
#: A lattice of fewer values is a set of categories, not a rounded continuum.
_LATTICE = 8
_VALUES = 1 << 20


def eigenvalues(spectrum: Spectrum) -> Tensor:
    """All d of a covariance's eigenvalues, the tail repeated: (d,) in float64."""
    rest = torch.full((spectrum.tail_dim,), spectrum.tail, dtype=torch.float64, device=spectrum.values.device)
    return torch.cat((spectrum.values.double(), rest))


def start_divergence(law: Gaussian, sigma: float) -> float:
    """``KL(N(μ, Σ + σ²) ‖ N(0, σ²))`` in nats, σ > 0: what starting from pure noise of level σ gets wrong."""
    ratio = eigenvalues(law.spectrum) / sigma**2
    # ratio − log1p(ratio) cancels where the ratio is small, which is where it is needed.
    series = ratio.square() * (0.5 - ratio / 3 + ratio.square() / 4)
    mismatch = torch.where(ratio < 1e-4, series, ratio - ratio.log1p())
    return float(law.mean.double().square().sum()) / (2 * sigma**2) + float(mismatch.sum()) / 2


def highest_level(law: Gaussian, share: float = START_ERROR) -> float:
    """The σ at which ``sqrt(KL/2)`` of :func:`start_divergence` equals ``share``, in (0, 1).

    Raises:
        DataError: if the law is the point 0.
    """
    limit = 2 * share * share
    scale = math.sqrt(law.spectrum.trace + float(law.mean.double().square().sum()))
    if not scale > 0:
        raise DataError("the data are one point repeated at 0; there are no noise levels to advise")
    # KL <= scale²/2σ² gives the upper end, and it is monotone.
    low, high = math.log(scale * 1e-6), math.log(scale / math.sqrt(2 * limit))
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if start_divergence(law, math.exp(middle)) > limit else (low, middle)
    return math.exp(high)


@dataclass(frozen=True)
class Rounding:
    """What the values of the data can resolve.

    Attributes:
        step: of the lattice that they lie on, None if they lie on none or on one of fewer than 8 values.
        values: how many different ones were seen.
        span: the range that holds all but 0.2 % of them.
        level: standard deviation of the rounding: σ_min.
    """

    step: float | None
    values: int
    span: float
    level: float

    @property
    def coarse(self) -> bool:
        """Whether the lattice, and not the convention of eight bits over the range, decides the level."""
        return self.step is not None and self.step > 0.999 * self.span / 255


def rounding(data: Tensor, seed: int = 0) -> Rounding:
    """Detect the lattice of a data set's values, from at most 2²⁰ of them.

    Args:
        data: (N, *event).
        seed: of the choice of values.

    Raises:
        DataError: if all values are the same.
    """
    flat = data.reshape(-1)
    if flat.numel() > _VALUES:
        place = streams.uniform(seed, range(_VALUES), purpose="rounding values", dtype=torch.float64)
        flat = flat[(place * flat.numel()).long().clamp_(max=flat.numel() - 1).to(flat.device)]
    flat = flat.double().cpu()
    unique = flat.unique()
    width = float(unique[-1] - unique[0])
    if not width > 0:
        raise DataError("the data have one value only; there are no noise levels to advise")
    span = float(flat.quantile(0.999) - flat.quantile(0.001)) or width
    step = _step(unique, flat.numel(), width)
    level = max(0.0 if step is None else step, span / 255) / math.sqrt(12)
    return Rounding(step, len(unique), span, level)


def _step(unique: Tensor, count: int, width: float) -> float | None:
    """The lattice step of sorted different values, or None: values must recur and all lie on it."""
    gaps = unique.diff()
    tolerance = 2e-7 * max(width, float(unique.abs().max()))  # float32 rounding of values that are equal
    gaps = gaps[gaps > 2 * tolerance]
    if len(gaps) + 1 < _LATTICE or 4 * len(unique) > count:
        return None
    cells = round(width / float(gaps.min()))
    step = width / cells
    place = (unique - unique[0]) / step
    off = float((place - place.round()).abs().max())
    return step if off <= max(0.01, 2 * tolerance / step) and off < 0.1 else None


@dataclass(frozen=True)
class NoiseLaw:
    """The density of training levels, in ln σ.

    Attributes:
        p_mean, p_std: its mean and standard deviation.
        sigmas: levels, increasing, uniform in ln σ.
        removable: r(σ).
        effect: w(σ).
        density: q(σ), normalised in ln σ.
        best: the σ of the largest r; None where r stays below 1 %.
    """

    p_mean: float
    p_std: float
    sigmas: tuple[float, ...]
    removable: tuple[float, ...]
    effect: tuple[float, ...]
    density: tuple[float, ...]
    best: float | None


def removable(spectrum: Spectrum, sigmas: Tensor) -> Tensor:
    """r(σ), the share of the uncorrelated law's error that correlations remove: the shape of ``sigmas``, float64."""
    values = eigenvalues(spectrum)
    mean = values.mean()
    square = sigmas.double().square()
    gain = torch.stack([(values / (values + s)).mean() for s in square.flatten()]).view(square.shape)
    return (1 - gain * (mean + square) / mean).clamp(min=0)


def noise_law(spectrum: Spectrum, sigma_min: float, sigma_max: float, count: int = 512) -> NoiseLaw:
    """The density ``q ∝ w sqrt(max(r, 1 %))`` on [σ_min, σ_max] and its moments.

    Args:
        spectrum: of the covariance, trace > 0.
        sigma_min, sigma_max: 0 < σ_min < σ_max.
        count: levels of the quadrature.
    """
    logs = torch.linspace(math.log(sigma_min), math.log(sigma_max), count, dtype=torch.float64)
    sigmas, variance = logs.exp(), spectrum.trace / spectrum.dim
    gain = removable(spectrum, sigmas.to(spectrum.values.device)).cpu()
    effect = sigmas * math.sqrt(variance) / (sigmas.square() + variance)
    density = effect * gain.clamp(min=_FLOOR).sqrt()
    weights = density.clone()
    weights[0] /= 2
    weights[-1] /= 2
    weights /= weights.sum()
    mean = float((weights * logs).sum())
    std = math.sqrt(float((weights * (logs - mean).square()).sum()))
    area = float(torch.trapezoid(density, logs))
    return NoiseLaw(
        p_mean=mean,
        p_std=std,
        sigmas=tuple(sigmas.tolist()),
        removable=tuple(gain.tolist()),
        effect=tuple(effect.tolist()),
        density=tuple((density / area).tolist()),
        best=float(sigmas[int(gain.argmax())]) if float(gain.max()) > _FLOOR else None,
    )
