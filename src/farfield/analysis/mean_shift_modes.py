"""The modes of a kernel density and their basins: mean shift from many starts, whose ends are merged.

A start belongs to the basin of the mode in which its mean shift ends; the basins of the data's own points are their clusters
(Comaniciu & Meer 2002). An end at which the denoiser expands along some direction, ``λ_max(Cov_w)/h² > 1``, is a saddle that
its start has met on a ridge and no mode: it is pushed off along that direction and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.analysis.critical_field import AveragedField
from farfield.analysis.mean_shift import STEPS, Shifted, mean_shift
from farfield.denoiser import Denoiser
from farfield.distributions import Distribution, Empirical
from farfield.errors import ArgumentError
from farfield.numerics.krylov import leading_eigenpairs, random_start

#: Ends closer than this, in units of the bandwidth, are the same mode.
MERGE = 0.02
#: An expansion beyond rounding; and how far, in units of the bandwidth, a start on a saddle is pushed, at most so often.
_UNSTABLE, _PUSH, _ROUNDS = 1e-4, 0.05, 3
#: Up to this many coordinates a data set's covariance is decomposed as a whole.
_DENSE = 128


@dataclass(frozen=True, eq=False)
class Modes:
    """Modes at one bandwidth, the most likely first (of a network, which has no density: the largest basin first).

    Attributes:
        bandwidth: h.
        states: (M, *event).
        assignment: for each start the number of its mode, (B,) int64.
        sizes: starts in each basin, (M,) int64.
        log_prob: ``log p_h`` at the modes, (M,) in float64, or None.
        rates: largest eigenvalue of ∂D/∂x = Cov_w/h², the factor by which a step shrinks the distance at the end, (M,).
        steps: evaluations for each start, (B,).
        unfinished: starts that had not converged; each is counted where it was.
    """

    bandwidth: float
    states: Tensor
    assignment: Tensor
    sizes: Tensor
    log_prob: Tensor | None
    rates: Tensor
    steps: Tensor
    unfinished: int

    @property
    def count(self) -> int:
        """M, the number of modes."""
        return len(self.states)

    @property
    def largest_share(self) -> float:
        """The share of the starts in the largest basin."""
        return int(self.sizes.max()) / int(self.sizes.sum())

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mode nearest to each state (B, *event): its number (B,) and its distance (B,) in float64."""
        distance = torch.cdist(x.flatten(1).double(), self.states.flatten(1).double())
        found = distance.min(1)
        return found.indices, found.values

    def assign(self, law: Denoiser, x: Tensor, *, within: float = 5 * MERGE, **options: Any) -> Tensor:
        """The basin of new starts: shift them and take the mode they end in, (B,) int64; −1 where that is none of these.

        Args:
            law: what the modes were found with.
            x: (B, *event).
            within: how near the end must be, in units of the bandwidth.
            **options: of :func:`mean_shift`.
        """
        ends = mean_shift(law, x.to(self.states.dtype), self.bandwidth, **options)
        index, distance = self.nearest(ends.x)
        return torch.where(distance <= within * self.bandwidth, index, -1)


