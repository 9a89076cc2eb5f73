"""How far a model can be skipped: a teleport's level, chosen by what the model does on the way, with the error to expect.

Along the Gaussian's own path ``x_G(σ)`` from the noise at the top, the model's output and the Gaussian's differ by
``r = D_model − D_Gauss``. Two things follow from it. The fraction of the score that the Gaussian leaves unexplained,

    FUV(σ) = E‖r‖² / E‖D_model − x‖²,

says whether the Gaussian may stand for the model at this level (Wang & Vastola 2024, section 6; their threshold on the distance
of states is far too lax). And to first order the model's own state departs from the path by

    δ(σ) = ∫_{log σ}^{log σ_T} Φ(σ, s) r(s) d log s,     Φ(b, a) = sqrt((Σ + b²)/(Σ + a²)),

the residual carried along the Gaussian flow; ``Φ(0, σ) δ(σ)`` is what a teleport to σ does to the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.teleport_check import check_skips
from farfield.analysis.teleport_result import Choice, TeleportPlan, Verdict
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.distributions.series import far_field_fuv, third_cumulant_norm
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.sampling import Prior, Sampler, Teleport, karras
from farfield.sampling.run import Evaluations
from farfield.sampling.solvers.base import on_device

Policy = Literal["auto", "truncate", "regrid"]

#: The measurement ends where the Gaussian leaves so many times the tolerance: no teleport goes there.
_FAR = 100.0
#: Up to this factor over the tolerance a teleport is doubtful, beyond it harmful.
_DOUBT = 10.0
#: The third cumulant is taken of at most so many data: its cost grows with the square.
_POINTS = 4096
#: At so few evaluations they are better spent below the teleport than saved.
_FEW = 12


@dataclass(frozen=True)
class _Measured:
    """One level of the Gaussian's path."""

    sigma: float
    fuv: float
    standard_error: float
    denoiser_fuv: float
    state_error: float
    end_error: float


def _measure(
    model: Evaluations, gaussian: Gaussian, z: Tensor, sigmas: Sequence[float], stop: float, batch_size: int
) -> list[_Measured]:
    """The path from the top down, until the Gaussian leaves more than ``stop`` unexplained."""
    spectrum, top, found = gaussian.spectrum, sigmas[0], []
    start, mean = top * z, gaussian.mean.flatten().double()

    def carry(v: Tensor, a: float, b: float) -> Tensor:
        """Φ(b, a) v."""
        gains = ((spectrum.values + b * b) / (spectrum.values + a * a)).sqrt()
        return spectrum.filter(v, gains, math.sqrt((spectrum.tail + b * b) / (spectrum.tail + a * a)))

    delta, before = torch.zeros(len(z), gaussian.dim, dtype=torch.float64, device=z.device), None
    for k, sigma in enumerate(sigmas):
        x = gaussian.flow(start, top, sigma)
        d = torch.cat([model(part, sigma) for part in x.split(batch_size)]).double().flatten(1)
        r = d - gaussian(x, sigma).double().flatten(1)
        if before is not None:
            last = sigmas[k - 1]
            delta = carry(delta, last, sigma) + math.log(last / sigma) / 2 * (carry(before, last, sigma) + r)
        before = r
        gap, norm = r.square().sum(1), (d - x.double().flatten(1)).square().sum(1)
        signal = float((d - mean).square().sum(1).mean())
        fuv, error = _ratio(gap, norm)
        rms = [float(v.square().mean().sqrt()) for v in (delta, carry(delta, sigma, 0.0))]
        found.append(_Measured(sigma, fuv, error, float(gap.mean()) / signal if signal > 0 else 0.0, *rms))
        if fuv > stop:
            break
    return found


def _ratio(gap: Tensor, norm: Tensor) -> tuple[float, float]:
    """The ratio of means and its standard error by the delta method; 0 where the score itself vanishes."""
    mean = float(norm.mean())
    if not mean > 0:
        return 0.0, 0.0
    fuv = float(gap.mean()) / mean
    return fuv, float((gap - fuv * norm).std()) / (mean * math.sqrt(len(gap))) if len(gap) > 1 else 0.0


