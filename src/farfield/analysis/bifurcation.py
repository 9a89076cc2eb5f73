"""The branches of fixed points by noise level: where they are born, where they end, which of them are stable.

From high noise down, every known branch is followed by iteration and Newton's method. Where an eigenvalue of ∂D/∂x passes κ
the branch goes on, unstable, and the new states to both sides of it along the eigenvector become branches of their own
(Raya & Ambrogioni 2023, Figs. 1 and 2). A law without symmetry has branches besides that are born in a fold; they are found
from given states at the lowest level, such as data points, and followed up to their birth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from farfield.analysis.bifurcation_result import Axis, Bifurcation, BifurcationDiagram, Branch
from farfield.analysis.bifurcation_sweep import Sweep
from farfield.analysis.critical_field import Dynamics
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.processes import VP, TimeMap

__all__ = ["Axis", "Bifurcation", "BifurcationDiagram", "Branch", "bifurcation_diagram", "theta_levels"]


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
        seed: of the eigenvalue solver.

    Raises:
        ArgumentError: for fewer than two levels, or starts that do not fit.
    """
    process = process if process is not None else VP()
    levels = tuple(sorted(sigmas if sigmas is not None else theta_levels(process), reverse=True))
    if len(levels) < 2 or not levels[-1] > 0:
        raise ArgumentError(f"sigmas holds {len(levels)} levels; expected at least two, all positive")
    if starts is not None:
        denoiser.check_shape(starts)
    o = torch.zeros(denoiser.event_shape, dtype=torch.float64) if origin is None else origin.double()
    sweep = Sweep(denoiser, process, dynamics, o, min(directions, denoiser.dim), max_branches, tolerance, seed)
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