def merged(x: Tensor, distance: float) -> tuple[Tensor, Tensor]:
    """Groups of states that lie within a distance of their group's first member.

    Args:
        x: (B, *event).
        distance: in units of x.

    Returns:
        Which states are first members (M,), ascending, and the number of each state's group, (B,) int64.
    """
    flat = x.detach().flatten(1).double()
    size = max(1, (1 << 24) // max(1, flat.shape[1]))
    group = torch.full((len(flat),), -1, dtype=torch.int64, device=x.device)
    first: list[int] = []
    kept = flat[:0]
    for low in range(0, len(flat), 512):
        part = flat[low : low + 512]
        own = torch.full((len(part),), -1, dtype=torch.int64, device=x.device)
        if len(kept):
            best = [torch.cdist(part, some).min(1) for some in kept.split(size)]
            gaps = torch.stack([b.values for b in best])
            which = gaps.min(0)
            offsets = torch.arange(len(best), device=x.device) * size
            places = torch.stack([b.indices for b in best]).gather(0, which.indices[None])[0] + offsets[which.indices]
            own = torch.where(which.values <= distance, places, own)
        close = (torch.cdist(part, part) <= distance).cpu().numpy()
        labels = own.cpu().numpy()
        for k in np.flatnonzero(labels < 0):
            if labels[k] >= 0:
                continue
            labels[close[k] & (labels < 0)] = len(first)
            first.append(low + int(k))
        group[low : low + 512] = torch.from_numpy(labels).to(x.device)
        kept = flat[torch.tensor(first, device=x.device)]
    return torch.tensor(first, dtype=torch.int64, device=x.device), group


def local_rates(
    law: Denoiser, states: Tensor, bandwidth: float, *, tolerance: float = 1e-4, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue of ``∂D/∂x = Cov_w/h²`` at each state, and its direction.

    At a mode it is the rate of mean shift: the distance to the mode shrinks by this factor in each step. Above 1 the state is
    a saddle or a minimum of the density along that direction. A network's Jacobian is symmetrised.

    Args:
        law: any denoiser.
        states: (M, *event).
        bandwidth: h.
        tolerance: residual of the eigenvalue solver, whose square is about the error; up to 128 coordinates a data set's
            rates are exact.
        batch_size: states at a time.

    Returns:
        (M,) in float64, and unit vectors (M, *event) up to their sign.
    """
    if len(states) == 0:
        return torch.zeros(0, dtype=torch.float64, device=states.device), states
    field = AveragedField(law, bandwidth, symmetric=True)
    values, vectors = [], []
    for part in states.split(batch_size):
        if isinstance(law, Empirical) and law.dim <= _DENSE:
            spread, direction = law.posterior_spectrum(part, bandwidth, 1)
            values.append(spread[:, 0] / bandwidth**2)
            vectors.append(direction[:, 0])
            continue
        start = random_start((len(part), 1, *part.shape[1:]), 0, part.dtype, part.device)
        found = leading_eigenpairs(field.product(part), start, tolerance=tolerance)
        values.append(found.values[:, 0])
        vectors.append(found.vectors[:, 0])
    return torch.cat(values), torch.cat(vectors)


def modes(
    law: Denoiser,
    bandwidth: float,
    starts: Tensor | None = None,
    *,
    tolerance: float = 1e-6,
    steps: int = STEPS,
    merge: float = MERGE,
    accelerate: bool | None = None,
    rates: bool = True,
    batch_size: int = 1024,
) -> Modes:
    """The modes that mean shift finds from the given starts, and the basin of each start.

    Args:
        law: a data set, another law, or a network, whose denoiser is iterated.
        bandwidth: h.
        starts: (B, *event); the points of a data set by default, so that the basins are its clusters.
        tolerance, steps, batch_size: as for :func:`mean_shift`.
        merge: ends closer than this, in units of h, are one mode.
        accelerate: as for :func:`mean_shift`; wherever there is a density, by default.
        rates: measure the rate at each mode. Else, for a law, only where it could be above 1, to leave saddles; for a network,
            nowhere. Rates that are not measured are NaN.

    Raises:
        ArgumentError: without starts for a law that is no data set, and as :func:`mean_shift`.
    """
    if starts is None:
        if not isinstance(law, Empirical):
            raise ArgumentError("starts is missing; only a data set has points to start from")
        starts = law.data
    if len(starts) == 0:
        raise ArgumentError("starts is empty; expected at least one state")
    if not merge > 0:
        raise ArgumentError(f"merge = {merge}; expected a positive distance in units of the bandwidth")
    fast = isinstance(law, Distribution) if accelerate is None else accelerate
    given: dict[str, Any] = {"tolerance": tolerance, "steps": steps, "accelerate": fast, "batch_size": batch_size}
    found = mean_shift(law, starts, bandwidth, **given)
    first, group = merged(found.x, merge * bandwidth)
    speed, along = _speeds(law, found.x[first], bandwidth, rates)
    for _ in range(_ROUNDS):
        pushed = (speed > 1 + _UNSTABLE)[group]
        if not bool(pushed.any()):
            break
        again = mean_shift(law, (found.x + _PUSH * bandwidth * along[group])[pushed], bandwidth, **given)
        found = _replaced(found, pushed, again)
        first, group = merged(found.x, merge * bandwidth)
        speed, along = _speeds(law, found.x[first], bandwidth, rates)
    sizes = torch.bincount(group, minlength=len(first))
    density = None if found.log_prob is None else found.log_prob[first]
    # Ties of the density, as in a symmetric data set, are broken by the order of the starts.
    order = (-sizes.double() if density is None else -density).argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return Modes(
        float(bandwidth),
        found.x[first[order]],
        rank[group],
        sizes[order],
        None if density is None else density[order],
        speed[order],
        found.steps,
        int((~found.converged).sum()),
    )


def _speeds(law: Denoiser, states: Tensor, bandwidth: float, everywhere: bool) -> tuple[Tensor, Tensor]:
    """:func:`local_rates`, or only where the trace of the Jacobian, which is not smaller, leaves open whether it is below 1."""
    if everywhere:
        return local_rates(law, states, bandwidth)
    speed = torch.full((len(states),), torch.nan, dtype=torch.float64, device=states.device)
    along = torch.zeros_like(states)
    if isinstance(law, Distribution):
        index = torch.nonzero(law.trace(states, bandwidth) >= 1).squeeze(1)
        speed[index], along[index] = local_rates(law, states[index], bandwidth)
    return speed, along


def _replaced(found: Shifted, rows: Tensor, new: Shifted) -> Shifted:
    """The same with some of the starts shifted further."""
    x, steps = found.x.clone(), found.steps.clone()
    residuals, converged = found.residuals.clone(), found.converged.clone()
    x[rows], residuals[rows], converged[rows] = new.x, new.residuals, new.converged
    steps[rows] += new.steps
    density = None
    if found.log_prob is not None and new.log_prob is not None:
        density = found.log_prob.clone()
        density[rows] = new.log_prob
    return replace(found, x=x, steps=steps, residuals=residuals, converged=converged, log_prob=density)