def _crossing(sigmas: Sequence[float], fuv: Sequence[float], tolerance: float) -> float | None:
    """The level down to which FUV stays below a tolerance, interpolated in log σ and log FUV."""
    for k, value in enumerate(fuv):
        if value > tolerance:
            if k == 0:
                return None
            low, high = math.log(max(fuv[k - 1], 1e-300)), math.log(value)
            share = (math.log(tolerance) - low) / (high - low)
            return math.exp(math.log(sigmas[k - 1]) + share * math.log(sigmas[k] / sigmas[k - 1]))
    return sigmas[-1]


def far_field_norm(data: Tensor, seed: int = 0, points: int = _POINTS) -> float:
    """``‖κ₃‖²`` of the law behind the data, at least 0, from at most ``points`` of them: the far field's leading term."""
    if len(data) > points:
        order = streams.permutation(seed, len(data), purpose="far field")[:points].sort().values
        data = data[order.to(data.device)]
    return max(third_cumulant_norm(data, unbiased=True), 0.0)


def plan_teleport(
    denoiser: Denoiser,
    gaussian: Gaussian,
    sampler: Sampler | None = None,
    *,
    skip: int | None = None,
    sigma: float | None = None,
    nfe: int | None = None,
    by: Literal["deviation", "data"] = "deviation",
    data: Tensor | None = None,
    tolerance: float = 1e-4,
    policy: Policy = "auto",
    strict: bool = True,
    states: int = 128,
    check: int = 0,
    seed: int = 0,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    **condition: Any,
) -> TeleportPlan:
    """Choose the level of a teleport, and say what it saves and what it changes.

    By default it is the lowest node of the grid down to which the Gaussian leaves no more than ``tolerance`` of the model's
    score unexplained, measured on the Gaussian's own path; ``skip``, ``sigma`` or ``nfe`` choose instead, and the measurement
    then says whether the choice is safe.

    Args:
        denoiser: the model.
        gaussian: the data's Gaussian.
        sampler: how to sample without a teleport; by default Heun on 18 Karras levels in the model's range.
        skip: nodes of the grid to skip.
        sigma: the level itself.
        nfe: evaluations that may be spent: the fewest nodes that have to be skipped for that, and where that is more than the
            tolerance allows, the level of the tolerance with fewer steps below it.
        by: ``"deviation"`` measures the model; ``"data"`` trusts the data's third cumulant, ``‖κ₃‖²/(2 d σ⁶)``, and
            evaluates nothing.
        data: (N, *event) images, for the estimate by the data.
        tolerance: on the unexplained fraction of the score. 1e-4 is about where published Fréchet distances begin to suffer.
        policy: ``"truncate"`` saves the evaluations above the level, ``"regrid"`` spends them below it; ``"auto"`` saves them
            unless the sampler has no more than 12.
        strict: refuse a level where the Gaussian leaves more than ten times the tolerance.
        states: noises on which the model is measured, ≥ 2.
        check: other noises on which the chosen skip and its neighbours are tried out; 0 for none.
        seed: names the noises.
        batch_size: states evaluated at once.
        dtype: of the states.
        **condition: passed to the model; the same for all states.

    Returns:
        The plan; its ``sampler`` is ready to be used.

    Raises:
        ArgumentError: for arguments that do not fit together, or with ``strict`` a level that would do harm.
    """
    if sampler is None:
        sampler = Sampler("heun", karras(18, max(0.002, denoiser.sigma_min), min(80.0, denoiser.sigma_max)))
    _check(denoiser, gaussian, sampler, skip, sigma, nfe, by, data, policy, tolerance, states)
    gaussian = on_device(gaussian, next((t.device for t in denoiser.parameters()), gaussian.mean.device))
    nodes = sampler.grid.levels
    sigmas = sorted({*nodes, *([] if sigma is None else [float(sigma)])}, reverse=True)
    norm = None if data is None else far_field_norm(data, seed)
    estimate = None if norm is None else (norm / (2 * gaussian.dim * tolerance)) ** (1 / 6)
    if by == "data":
        assert norm is not None
        zeros = (0.0, 0.0, 0.0, 0.0)
        found = [_Measured(s, far_field_fuv(norm, s, gaussian.dim), *zeros) for s in sigmas]
        past = next((k for k, m in enumerate(found) if m.fuv > _FAR * tolerance), len(found) - 1)
        found = found[: past + 1]
    else:
        device = gaussian.mean.device
        z = streams.normal(
            seed, range(states), denoiser.event_shape, purpose="teleport plan", dtype=dtype, device=device
        )
        with torch.no_grad():
            model = Evaluations(denoiser, condition, sampler.parts)
            found = _measure(model, gaussian, z, sigmas, _FAR * tolerance, batch_size)
    chosen = _Choice(sampler, gaussian, found, tolerance, policy)
    plan, level, how = chosen.make(skip, sigma, nfe)
    fuv = tuple(m.fuv for m in found)
    left = next((m.fuv for m in found if math.isclose(m.sigma, level, rel_tol=1e-9)), math.inf)
    verdict: Verdict = "safe" if left <= tolerance or level == nodes[0] else "doubtful"
    if verdict == "doubtful" and left > _DOUBT * tolerance:
        verdict = "harmful"
        if strict:
            bound = _crossing([m.sigma for m in found], fuv, tolerance)
            safe = "at no level" if bound is None else f"down to {bound:.3g}"
            raise ArgumentError(
                f"a teleport to sigma = {level:.3g} would do harm: the Gaussian leaves "
                f"{'over ' if math.isinf(left) else ''}{min(left, found[-1].fuv):.2g} of the score unexplained there; "
                f"it is safe {safe}"
            )
    skipped = sum(s > level * (1 + 1e-9) for s in nodes)
    result = TeleportPlan(
        sigmas=tuple(m.sigma for m in found),
        fuv=fuv,
        standard_error=tuple(m.standard_error for m in found),
        denoiser_fuv=tuple(m.denoiser_fuv for m in found),
        state_error=tuple(m.state_error for m in found),
        end_error=tuple(m.end_error for m in found),
        measured=by == "deviation",
        scale=math.sqrt(gaussian.spectrum.trace / gaussian.dim),
        tolerance=tolerance,
        breakdown=_crossing([m.sigma for m in found], fuv, tolerance),
        far_field=estimate,
        chosen_by="data" if by == "data" and how == "deviation" else how,
        skip=skipped,
        sigma=level,
        verdict=verdict,
        nfe=sampler.nfe,
        nfe_left=plan.nfe,
        sampler=plan,
        states=0 if by == "data" else states,
        seed=seed,
    )
    if not check or by == "data":
        return result
    checks = check_skips(
        denoiser, gaussian, sampler, result, check, seed=seed, batch_size=batch_size, dtype=dtype, condition=condition
    )
    return replace(result, checks=checks)


