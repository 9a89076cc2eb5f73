"""Exact likelihood of a model: data carried to noise by its own ODE, with the change of volume (Song et al. 2021, section 4.3).

    log p(x; σ_min) = log π(x_max; σ_max) + ∫ (d − tr ∂D/∂x) d log σ      from σ_min to σ_max along the trajectory

It is the density of what the model's deterministic sampler makes of the prior π, before the last step below σ_min. Above a
level σ_skip the data's Gaussian may stand for the model: its map and its determinant are closed forms (Wang & Vastola 2024,
section 2.4), and cost nothing.

*Bits per dimension.* Data on a lattice of step Δ (8-bit images in [−1, 1]: Δ = 2/255) have no density; they have
probabilities, which two conventions bound from below, each on average over its noise (``dequantisation.py``). Without a
lattice ``−log p/(d ln 2)`` is a differential entropy: it may be negative, and is comparable only in the same units.

*Random divergence.* ``vᵀ J v`` over random signs v has variance twice the squared off-diagonal part of J. With the data's
Gaussian as a control variate, ``vᵀ(J − J_G)v + tr J_G``, it is that of the difference, which vanishes at high σ; the mean is
the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.distributions.base import Distribution
from farfield.errors import ArgumentError
from farfield.metrics.dequantisation import Dequantisation, dequantise
from farfield.metrics.likelihood_flow import Ascent, ascend, estimated, exact, signs, without_divergence

Divergence = Literal["auto", "exact", "hutchinson"]

#: log p for each probe and the latents, of the samples picked, in so many steps.
Run = Callable[[Tensor, int], tuple[Tensor, Tensor]]

#: Up to this many coordinates the trace of a network's Jacobian is summed, and states are float64.
_SMALL, _WIDE = 16, 1024


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-densities of a set of samples; tensors are (B,), float64.

    Attributes:
        log_prob: nats, the density of the samples at σ_min, dequantised where they lie on a lattice.
        log_mass: nats, the bound on the probability of the lattice points; None without a lattice.
        error: nats, of the integration: the difference to half the steps over 3, which holds for a rule of second order; the
            rule is of fourth where the model is smooth.
        probe_error: nats, standard error over the probes; 0 where the divergence is exact, NaN for a single probe.
        steps: integration steps that a sample took, after doubling.
        products: Jacobian products spent on it, the coarser runs included.
        latent: (B, *event) the samples as noise of level σ_max.
        sigma_min, sigma_skip, sigma_max: the levels; σ_skip is None without a Gaussian above it.
        divergence: ``"exact"`` or ``"hutchinson"``.
        probes: random vectors for each sample, 0 for exact.
        step: Δ of the lattice, None for a density.
        dequantisation: ``"uniform"`` or ``"noise"``, None for a density.
        prior: what π is, in words.
        seed: names probes and dequantisation.
    """

    log_prob: Tensor
    log_mass: Tensor | None
    error: Tensor
    probe_error: Tensor
    steps: Tensor
    products: Tensor
    latent: Tensor
    sigma_min: float
    sigma_skip: float | None
    sigma_max: float
    divergence: Literal["exact", "hutchinson"]
    probes: int
    step: float | None
    dequantisation: Dequantisation | None
    prior: str
    seed: int

    @property
    def dim(self) -> int:
        """d."""
        return math.prod(self.latent.shape[1:])

    @property
    def bits_per_dim(self) -> Tensor:
        """``−log_mass/(d ln 2)`` of each sample; without a lattice ``−log_prob/(d ln 2)``."""
        return -(self.log_prob if self.log_mass is None else self.log_mass) / (self.dim * math.log(2))

    @property
    def mean_bits(self) -> tuple[float, float]:
        """Mean bits per dimension and its standard error over the samples (0 for a single one)."""
        bits = self.bits_per_dim
        return float(bits.mean()), float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All but the latents as plain values; what is not a number is None."""
        rows = {name: getattr(self, name).tolist() for name in ("log_prob", "error", "steps", "products")}
        noisy = [v if math.isfinite(v) else None for v in self.probe_error.tolist()]
        settings = (
            "sigma_min", "sigma_skip", "sigma_max", "divergence", "probes", "step", "dequantisation", "prior", "seed", "dim",
        )  # fmt: skip
        return {
            **rows,
            "probe_error": noisy,
            "log_mass": None if self.log_mass is None else self.log_mass.tolist(),
            "bits_per_dim": self.bits_per_dim.tolist(),
            "mean_bits": list(self.mean_bits),
            **{name: getattr(self, name) for name in settings},
        }

    def summary(self) -> str:
        """Mean, its error, and what the number is of."""
        mean, error = self.mean_bits
        spent = float(self.products.double().mean())
        kind = (
            f"data on a lattice of step {self.step:.4g}, dequantised" if self.step else "a density in the data's units"
        )
        return (
            f"{mean:.3f} ± {error:.3f} bits/dim over {len(self.log_prob)} samples ({kind}), or "
            f"{float(self.log_prob.mean()):.2f} nats. Integration error {float(self.error.max()):.2g} nats at most, "
            f"{spent:.0f} Jacobian products each."
        )


def _range(denoiser: Denoiser, low: float | None, high: float | None) -> tuple[float, float]:
    """The levels, by default the model's own within 0.002 to 80."""
    a = max(0.002, denoiser.sigma_min) if low is None else float(low)
    b = min(80.0, denoiser.sigma_max) if high is None else float(high)
    slack = 1 + 1e-6
    if not 0 < a < b < math.inf or a * slack < denoiser.sigma_min or b > denoiser.sigma_max * slack:
        raise ArgumentError(
            f"sigma_min = {a:g}, sigma_max = {b:g}; expected 0 < sigma_min < sigma_max within the model's range "
            f"[{denoiser.sigma_min:g}, {denoiser.sigma_max:g}]"
        )
    return a, b


