"""How trajectories look: their correlations, their pixels in units of the spread, and the pictures on the way.

Before the first choice trajectories are alike and their pixels without pattern; after it they part (Raya & Ambrogioni 2023,
figures 9, 10-13 and 18). Everything here takes native states (K, n, *event) at K times, as
:func:`farfield.analysis.potential_sections_paths.generated_paths` and :func:`forward_states` make them.

For data whose pixels have mean 0, variance 1 and correlation c, noised apart, the correlation at signal scale θ is
``θ² c / (θ² + 1 − θ²) = θ² c`` for a variance-preserving process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.deviation_plot import strips
from farfield.analysis.plotting import PALETTE, axes_for, dress, marker_line
from farfield.analysis.potential import Potential
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.processes import VP, TimeMap


def _check(states: Tensor, members: int = 2) -> Tensor:
    """States as (K, n, d) in float64.

    Raises:
        ArgumentError: unless they are (K, n, *event) with K >= 1 and enough members.
    """
    if states.ndim < 3 or states.shape[0] < 1 or states.shape[1] < members:
        raise ArgumentError(f"states has shape {tuple(states.shape)}; expected (K, n, *event) with n >= {members}")
    return states.double().flatten(2)


def forward_states(data: Tensor, times: Sequence[float], process: TimeMap | None = None, seed: int = 0) -> Tensor:
    """Noised data at each time, ``α y + s z`` with fresh noise at every time: (K, N, *event).

    Args:
        data: (N, *event).
        times: forward times.
        process: the time map, :class:`VP` by default.
        seed: of the noise; sample i at time k is the same for any N.
    """
    process = process if process is not None else VP()
    ids = range(len(data))
    return torch.stack(
        [
            process.alpha(t) * data
            + process.std(t)
            * streams.normal(seed, ids, data.shape[1:], purpose="forward states", step=k, dtype=data.dtype).to(data)
            for k, t in enumerate(map(float, times))
        ]
    )


def correlation_trajectories(states: Tensor, reference: int = 0) -> Tensor:
    """Pearson's correlation, over the coordinates, of one trajectory with each other one at each time.

    Args:
        states: (K, n, *event), of generated or of forward trajectories.
        reference: which one the others are compared with.

    Returns:
        (K, n − 1) in float64, in [−1, 1]; NaN where a state has no spread.

    Raises:
        ArgumentError: for wrong shapes, or a reference that is not among the members.
    """
    flat = _check(states)
    if not 0 <= reference < flat.shape[1]:
        raise ArgumentError(f"reference = {reference}; expected 0 to {flat.shape[1] - 1}")
    centred = flat - flat.mean(2, keepdim=True)
    norms = centred.norm(dim=2)
    others = [i for i in range(flat.shape[1]) if i != reference]
    inner = (centred * centred[:, reference : reference + 1]).sum(2)
    return (inner / (norms * norms[:, reference : reference + 1]))[:, others].cpu()


def normalised_pixels(states: Tensor, sample: int = 0) -> Tensor:
    """One sample's coordinates divided by their standard deviation over the batch at the same time.

    Args:
        states: (K, n, *event); the source takes n of at least 500.
        sample: which one.

    Returns:
        (K, d) in float64; 0 where a coordinate does not vary.

    Raises:
        ArgumentError: for wrong shapes or a sample that is not among the members.
    """
    flat = _check(states)
    if not 0 <= sample < flat.shape[1]:
        raise ArgumentError(f"sample = {sample}; expected 0 to {flat.shape[1] - 1}")
    spread = flat.std(1)
    return torch.where(spread > 0, flat[:, sample] / spread.clamp(min=torch.finfo(torch.float64).tiny), 0.0).cpu()


def progressive_grid(states: Tensor, times: Tensor | Sequence[float], count: int = 10) -> tuple[Tensor, list[float]]:
    """States at about evenly spaced times, from noise to data, as rows of pictures.

    Args:
        states: (K, n, *event) at ``times`` (K,).
        times: forward times, decreasing.
        count: how many of them, both ends among them.

    Returns:
        (n, count, *event), one row for each sample, and the times shown.

    Raises:
        ArgumentError: if shapes do not fit or there are fewer times than asked for.
    """
    _check(states, 1)
    shown = [float(t) for t in times]
    if len(shown) != len(states) or not 2 <= count <= len(shown):
        raise ArgumentError(f"{len(shown)} times for {len(states)} states, count = {count}; expected 2 to their number")
    wanted = torch.linspace(shown[0], shown[-1], count, dtype=torch.float64)
    grid = torch.tensor(shown, dtype=torch.float64)
    index = (wanted[:, None] - grid).abs().argmin(1)
    return states[index].transpose(0, 1), grid[index].tolist()


def progressive_figure(states: Tensor, times: Tensor | Sequence[float], count: int = 10, rows: int = 4) -> Any:
    """:func:`progressive_grid` of the first samples as a figure, native states cut to [−1, 1]; for images (C, H, W)."""
    pictures, shown = progressive_grid(states, times, count)
    if pictures.ndim != 5 or pictures.shape[2] not in (1, 3):
        raise ArgumentError(f"states are {tuple(pictures.shape[2:])}; expected images (1 or 3, H, W)")
    named = {f"sample {k}": picture for k, picture in enumerate(pictures[:rows])}
    return strips(named, f"s = {shown[0]:.2g} to {shown[-1]:.2g}, evenly spaced")


def plot_correlations(
    times: Sequence[float], correlations: Tensor, critical: float | None = None, ax: Any = None
) -> Any:
    """Correlations (K, m) against forward time, one thin line each, with their mean and a critical time."""
    (axes,) = axes_for(ax, width=6.4, height=4.0)
    axes.plot(
        list(times),
        correlations,
        color=PALETTE[0],
        alpha=max(0.05, min(0.5, 10 / correlations.shape[1])),
        linewidth=0.7,
    )
    axes.plot(list(times), correlations.nanmean(1), color=PALETTE[1], linewidth=2, label="mean")
    axes.set_xlim(max(times), min(times))
    if critical is not None:
        marker_line(axes, critical, f"critical s = {critical:.2f}")
    axes.legend(frameon=False, fontsize=9)
    dress(axes, "forward time s (generation →)", "correlation with the reference")
    return axes.figure


def reverse_sde(
    potential: Potential, x: Tensor, times: Sequence[float], seed: int = 0, keep: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Euler-Maruyama on ``dX = −∇u dt + g dW`` from noise to data, in native coordinates.

    Coefficients are taken at the start of each step, and the last step adds no noise: ``times`` may end at 0, where nothing
    is evaluated. It converges slowly and is meant for theory; to sample, take :class:`farfield.sampling.Sampler`.

    Args:
        potential: of the ``"sde"``, or of the ``"ode"``, for which no noise is added.
        x: (n, *event) native states at the first time.
        times: forward times, decreasing.
        seed: of the noise; path i is the same for any n.
        keep: which times' states to return, by their places in ``times``.

    Returns:
        The final states (n, *event), and those kept (len(keep), n, *event).

    Raises:
        ArgumentError: for times that do not decrease, or Langevin dynamics, which knows no time.
    """
    steps = [float(t) for t in times]
    if len(steps) < 2 or any(b >= a for a, b in pairwise(steps)) or potential.dynamics == "langevin":
        raise ArgumentError(
            f"times = {steps[:3]} …, dynamics = {potential.dynamics!r}; expected decreasing, sde or ode"
        )
    ids, kept = torch.arange(len(x), device=x.device), {}
    for k, t in enumerate(steps):
        if k in keep:
            kept[k] = x
        if k + 1 == len(steps):
            break
        h = t - steps[k + 1]
        drift = potential.drift(x, t)
        if potential.dynamics == "sde" and k + 2 < len(steps):
            z = streams.normal(seed, ids, x.shape[1:], purpose="reverse sde", step=k, dtype=x.dtype)
            x = x + h * drift + potential.process.diffusion(t) * h**0.5 * z
        else:
            x = x + h * drift
    return x, torch.stack([kept[k] for k in keep]) if keep else x.new_empty(0, *x.shape)
