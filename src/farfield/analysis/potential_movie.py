"""The potential on a line, frame by frame in time: u(c + x e, s) of one-dimensional laws and along a direction of others.

From noise to data the frames show a bowl that turns into two wells at the critical time (Raya & Ambrogioni 2023, figure 1).
Every frame is in units of g² and starts at 0 at the left end, for a potential is known up to a constant at each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.critical_field import noise_about
from farfield.analysis.plotting import INK, PALETTE, dress
from farfield.analysis.potential import Potential
from farfield.analysis.potential_sections import Rule, device_of, integrate, interior_minima
from farfield.distributions import Distribution
from farfield.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class PotentialMovie:
    """u on a grid of positions by times.

    Attributes:
        positions: (X,) along the line, in native units, float64.
        values: (K, X) ``(u − u at the first position)/g²``.
        times: forward times, decreasing from noise to data.
        thetas: the signal scale α at each time.
        critical: forward time to be marked, or None.
        rule: how the values were found.
    """

    positions: Tensor
    values: Tensor
    times: tuple[float, ...]
    thetas: tuple[float, ...]
    critical: float | None
    rule: Rule

    @property
    def wells(self) -> Tensor:
        """Local minima of each frame, (K,)."""
        return interior_minima(self.values)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""
        return {
            "positions": self.positions.tolist(),
            "values": self.values.tolist(),
            "times": list(self.times),
            "thetas": list(self.thetas),
            "critical": self.critical,
            "wells": self.wells.tolist(),
            "rule": self.rule,
        }

    def plot(self, columns: int = 4) -> Any:
        """One frame for each time, in the order of generation; the frame nearest to the critical time says so."""
        from matplotlib.figure import Figure

        count = len(self.times)
        columns = min(columns, count)
        rows = math.ceil(count / columns)
        figure = Figure(figsize=(2.6 * columns + 0.6, 2.3 * rows + 0.3), layout="constrained")
        near = None if self.critical is None else min(range(count), key=lambda k: abs(self.times[k] - self.critical))  # type: ignore[operator]
        for k in range(count):
            axes = figure.add_subplot(rows, columns, k + 1)
            frame = self.values[k] - self.values[k].min()
            axes.plot(self.positions, frame, color=PALETTE[1] if k == near else PALETTE[0], linewidth=1.8)
            dress(axes, "x" if k >= count - columns else "", "u/g²" if k % columns == 0 else "")
            axes.set_title(f"s = {self.times[k]:.3g}, α = {self.thetas[k]:.2g}", fontsize=9, loc="left", color=INK)
            if k == near:
                axes.annotate(
                    f"nearest to critical\ns = {self.critical:.3g}", (0.5, 0.95), xycoords="axes fraction", fontsize=8,
                    color=INK, ha="center", va="top",
                )  # fmt: skip
        return figure


def potential_movie(
    potential: Potential,
    times: Sequence[float],
    *,
    limits: tuple[float, float] = (-2.0, 2.0),
    points: int = 201,
    direction: Tensor | None = None,
    centre: Tensor | None = None,
    noise: int = 0,
    critical: float | None = None,
    seed: int = 0,
    batch_size: int = 512,
) -> PotentialMovie:
    """The frames.

    Args:
        potential: u of a law or a network.
        times: forward times.
        limits: of the positions x, in native units.
        points: how many positions, at least 9.
        direction: (*event) the direction e, of any length; for laws on the line the line itself. The unstable direction of
            :func:`farfield.analysis.critical_times.critical_times` is the one along which a choice is made.
        centre: (*event) native state c; 0 by default.
        noise: average the slope ``∇u·e`` over this many draws of noise ``s z``, in pairs ±z, held fixed over time: a network
            has never seen a noiseless state. 0 for none.
        critical: forward time to be marked.
        seed: of the noise.
        batch_size: rows of one call.

    Raises:
        ArgumentError: for a direction that is missing, zero or of the wrong shape, or other values out of range.
    """
    shape, device = potential.denoiser.event_shape, device_of(potential.denoiser)
    if direction is None and math.prod(shape) != 1:
        raise ArgumentError(f"direction is missing: the law has {math.prod(shape)} coordinates")
    line = torch.ones(shape, dtype=torch.float64) if direction is None else direction.detach().double()
    base = torch.zeros(shape, dtype=torch.float64) if centre is None else centre.detach().double()
    for name, part in (("direction", line), ("centre", base)):
        if tuple(part.shape) != shape:
            raise ArgumentError(f"{name} has shape {tuple(part.shape)}; expected {shape}")
    if not float(line.norm()) > 0 or not bool(torch.isfinite(line).all()):
        raise ArgumentError("direction is zero or not finite")
    ordered = sorted({float(t) for t in times}, reverse=True)
    if not ordered or points < 9 or not limits[0] < limits[1]:
        raise ArgumentError(
            f"times = {ordered}, points = {points}, limits = {limits}; expected times, >= 9, increasing"
        )
    exact = isinstance(potential.denoiser, Distribution) and noise == 0
    dtype = torch.float64 if isinstance(potential.denoiser, Distribution) or math.prod(shape) == 1 else torch.float32
    line, base = ((part / (line.norm() if part is line else 1)).to(device, dtype) for part in (line, base))
    grid = torch.linspace(*limits, points, dtype=torch.float64)
    states = base + grid.to(device, dtype).view(-1, *[1] * len(shape)) * line
    draws = noise_about(noise, shape, seed, dtype, device)
    values = torch.empty(len(ordered), points, dtype=torch.float64)
    with torch.no_grad():
        for k, t in enumerate(ordered):
            rate = float(potential.rate(t))
            if exact:
                frame = torch.cat([potential.value(part, t) for part in states.split(batch_size)]).cpu() / rate
                values[k] = frame - frame[0]
                continue
            around = states.unsqueeze(1)
            if draws is not None:
                around = around + potential.process.std(t) * draws
            rows = around.flatten(0, 1).split(batch_size)
            slopes = torch.cat([(potential.gradient(part, t) * line).flatten(1).sum(1).double() for part in rows])
            values[k] = integrate(slopes.view(points, -1).mean(1)[None].cpu() / rate, grid)[0]
    thetas = tuple(float(potential.process.alpha(t)) for t in ordered)
    return PotentialMovie(grid, values, tuple(ordered), thetas, critical, "exact" if exact else "trapezoid")
