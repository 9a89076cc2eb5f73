"""The order of likelihoods along a sampling trajectory: do the denoiser's output and the next state gain density?

For a law blurred to bandwidth h, with posterior mean ``m = D*(x, h)``, Jensen's inequality gives for all x and y

    log p_h(y) − log p_h(x) ≥ (‖x − m‖² − ‖y − m‖²)/2h²

so whatever lies in the ball about m through x is at least as likely as x. Chen et al. ("A geometric perspective on diffusion
models", Theorem 1) apply it at a state x_n of the sampling ODE with ``h = σ_n``: where a model's output satisfies the premise

    ‖D*(x_n) − D(x_n)‖ ≤ ‖D*(x_n) − x_n‖

both ``D(x_n)`` and the Euler step x_{n−1}, which lies between the two, are at least as likely as x_n. The source says any
bandwidth. That is not so: m has to be the mean of the same bandwidth, and each step has its own, so the order does not chain to
one fixed density; for the optimal denoiser a fixed one can even fall along the path. Equality holds at fixed points alone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.deviation import Band
from farfield.analysis.likelihood_order_plot import draw_order
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.distributions import Distribution, Empirical
from farfield.distributions.empirical_calculus import mean_and_log_prob
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, Trajectory, karras

#: States that are this near to the mean, in units of h √d, are fixed points: there the premise compares rounding.
_FIXED = 1e-9
#: What float64 leaves open of a gain: this share of ``|log p|``, and of ``‖x‖²/h²``, from which log p is made.
_ROUNDING = 1e-12, 4e-15


@dataclass(frozen=True)
class Move:
    """From x_n to the denoiser's output, or to the next state: level by level, over the samples.

    Attributes:
        ratio: ``‖D* − y‖/‖D* − x_n‖``, for the denoiser's output the ratio of the premise; at most 1 inside the ball.
        gain: ``log p(y) − log p(x_n)``, nats.
        bound: Jensen's lower bound of the gain, nats.
        inside: share of the samples with a ratio of at most 1.
        losses: share of the samples that lose density.
        violations: samples inside the ball that lose density, or gain less than the bound: none, if the law's mean and
            density belong together.
    """

    ratio: Band
    gain: Band
    bound: Band
    inside: tuple[float, ...]
    losses: tuple[float, ...]
    violations: tuple[int, ...]

    @property
    def highest_ratio(self) -> float:
        """The largest mean ratio over the levels."""
        return max(self.ratio.mean)


@dataclass(frozen=True, eq=False)
class LikelihoodOrder:
    """Densities along trajectories, each compared at the level's own bandwidth.

    Attributes:
        sigmas: the positive levels, decreasing.
        bandwidths: at which densities are compared; the sigmas, unless one was asked for.
        denoised, following: the moves from x_n to D(x_n), and to x_{n−1}.
        log_prob: ``log p(x_n)`` at the level's bandwidth, nats.
        fixed: samples at a fixed point, by level; their ratios, of rounding to rounding, count as 0.
        n, dim: trajectories, and coordinates of each.
        points: data points of the law, or None for another law.
        sampler: what ran, in words.
    """

    sigmas: tuple[float, ...]
    bandwidths: tuple[float, ...]
    denoised: Move
    following: Move
    log_prob: Band
    fixed: tuple[int, ...]
    n: int
    dim: int
    points: int | None
    sampler: str = ""

    @property
    def own_bandwidth(self) -> bool:
        """Whether each level has the bandwidth that the theorem speaks of."""
        return self.bandwidths == self.sigmas

    @property
    def premise(self) -> bool:
        """Whether every sample satisfies the premise at every level."""
        return min(self.denoised.inside) == 1

    @property
    def ordered(self) -> bool:
        """Whether no sample loses density at any level, in either move."""
        return max(self.denoised.losses) == 0 and max(self.following.losses) == 0

    @property
    def violations(self) -> int:
        """Cases in which the premise holds and the conclusion does not."""
        return sum(self.denoised.violations) + sum(self.following.violations)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "sigmas": list(self.sigmas),
            "bandwidths": list(self.bandwidths),
            "denoised": asdict(self.denoised),
            "following": asdict(self.following),
            "log_prob": asdict(self.log_prob),
            "fixed": list(self.fixed),
            "n": self.n,
            "dim": self.dim,
            "points": self.points,
            "sampler": self.sampler,
            "premise": self.premise,
            "ordered": self.ordered,
            "violations": self.violations,
        }

    def summary(self) -> str:
        """Whether the premise and the order hold along the path."""
        k = max(range(len(self.sigmas)), key=lambda i: self.denoised.ratio.mean[i])
        where = "each level's own bandwidth" if self.own_bandwidth else f"bandwidth {self.bandwidths[0]:.3g}"
        over = [s for s, share in zip(self.sigmas, self.denoised.inside, strict=True) if share < 1]
        lost = max(*self.denoised.losses, *self.following.losses)
        text = (
            f"On {self.n} trajectories the model's output is nearer to the optimal one than the state is "
            f"{'at every level' if not over else f'except for some samples at σ ≤ {max(over):.3g}'} "
            f"(mean premise ratio at most {self.denoised.ratio.mean[k]:.4g}, at σ = {self.sigmas[k]:.3g}). "
        )
        if self.ordered:
            return text + f"At {where} D(x_n) and x_n−1 are never less likely than x_n."
        return text + f"At {where} up to {lost:.0%} of the samples of a level lose density in a step."

    def tables(self) -> list[Table]:
        """Level by level: premise, gains, bounds and losses."""
        first, second = self.denoised, self.following
        rows = tuple(
            (
                s, self.bandwidths[k], first.ratio.mean[k], first.ratio.high[k], first.inside[k], first.gain.mean[k],
                first.bound.mean[k], second.gain.mean[k], second.bound.mean[k], max(first.losses[k], second.losses[k]),
                first.violations[k] + second.violations[k],
            )
            for k, s in enumerate(self.sigmas)
        )  # fmt: skip
        columns = (
            "σ", "h", "premise ratio", "75 %", "inside", "gain of D(x), nats", "bound", "gain of the next state, nats",
            "bound", "losses", "violations",
        )  # fmt: skip
        what = "" if self.points is None else f" under {self.points:,} points"
        return [Table(f"likelihood ordering of {self.n} trajectories{what}", columns, rows)]

    def plot(self, ax: Any = None) -> Any:
        """Gains in density with their bounds (left) and the premise ratio (right) against σ.

        Args:
            ax: two axes, or None for a new figure.
        """
        return draw_order(self, ax)


def likelihood_order(
    trajectory: Trajectory, law: Distribution, bandwidth: float | None = None, *, batch_size: int = 256
) -> LikelihoodOrder:
    """Compare the densities of x_n, D(x_n) and x_{n−1} along recorded trajectories (Chen et al., Theorem 1 and figure 4).

    The law is asked in float64 for exactly the recorded values, so that the inequalities hold for them and not only up to the
    trajectory's rounding.

    Args:
        trajectory: states and denoiser outputs of a run, all steps kept.
        law: the law of the data, whose ``D*`` and ``log p`` belong together: the training set as
            :class:`~farfield.distributions.Empirical`; of the same class for a conditional run.
        bandwidth: one bandwidth for all levels, in place of each level's own. The premise is then taken with the mean of this
            bandwidth; it fails for most of the path, and the order with it.
        batch_size: states at a time.

    Raises:
        ArgumentError: for a law of another shape or process, a bandwidth that is not positive, or no steps.
    """
    if not law.process.gaussian:
        raise ArgumentError(f"likelihood ordering needs Gaussian kernels; the law belongs to {law.process!r}")
    if trajectory.states.shape[2:] != torch.Size(law.event_shape):
        raise ArgumentError(
            f"the trajectory has events {tuple(trajectory.states.shape[2:])}; the law {law.event_shape}"
        )
    if bandwidth is not None and not 0 < bandwidth < math.inf:
        raise ArgumentError(f"bandwidth = {bandwidth}; expected a positive number, or None for each level's own")
    sigmas = tuple(float(s) for s in trajectory.sigmas[: len(trajectory.denoised)])
    if not sigmas or len(trajectory.states) <= len(sigmas):
        raise ArgumentError(
            f"the trajectory keeps {len(trajectory.states)} states and {len(sigmas)} outputs; expected every step of a run"
        )
    levels = sigmas if bandwidth is None else (float(bandwidth),) * len(sigmas)
    here, outputs, nexts, fixed, unsure = [], [], [], [], []
    with torch.no_grad():
        for k, h in enumerate(levels):
            x, r, y = trajectory.states[k], trajectory.denoised[k], trajectory.states[k + 1]
            parts = [
                _one(law, a.double(), b.double(), c.double(), h)
                for a, b, c in zip(x.split(batch_size), r.split(batch_size), y.split(batch_size), strict=True)
            ]
            here.append(torch.cat([p[0] for p in parts]))
            outputs.append(torch.cat([p[1] for p in parts], 1))
            nexts.append(torch.cat([p[2] for p in parts], 1))
            fixed.append(torch.cat([p[3] for p in parts]))
            unsure.append(torch.cat([p[4] for p in parts]))
    density, rest, rounding = torch.stack(here), torch.stack(fixed), torch.stack(unsure)
    return LikelihoodOrder(
        sigmas,
        levels,
        _move(torch.stack(outputs), rounding, rest),
        _move(torch.stack(nexts), rounding, rest),
        _band(density),
        tuple(rest.sum(1).tolist()),
        trajectory.states.shape[1],
        law.dim,
        law.count if isinstance(law, Empirical) else None,
    )


def _one(law: Distribution, x: Tensor, r: Tensor, y: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log p(x); for D(x) and the next state ratio, gain and bound (3, B); which x are fixed points; rounding of the gains."""
    if isinstance(law, Empirical):
        mean, density = mean_and_log_prob(law, x, h)
    else:
        mean, density = law(x, h), law.log_prob(x, h)
    other = law.log_prob(torch.cat((r, y)), h).view(2, -1)
    away = (x - mean).flatten(1).norm(dim=1)
    found = []
    for k, state in enumerate((r, y)):
        left = (state - mean).flatten(1).norm(dim=1)
        # (a − b)(a + b): the squares themselves would cancel.
        bound = (away - left) * (away + left) / (2 * h * h)
        found.append(torch.stack((left / away, other[k] - density, bound)))
    square = torch.stack([state.flatten(1).square().sum(1) for state in (x, mean, r, y)]).amax(0)
    rounding = _ROUNDING[0] * (1 + density.abs()) + _ROUNDING[1] * square / (h * h)
    return density, found[0], found[1], away <= _FIXED * h * math.sqrt(law.dim), rounding


