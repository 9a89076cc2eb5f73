"""From data to noise and back along the sampling ODE: encoding and decoding.

The ODE ``dx/dσ = (x − D(x, σ))/σ`` has no noise in it, so each sample has one latent: the state at the highest level whose
path ends in it. Encoding integrates the same equation with rising σ; with Euler's rule that is DDIM inversion,

    x(σ') = (σ'/σ) x + (1 − σ'/σ) D(x, σ),    σ' > σ

(Song, Meng & Ermon 2021, section 4.3; Chen et al., A geometric perspective on diffusion models, section 7 and Fig. 15). Going
up, D is known at the lower end of each step, where it is the less smooth, so going up loses more than coming down.

**Where it starts.** A clean sample is not a state of the ODE, whose lowest level is σ_min > 0. Two conventions: ``"clean"``
takes ``x(σ_min) = x₀``, as DDIM inversion does; ``"noised"`` takes ``x₀ + σ_min z``. Along directions in which the data do
not vary (a border that is always black), the law at σ_min has standard deviation σ_min and a clean sample none: its latent
then has no noise along these directions, however fine the grid is, and lies inside the shell of N(0, σ²I). The noised one
does not. Neither inverts the last step ``D(x, σ_min)`` to zero noise, which is no one-to-one map; what it changes in a round
trip is reported apart (``RoundTrip.floor``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.denoiser import Denoiser, FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, NonFiniteError
from farfield.numerics import streams
from farfield.sampling.batches import cut_rows
from farfield.sampling.checks import check_floating
from farfield.sampling.finishes import AtLastLevel, ToZero
from farfield.sampling.grids import Grid, as_grid
from farfield.sampling.legs import legs_between
from farfield.sampling.reference_ode import reference_path
from farfield.sampling.results import Samples
from farfield.sampling.run import Evaluations
from farfield.sampling.sampler import Sampler
from farfield.sampling.small_batches import filled
from farfield.sampling.solvers import Solver, Whitened

How = Sampler | Grid | Sequence[float]
Lift = Literal["clean", "noised"]

#: Solvers whose coefficients hold for rising levels too; a test holds their order upwards.
CLIMBERS = ("euler", "heun", "whitened")
#: The name of the adaptive Runge-Kutta integration.
REFERENCE = "reference"


@dataclass(frozen=True, eq=False)
class Latents:
    """Encoded samples.

    Attributes:
        z: (B, *event) the states at ``sigma``.
        sigma: the level to which they belong, the highest of the grid.
        lowest: (B, *event) the states at ``sigma_low`` from which they were climbed to.
        sigma_low: the lowest level of the grid.
        nfe: denoiser evaluations for each sample, those of the error estimate not included.
        error: (B,) estimated error of z, root mean square over the coordinates, in float64, from a second run on every
            other level (Richardson 1911); None where no estimate was asked for, or the solver keeps a tolerance of its own.
    """

    z: Tensor
    sigma: float
    lowest: Tensor
    sigma_low: float
    nfe: int
    error: Tensor | None = None

    @property
    def unit(self) -> Tensor:
        """``z/σ``, about standard normal."""
        return self.z / self.sigma


def rms(x: Tensor) -> Tensor:
    """Root mean square over the coordinates of (B, *event): (B,) in float64."""
    return x.flatten(1).double().square().mean(1).sqrt()


def noised_latents(x0: Tensor, sigma: float, seed: int = 0, first: int = 0) -> Tensor:
    """``x₀ + σ z``: a latent near the data's own path by adding noise, without the ODE (Chen et al., Figs. 15 and 19).

    Args:
        x0: (B, *event).
        sigma: the level, > 0.
        seed, first: name the noise; row k is sample ``first + k``.
    """
    if not 0 < sigma < math.inf:
        raise ArgumentError(f"sigma = {sigma}; expected a positive noise level")
    ids = torch.arange(first, first + len(x0), device=x0.device)
    return x0 + sigma * streams.normal(seed, ids, x0.shape[1:], purpose="encode", dtype=x0.dtype)


def reference_encoding(
    law: Denoiser, x: Tensor, sigma_low: float, sigma_high: float, *, rtol: float, atol: float, dtype: torch.dtype
) -> tuple[Tensor, int]:
    """The solution of the ODE from ``sigma_low`` up to ``sigma_high``: by formula for a Gaussian, else by Runge-Kutta.

    In τ = 1/σ the rising path is a falling one, ``dx/d log τ = x − (2x − D(x, 1/τ))``, so that the integrator for falling
    levels serves it with ``2x − D`` in place of D.

    Returns:
        The states (B, *event), float64, and the evaluations for each.
    """
    if isinstance(law, Gaussian):
        return law.flow(x.double(), sigma_low, sigma_high), 0
    mirror = FunctionDenoiser(lambda state, tau: 2 * state - law(state, 1 / tau), law.event_shape)
    found = reference_path(
        mirror, x, (1 / sigma_low, 1 / sigma_high), rtol=rtol, atol=atol, dtype=dtype, batch_size=len(x)
    )
    return found.states[-1], found.evaluations


def encode(
    denoiser: Denoiser,
    x0: Tensor,
    how: How,
    *,
    solver: Solver | str | None = None,
    covariance: Gaussian | None = None,
    lift: Lift = "clean",
    estimate: bool = True,
    seed: int = 0,
    first: int = 0,
    batch_size: int | None = None,
    **condition: Any,
) -> Latents:
    """The latents of samples: the sampling ODE from the lowest level of a grid up to its highest.

    Args:
        denoiser: the model.
        x0: clean samples (B, *event).
        how: the noise grid, or the sampler that will decode: its levels (from its start down), solver and guidance are used.
        solver: ``"euler"`` (DDIM inversion), ``"heun"`` (by default), ``"whitened"``, exact where the model is the
            covariance's own Gaussian, or ``"reference"``: an adaptive integration to the last digits of the states' type.
        covariance: the Gaussian of the whitened solver.
        lift: the state at the lowest level: ``"clean"`` x₀ itself, ``"noised"`` x₀ + σ_min z; see the head of this module.
        estimate: estimate the error from a second run on every other level, for half as many evaluations more.
        seed, first: name the noise of the lift; row k is sample ``first + k``.
        batch_size: samples evaluated at once; all by default. It does not change the latents, those of ``"reference"`` by no
            more than its tolerance.
        **condition: passed to the denoiser; a tensor with B rows is cut along with the batch.

    Raises:
        ArgumentError: for a sampler with noise or with a solver that cannot climb, levels outside the model's range, or
            shapes that do not fit.
        NonFiniteError: if the latents are not finite.
    """
    denoiser.check_shape(x0)
    check_floating("x0", x0)
    if not len(x0):
        raise ArgumentError("x0 has no rows; expected at least one sample")
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"batch_size = {batch_size}; expected at least 1")
    if lift not in ("clean", "noised"):
        raise ArgumentError(f"lift = {lift!r}; expected 'clean' or 'noised'")
    if lift == "noised" and not denoiser.process.gaussian:
        raise ArgumentError(f"lift = 'noised' adds Gaussian noise, which does not belong to {denoiser.process!r}")
    adaptive = solver == REFERENCE
    plan = sampler_of(how, None if adaptive else solver, covariance)
    if plan.noise is not None:
        raise ArgumentError(f"noise = {plan.noise!r}: a path with noise cannot be run backwards; encode without")
    if not adaptive and plan.rule.name not in CLIMBERS:
        raise ArgumentError(
            f"solver {plan.rule.name!r} is made for falling levels; pass solver='heun', 'euler', 'whitened' or 'reference'"
        )
    if isinstance(plan.rule, Whitened):
        # The coarse run that the error is read from has to be of the same order.
        plan = replace(plan, solver=replace(plan.rule, short=0))
    levels = tuple(s for s in reversed(plan.levels) if s > 0)
    if len(levels) < 2:
        raise ArgumentError(f"the grid has the one level {levels[0]:g}; encoding needs at least two")
    if levels[0] < denoiser.sigma_min * (1 - 1e-6) or levels[-1] > denoiser.sigma_max * (1 + 1e-6):
        raise ArgumentError(
            f"the grid from {levels[0]:g} to {levels[-1]:g} leaves the model's range "
            f"[{denoiser.sigma_min:g}, {denoiser.sigma_max:g}]"
        )
    lowest = x0 if lift == "clean" else noised_latents(x0, levels[0], seed, first)
    coarse = (*levels[:-1:2], levels[-1]) if estimate and not adaptive and len(levels) > 2 else None
    evaluate = Evaluations(denoiser, {}, plan.parts)
    parts, errors, nfe = [], [], 0
    with torch.no_grad():
        for x, bound, rows in in_batches(denoiser, lowest, condition, batch_size, fill=not adaptive):
            evaluate.condition, evaluate.count = bound, 0
            if adaptive:
                z, evaluate.count = _adaptive(denoiser, evaluate, x, levels)
            else:
                z = _climb(evaluate, plan, x, levels)
            nfe = max(nfe, evaluate.count)
            if coarse is not None:
                # The error of order p falls by 2^p from every other level to all of them.
                gap = rms(z - _climb(evaluate, plan, x, coarse)) / (2 ** plan.rule.describe().order - 1)
                errors.append(gap[:rows])
            parts.append(z[:rows])
    z = torch.cat(parts)
    if not bool(torch.isfinite(z).all()):
        raise NonFiniteError(
            f"latents are not finite; the model's output was NaN or infinite between {levels[0]:g} and {levels[-1]:g}"
        )
    return Latents(z, levels[-1], lowest, levels[0], nfe, torch.cat(errors) if errors else None)


def decode(
    denoiser: Denoiser,
    z: Tensor,
    how: How,
    *,
    solver: Solver | str | None = None,
    covariance: Gaussian | None = None,
    to: Literal["zero", "lowest"] | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int | None = None,
    **condition: Any,
) -> Samples:
    """Samples from latents: ``Sampler.run`` in batches, or the reference solution.

    Args:
        denoiser: the model.
        z: states (B, *event) at the highest level of the grid, or at the level where the sampler starts.
        how, solver, covariance: as for :func:`encode`; any solver of the registry can decode.
        to: ``"zero"`` noise or the ``"lowest"`` level, where the states still hold their noise; by default what the sampler
            says, and zero for a grid.
        seed, first: name the noise of a sampler that adds some.
        batch_size, condition: as for :func:`encode`.

    Raises:
        ArgumentError: for shapes that do not fit, another ``to``, or a reference solution of a sampler with noise or with a
            stop rule that looks at samples.
    """
    _check_rows(denoiser, "z", z, batch_size)
    if to not in (None, "zero", "lowest"):
        raise ArgumentError(f"to = {to!r}; expected 'zero' or 'lowest'")
    plan = sampler_of(how, None if solver == REFERENCE else solver, covariance)
    if solver == REFERENCE and plan.noise is not None:
        raise ArgumentError(f"noise = {plan.noise!r}: a reference solution has none; decode without")
    if to is not None:
        plan = replace(plan, finish=ToZero() if to == "zero" else AtLastLevel())
    if solver == REFERENCE and plan.finish.rule is not None:
        raise ArgumentError(
            f"finish = {plan.finish!r}: a reference solution has no steps at which the rule could look; "
            "decode with a solver, or to='zero'"
        )
    parts, nfe, at = [], 0, first
    for x, bound, rows in in_batches(denoiser, z, condition, batch_size, fill=solver != REFERENCE):
        if solver == REFERENCE:
            law = _bound(denoiser, Evaluations(denoiser, bound, plan.parts))
            path = reference_path(law, x, plan.levels, batch_size=len(x), **_tolerances(z.dtype))
            parts.append((path.denoised if plan.finish.denoise else path.states)[-1].to(z.dtype))
            nfe = max(nfe, path.evaluations)
        else:
            found = plan.run(denoiser, x, seed=seed, first=at, **bound)
            parts.append(found.x[:rows])
            nfe = max(nfe, found.nfe)
        at += rows
    return Samples(torch.cat(parts), nfe)


def decode_noise(
    denoiser: Denoiser,
    noise: Tensor,
    sampler: Sampler,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    first: int = 0,
    **condition: Any,
) -> Samples:
    """Samples from standard normal noise (B, *event), which the sampler's start turns into its first state.

    The noise of sample i of a seed, ``streams.normal(seed, [i], event_shape, purpose="start")``, gives that very sample;
    mixtures of such noise that keep its law give samples in between, whatever the start: prior, late start or teleport.

    Args:
        denoiser: the model.
        noise: (B, *event).
        sampler: solver, grid, start and finish.
        seed, first: name the noise of a sampler that adds some; row k is sample ``first + k``.
        batch_size, condition: as for :func:`encode`.
    """
    _check_rows(denoiser, "noise", noise, batch_size)
    top = sampler.grid.levels[0]
    parts, nfe, at = [], 0, first
    for z, bound, rows in in_batches(denoiser, noise, condition, batch_size):
        x = sampler.start.state(z, top, denoiser.process, bound, sampler.parts)
        found = sampler.run(denoiser, x, seed=seed, first=at, **bound)
        parts.append(found.x[:rows])
        nfe, at = max(nfe, found.nfe), at + rows
    return Samples(torch.cat(parts), nfe)


# -- parts ------------------------------------------------------------------------------------------------------------


def sampler_of(how: How, solver: Solver | str | None, covariance: Gaussian | None) -> Sampler:
    """What was given as a sampler, its solver replaced where another one is named."""
    if not isinstance(how, Sampler):
        return Sampler("heun" if solver is None else solver, as_grid(how), covariance=covariance)
    if solver is None and covariance is None:
        return how
    named = replace(how, solver=how.solver if solver is None else solver, covariance=None)
    if not named.rule.uses_covariance:
        return named if covariance is None else replace(named, covariance=covariance)
    return replace(named, covariance=how.covariance if covariance is None else covariance)


def _check_rows(denoiser: Denoiser, name: str, x: Tensor, batch_size: int | None) -> None:
    """Refuse states that the denoiser does not take, or batches of none."""
    denoiser.check_shape(x)
    check_floating(name, x)
    if not len(x) or (batch_size is not None and batch_size < 1):
        raise ArgumentError(f"{name} has {len(x)} rows, batch_size = {batch_size}; expected at least 1")


def _climb(evaluate: Evaluations, plan: Sampler, x: Tensor, levels: Sequence[float]) -> Tensor:
    """The states at the last of rising levels."""
    legs = legs_between(levels)
    memory = None
    for leg, step in zip(legs, plan.rule.plan(legs, x, plan.covariance), strict=True):
        x, memory = plan.rule.step(evaluate, x, evaluate(x, leg.start), memory, step)
    return x


def _tolerances(dtype: torch.dtype) -> dict[str, Any]:
    """Tolerances near the rounding of a law in this precision."""
    wide = dtype == torch.float64
    return {"rtol": 1e-12 if wide else 1e-5, "atol": 1e-14 if wide else 1e-6, "dtype": dtype}


def _bound(denoiser: Denoiser, evaluate: Evaluations) -> Denoiser:
    """The denoiser with its conditions and guidance; a Gaussian without any stays what it is, for its formula."""
    if isinstance(denoiser, Gaussian) and not evaluate.condition and not evaluate.guidance:
        return denoiser
    return FunctionDenoiser(lambda state, sigma: evaluate(state, float(sigma)), denoiser.event_shape)


def _adaptive(denoiser: Denoiser, evaluate: Evaluations, x: Tensor, levels: Sequence[float]) -> tuple[Tensor, int]:
    law = _bound(denoiser, evaluate)
    z, count = reference_encoding(law, x, levels[0], levels[-1], **_tolerances(x.dtype))
    return z.to(x.dtype), count


def in_batches(
    denoiser: Denoiser, x: Tensor, condition: Mapping[str, Any], batch_size: int | None, fill: bool = True
) -> Iterator[tuple[Tensor, dict[str, Any], int]]:
    """States with their conditions in batches, filled up as a sampler's are, and how many rows of each count."""
    n = len(x)
    for low in range(0, n, batch_size or n):
        rows = min(batch_size or n, n - low)
        place = torch.arange(rows, device=x.device)
        place = filled(place, denoiser.dim) if fill else place
        bound = {k: cut_rows(v, low, low + rows, n, place) for k, v in condition.items()}
        yield x[low : low + rows][place], bound, rows
