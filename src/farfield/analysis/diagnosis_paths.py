"""The paths of a model and of the optimal denoiser of its data from the same starts, and each denoiser on the other's path.

    own paths      x̂_n, r_θ(x̂_n) and x̂*_n, r*(x̂*_n): two runs, whose first evaluations are the outputs
    cross terms    r_θ(x̂*_n) and r*(x̂_n): one call for each level and batch

With N steps of a two-stage rule that is 2N − 1 + N evaluations of either denoiser for each start (Chen et al., A geometric
perspective on diffusion models, sections 6 and F.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.entrants import sigma_range
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.sampling import Given, Prior, Sampler, karras
from farfield.sampling.finishes import ToZero
from farfield.sampling.results import Trajectory

#: A denoiser's output is a data point where it is this close to it, in units of the data's root mean square spread.
AT_POINT = 1e-3


def plain_sampler(model: Denoiser, levels: int, solver: str = "heun") -> Sampler:
    """A solver on Karras levels within the model's range, by default EDM's Heun (Karras et al. 2022)."""
    low, high = sigma_range(model)
    return Sampler(solver, karras(levels, low, high))


def check_sampler(sampler: Sampler) -> None:
    """Refuse samplers that leave the deterministic path from prior to sample.

    Raises:
        ArgumentError: for another start than the prior, noise, guidance, or a run that does not go on to σ = 0.
    """
    if not isinstance(sampler.start, Prior):
        raise ArgumentError(f"sampler starts with {sampler.start.name!r}; both paths are compared from the prior")
    if sampler.noise is not None or sampler.guidance:
        raise ArgumentError("sampler has noise or guidance; paths are compared along the plain sampling ODE")
    if not isinstance(sampler.finish, ToZero):
        raise ArgumentError(f"sampler finishes with {sampler.finish.name!r}; expected a run to zero noise")


@dataclass(frozen=True, eq=False)
class Paths:
    """Two trajectories from the same starts.

    Attributes:
        model, optimal: of the model, and of the optimal denoiser of the data.
        nfe: evaluations of either for each start.
    """

    model: Trajectory
    optimal: Trajectory
    nfe: int

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The levels at which both denoisers were asked, decreasing."""
        return tuple(map(float, self.model.sigmas[: len(self.model.denoised)]))


def paired_paths(
    model: Denoiser,
    law: Empirical,
    x: Tensor,
    sampler: Sampler,
    condition: Mapping[str, Tensor],
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> Paths:
    """Run both denoisers from states ``x`` (n, *event) at the sampler's first level."""
    run = replace(sampler, start=Given(x))
    found: list[Trajectory] = []
    nfe = 0
    given: dict[str, Any] = dict(condition)
    for denoiser in (model, law):
        out = run(denoiser, len(x), seed, batch_size=batch_size, trajectory=True, dtype=x.dtype, **given)
        assert out.trajectory is not None
        found.append(out.trajectory)
        nfe = max(nfe, out.nfe)
    return Paths(found[0], found[1], nfe)


@torch.no_grad()
def along(
    denoiser: Denoiser,
    states: Tensor,
    sigmas: Sequence[float],
    condition: Mapping[str, Tensor],
    batch_size: int = 64,
) -> Tensor:
    """A denoiser's outputs on a path that may be another's: (L, n, *event) for states (L or more, n, *event)."""
    rows: list[Tensor] = []
    for state, sigma in zip(states, sigmas, strict=False):
        index = torch.arange(len(state), device=state.device)
        parts = [denoiser(state[part], sigma, **_rows(condition, part)) for part in index.split(batch_size)]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def _rows(condition: Mapping[str, Tensor], part: Tensor) -> dict[str, Any]:
    return {name: value[part] for name, value in condition.items()}


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances in float64, (L, n), of (L, n, *event)."""
    return (a.double() - b.double()).flatten(2).norm(dim=2)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest data points of some samples.

    Attributes:
        distance: (n, k) Euclidean, in float64, ascending.
        number: (n, k) their numbers in the data.
    """

    distance: Tensor
    number: Tensor

    @classmethod
    def of(cls, x: Tensor, law: Empirical, k: int, condition: Mapping[str, Tensor]) -> Neighbours:
        """The k nearest points, of its class where a sample has one."""
        squared, number = law.nearest(x, k, labels=condition.get("labels"))
        return cls(squared.sqrt(), number)

    def cpu(self) -> Neighbours:
        """The same on the CPU."""
        return Neighbours(self.distance.cpu(), self.number.cpu())


def same_points(law: Empirical, a: Tensor, b: Tensor) -> Tensor:
    """Whether the points with two numbers (n,) are equal; a point that occurs twice in the data is one: (n,) bool."""
    return (law.data[a] == law.data[b]).flatten(1).all(1)


def distinct_points(law: Empirical, numbers: Tensor) -> int:
    """How many different data points some numbers (n,) stand for."""
    return len(torch.unique(law.data[numbers].flatten(1), dim=0))


def locked(law: Empirical, outputs: Tensor, nearest: Tensor) -> Tensor:
    """Whether outputs (L, n, *event) of the optimal denoiser are the given data points (n,): (L, n) bool."""
    spread = (2 * law.points.half.mean()).sqrt()
    return distance(outputs, law.data[nearest].unsqueeze(0)) <= AT_POINT * spread


def leading(law: Empirical, outputs: Tensor, nearest: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
    """Whether the data points nearest to outputs (L, n, *event) are the given ones (n,): (L, n) bool."""
    rows = []
    for output in outputs:
        found = law.nearest(output, labels=condition.get("labels"))[1][:, 0]
        rows.append(same_points(law, found, nearest))
    return torch.stack(rows)