def _move(values: Tensor, rounding: Tensor, fixed: Tensor) -> Move:
    """(L, 3, B) ratio, gain and bound to their statistics."""
    ratio, gain, bound = values.unbind(1)
    ratio = torch.where(fixed, 0.0, ratio)
    inside, lost = ratio <= 1, gain < -rounding
    wrong = (inside & lost) | (gain < bound - rounding - _ROUNDING[0] * bound.abs())
    return Move(
        _band(ratio),
        _band(gain),
        _band(bound),
        tuple(inside.double().mean(1).tolist()),
        tuple(lost.double().mean(1).tolist()),
        tuple(wrong.sum(1).tolist()),
    )


def _band(values: Tensor) -> Band:
    """(L, B) to mean and quartiles along L."""
    low, high = torch.quantile(values, torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device), dim=1)
    return Band(tuple(values.mean(1).tolist()), tuple(low.tolist()), tuple(high.tolist()))


def measure_order(
    model: Denoiser,
    law: Distribution,
    *,
    n: int = 32,
    steps: int = 18,
    solver: str = "euler",
    bandwidth: float | None = None,
    seed: int = 0,
    batch_size: int = 256,
    **condition: Any,
) -> LikelihoodOrder:
    """Sample from a model and compare the densities along the way: :func:`likelihood_order` of a fresh run.

    Args:
        model: the denoiser that is run.
        law: the law of its data.
        n: trajectories.
        steps: levels of the Karras grid, within the model's range and at most 80 to 0.002.
        solver: of the registry. The theorem's second half is about Euler steps; other steps are told by their own ratio.
        bandwidth: as for :func:`likelihood_order`.
        seed: of the noise.
        batch_size: states at a time.
        **condition: passed to the model.

    Raises:
        ArgumentError: as :func:`likelihood_order`, for ``n`` or ``steps`` out of range, and for an unknown solver.
    """
    if n < 1 or steps < 2:
        raise ArgumentError(f"n = {n}, steps = {steps}; expected at least 1 and 2")
    if not model.process.gaussian:
        raise ArgumentError(f"likelihood ordering is about Gaussian diffusion; the model belongs to {model.process!r}")
    grid = karras(steps, max(0.002, model.sigma_min), min(80.0, model.sigma_max))
    # Few coordinates are followed in float64, where a step is exact to what the inequalities are checked with.
    dtype = torch.float64 if isinstance(model, Distribution) else torch.float32
    run = Sampler(solver, grid)(model, n, seed, trajectory=True, batch_size=batch_size, dtype=dtype, **condition)
    assert run.trajectory is not None
    found = likelihood_order(run.trajectory, law, bandwidth, batch_size=batch_size)
    values = {**vars(found), "sampler": f"{solver}, {steps} steps"}
    return LikelihoodOrder(**values)
