"""How flat a trajectory is: the plane through its noise and its sample, and what leaves it (Wang & Vastola 2024, Fig. 5B).

States are those of a variance-preserving process, x_T first and x_0 last; a state x of noise level σ in variance-exploding
coordinates becomes α x with ``α = 1/sqrt(1 + σ²)``. With e₁, e₂ from x_T and x_0 by Gram and Schmidt:

    coordinates   (e₁·x_t, e₂·x_t)
    off the plane 1 − ((e₁·x_t)² + (e₂·x_t)²)/‖x_t‖²
    weights       the least-squares (p, q) of x_t ≈ p x_0 + q x_T
    angle         atan2(e₁·x_t, e₂·x_t), from the sample's side to the noise: arccos α_t if x_0 and x_T were orthogonal and of
                  equal length;  atan2(q, p) needs neither, and is arccos α_t where x_t = α_t x_0 + sqrt(1 − α_t²) x_T
    spectrum      squared singular values of the stacked states, uncentred, over their sum

For a Gaussian p and q are known but for a small remainder (``rotation.py``). All statistics are float64, from the states'
inner products alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Planarity:
    """Statistics of a batch of trajectories; tuples along the levels, from noise to sample.

    Attributes:
        alphas: signal scales α_t, not falling.
        coordinates: (L, B, 2) in units of ‖x_T‖, along x_T and along what x_0 has beside it.
        off_plane, off_plane_worst: mean and largest energy off the plane over the energy of the state, in [0, 1].
        sample_weight, noise_weight: means of p and q.
        angle: mean of the angle in the plane, degrees.
        weight_angle: mean of atan2(q, p), degrees.
        explained: mean share of the first three singular directions.
        samples: trajectories.
    """

    alphas: tuple[float, ...]
    coordinates: Tensor
    off_plane: tuple[float, ...]
    off_plane_worst: tuple[float, ...]
    sample_weight: tuple[float, ...]
    noise_weight: tuple[float, ...]
    angle: tuple[float, ...]
    weight_angle: tuple[float, ...]
    explained: tuple[float, ...]
    samples: int

    @property
    def expected_angle(self) -> tuple[float, ...]:
        """``arccos α_t``, degrees."""
        return tuple(math.degrees(math.acos(min(a, 1.0))) for a in self.alphas)

    @property
    def worst_off_plane(self) -> float:
        """The largest mean energy off the plane."""
        return max(self.off_plane)

    @property
    def in_plane(self) -> float:
        """The share of the trajectories' energy in the best two directions."""
        return sum(self.explained[:2])

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; coordinates of at most eight trajectories."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__}
        value["coordinates"] = self.coordinates[:, :8].tolist()
        return value | {"expected_angle": self.expected_angle, "in_plane": self.in_plane}


def vp_alpha(sigma: float) -> float:
    """``α = 1/sqrt(1 + σ²)`` of the variance-preserving twin at noise level σ."""
    return 1 / math.hypot(1.0, sigma)


def vp_states(states: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Variance-exploding states (L, B, *event) at L levels, multiplied by their α."""
    alpha = torch.tensor([vp_alpha(s) for s in sigmas], dtype=states.dtype, device=states.device)
    return states * alpha.view(-1, *(1,) * (states.ndim - 1))


def planarity(states: Tensor, alphas: Sequence[float]) -> Planarity:
    """The statistics at the head of this module.

    Args:
        states: (L, B, *event) variance-preserving states, noise first and sample last, L ≥ 3.
        alphas: their signal scales.

    Raises:
        ArgumentError: for fewer than three levels, or other than one α for each.
    """
    if states.ndim < 3 or len(states) != len(alphas) or len(alphas) < 3:
        raise ArgumentError(
            f"states has shape {tuple(states.shape)} for {len(alphas)} alphas; expected (L, B, *event), L >= 3"
        )
    flat = states.flatten(2).transpose(0, 1).double()
    gram = flat @ flat.mT  # (B, L, L)
    tiny = torch.finfo(torch.float64).tiny
    noise, sample, energy = gram[:, 0], gram[:, -1], gram.diagonal(dim1=1, dim2=2).clamp(min=tiny)
    length = energy[:, :1].sqrt()
    first = noise / length
    # e₂ from x_0: what Gram and Schmidt leave of it; parallel to x_T there is no plane, and nothing is along e₂.
    overlap = sample[:, :1] / length
    rest = (energy[:, -1:] - overlap.square()).clamp(min=0)
    thin = rest <= 1e-24 * energy[:, -1:]
    second = torch.where(thin, 0.0, (sample - overlap * first) / rest.clamp(min=tiny).sqrt())
    off = (1 - (first.square() + second.square()) / energy).clamp(min=0)
    p = torch.where(thin, 0.0, second / rest.clamp(min=tiny).sqrt())
    q = (first - p * overlap) / length
    values = torch.linalg.eigvalsh(gram).flip(1).clamp(min=0)[:, :3]
    return Planarity(
        alphas=tuple(map(float, alphas)),
        coordinates=torch.stack((first / length, second / length), -1).transpose(0, 1).cpu(),
        off_plane=tuple(off.mean(0).tolist()),
        off_plane_worst=tuple(off.amax(0).tolist()),
        sample_weight=tuple(p.mean(0).tolist()),
        noise_weight=tuple(q.mean(0).tolist()),
        angle=tuple(torch.atan2(first, second).rad2deg().mean(0).tolist()),
        weight_angle=tuple(torch.atan2(q, p).rad2deg().mean(0).tolist()),
        explained=tuple((values / energy.sum(1, keepdim=True)).mean(0).tolist()),
        samples=states.shape[1],
    )
