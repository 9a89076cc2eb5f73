"""Fixed points of the frozen reverse dynamics: where ``D(x, σ) − o = κ(σ) (x − o)``, and their stability.

A stable one is the limit of ``x ← o + (D(x) − o)/κ`` (for the reverse SDE of a variance-preserving process
``X ← 2θ/(1 + θ²) m(X)``; Raya & Ambrogioni 2023, Eq. 12), whose derivative J/κ contracts exactly where the Hessian of the
potential is positive. Anderson's mixing (1965) makes it quick close to a bifurcation, where it contracts little; Newton's
method, with the linear systems solved by Jacobian products, finds the unstable ones too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.analysis.critical_field import AveragedField, Dynamics, critical_ratio
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.numerics.krylov import leading_eigenpairs, random_start, solve
from farfield.processes import VP, TimeMap

Kind = Literal["stable", "saddle", "maximum"]

#: Up to so many coordinates the whole spectrum at a fixed point is computed.
_WHOLE = 64


class FixedPointMap:
    """``x ← o + (D̄(x) − o)/κ`` at one noise level, for states (B, *event)."""

    def __init__(self, field: AveragedField, kappa: float, origin: Tensor | None = None) -> None:
        self.field, self.kappa, self.origin = field, kappa, origin

    def __call__(self, x: Tensor) -> Tensor:
        """One step."""
        clean = self.field(x)
        if self.origin is None:
            return clean / self.kappa
        o = self.origin.to(clean)
        return o + (clean - o) / self.kappa


@dataclass(frozen=True, eq=False)
class Found:
    """States (B, *event), the length of the last step of each (B,) in float64, and how many steps were made."""

    x: Tensor
    residuals: Tensor
    steps: int


def anderson(
    step: Callable[[Tensor], Tensor], x: Tensor, *, tolerance: float = 1e-10, steps: int = 200, window: int = 5
) -> Found:
    """Anderson's mixing for ``x = step(x)``, each sample by itself (Anderson 1965; Walker & Ni 2011).

    Near a solution it is a quasi-Newton method, which can end in an unstable fixed point.

    Args:
        step: the map on (B, *event).
        x: where to start.
        tolerance: stop once every ``‖step(x) − x‖`` is below this; in the units of x.
        steps: at most so many evaluations, at least 1.
        window: earlier steps that are mixed; 0 is plain iteration.
    """
    shape, device = x.shape, x.device
    history: list[tuple[Tensor, Tensor]] = []
    flat = x.flatten(1).double()
    image = after = base = flat  # ``after``: the image of the last accepted state; ``base``: of the last plain step
    best = accepted = torch.full((len(x),), torch.inf, dtype=torch.float64, device=device)
    plain = torch.zeros(len(x), dtype=torch.int64, device=device)  # steps that each sample goes without mixing
    patience = torch.full_like(plain, window + 2)
    stalled = torch.zeros_like(plain)
    for made in range(1, steps + 1):
        # A sample at rest stays where it is, and is not evaluated again.
        moving = torch.nonzero(~(accepted <= tolerance))[:, 0]
        moved = step(flat[moving].to(x.dtype).view(-1, *shape[1:])).flatten(1).double()
        image = image.index_copy(0, moving, moved)
        f = image - flat
        size = f.norm(dim=1)
        if bool((size <= tolerance).all()) or made == steps:
            break
        # A mixed step that has thrown a sample far off is taken back; it goes on by plain iteration until its history holds
        # nothing else. (Plain iteration itself may pass a bottleneck, after which its steps grow again.) Where mixing gets
        # nowhere, in such a bottleneck, the plain iteration is taken up again where it was left, for ever longer.
        mixing = plain == 0
        stalled = torch.where(mixing & ~(size < 0.7 * best), stalled + 1, 0)
        stuck = mixing & (stalled > window + 2) & (size > tolerance)
        wild = mixing & ~(size <= 5 * accepted)
        best = torch.where(mixing & ~stuck, torch.minimum(best, size), torch.inf)
        history = [*history[-window:], (flat, f)] if window else []
        mixed = _mix(history, image)
        plain = torch.where(wild | stuck, patience, (plain - 1).clamp(min=0))
        patience = torch.where(stuck, 2 * patience, patience)
        calm = (plain > 0) | ~torch.isfinite(mixed).all(1)
        base = torch.where((~mixing).unsqueeze(1), image, base) if made > 1 else image
        done = (size <= tolerance).unsqueeze(1)
        following = torch.where(done, flat, torch.where(calm.unsqueeze(1), image, mixed))
        following = torch.where(wild.unsqueeze(1), after, following)
        following = torch.where(stuck.unsqueeze(1), base, following)
        after = torch.where(wild.unsqueeze(1), after, image)
        accepted = torch.where(stuck, torch.inf, torch.where(wild, accepted, size))
        flat = following
    return Found(flat.to(x.dtype).view(shape), size, made)


def _mix(history: list[tuple[Tensor, Tensor]], image: Tensor) -> Tensor:
    """The next state by the least squares of the last steps: (B, d); the image itself without any."""
    if len(history) < 2:
        return image
    dx = torch.stack([b[0] - a[0] for a, b in itertools.pairwise(history)], 2)
    df = torch.stack([b[1] - a[1] for a, b in itertools.pairwise(history)], 2)
    normal = df.transpose(1, 2) @ df
    ridge = 1e-14 * normal.diagonal(dim1=1, dim2=2).sum(1) + 1e-300
    normal = normal + ridge.view(-1, 1, 1) * torch.eye(normal.shape[1], dtype=normal.dtype, device=image.device)
    gamma = torch.linalg.solve(normal, df.transpose(1, 2) @ history[-1][1].unsqueeze(2))
    return image - ((dx + df) @ gamma).squeeze(2)


def newton(
    step: FixedPointMap,
    x: Tensor,
    *,
    tolerance: float = 1e-12,
    steps: int = 20,
    products: int = 40,
    reach: float = torch.inf,
) -> Found:
    """Newton's method for ``x = step(x)``, its linear systems solved by Jacobian products, each sample by itself.

    Converges to stable and unstable fixed points alike.

    Args:
        step: the map.
        x: (B, *event), where to start.
        tolerance: stop once every ``‖step(x) − x‖`` is below this.
        steps: Newton steps at most.
        products: Jacobian products for each of them at most.
        reach: no step is longer than this.
    """
    best, made = x, 0
    lowest = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for made in range(steps + 1):
        gap = step(x) - x
        size = gap.flatten(1).double().norm(dim=1)
        better = size < lowest
        best = torch.where(better.view(-1, *(1,) * (x.ndim - 1)), x, best)
        lowest = torch.where(better, size, lowest)
        if made == steps or bool((size <= tolerance).all()) or not bool(torch.isfinite(size).any()):
            break
        multiply = step.field.product(x)

        def system(v: Tensor, multiply: Callable[[Tensor], Tensor] = multiply) -> Tensor:
            return v - multiply(v) / step.kappa

        accuracy = min(0.1, max(1e-10, 0.1 * tolerance / max(float(size.max()), 1e-300)))
        move = solve(system, gap, steps=products, tolerance=accuracy).x
        length = move.flatten(1).norm(dim=1).view(-1, *(1,) * (x.ndim - 1))
        x = x + move * (reach / length.clamp(min=1e-300)).clamp(max=1.0)
    return Found(best, lowest, made)


@dataclass(frozen=True, eq=False)
class FixedPoints:
    """Distinct fixed points at one noise level, the most stable first.

    Attributes:
        sigma, kappa: the level, and the eigenvalue of ∂D/∂x that is critical there.
        states: (n, *event) variance-exploding states; the native ones are ``α (x − o)``.
        ratios: (n, k) the leading eigenvalues of ∂D/∂x over κ, descending; above 1 is an unstable direction.
        directions: (n, k, *event) their eigenvectors.
        kinds: stable, saddle or maximum (every direction unstable) for each.
        residuals: (n,) ``‖(D − o)/κ − (x − o)‖``.
    """

    sigma: float
    kappa: float
    states: Tensor
    ratios: Tensor
    directions: Tensor
    kinds: tuple[Kind, ...]
    residuals: Tensor

    @property
    def stable(self) -> Tensor:
        """The states of the stable ones, (m, *event)."""
        keep = torch.tensor([kind == "stable" for kind in self.kinds], dtype=torch.bool, device=self.states.device)
        return self.states[keep]


def fixed_points(
    denoiser: Denoiser,
    sigma: float,
    starts: Tensor,
    *,
    process: TimeMap | None = None,
    dynamics: Dynamics = "sde",
    origin: Tensor | None = None,
    tolerance: float = 1e-10,
    merge: float = 1e-4,
    directions: int = 4,
    unstable: bool = True,
    steps: int = 2000,
    seed: int = 0,
) -> FixedPoints:
    """The fixed points that the given starts lead to, merged and classified by the signs of the Hessian.

    Plain iteration from every start ends in the stable ones, which Newton's method polishes; where asked for, Newton's method
    from the starts, and from the middles between stable points, finds the others.

    Args:
        denoiser: any denoiser.
        sigma: the noise level.
        starts: (n, *event) variance-exploding states: the origin, data points, cluster centres, random points.
        process: the time map, :class:`VP` by default.
        dynamics: see :data:`Dynamics`.
        origin: the point towards which the process contracts, 0 by default.
        tolerance: relative to the largest start, or to σ: length of the last step.
        merge: points closer than this, relative alike, count once.
        directions: leading eigenvalues at each; all of them up to 64 coordinates.
        unstable: look for saddles and maxima too.
        steps: iterations from a start at most.
        seed: of the start of the eigenvalue solver.

    Raises:
        ArgumentError: for starts that do not fit the denoiser.
    """
    denoiser.check_shape(starts)
    if len(starts) == 0:
        raise ArgumentError("starts is empty; expected at least one state")
    process = process if process is not None else VP()
    kappa = critical_ratio(process, sigma, dynamics)
    field = AveragedField(denoiser, sigma)
    step = FixedPointMap(field, kappa, origin)
    scale = max(float(starts.flatten(1).norm(dim=1).max()), sigma)
    resting = anderson(step, starts, tolerance=1e3 * tolerance * scale, steps=steps, window=0)
    polished = newton(step, resting.x, tolerance=tolerance * scale, steps=8, reach=merge * scale * 10)
    settled = polished.residuals <= 1e3 * tolerance * scale
    states = _distinct(polished.x[settled], merge * scale)
    if unstable:
        count = min(len(states), 8)
        middles = [(states[i] + states[j]) / 2 for i in range(count) for j in range(i)]
        tries = torch.cat((starts, *(m.unsqueeze(0) for m in middles)))
        others = newton(step, tries, tolerance=tolerance * scale, steps=40, reach=scale / 2)
        kept = others.residuals <= 10 * tolerance * scale
        states = _distinct(torch.cat((states, others.x[kept])), merge * scale)
    return _classified(field, step, sigma, states, directions, merge, seed)


def _distinct(states: Tensor, distance: float) -> Tensor:
    """One state of each group, the first."""
    kept: list[Tensor] = []
    for state in states:
        if all(float((state - other).norm()) > distance for other in kept):
            kept.append(state)
    return torch.stack(kept) if kept else states[:0]


def _classified(
    field: AveragedField, step: FixedPointMap, sigma: float, states: Tensor, directions: int, merge: float, seed: int
) -> FixedPoints:
    dim = field.denoiser.dim
    count = dim if dim <= _WHOLE else min(directions, dim)
    if len(states) == 0:
        empty = torch.zeros(0, count, dtype=torch.float64, device=states.device)
        return FixedPoints(sigma, step.kappa, states, empty, states.unsqueeze(1), (), empty.sum(1))
    start = random_start((len(states), count, *states.shape[1:]), seed, states.dtype, states.device)
    found = leading_eigenpairs(field.product(states), start, tolerance=1e-8)
    ratios = found.values / step.kappa
    order = ratios[:, 0].argsort()
    states, ratios, vectors = states[order], ratios[order], found.vectors[order]
    above = (ratios > 1 + 1e-9).sum(1).tolist()
    kinds: list[Kind] = ["stable" if n == 0 else "maximum" if n == dim else "saddle" for n in above]
    residuals = (step(states) - states).flatten(1).double().norm(dim=1)
    return FixedPoints(sigma, step.kappa, states, ratios, vectors, tuple(kinds), residuals)


def fixed_point_on_ray(
    denoiser: Denoiser,
    sigma: float,
    direction: Tensor,
    *,
    process: TimeMap | None = None,
    dynamics: Dynamics = "sde",
    upper: float | None = None,
) -> float:
    """The native distance ``α ρ > 0`` of the fixed point on a ray from the origin, by Brent's method; 0 where there is none.

    For one coordinate, and for laws that a rotation about the origin does not change.

    Args:
        denoiser: the denoiser.
        sigma: the noise level.
        direction: (*event), of any length.
        process: the time map, :class:`VP` by default.
        dynamics: see :data:`Dynamics`.
        upper: a native distance beyond the fixed point; by default found by doubling, up to 2⁶⁰ σ.
    """
    from scipy.optimize import brentq

    process = process if process is not None else VP()
    kappa = critical_ratio(process, sigma, dynamics)
    alpha = process.alpha(process.time(sigma)) if dynamics != "langevin" else 1.0
    unit = (direction / direction.norm()).double().unsqueeze(0)

    def push(radius: float) -> float:
        """Outward component of the map's step, over the radius."""
        with torch.no_grad():
            clean = denoiser(radius * unit, sigma)
        return float((clean.double() * unit).sum()) / (kappa * radius) - 1

    low = 1e-6 * sigma
    if push(low) <= 0:
        return 0.0
    high = upper / alpha if upper is not None else sigma
    for _ in range(60):
        if push(high) < 0:
            break
        high *= 2
    else:
        return float("inf")
    return float(alpha * brentq(push, low, high, xtol=1e-14 * high, rtol=4e-15))