def _top(gaussian: Gaussian | None, sigma_skip: float | None, low: float, high: float) -> float:
    """Where the model's own integration ends."""
    if (gaussian is None) != (sigma_skip is None):
        raise ArgumentError(
            "gaussian and sigma_skip belong together: the Gaussian stands for the model above that level"
        )
    if sigma_skip is None:
        return high
    if not low < sigma_skip <= high:
        raise ArgumentError(f"sigma_skip = {sigma_skip}; expected a level above {low:g} and at most {high:g}")
    return float(sigma_skip)


def _check(denoiser: Denoiser, x: Tensor) -> None:
    if not denoiser.process.gaussian:
        raise ArgumentError(f"likelihood needs Gaussian diffusion; the model's process is {denoiser.process!r}")
    denoiser.check_shape(x)
    if not len(x):
        raise ArgumentError("x holds no samples")


@torch.no_grad()
def encode(
    denoiser: Denoiser,
    x: Tensor,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    gaussian: Gaussian | None = None,
    sigma_skip: float | None = None,
    steps: int = 64,
    **condition: Any,
) -> Tensor:
    """Samples to their noise: the model's ODE run upwards, or up to σ_skip and from there the Gaussian's closed-form inverse.

    A sampler started from the result (``Sampler.run``) leads back to the samples.

    Args:
        denoiser: the model.
        x: (B, *event), taken as states of level ``sigma_min``.
        sigma_min, sigma_max: the levels; by default the model's own within 0.002 to 80.
        gaussian, sigma_skip: the data's Gaussian, and the level above which it stands for the model; both or none.
        steps: Runge-Kutta steps, 4 evaluations each.
        **condition: passed to the denoiser.

    Returns:
        (B, *event) in the type of x, noise of level ``sigma_max``.

    Raises:
        ArgumentError: for a wrong shape or levels out of order.
    """
    _check(denoiser, x)
    low, high = _range(denoiser, sigma_min, sigma_max)
    top = _top(gaussian, sigma_skip, low, high)
    state = ascend(without_divergence(denoiser, condition), x, low, top, steps).x
    return state if gaussian is None else gaussian.flow(state, top, high)


