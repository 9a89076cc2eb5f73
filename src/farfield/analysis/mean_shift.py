"""Mean shift with the optimal denoiser: ``x ← D(x, h)``, whose resting points are the modes of the data's kernel density.

For a data set the posterior mean at level h is the mean-shift vector of its Gaussian kernel density ``p_h`` (Fukunaga &
Hostetler 1975; Cheng 1995; Chen et al., "A geometric perspective on diffusion models", section 5):

    D(x, h) − x = h² ∇ log p_h(x),    log p_h(y) − log p_h(x) ≥ (‖x − D‖² − ‖y − D‖²)/2h²

so a step never loses density, whatever its fraction; it is an EM algorithm, and near a mode the distance shrinks by the factor
``ρ = λ_max(Cov_w)/h²``, the largest eigenvalue of ∂D/∂x there. An Euler step of the sampling ODE is a part of such a step with
a bandwidth that falls (Chen et al., Prop. 5): sampling with the optimal denoiser is annealed mean shift with one step a level.

(``sklearn.cluster.MeanShift`` has a flat kernel, whose modes are others; ``sklearn.neighbors.KernelDensity`` is the same p_h.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Distribution, Empirical
from farfield.distributions.empirical_calculus import mean_and_log_prob
from farfield.errors import ArgumentError, NonFiniteError
from farfield.sampling.grids import validated

#: Steps of mean shift at most, unless told otherwise.
STEPS = 1000
#: Where accelerated: the path must be this straight, and no step is stretched by more than this.
_STRAIGHT, _STRETCH = 0.9, 50.0


@dataclass(frozen=True, eq=False)
class Shifted:
    """Where mean shift of one bandwidth has led.

    Attributes:
        bandwidth: h.
        x: the ends (B, *event).
        steps: evaluations of the denoiser for each start, (B,) int64.
        residuals: length of the last step ``‖D(x, h) − x‖``, (B,) in float64.
        converged: whether that is within the tolerance, (B,).
        log_prob: ``log p_h`` at the ends, (B,) in float64; None for a denoiser without a density.
    """

    bandwidth: float
    x: Tensor
    steps: Tensor
    residuals: Tensor
    converged: Tensor
    log_prob: Tensor | None


@dataclass(frozen=True, eq=False)
class Annealed:
    """Mean shift through falling bandwidths.

    Attributes:
        bandwidths: (L,) decreasing.
        modes: (L, B, *event) the ends at each bandwidth; the last are the result.
        steps: (L, B) evaluations at each.
        converged: (L, B); with one step a level, whether that step was within the tolerance.
        log_prob: at the last bandwidth, (B,) in float64, or None.
    """

    bandwidths: tuple[float, ...]
    modes: Tensor
    steps: Tensor
    converged: Tensor
    log_prob: Tensor | None

    @property
    def x(self) -> Tensor:
        """The ends (B, *event)."""
        return self.modes[-1]


def check_bandwidth(law: Denoiser, bandwidth: float) -> None:
    """Raise ``ArgumentError`` unless the bandwidth is positive and the law one of Gaussian kernels."""
    if not 0 < bandwidth < float("inf"):
        raise ArgumentError(f"bandwidth = {bandwidth}; expected a positive number")
    if not law.process.gaussian:
        raise ArgumentError(f"mean shift here has a Gaussian kernel; the law belongs to {law.process!r}")


def mean_shift(
    law: Denoiser,
    x: Tensor,
    bandwidth: float,
    *,
    tolerance: float = 1e-6,
    steps: int = STEPS,
    accelerate: bool = False,
    batch_size: int = 1024,
    **condition: Any,
) -> Shifted:
    """Repeat ``x ← D(x, h)`` for each start by itself until its step is shorter than the tolerance.

    Starts that have arrived are dropped from the batch; a start's end does not depend on the others.

    Args:
        law: the data set as :class:`~farfield.distributions.Empirical` (mean shift proper), another law, or a network, whose
            denoiser is then iterated in the same way.
        x: starts (B, *event). Their type is that of the computation: in float32 no step gets shorter than rounding, which is
            allowed for.
        bandwidth: h, the noise level, positive.
        tolerance: in units of h.
        steps: evaluations for each start at most.
        accelerate: where the path has become straight and its steps shrink by a factor q, go on to where they would lead,
            ``1/(1 − q)`` steps at once (Aitken 1926), and take that back if it lost density. It needs a density; close to a
            split, where ρ is near 1, it saves most of the steps. The mode is the same unless two basins nearly touch.
        batch_size: starts at a time.
        **condition: what the law takes, e.g. ``labels``, one for each start or one for all.

    Raises:
        ArgumentError: for an argument out of range, another process, or acceleration without a density.
        NonFiniteError: if the denoiser's output is not finite.
    """
    law.check_shape(x)
    check_bandwidth(law, bandwidth)
    if tolerance < 0 or steps < 1 or batch_size < 1:
        raise ArgumentError(
            f"tolerance = {tolerance}, steps = {steps}, batch_size = {batch_size}; expected at least 0, 1 and 1"
        )
    if accelerate and not isinstance(law, Distribution):
        raise ArgumentError("accelerate = True needs a density to check its steps by; a network has none")
    parts = []
    with torch.no_grad():
        for first in range(0, len(x), batch_size):
            rows = slice(first, first + batch_size)
            own = {k: _rows(v, rows) for k, v in condition.items()}
            parts.append(_shift(law, x[rows], float(bandwidth), tolerance, steps, accelerate, own))
    if not parts:
        none = torch.zeros(0, dtype=torch.float64, device=x.device)
        return Shifted(float(bandwidth), x, none.long(), none, none.bool(), none)
    density = [p.log_prob for p in parts if p.log_prob is not None]
    return Shifted(
        float(bandwidth),
        torch.cat([p.x for p in parts]),
        torch.cat([p.steps for p in parts]),
        torch.cat([p.residuals for p in parts]),
        torch.cat([p.converged for p in parts]),
        torch.cat(density) if density else None,
    )


def _rows(value: Any, index: Any) -> Any:
    """Some rows of a condition; what is given once for all stays."""
    return value[index] if isinstance(value, Tensor) and value.ndim else value


def _evaluate(law: Denoiser, x: Tensor, h: float, condition: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """The denoiser and, where a pass over the data gives it for nothing or it is asked for, the density."""
    if isinstance(law, Empirical):
        return mean_and_log_prob(law, x, h, condition.get("labels"))
    return law(x, h, **condition), None


@dataclass
class _Progress:
    """What each active start remembers: see :func:`_shift`."""

    last: Tensor  # its last step (A, d), where `known`
    known: Tensor
    trial: Tensor  # whether its state is an extrapolated one
    fallback: Tensor  # the plain image to return to
    density: Tensor  # log p where the extrapolation began

    def take(self, keep: Tensor) -> _Progress:
        return _Progress(self.last[keep], self.known[keep], self.trial[keep], self.fallback[keep], self.density[keep])


def _shift(
    law: Denoiser, x: Tensor, h: float, tolerance: float, steps: int, accelerate: bool, condition: dict[str, Any]
) -> Shifted:
    rounding = 8 * torch.finfo(x.dtype).eps
    state, shape = x.flatten(1).clone(), x.shape[1:]
    ends = state.clone()
    spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    residuals = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    converged = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    off = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    memory = _Progress(torch.zeros_like(state), off, off, state.clone(), residuals.clone())
    for _ in range(steps):
        own = {k: _rows(v, active) for k, v in condition.items()}
        image, density = _evaluate(law, state.view(-1, *shape), h, own)
        image = image.flatten(1)
        if accelerate and density is None:
            assert isinstance(law, Distribution)
            density = law.log_prob(state.view(-1, *shape), h, **own)
        size = (image - state).double().norm(dim=1)
        done = size <= tolerance * h + rounding * state.double().norm(dim=1)
        following = image
        if accelerate and density is not None:
            following, image, done = _stretched(memory, state, image, density, done)
        spent[active] += 1
        residuals[active] = size
        ends[active] = image
        converged[active] = done
        keep = ~done
        state, active, memory = following[keep], active[keep], memory.take(keep)
        if not len(active):
            break
    if not bool(torch.isfinite(residuals).all()):
        raise NonFiniteError(f"the denoiser's output at bandwidth {h:g} is not finite")
    ends = ends.view(-1, *shape)
    found = law.log_prob(ends, h, **condition) if isinstance(law, Distribution) else None
    return Shifted(h, ends, spent, residuals, converged, found)


def _stretched(
    memory: _Progress, state: Tensor, image: Tensor, density: Tensor, done: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The next states, some of them extrapolated, the plain ones, and which starts have arrived; updates the memory."""
    failed = memory.trial & (density < memory.density)
    move = (image - state).double()
    last = memory.last.double()
    inner, before = (move * last).sum(1), last.square().sum(1)
    ratio = inner / before.clamp(min=1e-300)
    cosine = inner / (before.sqrt() * move.norm(dim=1)).clamp(min=1e-300)
    far = memory.known & ~failed & ~done & (cosine > _STRAIGHT) & (ratio > 0.3) & (ratio < 1)
    stretch = (1 / (1 - ratio.clamp(max=1 - 1e-9))).clamp(max=_STRETCH).to(image.dtype).unsqueeze(1)
    plain = torch.where(failed.unsqueeze(1), memory.fallback, image)
    following = torch.where(far.unsqueeze(1), state + stretch * (image - state), plain)
    memory.fallback = torch.where(far.unsqueeze(1), image, memory.fallback)
    memory.density = torch.where(far, density, memory.density)
    memory.known = ~far & ~failed
    memory.last = image - state
    memory.trial = far
    return following, plain, done & ~failed


