"""Between native and variance-exploding coordinates: models, states, latents, grids and steps.

A linear process ``dx_t = f x_t dt + g dw`` has the kernel N(α x₀, s² I); in ``x = x_t/α``, at ``σ = s/α``, it is
``dx = sqrt(dσ²/dt) dw`` (Chen et al., A geometric perspective on diffusion models, Eqs. 18-25; Eq. 25 is printed with one
``dt`` too many), and everything in this library runs on (x, σ). What a network predicts becomes a denoiser by

| prediction | D(x, σ) |
| --- | --- |
| ``epsilon`` | x − σ ε |
| ``x0`` | x₀ |
| ``v`` = α ε − s x₀ | (x − (σ/α) v)/(1 + σ²) |
| ``score`` = ∇ log p_t(x_t) | x + α σ² score |

(Salimans & Ho 2022 for v; the others are algebra.) ``TimeMap.to_ve`` and ``from_ve`` convert states with their times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError, unknown_name
from farfield.processes import TimeMap
from farfield.processes.base import expand
from farfield.sampling.grids import Explicit, Grid, as_grid

Prediction = Literal["epsilon", "x0", "v", "score"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)

#: A network of native states and times, ``f(x_t, t, **condition)``; t is (B,).
Network = Callable[..., Tensor]


def _check(process: TimeMap, prediction: str) -> None:
    if not isinstance(process, TimeMap):
        raise ArgumentError(f"process is a {type(process).__name__}; expected a time map such as VP() or DDPM()")
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction", prediction, PREDICTIONS)


def to_x0(predicted: Tensor, x: Tensor, sigma: float | Tensor, alpha: float | Tensor, prediction: Prediction) -> Tensor:
    """What a network predicted, as the posterior mean of the clean sample; see the table of this module.

    Args:
        predicted: (B, *event).
        x: the variance-exploding state (B, *event), ``x_t/α``.
        sigma, alpha: level and signal scale, numbers, () or (B,).
        prediction: of ``PREDICTIONS``.
    """
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction", prediction, PREDICTIONS)
    s, a = expand(sigma, x), expand(alpha, x)
    if prediction == "x0":
        return predicted
    if prediction == "epsilon":
        return x - s * predicted
    if prediction == "v":
        return (x - (s / a) * predicted) / (1 + s * s)
    return x + (a * s * s) * predicted


def from_x0(x0: Tensor, x: Tensor, sigma: float | Tensor, alpha: float | Tensor, prediction: Prediction) -> Tensor:
    """The inverse of :func:`to_x0`: what a network of this kind should predict where the posterior mean is ``x0``."""
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction", prediction, PREDICTIONS)
    s, a = expand(sigma, x), expand(alpha, x)
    if prediction == "x0":
        return x0
    if prediction == "epsilon":
        return (x - x0) / s
    if prediction == "v":
        return a * ((x - x0) / s - s * x0)
    return (x0 - x) / (a * s * s)


class FromNative(Denoiser):
    """A network of native states and times as a denoiser: ``D(x, σ)`` from its answer at ``(α x, t(σ))``.

    (Chen et al., appendix A.2: any tool on (x, σ) serves it.) Scales and times are taken in float64; the network sees them in
    the states' type.

    Args:
        network: ``f(x_t, t, **condition)`` with t (B,); a module's parameters become the denoiser's.
        event_shape: the shape of one sample.
        process: the time map of the network's training.
        prediction: what it predicts: ``"epsilon"``, ``"x0"``, ``"v"`` or ``"score"``.
        clock: from t to what the network takes for it, e.g. ``lambda t: 999 * t``, or ``torch.round`` for one that knows
            whole steps only; the identity by default.
        sigma_min, sigma_max: the levels for which the network is meant; by default those of the process's ends.

    Raises:
        ArgumentError: for a process that is no time map, or an unknown prediction.
    """

    def __init__(
        self,
        network: Network,
        event_shape: tuple[int, ...],
        process: TimeMap,
        prediction: Prediction = "epsilon",
        *,
        clock: Callable[[Tensor], Tensor] | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> None:
        _check(process, prediction)
        low = process.sigma(process.t_min) if sigma_min is None else sigma_min
        high = process.sigma(process.t_max) if sigma_max is None else sigma_max
        super().__init__(event_shape, low, high)
        self.network, self.time_map, self.prediction, self.clock = network, process, prediction, clock

    def forward(self, x: Tensor, sigma: float | Tensor, **condition: Any) -> Tensor:
        """The denoised samples, shape and type of ``x``."""
        level = (
            sigma.to(x.device, torch.float64)
            if isinstance(sigma, Tensor)
            else torch.full((), sigma, dtype=torch.float64, device=x.device)
        )
        t = self.time_map.time(level)
        alpha = self.time_map.alpha(t)
        told = (t if self.clock is None else self.clock(t)).to(x.dtype).expand(x.shape[0])
        level, alpha = level.to(x.dtype), alpha.to(x.dtype)
        predicted = self.network(expand(alpha, x) * x, told, **condition).to(x.dtype)
        return to_x0(predicted, x, level, alpha, self.prediction)


class ToNative(nn.Module):
    """A denoiser as a network of native states and times, for code that expects one: the inverse of :class:`FromNative`.

    Args:
        denoiser: the model.
        process: the time map of the code that will call it.
        prediction: what that code expects.
        clock: from the caller's t to the process's; the identity by default.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        process: TimeMap,
        prediction: Prediction = "epsilon",
        *,
        clock: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        _check(process, prediction)
        if prediction == "score" and not denoiser.process.gaussian:
            raise ArgumentError(f"prediction = 'score': {denoiser.process!r} has a field instead of a score")
        self.denoiser, self.time_map, self.prediction, self.clock = denoiser, process, prediction, clock

    def forward(self, x_t: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """The prediction at native states (B, *event) and times (), (B,)."""
        time = torch.as_tensor(t, dtype=torch.float64, device=x_t.device)
        time = time if self.clock is None else self.clock(time)
        alpha, sigma = (v.to(x_t.dtype) for v in (self.time_map.alpha(time), self.time_map.sigma(time)))
        x = x_t / expand(alpha, x_t)
        return from_x0(self.denoiser(x, sigma, **condition), x, sigma, alpha, self.prediction)


# -- the equation in native coordinates -----------------------------------------------------------------------------------


def native_velocity(denoiser: Denoiser, x_t: Tensor, t: float, process: TimeMap, **condition: Any) -> Tensor:
    """``dx_t/dt = f x_t − ½ g² ∇ log p_t(x_t)``, the probability-flow ODE of the process (Song et al. 2021, Eq. 13).

    In variance-exploding coordinates it is ``dx/dt = σ'(t) (x − D)/σ``, with ``x = x_t/α``.

    Args:
        denoiser: the model.
        x_t: native states (B, *event) at time t.
        t: the time, with σ(t) > 0.
        process: the time map.
    """
    _check(process, "score")
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = x_t / alpha
    score = from_x0(denoiser(x, sigma, **condition), x, sigma, alpha, "score")
    return process.drift(t) * x_t - process.diffusion(t) ** 2 / 2 * score


def ve_diffusion(process: TimeMap, t: float) -> float:
    """``sqrt(dσ²/dt) = g/α``: the noise rate of the variance-exploding twin, whose drift is 0."""
    return process.diffusion(t) / process.alpha(t)


def ddim_step(x_t: Tensor, epsilon: Tensor, t: float, t_next: float, process: TimeMap) -> Tensor:
    """``α' (x_t − s ε)/α + s' ε``: a DDIM step with η = 0 in native coordinates (Song, Meng & Ermon 2021, Eq. 12).

    The same as an Euler step in (x, σ), whatever the process.

    Args:
        x_t: native states (B, *event) at ``t``.
        epsilon: the predicted noise there.
        t, t_next: times, in either order.
        process: the time map.
    """
    ratio = process.alpha(t_next) / process.alpha(t)
    return ratio * x_t + (process.std(t_next) - ratio * process.std(t)) * epsilon


# -- grids and latents ----------------------------------------------------------------------------------------------------


def grid_of_times(times: Sequence[float], process: TimeMap) -> Explicit:
    """The noise grid of falling times (a closing time without noise may be among them).

    Raises:
        ArgumentError: if the levels do not fall.
    """
    return Explicit(tuple(process.sigma(float(t)) for t in times))


def times_of_grid(grid: Grid | Sequence[float], process: TimeMap) -> tuple[float, ...]:
    """The times of a grid's positive levels, falling.

    Raises:
        ArgumentError: for a level beyond the ends of the process.
    """
    levels = as_grid(grid).levels
    low, high = process.sigma(process.t_min), process.sigma(process.t_max)
    for s in levels:
        if not low * (1 - 1e-9) <= s <= high * (1 + 1e-9):
            raise ArgumentError(f"level {s:g} lies outside the process, which runs from {low:g} to {high:g}")
    return tuple(process.time(s) for s in levels)


def prior_ratio(process: TimeMap, t: float | None = None) -> float:
    """How much wider the native prior N(0, I) is, in variance-exploding coordinates, than noise of level σ: ``1/(α σ)``.

    1 + 2.2e-5 for ``VP()`` at t = 1. Samples of that prior divided by α are states at σ but for this factor.

    Args:
        process: a process whose prior has unit variance (VP, sub-VP, DDPM).
        t: the time, the process's end by default.
    """
    t = process.t_max if t is None else t
    return 1 / process.std(t)


def convert_latents(z: Tensor, source: TimeMap | float, target: TimeMap | float, *, unit: bool = True) -> Tensor:
    """Latents of one model's top level as latents of another's.

    Args:
        z: (B, *event).
        source, target: a process, for native states at its end (where VP's are about N(0, I)), or a noise level σ, for
            variance-exploding states there.
        unit: keep the noise in units of its own standard deviation, ``z/s``, and give it the target's: so that the same noise
            names the same sample, as when two models share a seed. Otherwise the state itself is converted, which is
            possible only where both have the same level.

    Returns:
        (B, *event) native or variance-exploding states of the target.

    Raises:
        ArgumentError: for a level that is not positive, or with ``unit=False`` for two levels that differ.
    """
    (std, sigma, alpha), (std_to, sigma_to, alpha_to) = _top(source, "source"), _top(target, "target")
    if unit:
        return z * (std_to / std)
    if not math.isclose(sigma, sigma_to, rel_tol=1e-6):
        raise ArgumentError(
            f"source ends at sigma = {sigma:g} and target at {sigma_to:g}; expected one level, or unit=True"
        )
    return z * (alpha_to / alpha)


def _top(end: TimeMap | float, name: str) -> tuple[float, float, float]:
    """Noise scale, level and signal scale at the top."""
    if isinstance(end, TimeMap):
        return end.std(end.t_max), end.sigma(end.t_max), end.alpha(end.t_max)
    if not isinstance(end, int | float) or not 0 < end < math.inf:
        raise ArgumentError(f"{name} = {end!r}; expected a time map or a positive noise level")
    return float(end), float(end), 1.0
