"""Training settings from the data: σ_min, σ_max, P_mean, P_std, σ_data and the reference batch, each with its reason.

The rules for the noise levels are derived in :mod:`farfield.analysis.noise_range`. σ_data is the standard deviation of all
values about their one mean, the constant of EDM's preconditioning (Karras et al. 2022, table 1).

*The reference batch.* EDM's loss at level σ holds ``λ(σ) mmse(σ)`` with ``λ = (σ² + σ_d²)/(σ σ_d)²``, and ln σ is normal, so
that the target's variance enters it as ``V = E_σ λ σ⁴ V_DSM``, and n references take ``R(n) = E_σ λ σ⁴ (V_DSM − V_STF(n))``
away, whatever the denoiser. R(n) is the mean posterior variance inside a batch of n, so it may be measured on any choice of
more than n points; V grows with their number. The loss itself is at most that of the best linear denoiser once that is
learnt, ``L = E_σ λ Σ μσ²/(μ + σ²)``, so at least the share R/L of it goes. The stable target is advised where R/L exceeds
3 %, the time that it costs (Xu 2024, table B.2: 98.5 s became 101.5 s), with the smallest n that takes 90 % of what the
largest n tried takes. (What a lower variance is worth in steps depends on the optimiser; to set it against time one to one
is the heuristic part.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.analysis.noise_range import (
    START_ERROR,
    NoiseLaw,
    Rounding,
    eigenvalues,
    highest_level,
    noise_law,
    rounding,
)
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress, marker_line
from farfield.analysis.target_variance import TargetVariance, target_variance
from farfield.data import DataSet
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.numerics import streams
from farfield.objectives.edm import EDMObjective

#: EDM's settings, for images in [−1, 1] (Karras et al. 2022, table 1).
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "p_mean": -1.2, "p_std": 1.2, "sigma_data": 0.5, "references": 1}
#: Extra time of a training step with references; they should remove more of the loss than that.
OVERHEAD = 0.03
_SPECTRUM = 20_000
_CANDIDATES = (16, 64, 256, 1024)


@dataclass(frozen=True)
class Setting:
    """One recommended number.

    Attributes:
        name: ``sigma_min``, ``sigma_max``, ``p_mean``, ``p_std``, ``sigma_data`` or ``references`` (1: the ordinary target).
        value: what is advised.
        edm: EDM's default.
        near: whether the two agree: levels within a factor of 2, P_mean within 0.5, P_std within 0.3.
        reason: why, in one line with its numbers.
    """

    name: str
    value: float
    edm: float
    near: bool
    reason: str


@dataclass(frozen=True, eq=False)
class Advice:
    """Training settings for a data set.

    Attributes:
        sigma_min, sigma_max, p_mean, p_std, sigma_data: of an EDM-type loss and sampler, in the units of the data.
        references: size of the reference batch; 1 where the stable target does not pay.
        stable: whether it pays.
        removed: share of the target variance in the loss that n references remove, by n: R(n)/V, V that of the points used.
        removed_loss: the same as a share of the loss of the best linear denoiser, by n: R(n)/L.
        variance_share: V/L.
        phases: shares of the training samples in the near, intermediate and far phase.
        settings: the numbers with their reasons, beside EDM's.
        noise: the density of training levels behind P_mean and P_std.
        rounding: what the data's values resolve.
        target: the target variance by level.
        spectrum_points: samples behind the covariance; ``basis``: ``"pca"``, or ``"dct"`` for a covariance that is
            diagonal in the cosine transform, where there are too few samples for all of it.
        count, event_shape: of the data.
    """

    sigma_min: float
    sigma_max: float
    p_mean: float
    p_std: float
    sigma_data: float
    references: int
    stable: bool
    removed: dict[int, float]
    removed_loss: dict[int, float]
    variance_share: float
    phases: tuple[float, float, float]
    settings: tuple[Setting, ...]
    noise: NoiseLaw
    rounding: Rounding
    target: TargetVariance
    spectrum_points: int
    basis: str
    count: int
    event_shape: tuple[int, ...]

    def difference(self) -> str:
        """Two sentences: what agrees with EDM's defaults, and what does not."""
        parts = []
        for near, title in ((True, "Near EDM's defaults"), (False, "Different")):
            shown = [
                f"{s.name} {s.value:.3g} ({s.edm:.3g})"
                for s in self.settings
                if s.near is near and s.name != "references"
            ]
            parts.append(f"{title}: {', '.join(shown) or 'none'}.")
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        fields = {k: v for k, v in asdict(self).items() if k != "target"}
        for name in ("removed", "removed_loss"):
            fields[name] = {str(n): v for n, v in fields[name].items()}
        return {**fields, "difference": self.difference(), "target": self.target.to_dict()}

    def plot(self, ax: Any = None) -> Any:
        """The density of training levels with what it is made of, the log-normal advised, and EDM's. Returns the figure."""
        (axes,) = axes_for(ax, width=7.6, height=4.0)
        s = np.array(self.noise.sigmas)

        def normal(mean: float, std: float) -> Any:
            return np.exp(-(((np.log(s) - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))

        advised, default = normal(self.p_mean, self.p_std), normal(EDM["p_mean"], EDM["p_std"])
        curves = (
            (np.array(self.noise.density), "q ∝ w √r", "-", 2.0), (advised, "log-normal advised", "--", 2.0),
            (default, "EDM's default", ":", 2.0), (np.array(self.noise.removable), "removable share r", "-", 1.0),
            (np.array(self.noise.effect), "effect on the sample w", "-.", 1.0),
        )  # fmt: skip
        axes.set_xscale("log")
        for k, (values, name, style, width) in enumerate(curves):
            axes.plot(s, values, color=PALETTE[k], linestyle=style, linewidth=width, label=name)
        axes.set_xlim(s[0], s[-1])
        axes.set_ylim(bottom=0)
        for value, name in ((self.target.near_until, "near phase ends"), (self.target.far_from, "far phase begins")):
            if value is not None and s[0] < value < s[-1]:
                marker_line(axes, value, name, foot=0.4)
        dress(axes, "noise level σ", "density in ln σ; shares", "where training levels should lie")
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
        return axes.figure


def _law(data: Tensor, seed: int) -> tuple[Gaussian, int, str]:
    """Mean and covariance from at most 20,000 samples, how many, and in which basis."""
    if len(data) > _SPECTRUM:
        data = data[streams.permutation(seed, len(data), purpose="spectrum points")[:_SPECTRUM].to(data.device)]
    dim = math.prod(data.shape[1:])
    # Sample eigenvalues scatter by a factor (1 ± sqrt(d/N))² about the true ones; the cosine transform needs no such fit.
    if data.ndim == 4 and (dim > 1024 or len(data) < 8 * dim):
        return Gaussian.fit(data, basis="dct"), len(data), "dct"
    return Gaussian.fit(data, rank=None if dim <= 1024 else 512), len(data), "pca"


def _spread(data: Tensor) -> float:
    """Standard deviation of all values about their one mean, in two float64 passes."""
    total = data.numel()
    mean = sum(float(part.sum(dtype=torch.float64)) for part in data.split(4096)) / total
    return math.sqrt(sum(float((part.double() - mean).square().sum()) for part in data.split(4096)) / total)


def _expectation(p_mean: float, p_std: float, sigmas: np.ndarray) -> Callable[[np.ndarray], float]:
    """``E f(σ)`` for ln σ normal, from values at increasing levels; zero outside of them."""
    logs = np.log(sigmas)
    density = np.exp(-(((logs - p_mean) / p_std) ** 2) / 2) / (p_std * math.sqrt(2 * math.pi))
    return lambda values: float(np.trapezoid(density * values, logs))


def advise(
    data: DataSet | Tensor | np.ndarray,
    *,
    target: TargetVariance | None = None,
    points: int = 4096,
    probes: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> Advice:
    """Recommend training settings for a data set; the rules are at the head of this module and of ``noise_range``.

    Scaling the data by c scales σ_min, σ_max and σ_data by c and adds ln c to P_mean. For CIFAR-10 at 32 pixels the rules
    give about σ from 0.0023 to 88, P_mean −0.8, P_std 1.3, σ_data 0.50, where EDM has 0.002 to 80, −1.2, 1.2, 0.5.

    Args:
        data: a data set, or samples (N, *event) in floating point.
        target: its target variance, if it was measured before.
        points, probes: of the measurement otherwise.
        seed: of the choices of samples, states and references.
        progress: show a bar on the standard error where a person watches it.

    Raises:
        ArgumentError: for fewer than 8 samples or another type.
        DataError: if the samples are all alike or not finite.
    """
    samples = torch.as_tensor(data.images if isinstance(data, DataSet) else data).detach()
    if samples.ndim < 2 or len(samples) < 8 or not samples.dtype.is_floating_point:
        raise ArgumentError(
            f"data is {samples.dtype} of shape {tuple(samples.shape)}; expected floating (N, *event), N >= 8"
        )
    law, used, basis = _law(samples, seed)
    if not law.spectrum.trace > 0:
        raise DataError("the samples are all alike; there are no noise levels to advise")
    grain, sigma_data = rounding(samples, seed), _spread(samples)
    low, high = grain.level, highest_level(law)
    if not low < high:
        raise DataError(f"the rounding of the data, {low:.3g}, is as large as the data themselves")
    noise = noise_law(law.spectrum, low, high)
    if target is None:
        sizes = [1, *_CANDIDATES] + ([len(samples)] if len(samples) <= points else [])
        target = target_variance(samples, references=sizes, points=points, probes=probes, seed=seed, progress=progress)

    objective = EDMObjective(p_mean=noise.p_mean, p_std=noise.p_std)
    sigmas = np.array(target.sigmas)[::-1]
    mean = _expectation(noise.p_mean, noise.p_std, sigmas)
    weight = objective.weight(torch.from_numpy(sigmas.copy()), sigma_data).numpy()
    mmse = np.array(target.mmse.mean)[::-1]
    variance = mean(weight * mmse)
    fine = np.exp(np.linspace(noise.p_mean - 6 * noise.p_std, noise.p_mean + 6 * noise.p_std, 600))
    lam = eigenvalues(law.spectrum).cpu().numpy()
    linear = np.array([(lam * s * s / (lam + s * s)).sum() for s in fine])
    fine_weight = objective.weight(torch.from_numpy(fine), sigma_data).numpy()
    loss = _expectation(noise.p_mean, noise.p_std, fine)(fine_weight * linear)
    taken = {
        n: mean(weight * mmse * (1 - np.array(share.mean)[::-1]))
        for n, share in sorted(target.remaining.items())
        if n > 1
    }
    removed = {n: v / variance if variance > 0 else 0.0 for n, v in taken.items()}
    removed_loss = {n: v / loss for n, v in taken.items()}
    most = max(removed_loss.values(), default=0.0)
    stable = most > OVERHEAD
    references = min((n for n, v in removed_loss.items() if v >= 0.9 * most), default=1) if stable else 1
    ids = np.array([target.phase(s) for s in fine])
    inside = _expectation(noise.p_mean, noise.p_std, fine)
    phases = (inside(ids == 1), inside(ids == 2), inside(ids == 3))
    found: dict[str, float] = {
        "sigma_min": low, "sigma_max": high, "p_mean": noise.p_mean, "p_std": noise.p_std, "sigma_data": sigma_data,
        "references": references,
    }  # fmt: skip
    reasons = _reasons(law, grain, noise, sigma_data, high, target, stable, references, removed, removed_loss, phases)
    return Advice(
        **{k: v for k, v in found.items() if k != "references"},
        references=references,
        stable=stable,
        removed=removed,
        removed_loss=removed_loss,
        variance_share=variance / loss,
        phases=phases,
        settings=tuple(Setting(k, v, EDM[k], _near(k, v), reasons[k]) for k, v in found.items()),
        noise=noise,
        rounding=grain,
        target=target,
        spectrum_points=used,
        basis=basis,
        count=len(samples),
        event_shape=tuple(samples.shape[1:]),
    )


def _near(name: str, value: float) -> bool:
    gap = abs(value - EDM[name])
    if name in ("p_mean", "p_std"):
        return gap <= (0.5 if name == "p_mean" else 0.3)
    return gap == 0 if name == "references" else abs(math.log(value / EDM[name])) <= math.log(2)


def _reasons(
    law: Gaussian,
    grain: Rounding,
    noise: NoiseLaw,
    sigma_data: float,
    high: float,
    target: TargetVariance,
    stable: bool,
    references: int,
    removed: dict[int, float],
    removed_loss: dict[int, float],
    phases: tuple[float, float, float],
) -> dict[str, str]:
    """One line for each setting."""
    norm = float(law.mean.double().norm())
    total = math.sqrt(law.spectrum.trace)
    if grain.coarse:
        low = f"rounding noise Δ/√12 of {grain.values:,} values in steps of Δ = {grain.step:.3g}"
    else:
        finer = "" if grain.step is None else f"; their own steps of {grain.step:.3g} are finer"
        low = f"rounding noise of 8 bits over the values' range, R/(255√12), R = {grain.span:.3g}{finer}"
    best = "correlations remove less than 1 % of the error" if noise.best is None else (
        f"correlations remove most, {max(noise.removable):.0%} of the error, at σ = {noise.best:.2g}"
    )  # fmt: skip
    at = "" if target.near_until is None else f" (σ above {target.near_until:.2g})"
    n = references if stable else max(removed_loss, default=1)
    of = "" if target.exact else f" of {target.points:,} points"
    share, part = removed.get(n, 0.0), removed_loss.get(n, 0.0)
    take = f"n = {n:,} removes {share:.0%} of the target variance{of}, {part:.1%} of the loss"
    where = f"{1 - phases[0]:.1%} of the training levels lie beyond the near phase{at}"
    verdict = (
        f"more than the {OVERHEAD:.0%} of time it costs" if stable else f"less than the {OVERHEAD:.0%} of time it costs"
    )
    return {
        "sigma_min": low,
        "sigma_max": f"starting there from pure noise spoils at most {START_ERROR:.0%} of samples; "
        f"‖μ‖ = {norm:.3g}, √tr Σ = {total:.3g}",
        "p_mean": f"centre of w √r, σ = {math.exp(noise.p_mean):.2g}; {best}",
        "p_std": f"width of w √r: two thirds of the levels between {math.exp(noise.p_mean - noise.p_std):.2g} "
        f"and {math.exp(noise.p_mean + noise.p_std):.2g}",
        "sigma_data": "standard deviation of all values",
        "references": f"{where}; {take}, {verdict}",
    }