@dataclass(frozen=True)
class _Choice:
    """The rules by which a level is chosen."""

    sampler: Sampler
    gaussian: Gaussian
    found: Sequence[_Measured]
    tolerance: float
    policy: Policy

    def make(self, skip: int | None, sigma: float | None, nfe: int | None) -> tuple[Sampler, float, Choice]:
        """The sampler with its teleport, the level, and how it was chosen."""
        nodes = self.sampler.grid.levels
        if skip is not None:
            return self._at(nodes[skip]), nodes[skip], "skip"
        if sigma is not None:
            return self._at(float(sigma)), float(sigma), "noise"
        within = nodes[0]
        for m in self.found:
            if m.fuv > self.tolerance:
                break
            within = m.sigma if m.sigma in nodes else within
        if nfe is None:
            return self._at(within), within, "deviation"
        return (*self._budget(nodes, within, nfe), "budget")

    def _at(self, level: float, policy: Policy | None = None) -> Sampler:
        if level >= self.sampler.grid.levels[0]:
            return self.sampler
        policy = self.policy if policy is None else policy
        if policy == "auto":
            policy = "regrid" if self.sampler.nfe <= _FEW else "truncate"
        return replace(self.sampler, start=Teleport(self.gaussian, level, policy))

    def _budget(self, nodes: Sequence[float], within: float, nfe: int) -> tuple[Sampler, float]:
        if self.policy != "regrid":
            for level in nodes:
                if level < within:
                    break
                plan = self._at(level, "truncate")
                if plan.nfe <= nfe:
                    return plan, level
        plan = self._at(within, "regrid").with_nfe(nfe)
        return plan, within