@torch.no_grad()
def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    step: float | None = None,
    dequantisation: Dequantisation = "uniform",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    gaussian: Gaussian | None = None,
    sigma_skip: float | None = None,
    prior: Distribution | None = None,
    divergence: Divergence = "auto",
    probes: int = 8,
    control: Gaussian | None = None,
    tolerance: float = 0.1,
    steps: int = 16,
    max_steps: int = 256,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 16,
    **condition: Any,
) -> Likelihood:
    """``log p(x; σ_min)`` under the model's probability flow.

    The number of steps is doubled, sample by sample, until two runs agree within the tolerance. Probes are fixed along a
    trajectory and named by seed and sample: no result depends on the batch or on the other samples.

    Args:
        denoiser: the model: a network, or an exact law.
        x: (B, *event) samples.
        step: Δ where the data lie on a lattice, ``EIGHT_BITS`` for 8-bit images in [−1, 1]; None for a density.
        dequantisation: how they are taken off it, ``"uniform"`` or ``"noise"``.
        sigma_min, sigma_max: the levels; by default the model's own within 0.002 to 80, for noise from Δ/4.
        gaussian, sigma_skip: the data's Gaussian, and the level above which it stands for the model; both or none.
        prior: the law π at σ_max, asked for ``log_prob(x, σ_max)``; by default N(0, σ_max² I), which samplers start from.
        divergence: ``"exact"``: one Jacobian product for each coordinate, or a law's closed form; ``"hutchinson"``: unbiased,
            one for each probe; ``"auto"``: exact for laws and up to 16 coordinates.
        probes: random vectors for each sample.
        control: the data's Gaussian as a control variate of the random divergence.
        tolerance: nats.
        steps: of the coarsest run; each has 4 evaluations.
        max_steps: where doubling stops, whatever the error, which is reported.
        seed, first: name the samples: probes and dequantisation of sample i are those of number ``first + i``.
        batch_size: samples at once.
        **condition: passed to the denoiser; a tensor with B rows is cut along with the batch.

    Raises:
        ArgumentError: for shapes that do not fit or an argument out of range.
    """
    _check(denoiser, x)
    if sigma_min is None and step is not None and dequantisation == "noise":
        sigma_min = max(step / 4, denoiser.sigma_min)
    low, high = _range(denoiser, sigma_min, sigma_max)
    top = _top(gaussian, sigma_skip, low, high)
    if divergence not in ("auto", "exact", "hutchinson"):
        raise ArgumentError(f"divergence = {divergence!r}; expected 'auto', 'exact' or 'hutchinson'")
    if min(probes, steps, batch_size) < 1 or max_steps < 2 * steps or not tolerance > 0:
        raise ArgumentError(
            f"probes = {probes}, steps = {steps}, max_steps = {max_steps}, batch_size = {batch_size}, tolerance = {tolerance}; "
            "expected at least 1, room for one doubling, and a positive tolerance"
        )
    closed = isinstance(denoiser, Distribution) or denoiser.dim <= _SMALL
    is_exact = divergence == "exact" or (divergence == "auto" and closed)
    cost = (1 if isinstance(denoiser, Distribution) else denoiser.dim) if is_exact else probes
    dtype = torch.float64 if denoiser.dim <= _WIDE else x.dtype
    start, correction = x.to(dtype), None
    if step is not None:
        start, correction = dequantise(start, step, dequantisation, low, seed, first)

    def value(found: Ascent) -> tuple[Tensor, Tensor]:
        """log p for each probe, (B, P), and the states at σ_max."""
        states, volume = found.x, found.volume
        if gaussian is not None:
            volume = volume + gaussian.flow_log_det(top, high)
            states = gaussian.flow(states, top, high)
        if prior is not None:
            return prior.log_prob(states, high).unsqueeze(1) + volume, states
        square = states.flatten(1).double().square().sum(1, keepdim=True)
        return volume - 0.5 * (square / high**2 + denoiser.dim * math.log(2 * math.pi * high**2)), states

    def runner(state: Tensor, bound: dict[str, Any], vectors: Tensor | None) -> Run:
        def run(pick: Tensor, count: int) -> tuple[Tensor, Tensor]:
            some = {k: v[pick] if _by_row(v, len(state)) else v for k, v in bound.items()}
            field = exact(denoiser, some) if vectors is None else estimated(denoiser, vectors[pick], some, control)
            return value(ascend(field, state[pick], low, top, count))

        return run

    parts = []
    for begin in range(0, len(x), batch_size):
        state = start[begin : begin + batch_size]
        ids = torch.arange(first + begin, first + begin + len(state), device=x.device)
        bound = {k: v[begin : begin + batch_size] if _by_row(v, len(x)) else v for k, v in condition.items()}
        vectors = None if is_exact else signs(seed, ids, denoiser.event_shape, probes, dtype)
        parts.append(_refine(runner(state, bound, vectors), len(state), x.device, steps, max_steps, tolerance))
    each, states, error, taken = (torch.cat(column) for column in zip(*parts, strict=True))
    total = each.mean(1)
    spread = each.std(1) / math.sqrt(probes) if not is_exact and probes > 1 else torch.full_like(total, math.nan)
    return Likelihood(
        log_prob=total,
        log_mass=None if correction is None else total + correction,
        error=error,
        probe_error=torch.zeros_like(total) if is_exact else spread,
        steps=taken,
        # steps + 2 steps + … + taken, four evaluations each
        products=4 * cost * (2 * taken - steps),
        latent=states.to(x.dtype),
        sigma_min=low,
        sigma_skip=None if gaussian is None else top,
        sigma_max=high,
        divergence="exact" if is_exact else "hutchinson",
        probes=0 if is_exact else probes,
        step=step,
        dequantisation=None if step is None else dequantisation,
        prior="N(0, σ_max²)" if prior is None else type(prior).__name__,
        seed=seed,
    )


def _by_row(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows


def _refine(
    run: Run, rows: int, device: torch.device, steps: int, max_steps: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p for each probe, latent, error and steps of each sample: the steps are doubled until two runs agree."""
    active = torch.arange(rows, device=device)
    values, states = run(active, steps)
    error = torch.full((rows,), math.inf, dtype=torch.float64, device=device)
    taken = torch.full((rows,), steps, device=device)
    count = steps
    while len(active) and 2 * count <= max_steps:
        count *= 2
        value, state = run(active, count)
        gap = (value.mean(1) - values[active].mean(1)).abs() / 3
        values[active], states[active], error[active], taken[active] = value, state, gap, count
        active = active[gap > tolerance]
    return values, states, error, taken
