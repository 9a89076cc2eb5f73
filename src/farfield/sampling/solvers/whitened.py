"""The whitened exponential multistep solver: the data's Gaussian flow as integrating factor of every step.

Split the denoiser into the Gaussian one and a residual, ``D(x, σ) = μ + U diag(λ/(λ + σ²)) Uᵀ(x − μ) + R(x, σ)``. In the
coordinates ``z = Uᵀ(x − μ)`` the state whitened by the covariance of its own noise level, ``y = z/sqrt(σ² + λ)``, obeys
``dy/d log σ = −R/sqrt(σ² + λ)``: the linear part is gone, and only the residual is interpolated. On Gaussian data R = 0 and
one step of any length is exact. Without a covariance (μ = 0, λ = 0) R is the denoiser itself, and the rule is the
isotropic exponential multistep rule of the DEIS and DPM-Solver++ family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Evaluate, Solver, on_device
from farfield.sampling.solvers.exponential import step_weights

if TYPE_CHECKING:
    from farfield.distributions import Gaussian


class Coefficients(NamedTuple):
    """One advance: the flow's gain and the residuals' weights, (r,) tensors for the modes, numbers for the rest."""

    gain: Tensor
    weights: list[Tensor]
    tail_gain: float
    tail_weights: list[float]


class Plan(NamedTuple):
    """One step: the Gaussian denoiser at its start, the advance, and the correction of the step before."""

    spectrum: Spectrum | None
    mean: Tensor | None
    shrinkage: Tensor
    tail_shrinkage: float
    predict: Coefficients
    correct: Coefficients | None


class State(NamedTuple):
    """A centred state: its coordinates on the basis (B, r), and all its coordinates (B, d); either may be missing."""

    modes: Tensor | None
    full: Tensor | None


class Residual(NamedTuple):
    """A residual: on the basis; with the tail's shrinkage in all coordinates; and the coordinates of the latter."""

    modes: Tensor | None
    full: Tensor | None
    full_modes: Tensor | None


class Memory(NamedTuple):
    """What a step hands to the next: the state it started from, the one it reached, the residuals, newest first.

    Where the state has been moved since, ``before`` is None and ``reached`` is empty.
    """

    before: State | None
    reached: State
    residuals: tuple[Residual, ...]