def _check(
    denoiser: Denoiser,
    gaussian: Gaussian,
    sampler: Sampler,
    skip: int | None,
    sigma: float | None,
    nfe: int | None,
    by: str,
    data: Tensor | None,
    policy: str,
    tolerance: float,
    states: int,
) -> None:
    """Refuse arguments that do not fit together."""
    if not isinstance(gaussian, Gaussian) or gaussian.event_shape != denoiser.event_shape:
        raise ArgumentError(f"gaussian does not fit: expected a Gaussian of the model's shape {denoiser.event_shape}")
    if not isinstance(sampler.start, Prior):
        raise ArgumentError(
            f"the sampler starts from {sampler.start.name!r} already; expected one that starts from noise"
        )
    if sum(v is not None for v in (skip, sigma, nfe)) > 1:
        raise ArgumentError(f"skip = {skip}, sigma = {sigma}, nfe = {nfe}: they exclude each other; give one")
    if by not in ("deviation", "data"):
        raise ArgumentError(f"by = {by!r}; expected 'deviation' or 'data'")
    if by == "data" and data is None:
        raise ArgumentError("by = 'data' needs the data")
    if policy not in ("auto", "truncate", "regrid"):
        raise ArgumentError(f"policy = {policy!r}; expected 'auto', 'truncate' or 'regrid'")
    if not 0 < tolerance < 1:
        raise ArgumentError(f"tolerance = {tolerance!r}; expected a number between 0 and 1, e.g. 1e-4")
    if states < 2:
        raise ArgumentError(f"states = {states}; expected at least 2")
    nodes = sampler.grid.levels
    if skip is not None and not 0 <= skip < len(nodes):
        raise ArgumentError(
            f"skip = {skip}; this grid has {len(nodes)} levels, so 0 to {len(nodes) - 1} can be skipped"
        )
    if sigma is not None and not nodes[-1] <= sigma <= nodes[0]:
        raise ArgumentError(f"sigma = {sigma:g} lies outside the grid, which runs from {nodes[0]:g} to {nodes[-1]:g}")


@dataclass(frozen=True)
class TeleportOptions:
    """Options of the analysis; see :func:`plan_teleport`."""

    solver: str = "heun"
    steps: int = 18
    tolerance: float = 1e-4
    skip: int | None = None
    sigma: float | None = None
    nfe: int | None = None
    by: Literal["deviation", "data"] = "deviation"
    policy: Policy = "auto"
    states: int = 128
    check: int = 32


@analysis(
    "teleport", about="how many steps the data's Gaussian can stand for, and at what cost", options=TeleportOptions
)
def analyze_teleport(subject: Subject, options: TeleportOptions) -> TeleportPlan:
    """:func:`plan_teleport` for a subject; a level that does harm is reported and not refused."""
    model = subject.model
    gaussian = Gaussian.fit(subject.data, rank=None if model.dim <= 1024 else 512)
    grid = karras(options.steps, max(0.002, model.sigma_min), min(80.0, model.sigma_max))
    return plan_teleport(
        model,
        gaussian,
        Sampler(options.solver, grid),
        skip=options.skip,
        sigma=options.sigma,
        nfe=options.nfe,
        by=options.by,
        data=subject.data,
        tolerance=options.tolerance,
        policy=options.policy,
        strict=False,
        states=options.states,
        check=options.check,
        seed=subject.seed,
    )
