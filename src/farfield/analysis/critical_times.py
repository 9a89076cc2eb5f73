"""Critical times: the noise levels at which the generative dynamics has to choose, for any denoiser.

Far from the data the reverse dynamics has one stable state. Where an eigenvalue of ``∂D/∂x = Cov(x₀|x)/σ²`` there reaches
κ(σ), it loses its stability along that eigenvector (Raya & Ambrogioni 2023; the criterion of :mod:`critical_field`). For
data with second-moment eigenvalue λ about a centre of symmetry that is ``B(s) = asinh λ``, ``θ² = sqrt(1 + λ²) − λ`` for the
reverse SDE and ``θ² = 1 − λ`` for the probability-flow ODE; here it is found by following the centre down and computing
the leading eigenpairs by Lanczos, for exact laws, data sets and networks alike.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.critical_branches import Fold, bistable_from, density_split, fold_aside, look_aside
from farfield.analysis.critical_field import Dynamics, check_dynamics, noise_about
from farfield.analysis.critical_path import CentralPath, Centre, Level
from farfield.analysis.critical_result import CriticalTimes, Crossing, Visit
from farfield.analysis.critical_search import Root, next_sigma, refine
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.processes import DDPM, VP, TimeMap

#: A second state is looked for down to this fraction of the σ where that begins.
_DEPTH = 1 / 16
#: A direction whose eigenvalue has reached this fraction of κ is one along which a second state may appear.
_NOTICED = 0.1
_WIDE = 256


def critical_times(
    denoiser: Denoiser,
    process: TimeMap | None = None,
    *,
    dynamics: Dynamics = "sde",
    count: int = 1,
    origin: Tensor | None = None,
    noise: int = 0,
    centre: Centre = "mean",
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    tolerance: float = 1e-3,
    steps: int = 40,
    symmetric: bool = False,
    check: bool = True,
    discrete: DDPM | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> CriticalTimes:
    """Every instability of the central state, from high noise down, with its direction.

    The centre is followed as :mod:`critical_path` says. Each crossing comes with a check of what it leads to
    (:mod:`critical_branches`): stable states on both sides, and whether the density itself splits. Later crossings are those
    of the centre; in general the data's later choices are made on the branches (:func:`bifurcation.bifurcation_diagram`),
    except where coordinates are independent.

    Args:
        denoiser: any denoiser of Gaussian diffusion: an exact law, a data set, a network.
        process: the time map of the dynamics, :class:`VP` by default.
        dynamics: ``"sde"``, the reverse SDE; ``"ode"``, the probability-flow ODE, which DDIM and most samplers follow; or
            ``"langevin"``, whose instabilities are those of the density's own mode.
        count: how many directions to examine, in the order of their eigenvalues.
        origin: (*event), the point of data space towards which the process contracts; 0 by default. With the data's mean
            the process is that of the centred data, to which the theory applies.
        noise: how many draws of noise to average over, in pairs ±z; 0 for the noiseless state of the theory. A **network**
            has never seen a noiseless state at high noise, and its Jacobian there means little: give it 4 to 64.
        centre: where the state is looked at: ``"mean"``, where the data's mean puts it, or ``"fixed"``, the fixed point that is
            held there only along the directions under examination, for laws that are symmetric along those and no others
            (without noise). The two agree for data that are symmetric about their mean.
        sigma_max, sigma_min: the horizon; by default that of the process within the denoiser's own range.
        tolerance: relative accuracy in σ.
        steps: Lanczos steps at each level at most.
        symmetric: symmetrise every Jacobian product of a network, at twice the cost; otherwise only the last one.
        check: look at what each crossing leads to.
        discrete: the schedule in whose indices crossings are reported, DDPM's by default.
        dtype: of the states; float64 up to 256 coordinates, float32 above.
        seed: of the noise and of the eigenvalue solver.
        batch_size: states evaluated at once.

    Returns:
        The crossings. Their errors are numerical: what is left of the bracket, the eigenvalue's residual, the centre's, the
        spread over the noise draws, and what the direction owes to being the best one for these draws. Where the law has no
        symmetry, the centre's choice shows as ``tilt`` and in the level from which both branches exist.

    Raises:
        ArgumentError: for an argument out of range or a denoiser without a score.
    """
    check_dynamics(dynamics)
    process = process if process is not None else VP()
    if not denoiser.process.gaussian:
        raise ArgumentError(f"critical times need a score; {denoiser.process!r} has a field instead")
    if origin is not None and tuple(origin.shape) != denoiser.event_shape:
        raise ArgumentError(f"origin has shape {tuple(origin.shape)}; expected {denoiser.event_shape}")
    if centre not in ("mean", "fixed") or (centre == "fixed" and noise):
        raise ArgumentError(f"centre = {centre!r}, noise = {noise}; expected 'mean', or 'fixed' without noise")
    if not 1 <= count <= denoiser.dim:
        raise ArgumentError(f"count = {count}; expected 1 to the {denoiser.dim} coordinates")
    if not 0 < tolerance < 1 or steps < 1:
        raise ArgumentError(
            f"tolerance = {tolerance}, steps = {steps}; expected a tolerance in (0, 1) and at least 1 step"
        )
    top = min(process.sigma(process.t_max), denoiser.sigma_max) if sigma_max is None else float(sigma_max)
    bottom = max(process.sigma(process.t_min), denoiser.sigma_min) if sigma_min is None else float(sigma_min)
    if not 0 < bottom < top < math.inf:
        raise ArgumentError(f"sigma_min = {bottom}, sigma_max = {top}; expected 0 < sigma_min < sigma_max")
    dtype = dtype if dtype is not None else (torch.float64 if denoiser.dim <= _WIDE else torch.float32)
    device = _device(denoiser)
    o = torch.zeros(denoiser.event_shape) if origin is None else origin.detach()
    o = o.to(device=device, dtype=dtype)
    z = noise_about(noise, denoiser.event_shape, seed, dtype, device)

    def path_of(kind: Dynamics) -> CentralPath:
        return CentralPath(denoiser, process, kind, o, z, centre, top, tolerance, steps, symmetric, seed, batch_size)

    path = path_of(dynamics)
    grid = process if isinstance(process, DDPM) else discrete if discrete is not None else DDPM()
    history: list[Visit] = []
    level = path.level(top, 0, None, width=count, coarse=True)
    history += [Visit(top, k, float(level.values[k]) / level.kappa, False) for k in range(count)]
    unstable = sum(level.excess(k) >= 0 for k in range(count))
    crossings: list[Crossing] = []
    spent = [0, 0]
    for order in range(unstable, count):
        root, level = _crossing(path, order, level, bottom, history)
        if root is None:
            if check and order == 0:
                density = path_of("langevin")
                crossings += _folded(path, density, level, max(bottom, level.sigma * _DEPTH), process, grid)
                spent = [density.evaluations, density.products]
            break
        found = _describe(path, root, order, process, grid)
        if check:
            density = path_of("langevin")
            found = _checked(path, density, root, order, found, bottom)
            spent = [spent[0] + density.evaluations, spent[1] + density.products]
        crossings.append(found)
    return CriticalTimes(
        dynamics=dynamics,
        process=process,
        crossings=tuple(crossings),
        unstable_at_start=unstable,
        sigma_max=top,
        sigma_min=bottom,
        examined=count,
        noise=noise,
        tolerance=tolerance,
        seed=seed,
        evaluations=path.evaluations + spent[0],
        products=path.products + spent[1],
        history=tuple(sorted(history, key=lambda visit: (visit.order, -visit.sigma))),
    )


def _device(denoiser: Denoiser) -> torch.device:
    for tensor in (*denoiser.parameters(), *denoiser.buffers()):
        return tensor.device
    return torch.device("cpu")


def _crossing(
    path: CentralPath, order: int, level: Level, bottom: float, history: list[Visit]
) -> tuple[Root | None, Level]:
    """The sign change of direction ``order`` below a level, and the level from which to go on.

    Without one, the level at which the spread of the law along the direction first began to count.
    """

    def visit(sigma: float, near: Level, coarse: bool = True, least: int = 1) -> Level:
        found = path.level(sigma, order, near, coarse=coarse, least=least)
        history.append(Visit(sigma, order, float(found.values[order]) / found.kappa, not coarse))
        return found

    upper = level if order == 0 else visit(level.sigma, level, least=2)
    while upper.excess(order) >= 0:  # the directions before this one are held and free of noise now, which may move it
        if upper.sigma * 1.1 > path.top:
            return None, upper
        upper = visit(upper.sigma * 1.1, upper)
    noticed: Level | None = None
    while True:
        sigma = max(next_sigma(path, upper, order), bottom)
        lower = visit(sigma, upper)
        if lower.excess(order) >= 0:
            break
        if noticed is None and lower.excess(order) >= math.log(_NOTICED):
            noticed = lower
        if sigma <= bottom:
            return None, noticed if noticed is not None else lower
        upper = lower
    # A larger eigenvalue may have escaped a start that holds the former eigenvectors: look again, a few steps beyond it.
    lower = visit(lower.sigma, lower, least=4)
    root = refine(
        lambda sigma, near: visit(sigma, near, coarse=False), order, upper, lower, path.tolerance, 0.5 * bottom
    )
    return root, root.level if root is not None else lower


def _describe(path: CentralPath, root: Root, order: int, process: TimeMap, grid: DDPM) -> Crossing:
    level, sigma = root.level, root.sigma
    value = float(level.values[order])
    slope = min(root.slope, -1e-6)
    draws, optimism, skew = path.scatter(level, order)
    pairs = draws.view(-1, 2).mean(1) if len(draws) > 2 else draws
    spread = float(pairs.std()) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0
    # Where the next eigenvalue is not known, nothing is: then the whole of the antisymmetric part counts.
    beyond = float(level.values[order + 1]) if order + 1 < len(level.values) else value
    gap = max(value - beyond, skew)
    wide = math.sqrt(max(value, 1e-30)) * level.sigma

    def in_sigma(change: float) -> float:
        """What a relative change of the eigenvalue moves the crossing by."""
        return sigma * abs(change / slope)

    parts = {
        "bracket": root.bracket,
        "eigenvalue": in_sigma((float(level.errors[order]) + (skew**2 / gap if skew else 0.0)) / value),
        "centre": in_sigma(level.rest / wide),
        "noise": in_sigma(spread / value),
        "selection": in_sigma(optimism / 2 / value),
    }
    return Crossing(
        order=order,
        direction=level.vectors[order].detach().cpu(),
        centre=level.x[0].detach().cpu(),
        error=math.sqrt(sum(part**2 for part in parts.values())),
        errors=parts,
        slope=slope,
        variance=value * level.sigma**2,
        tilt=float(level.push[order]) / wide,
        skew=skew / value,
        **_when(process, grid, sigma),
    )


def _when(process: TimeMap, grid: DDPM, sigma: float) -> dict[str, Any]:
    """A noise level in all its coordinates."""
    time = process.time(sigma)
    return {
        "sigma": sigma,
        "time": time,
        "generative_time": process.t_max - time,
        "theta": process.alpha(time),
        "index": first_index_below(grid, sigma),
    }


def _folded(
    path: CentralPath, density: CentralPath, level: Level, floor: float, process: TimeMap, grid: DDPM
) -> list[Crossing]:
    """The birth of a second stable state beside a centre that stays stable, if there is one."""
    fold = fold_aside(path, level, floor)
    if fold is None:
        return []
    modes: Fold | None = fold_aside(density, level, floor)
    away = fold.state - fold.centre
    distance = float(away.norm())
    found = Crossing(
        order=0,
        direction=(away / distance).detach().cpu(),
        centre=fold.centre.detach().cpu(),
        error=fold.bracket,
        errors={"bracket": fold.bracket},
        slope=0.0,
        variance=float(level.values[0]) * level.sigma**2,
        tilt=0.0,
        skew=0.0,
        **_when(process, grid, fold.sigma),
    )
    return [
        replace(
            found,
            fold=True,
            branches=2,
            runaway=False,
            offsets=(0.0, distance),
            sides=torch.stack((fold.centre, fold.state)).detach().cpu(),
            bistable_sigma=fold.sigma,
            modes_sigma=None if modes is None else modes.sigma,
            modes_floor=floor,
        )
    ]


def first_index_below(grid: DDPM, sigma: float) -> int | None:
    """The first 0-based index of a discrete schedule whose signal is weaker than at σ (θ_i < θ), or None beyond its end."""
    levels = grid.log_sigmas
    index = int(torch.searchsorted(levels, torch.tensor(math.log(sigma), dtype=levels.dtype), right=True))
    return index if index < len(levels) else None


def _checked(
    path: CentralPath, density: CentralPath, root: Root, order: int, found: Crossing, bottom: float
) -> Crossing:
    below = root.sigma * math.exp(-min(0.15 / abs(found.slope), 0.35))
    sides = look_aside(path, root, order, below)
    split = density_split(density, root, order, bottom)
    return found.with_check(sides, bistable_from(path, root, order, sides), split)