@dataclass(frozen=True)
class Whitened(Solver):
    """The whitened exponential multistep rule. One evaluation, order 1 to 3.

    Args:
        order: number of residuals interpolated; the first steps ramp up 1, 2, 3.
        exponent: of the interpolation variable ``u = σ^exponent``; 0 stands for log σ.
        unit: what the residual is measured in before it is interpolated: ``"posterior"``, the standard deviation of the
            Gaussian posterior in each direction, with which it shrinks, or ``"data"``, none.
        corrector: which steps are integrated once more when the residual at their end is known, by the implicit rule of
            the same order, which costs no evaluation (the idea of UniPC, Zhao et al. 2023). ``"always"`` every step;
            ``"start"`` the ramp alone, without which a third-order rule keeps the second-order error of its first step;
            ``"never"`` none, and order 3 is then order 2.

    With noise between the steps the linear part stays exact, so that Gaussian data keep their law; the residuals of earlier
    steps are kept and extrapolated over the fall of the noise level; and no step is corrected across noise, because the
    residual beyond it depends on that noise.
    """

    order: int = 2
    exponent: float = 1 / 7
    unit: Literal["posterior", "data"] = "posterior"
    corrector: Literal["start", "always", "never"] = "always"
    name: ClassVar[str] = "whitened"
    uses_covariance: ClassVar[bool] = True
    takes_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.order, int) or self.order not in (1, 2, 3):
            raise ArgumentError(f"order = {self.order}; the whitened solver has orders 1, 2 and 3")
        if not isinstance(self.exponent, int | float) or not 0 <= self.exponent <= 4:
            raise ArgumentError(f"exponent = {self.exponent!r}; expected a number in [0, 4], e.g. 1/7")
        if self.unit not in ("posterior", "data"):
            raise ArgumentError(f"unit = {self.unit!r}; expected 'posterior' or 'data'")
        if self.corrector not in ("start", "always", "never"):
            raise ArgumentError(f"corrector = {self.corrector!r}; expected 'start', 'always' or 'never'")

    @property
    def history(self) -> int:
        """``order − 1``."""
        return self.order - 1

    def moved(self, memory: Memory | None, x: Tensor) -> Memory | None:
        """The residuals; the states that the memory holds are no longer the run's."""
        return None if memory is None else Memory(None, State(None, None), memory.residuals)

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[Plan]:
        """Gains and weights of each step, integrated in float64 once for the grid."""
        covariance = None if covariance is None else on_device(covariance, like.device)
        spectrum = covariance.spectrum if covariance is not None else None
        mean = covariance.mean.flatten().to(like) if covariance is not None else None
        values = spectrum.values.double().cpu() if spectrum is not None else torch.zeros(0, dtype=torch.float64)
        # The tail is one more mode, the last.
        tail = torch.tensor([spectrum.tail if spectrum is not None else 0.0], dtype=torch.float64)
        variances = torch.cat((values, tail))

        def coefficients(leg: Leg, known: Sequence[float]) -> Coefficients:
            a, b, level = leg
            gain, weights = step_weights(variances, a, b, known, self.exponent, self.unit == "posterior", level)
            tails = [float(w[-1]) for w in weights]
            return Coefficients(gain[:-1].to(like), [w[:-1].to(like) for w in weights], float(gain[-1]), tails)

        plans = []
        starts = [leg.start for leg in legs]
        for k, leg in enumerate(legs):
            past = [starts[k - j] for j in range(min(self.order, k + 1))]
            shrinkage = variances / (variances + leg.start * leg.start)
            predict = coefficients(leg, past if leg.end else past[:1])
            correct = None
            if k and (self.corrector == "always" or (self.corrector == "start" and k < self.order - 1)):
                before = legs[k - 1]
                if before.end == leg.start:  # no noise has come in between
                    correct = coefficients(before, past)
            plans.append(Plan(spectrum, mean, shrinkage[:-1].to(like), float(shrinkage[-1]), predict, correct))
        return plans

    def step(
        self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Memory | None, plan: Plan
    ) -> tuple[Tensor, Memory]:
        """The Gaussian flow of the state plus the weighted residuals."""
        y, e = x.flatten(1), d.flatten(1)
        if plan.mean is not None:
            y, e = y - plan.mean, e - plan.mean
        spectrum = plan.spectrum if plan.spectrum is not None and plan.spectrum.rank else None
        modes = memory.reached.modes if memory is not None else None
        if modes is None and spectrum is not None:
            modes = spectrum.project(y)
        state = State(modes, y)
        residual = _residual(spectrum, plan, state, e)
        past = memory.residuals if memory is not None else ()
        if plan.correct is not None and memory is not None and memory.before is not None:
            state = _advance(spectrum, plan.correct, memory.before, (residual, *past))
        reached = _advance(spectrum, plan.predict, state, (residual, *past))
        if reached.full is not None:
            z = reached.full
        else:
            assert spectrum is not None
            assert reached.modes is not None
            z = spectrum.expand(reached.modes)
        if plan.mean is not None:
            z = z + plan.mean
        return z.view_as(x), Memory(state, reached, (residual, *past[: self.order - 1]))


def _residual(spectrum: Spectrum | None, plan: Plan, state: State, e: Tensor) -> Residual:
    """``R = D − μ − Σ(Σ + σ²)⁻¹ (x − μ)`` at the predicted state."""
    if spectrum is None:
        assert state.full is not None
        return Residual(None, torch.add(e, state.full, alpha=-plan.tail_shrinkage) if plan.tail_shrinkage else e, None)
    p, c = spectrum.project(e), state.modes
    assert c is not None
    modes = torch.addcmul(p, c, plan.shrinkage, value=-1)
    if not spectrum.tail_dim:
        return Residual(modes, None, None)
    assert state.full is not None
    full = torch.add(e, state.full, alpha=-plan.tail_shrinkage)
    return Residual(modes, full, torch.add(p, c, alpha=-plan.tail_shrinkage))


def _advance(spectrum: Spectrum | None, k: Coefficients, state: State, residuals: Sequence[Residual]) -> State:
    """``g z + Σ_j w_j R_j``, mode by mode.

    With a low-rank basis all coordinates advance with the tail's numbers; on the basis that is a wrong value whose
    coordinates are known, and one expansion puts the difference right: the rest is never projected out.
    """
    right = full = None
    if spectrum is not None:
        assert state.modes is not None
        right = state.modes * k.gain
        for w, r in zip(k.weights, residuals, strict=False):
            assert r.modes is not None
            right = torch.addcmul(right, r.modes, w)
    if spectrum is None or spectrum.tail_dim:
        assert state.full is not None
        full = state.full * k.tail_gain
        for tail_w, r in zip(k.tail_weights, residuals, strict=False):
            assert r.full is not None
            full = torch.add(full, r.full, alpha=tail_w)
    if right is not None and full is not None:
        assert spectrum is not None
        assert state.modes is not None
        wrong = state.modes * k.tail_gain
        for tail_w, r in zip(k.tail_weights, residuals, strict=False):
            assert r.full_modes is not None
            wrong = torch.add(wrong, r.full_modes, alpha=tail_w)
        full = full + spectrum.expand(right - wrong)
    return State(right, full)
