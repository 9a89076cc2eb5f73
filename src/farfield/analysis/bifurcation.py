"""The branches of fixed points by noise level: where they are born, where they end, which of them are stable.

From high noise down, every known branch is followed by iteration and Newton's method. Where an eigenvalue of ∂D/∂x passes κ
the branch goes on, unstable, and the new states to both sides of it along the eigenvector become branches of their own
(Raya & Ambrogioni 2023, Figs. 1 and 2). A law without symmetry has branches besides that are born in a fold; they are found
from given states at the lowest level, such as data points, and followed up to their birth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from farfield.analysis.bifurcation_result import Axis, Bifurcation, BifurcationDiagram, Branch
from farfield.analysis.bifurcation_sweep import Sweep
from farfield.analysis.critical_closed_form import critical_time_closed_form
from farfield.analysis.critical_field import Dynamics
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.numerics.krylov import leading_eigenpairs, random_start
from farfield.processes import VP, TimeMap

__all__ = [
    "Axis",
    "Bifurcation",
    "BifurcationDiagram",
    "Branch",
    "bifurcation_diagram",
    "leading_diagram",
    "theta_levels",
]


def theta_levels(process: TimeMap, count: int = 200, low: float = 0.01, high: float = 0.99) -> tuple[float, ...]:
    """Noise levels, descending, of ``count`` signal scales θ from low to high in equal steps (variance-preserving maps)."""
    thetas = torch.linspace(low, high, count, dtype=torch.float64)
    sigmas = (1 / thetas.square() - 1).sqrt()
    top, bottom = process.sigma(process.t_max), process.sigma(process.t_min)
    return tuple(s for s in sigmas.tolist() if bottom <= s <= top)


def bifurcation_diagram(
    denoiser: Denoiser,
    process: TimeMap | None = None,
    *,
    dynamics: Dynamics = "sde",
    sigmas: Sequence[float] | None = None,
    starts: Tensor | None = None,
    origin: Tensor | None = None,
    directions: int = 4,
    max_branches: int = 64,
    tolerance: float = 1e-9,
    fold_accuracy: float = 1e-5,
    seed: int = 0,
) -> BifurcationDiagram:
    """Follow all branches of fixed points from high noise to low.

    Args:
        denoiser: any denoiser.
        process: the time map, :class:`VP` by default.
        dynamics: see :data:`Dynamics`.
        sigmas: the levels, in any order; 200 equal steps of θ from 0.01 to 0.99 by default.
        starts: (n, *event) states whose attractors at the lowest level are followed up as well, e.g. data points.
        origin: (*event), the point towards which the process contracts; 0 by default.
        directions: eigenvalues followed on each branch.
        max_branches: no more are opened.
        tolerance: of a fixed point, relative to the size of the states.
        fold_accuracy: relative accuracy in σ of the births of branches in folds, which cost most of the search.
        seed: of the eigenvalue solver.

    Raises:
        ArgumentError: for fewer than two levels, starts that do not fit, or an accuracy that is not positive.
    """
    process = process if process is not None else VP()
    levels = tuple(sorted(sigmas if sigmas is not None else theta_levels(process), reverse=True))
    if len(levels) < 2 or not levels[-1] > 0:
        raise ArgumentError(f"sigmas holds {len(levels)} levels; expected at least two, all positive")
    if not fold_accuracy > 0:
        raise ArgumentError(f"fold_accuracy = {fold_accuracy}; expected a positive number")
    if starts is not None:
        denoiser.check_shape(starts)
    o = torch.zeros(denoiser.event_shape, dtype=torch.float64) if origin is None else origin.double()
    sweep = Sweep(
        denoiser, process, dynamics, o, min(directions, denoiser.dim), max_branches, tolerance, seed, fold_accuracy
    )
    sweep.down(levels)
    if starts is not None:
        sweep.up(levels, starts.double())
    return BifurcationDiagram(
        dynamics=dynamics,
        process=process,
        origin=o,
        branches=tuple(sweep.finished()),
        bifurcations=tuple(sorted(sweep.events, key=lambda e: -e.sigma)),
        levels=levels,
    )


def leading_diagram(
    data: Tensor,
    process: TimeMap | None = None,
    *,
    levels: int = 32,
    starts: int = 9,
    max_branches: int = 7,
    span: tuple[float, float] = (0.3, 1.4),
    fold_accuracy: float = 5e-3,
) -> BifurcationDiagram:
    """The branches of a data set's coordinate along its leading principal component.

    The noisy law of that coordinate is the exact law of the projected points, so that one coordinate suffices for a diagram to
    look at, at a cost that does not grow with the dimension. Other directions have choices of their own.

    Args:
        data: (N, *event), N ≥ 2.
        process: the time map, :class:`VP` by default.
        levels: noise levels, equally spaced in log σ over ``span`` times the level where the coordinate would become critical
            if it were symmetric (B = asinh λ).
        starts: quantiles of the coordinate whose attractors are followed up.
        max_branches: no more are opened.
        span: the lowest and the highest level, in units of that one.
        fold_accuracy: as for :func:`bifurcation_diagram`.

    Raises:
        ArgumentError: for fewer than two points or levels, or data whose coordinate would not become critical.
    """
    if len(data) < 2 or levels < 2 or starts < 1 or not 0 < span[0] < span[1]:
        raise ArgumentError(
            f"{len(data)} points, levels = {levels}, starts = {starts}, span = {span}; expected at least 2, 2, 1 and rising"
        )
    process = process if process is not None else VP()
    flat = data.detach().flatten(1).double()
    flat = flat - flat.mean(0)
    start = random_start((1, 1, flat.shape[1]), device=flat.device)
    unit = leading_eigenpairs(lambda v: (v @ flat.T) @ flat / len(flat), start, tolerance=1e-9).vectors[0, 0]
    along = (flat @ unit).unsqueeze(1)
    found = critical_time_closed_form(float(along.square().mean()), process)
    if found is None:
        raise ArgumentError("the leading principal component has no critical time within the horizon of the process")
    low, high = (math.log(found.sigma * f) for f in span)
    top, bottom = process.sigma(process.t_max), process.sigma(process.t_min)
    sigmas = [math.exp(low + (high - low) * k / (levels - 1)) for k in range(levels)]
    places = torch.linspace(0, 1, starts + 2, dtype=torch.float64)[1:-1]
    return bifurcation_diagram(
        Empirical(along),
        process,
        sigmas=[min(max(s, bottom), top) for s in sigmas],
        starts=along[:, 0].quantile(places.to(along.device)).unsqueeze(1),
        directions=1,
        max_branches=max_branches,
        tolerance=1e-6,
        fold_accuracy=fold_accuracy,
    )
