"""The whitened exponential multistep solver: the data's Gaussian flow as integrating factor of every step.

Split the denoiser into the Gaussian one and a residual, ``D(x, σ) = μ + U diag(λ/(λ + σ²)) Uᵀ(x − μ) + R(x, σ)``. In the
coordinates ``z = Uᵀ(x − μ)`` the state whitened by the covariance of its own noise level, ``y = z/sqrt(σ² + λ)``, obeys
``dy/d log σ = −R/sqrt(σ² + λ)``: the linear part is gone, and only the residual is interpolated. On Gaussian data R = 0 and
one step of any length is exact. Without a covariance (μ = 0, λ = 0) R is the denoiser itself, and the rule is the
isotropic exponential multistep rule of the DEIS and DPM-Solver++ family.

Where the model's linear part is not the data's, gains measured on the model take the place of ``λ/(λ + σ²)``
(``farfield.sampling.calibration``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling.legs import Leg
from farfield.sampling.solvers.base import Description, Evaluate, Row, Solver, on_device
from farfield.sampling.solvers.exponential import Coordinate, level_number, step_weights
from farfield.sampling.solvers.gains import GainTable

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


_Kept = dict[tuple[Any, ...], list[Plan]]

#: Plans that have been made, without a covariance and for as long as a covariance lives; the oldest of many go.
_MOST = 16
_ISOTROPIC: _Kept = {}
_KEPT: WeakKeyDictionary[Gaussian, _Kept] = WeakKeyDictionary()


def _stamp(covariance: Gaussian) -> tuple[int, ...]:
    """Changes when the law is given other numbers, by loading or in place."""
    parts = (covariance.mean, covariance.spectrum.values)
    return tuple(n for t in parts for n in (t.data_ptr(), 0 if t.is_inference() else t._version))


@dataclass(frozen=True)
class Whitened(Solver):
    """The whitened exponential multistep rule. One evaluation a step.

    Args:
        order: number of residuals that a step predicts from, 1 to 3; the first steps ramp up 1, 2, 3.
        exponent: of the interpolation variable ``u = σ^exponent``; 0 stands for log σ.
        unit: what the residual is measured in before it is interpolated: ``"posterior"``, the standard deviation of the
            Gaussian posterior in each direction, with which it shrinks, or ``"data"``, none.
        corrector: which steps are integrated once more when the residual at their end is known, by an implicit rule, which
            costs no evaluation (the idea of UniPC, Zhao et al. 2023). ``"longer"`` every step, through that residual and
            the ``order`` ones before it, as UniPC does; ``"always"`` every step, through ``order`` residuals; ``"start"`` the
            ramp alone, without which a third-order rule keeps the second-order error of its first step; ``"never"`` none.
        short: under the longer corrector, a pass of at most so many levels predicts from two residuals at most, and takes the
            number of the level for its interpolation variable, where the grid is not too uneven; 0 for none.
        gains: the model's own gains from :func:`~farfield.sampling.calibration.calibrate`, made with the covariance of the
            run; None for those of the Gaussian.

    The longer corrector raises orders 1 and 2 by one; with order 3 the error falls faster at first, but the first step leaves
    one of third order behind.
    With 5 to 20 evaluations of a network the correction counts for more than the order: errors without it are up to five times
    as large.

    With noise between the steps the linear part stays exact, so that Gaussian data keep their law; the residuals of earlier
    steps are kept and extrapolated over the fall of the noise level; and no step is corrected across noise, because the
    residual beyond it depends on that noise.

    Raises:
        ArgumentError: for options out of range.
    """

    order: int = 3
    exponent: float = 1 / 7
    unit: Literal["posterior", "data"] = "posterior"
    corrector: Literal["longer", "always", "start", "never"] = "longer"
    short: int = 10
    gains: GainTable | None = None
    name: ClassVar[str] = "whitened"
    uses_covariance: ClassVar[bool] = True
    takes_noise: ClassVar[bool] = True
    row: ClassVar[Row] = Row(
        startup="1, 2, 3 residuals; every step corrected when the residual at its end is known",
        final="Gaussian flow, with a residual that falls as σ²/(σ² + λ); Euler without a covariance",
        source="this project; linear part exact as in DEIS (Zhang & Chen 2023), corrector as in UniPC (Zhao et al. 2023)",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.order, int) or self.order not in (1, 2, 3):
            raise ArgumentError(f"order = {self.order}; the whitened solver has orders 1, 2 and 3")
        if not isinstance(self.exponent, int | float) or not 0 <= self.exponent <= 4:
            raise ArgumentError(f"exponent = {self.exponent!r}; expected a number in [0, 4], e.g. 1/7")
        if self.unit not in ("posterior", "data"):
            raise ArgumentError(f"unit = {self.unit!r}; expected 'posterior' or 'data'")
        if self.corrector not in ("longer", "always", "start", "never"):
            raise ArgumentError(f"corrector = {self.corrector!r}; expected 'longer', 'always', 'start' or 'never'")
        if not isinstance(self.short, int) or isinstance(self.short, bool) or self.short < 0:
            raise ArgumentError(f"short = {self.short!r}; expected a number of levels, 0 or more")
        if isinstance(self.gains, Mapping):  # as a stored sampler has it
            object.__setattr__(self, "gains", GainTable.from_dict(self.gains))
        if self.gains is not None and not isinstance(self.gains, GainTable):
            raise ArgumentError(f"gains is a {type(self.gains).__name__}; expected a GainTable, from calibrate(...)")

    @property
    def converges(self) -> int:
        """The order of convergence of runs without noise: ``order``, one more (up to 3) or, uncorrected, 2 instead of 3."""
        if self.corrector == "longer":
            return min(self.order + 1, 3)
        return self.order if self.corrector != "never" else min(self.order, 2)

    @property
    def history(self) -> int:
        """``order − 1``, for the prediction."""
        return self.order - 1

    def to_dict(self) -> dict[str, Any]:
        """Name and options, JSON-safe; gains only where there are any."""
        plain = {key: getattr(self, key) for key in ("order", "exponent", "unit", "corrector", "short")}
        return {"name": self.name, **plain, **({} if self.gains is None else {"gains": self.gains.to_dict()})}

    def describe(self) -> Description:
        """The rule in words, with the order of convergence."""
        options = {**self.to_dict(), **({} if self.gains is None else {"gains": repr(self.gains)})}
        del options["name"]
        startup = self.row.startup if self.corrector in ("longer", "always") else "1, 2, 3 residuals"
        return replace(super().describe(), options=options, order=self.converges, startup=startup)

    def moved(self, memory: Memory | None, x: Tensor) -> Memory | None:
        """The residuals; the states that the memory holds are no longer the run's."""
        return None if memory is None else Memory(None, State(None, None), memory.residuals)

    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[Plan]:
        """Gains and weights of each step, integrated in float64 once for the grid and the covariance."""
        if self.gains is not None:
            return self._plan(legs, like, covariance)
        kept = _ISOTROPIC if covariance is None else _KEPT.setdefault(covariance, {})
        key = (self, tuple(legs), like.dtype, like.device, None if covariance is None else _stamp(covariance))
        if key not in kept:
            while len(kept) >= _MOST:
                del kept[next(iter(kept))]
            kept[key] = self._plan(legs, like, covariance)
        return list(kept[key])

    def _plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None) -> list[Plan]:
        covariance = None if covariance is None else on_device(covariance, like.device)
        spectrum = covariance.spectrum if covariance is not None else None
        mean = covariance.mean.flatten().to(like) if covariance is not None else None
        values = spectrum.values.double().cpu() if spectrum is not None else torch.zeros(0, dtype=torch.float64)
        # The tail is one more mode, the last.
        tail = torch.tensor([spectrum.tail if spectrum is not None else 0.0], dtype=torch.float64)
        variances = torch.cat((values, tail))
        gains = self.gains
        if gains is not None and gains.modes != len(variances):
            raise ArgumentError(
                f"gains has {gains.modes} modes, the covariance {len(variances)}; calibrate with the covariance of the run"
            )

        order, behind = self.order, self.order
        u: float | Coordinate = self.exponent
        if self.corrector == "longer":
            behind = order + 1
            # The step to 0 does not count: a run that stops at a level, or jumps from there, is the other's beginning.
            if sum(leg.end > 0 for leg in legs) < self.short:
                order, behind = min(order, 2), min(behind, 3)
                levels = [*(leg.start for leg in legs), *(leg.level for leg in legs[-1:] if leg.level > 0)]
                u = level_number(levels) or u

        def coefficients(leg: Leg, known: Sequence[float]) -> Coefficients:
            a, b, level = leg
            gain, weights = step_weights(variances, a, b, known, u, self.unit == "posterior", level, gains)
            tails = [float(w[-1]) for w in weights]
            return Coefficients(gain[:-1].to(like), [w[:-1].to(like) for w in weights], float(gain[-1]), tails)

        plans = []
        starts = [leg.start for leg in legs]
        for k, leg in enumerate(legs):
            past = [starts[k - j] for j in range(min(behind, k + 1))]
            shrinkage = variances / (variances + leg.start * leg.start)
            if gains is not None:
                shrinkage = shrinkage + gains.at(leg.start)
            predict = coefficients(leg, past[:order] if leg.end else past[:1])
            correct = None
            if k and (self.corrector in ("longer", "always") or (self.corrector == "start" and k < self.order - 1)):
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
            right.addcmul_(r.modes, w)
    if spectrum is None or spectrum.tail_dim:
        assert state.full is not None
        full = state.full * k.tail_gain
        for tail_w, r in zip(k.tail_weights, residuals, strict=False):
            assert r.full is not None
            full.add_(r.full, alpha=tail_w)
    if right is not None and full is not None:
        assert spectrum is not None
        assert state.modes is not None
        wrong = state.modes * k.tail_gain
        for tail_w, r in zip(k.tail_weights, residuals, strict=False):
            assert r.full_modes is not None
            wrong.add_(r.full_modes, alpha=tail_w)
        full = full + spectrum.expand(right - wrong)
    return State(right, full)