def annealed_mean_shift(
    law: Denoiser,
    x: Tensor,
    bandwidths: Sequence[float],
    *,
    one_step: bool = False,
    tolerance: float = 1e-6,
    steps: int = STEPS,
    accelerate: bool = False,
    batch_size: int = 1024,
    **condition: Any,
) -> Annealed:
    """Mean shift at each of falling bandwidths, from where the one before has ended: it seeks the global mode.

    (Shen, Brooks & van den Hengel 2007; Chen et al., section 5 and appendix C.3.)

    Args:
        law, x, tolerance, steps, accelerate, batch_size, condition: as for :func:`mean_shift`.
        bandwidths: decreasing, positive.
        one_step: a single step at each bandwidth, as a sampler would: an Euler step of full weight.

    Raises:
        ArgumentError: as :func:`mean_shift`, and for bandwidths that do not decrease.
    """
    levels = validated(bandwidths)
    if one_step and accelerate:
        raise ArgumentError("accelerate = True has no effect on one step a level; leave it out")
    found: list[Shifted] = []
    state = x
    for h in levels:
        found.append(
            mean_shift(
                law, state, h, tolerance=tolerance, steps=1 if one_step else steps, accelerate=accelerate,
                batch_size=batch_size, **condition,
            )
        )  # fmt: skip
        state = found[-1].x
    return Annealed(
        levels,
        torch.stack([f.x for f in found]),
        torch.stack([f.steps for f in found]),
        torch.stack([f.converged for f in found]),
        found[-1].log_prob,
    )
