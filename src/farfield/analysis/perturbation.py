"""What a change of the state on the way does to the sample: the gain of each principal component, and its inverse.

A change ``δ = δ_perp + Σ dc_k u_k`` of the state at scales (α', s') moves the endpoint of a Gaussian's flow by

    δx₀ = Σ_k g_k dc_k u_k,        g_k = sqrt( λ_k/(s'² + α'² λ_k) )

(Wang & Vastola 2024, Eq. 23), and what lies outside the span of the data not at all. In variance-exploding coordinates every
gain is below 1 and rises to 1 as σ' falls. Under a variance-preserving process it is sqrt(λ) in pure noise and 1 at the end:
components with λ > 1 are amplified, the earlier the more; those with λ < 1 are suppressed, the earlier the more.

The same measured on a model: states of its own trajectories are moved along ±u_k and followed to their ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.distributions.gaussian_flow import GaussianFlow
from farfield.distributions.gaussian_modes import Number, principal_components, psi
from farfield.errors import ArgumentError
from farfield.sampling import Prior, Sampler, Trajectory, karras
from farfield.sampling.grids import Explicit


def perturbation_gain(
    variance: Number, std: Number, alpha: Number = 1.0, std_end: Number = 0.0, alpha_end: Number = 1.0
) -> Tensor:
    """``ψ(end)/ψ(t') = sqrt((s_e² + α_e² λ)/(s'² + α'² λ))``: what a unit change at (α', s') becomes at the end, float64.

    Args:
        variance: λ ≥ 0.
        std, alpha: the scales where the change is made, not both the law's singular point.
        std_end, alpha_end: the scales where the integration stops; s_e > 0 keeps ``s_e/s'`` of what is outside the span.
    """
    return psi(variance, std_end, std, alpha_end, alpha)


@dataclass(frozen=True, eq=False)
class Injection:
    """What to add to the states at a time so that their endpoints change as wanted.

    Attributes:
        delta: (B, *event) to be added.
        unreachable: (B,) the part of ‖wanted‖², 0 to 1, in directions that no change of the state can move.
        size: (B,) ‖delta‖ in standard deviations of the noise there, s·sqrt(d): small against 1 is hardly seen in the state.
    """

    delta: Tensor
    unreachable: Tensor
    size: Tensor


def plan_injection(flow: GaussianFlow, wanted: Tensor, t: float) -> Injection:
    """The least change of the state at time t that moves the clean endpoint by ``wanted``, for a Gaussian's flow.

    Component k gets ``wanted_k/g_k``; components without variance cannot be moved and get nothing.

    Args:
        flow: the law and its schedule.
        wanted: changes of x₀, (B, *event); those along one component are ``amount · u_k``.
        t: a time with noise.

    Raises:
        ArgumentError: for a time without noise, or a wrong shape.
    """
    law = flow.gaussian
    law.check_shape(wanted)
    alpha, std = flow.scales(float(t))
    if not float(std) > 0:
        raise ArgumentError(f"t = {t}: there is no noise left; expected a time at which s > 0")
    y, spectrum = wanted.flatten(1), law.spectrum
    # Below that a variance is the rounding of a zero, and its inverse gain means nothing.
    floor = 1e-12 * float(spectrum.values.max()) if spectrum.rank else 0.0

    def inverse(variance: Tensor) -> Tensor:
        gain = perturbation_gain(variance, std, alpha)
        return torch.where(variance > floor, 1 / gain.clamp(min=1e-300), 0.0)

    tail = float(inverse(torch.tensor(spectrum.tail, dtype=torch.float64, device=std.device)))
    delta = spectrum.filter(y, inverse(spectrum.values), tail)
    reached = spectrum.filter(y, (spectrum.values > floor).double(), float(spectrum.tail > floor))
    left = (y - reached).double().square().sum(1)
    norm = y.double().square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    size = delta.double().norm(dim=1) / (std * math.sqrt(law.dim))
    return Injection(delta.view_as(wanted), left / norm, size)


@dataclass(frozen=True, eq=False)
class PerturbationResponse:
    """Gains of the first components: the Gaussian's in closed form, the model's by finite changes.

    Attributes:
        sigmas: levels at which the state was changed, decreasing.
        variances: of the components, in order.
        numbers: of the components, from 1.
        gain: λ-formula, components by levels.
        measured: mean over the samples of u_k·(x₀⁺ − x₀⁻)/2δ, components by levels.
        error: standard errors of ``measured``.
        leak: root-mean-square length of the response in all other directions, per unit change.
        size: of the change, in standard deviations of the state's component.
        samples, nfe, seed: of the measurement; ``nfe`` counts all evaluations for each sample.
    """

    sigmas: tuple[float, ...]
    variances: tuple[float, ...]
    numbers: tuple[int, ...]
    gain: tuple[tuple[float, ...], ...]
    measured: tuple[tuple[float, ...], ...]
    error: tuple[tuple[float, ...], ...]
    leak: tuple[tuple[float, ...], ...]
    size: float
    samples: int
    nfe: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def summary(self) -> str:
        """The first component's gains at the ends, and the largest ratio of measured and predicted."""
        rows = [
            (self.measured[i][k] / g, n, s)
            for i, n in enumerate(self.numbers)
            for k, (s, g) in enumerate(zip(self.sigmas, self.gain[i], strict=True))
            if g > 0
        ]
        ratio, number, sigma = max(rows, key=lambda row: abs(row[0] - 1))
        return (
            f"A unit change along component {self.numbers[0]} moves the sample by {self.measured[0][0]:.3g} at "
            f"σ = {self.sigmas[0]:.3g} and by {self.measured[0][-1]:.3g} at σ = {self.sigmas[-1]:.3g}; the Gaussian predicts "
            f"{self.gain[0][0]:.3g} and {self.gain[0][-1]:.3g}. Farthest from its prediction is component {number} at "
            f"σ = {sigma:.3g}: {ratio:.2f} times the Gaussian's gain."
        )

    def tables(self) -> list[Table]:
        """Each component and level."""
        columns = ("component", "variance", "σ", "gain of the Gaussian", "of the model", "± error", "other directions")
        rows = tuple(
            (n, v, s, self.gain[i][k], self.measured[i][k], self.error[i][k], self.leak[i][k])
            for i, (n, v) in enumerate(zip(self.numbers, self.variances, strict=True))
            for k, s in enumerate(self.sigmas)
        )
        return [Table(f"response to ±{self.size:g} standard deviations, {self.samples} samples", columns, rows)]

    def plot(self, ax: Any = None) -> Any:
        """Gain against the level of the change: lines the Gaussian's, dots the model's. Returns the figure."""
        (axes,) = axes_for(ax, width=7.2, height=4.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        high, low = self.sigmas[0] * 1.15, self.sigmas[-1] / 1.15
        fine = [high * (low / high) ** (k / 100) for k in range(101)]
        for i, (number, variance) in enumerate(zip(self.numbers, self.variances, strict=True)):
            colour = PALETTE[i % len(PALETTE)]
            curve = perturbation_gain(variance, torch.tensor(fine)).tolist()
            axes.plot(fine, curve, color=colour, linewidth=1.8, label=f"component {number}")
            axes.errorbar(
                self.sigmas, [max(v, 1e-6) for v in self.measured[i]], yerr=self.error[i], fmt="o", color=colour,
                markersize=4, linewidth=1,
            )  # fmt: skip
        axes.plot([], [], "o", color=INK, markersize=4, label="model")
        axes.set_xlim(high, low)
        dress(
            axes, "noise level σ' of the change  (sampling runs to the right)", "change of the sample per unit change"
        )
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
        return axes.figure


def perturbation_response(
    denoiser: Denoiser,
    law: Gaussian,
    *,
    components: Sequence[int] = (1, 2, 4),
    levels: Sequence[int] = (2, 5, 8, 10, 12),
    size: float = 0.1,
    n: int = 32,
    seed: int = 0,
    sampler: Sampler | None = None,
) -> PerturbationResponse:
    """Measure the gains of a model: change states of its trajectories along ±u_k and follow them to the end.

    Args:
        denoiser: the model.
        law: the data's Gaussian, whose components are used.
        components: their numbers, from 1.
        levels: indices of the sampler's levels at which the state is changed, ≥ 1.
        size: δ in standard deviations of the state's component, ``size · sqrt(λ + σ²)``; small enough to be linear.
        n, seed: the samples.
        sampler: how to solve, without noise; by default Heun on 18 Karras levels within the model's range.

    Raises:
        ArgumentError: for components or levels that do not exist, a size that is not positive, or a run with noise.
    """
    low, high = max(0.002, denoiser.sigma_min), min(80.0, denoiser.sigma_max)
    plan = sampler if sampler is not None else Sampler("heun", karras(18, low, high))
    if plan.noise is not None:
        raise ArgumentError(f"sampler: noise = {plan.noise!r} would hide the response; expected a deterministic run")
    if not size > 0:
        raise ArgumentError(f"size = {size}; expected a positive number")
    if not components or min(components) < 1 or max(components) > law.spectrum.rank:
        raise ArgumentError(f"components = {list(components)}; expected numbers from 1 to {law.spectrum.rank}")
    nodes = plan.levels
    if not levels or min(levels) < 1 or max(levels) >= len(nodes) - 1:
        raise ArgumentError(f"levels = {list(levels)}; expected indices from 1 to {len(nodes) - 2}")
    run = plan(denoiser, n, seed, trajectory=True)
    assert run.trajectory is not None
    path: Trajectory = run.trajectory
    variances, vectors = principal_components(law, max(components))
    chosen = [k - 1 for k in components]
    variances, vectors = variances[chosen], vectors[chosen].to(path.states.device)
    shape = (len(levels), len(chosen))
    measured, error, leak = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    spent = run.nfe
    for row, k in enumerate(sorted(levels)):
        tail = replace(plan, start=Prior(), sigmas=Explicit(tuple(s for s in nodes[k:] if s > 0)))
        for column, (variance, u) in enumerate(zip(variances.tolist(), vectors, strict=True)):
            delta = size * math.sqrt(variance + nodes[k] ** 2)
            state = path.states[k]
            step = (delta * u).to(state)
            ends = tail.run(denoiser, torch.cat((state + step, state - step)))
            spent += 2 * ends.nfe
            change = ((ends.x[:n] - ends.x[n:]).double() / (2 * delta)).flatten(1)
            own = change @ u.flatten().double()
            measured[row, column] = own.mean()
            error[row, column] = own.std() / math.sqrt(n) if n > 1 else 0.0
            rest = change.square().sum(1) - own.square()
            leak[row, column] = rest.clamp(min=0).mean().sqrt()
    sigmas = tuple(nodes[k] for k in sorted(levels))
    gain = perturbation_gain(variances.cpu()[:, None], torch.tensor(sigmas, dtype=torch.float64))

    def columns(table: Tensor) -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, table.T.tolist()))

    return PerturbationResponse(
        sigmas=sigmas,
        variances=tuple(variances.tolist()),
        numbers=tuple(components),
        gain=columns(gain.T),
        measured=columns(measured),
        error=columns(error),
        leak=columns(leak),
        size=size,
        samples=n,
        nfe=spent,
        seed=seed,
    )


@dataclass(frozen=True)
class PerturbationOptions:
    """Options of the analysis; see :func:`perturbation_response`."""

    components: tuple[int, ...] = (1, 2, 4)
    levels: tuple[int, ...] = (2, 5, 8, 10, 12)
    size: float = 0.1
    n: int = 32


@analysis(
    "perturbation", about="how much a change on the way moves the sample, by component", options=PerturbationOptions
)
def analyze_perturbation(subject: Subject, options: PerturbationOptions) -> PerturbationResponse:
    """:func:`perturbation_response` of a subject, with the Gaussian of its data."""
    law = Gaussian.fit(subject.data, rank=None if subject.model.dim <= 1024 else 512)
    return perturbation_response(
        subject.model,
        law,
        components=options.components,
        levels=options.levels,
        size=options.size,
        n=options.n,
        seed=subject.seed,
    )
