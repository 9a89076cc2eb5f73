"""Trajectories seen through their principal components: the plane, or the space, that holds most of a path.

With the states of a path (or of all paths of a batch) as rows, centred, ``M = U S Vᵀ``: directions V, coordinates ``U S``, and
the share of variance that k components hold, ``Σ_{i≤k} S_i²/Σ S_i²``. Every recorded level counts once. A path from noise to
data is almost one-dimensional, and what is left bends within a few directions: how many hold 99.9 % of its variance says how
few. (Chen et al., A geometric perspective on diffusion models, section 3, draw the two curves schematically; the components
make the drawing exact.) The denoiser's outputs are projected on the same directions, about the same centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
from farfield.analysis.shape_result import percent
from farfield.analysis.tables import Table
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, Trajectory, karras

#: ``"each"``: the components of each path alone. ``"batch"``: those of all states of all paths together.
Basis = Literal["each", "batch"]

#: Shares of variance are given for so many components at most.
_LISTED = 10
#: A dictionary holds the coordinates of so many paths.
_STORED = 16


@dataclass(frozen=True, eq=False)
class TrajectoryView:
    """Both trajectories of a batch in principal components.

    Attributes:
        sigmas: (N + 1,) the levels.
        basis: whose components: of each path, or of the batch.
        states: (N + 1, B, k) coordinates of the states, in the units of the data.
        denoised: (N, B, k) coordinates of the denoiser's outputs.
        directions: the components as events, (k, *event) of the batch or (B, k, *event) of each path; float64.
        batch_shares: share of the variance of all states that 1, 2, … components of the batch hold.
        path_shares, path_low, path_high: the same of a single path with its own components: mean, least and largest over the
            paths. ``denoised_shares``: mean of the outputs' paths.
        share: the share asked for.
        needed: for each path the number of its own components that hold that share. ``denoised_needed``: of the outputs.
    """

    sigmas: tuple[float, ...]
    basis: Basis
    states: Tensor
    denoised: Tensor
    directions: Tensor
    batch_shares: tuple[float, ...]
    path_shares: tuple[float, ...]
    path_low: tuple[float, ...]
    path_high: tuple[float, ...]
    denoised_shares: tuple[float, ...]
    share: float
    needed: tuple[int, ...]
    denoised_needed: tuple[int, ...]

    @property
    def dimension(self) -> float:
        """Components that hold the share of a path's variance, mean over the paths."""
        return sum(self.needed) / len(self.needed)

    @property
    def denoised_dimension(self) -> float:
        """The same of the outputs' paths."""
        return sum(self.denoised_needed) / len(self.denoised_needed)

    def summary(self) -> str:
        """How few components hold a path."""
        one, two = (percent(max(1 - v, 0.0)) for v in self.path_shares[:2])
        return (
            f"One component leaves {one} % of the variance of a path of states, two leave {two} %; to hold "
            f"{percent(self.share)} % takes {self.dimension:.3g} on average (at most {max(self.needed)}), and "
            f"{self.denoised_dimension:.3g} for a path of the denoiser's outputs (at most {max(self.denoised_needed)})."
        )

    def tables(self) -> list[Table]:
        """What so many components leave of the variance, and how many components a path needs."""

        def left(shares: Sequence[float], k: int) -> float | None:
            return max(1 - shares[k], 0.0) if k < len(shares) else None

        # The shares themselves are all 1 to the digits that a table shows; the largest leaves least.
        order = (self.path_shares, self.path_high, self.path_low, self.denoised_shares, self.batch_shares)
        rows = tuple((k + 1, *(left(shares, k) for shares in order)) for k in range(len(self.path_shares)))
        columns = ("components", "a path of states, mean", "least", "largest", "a path of outputs, mean", "whole batch")
        shares = Table(f"share of the variance that is left, {len(self.needed)} paths", columns, rows)
        counts = (
            ("states", self.dimension, min(self.needed), max(self.needed)),
            ("outputs", self.denoised_dimension, min(self.denoised_needed), max(self.denoised_needed)),
        )
        title = f"components that hold {percent(self.share)} % of a path's variance"
        return [shares, Table(title, ("path of", "mean", "least", "most"), counts)]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, with coordinates of the first sixteen paths and without the directions."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "directions"}
        value |= {"states": self.states[:, :_STORED].tolist(), "denoised": self.denoised[:, :_STORED].tolist()}
        return value | {"dimension": self.dimension, "denoised_dimension": self.denoised_dimension}

    def plot(self, ax: Any = None, *, dimensions: Literal[2, 3] = 2, paths: int = 8) -> Any:
        """The first paths in two or three components, and the variance that is left by number of components.

        Args:
            ax: two axes (the first one three-dimensional, if three are asked for), or None for a new figure.
            dimensions: 2 or 3.
            paths: how many paths are drawn.

        Returns:
            The figure.

        Raises:
            ArgumentError: for other dimensions, or three where fewer components were kept.
        """
        if dimensions not in (2, 3) or dimensions > self.states.shape[2]:
            raise ArgumentError(
                f"dimensions = {dimensions}; expected 2 or 3, at most {self.states.shape[2]} as were kept"
            )
        if ax is None and dimensions == 3:
            from matplotlib.figure import Figure

            figure = Figure(figsize=(10.4, 4.4), layout="constrained")
            ax = [figure.add_subplot(1, 2, 1, projection="3d"), figure.add_subplot(1, 2, 2)]
        left, right = axes_for(ax, 2, width=9.6, height=3.9)
        self._draw_paths(left, dimensions, paths)
        self._draw_shares(right)
        return left.figure

    def _draw_paths(self, axes: Any, dimensions: int, paths: int) -> None:
        for i in range(min(paths, self.states.shape[1])):
            for curve, colour, name in (
                (self.states[:, i, :dimensions], PALETTE[0], "state x"),
                (self.denoised[:, i, :dimensions], PALETTE[1], "denoiser output D(x, σ)"),
            ):
                axes.plot(*curve.T.tolist(), color=colour, linewidth=1.1, alpha=0.8, label=None if i else name)
            end = self.states[-1, i, :dimensions].tolist()
            axes.plot(*([v] for v in end), "o", color=INK, markersize=3.5, label=None if i else "sample")
        title = "each path in its own components" if self.basis == "each" else "paths in the batch's components"
        dress(axes, "component 1 (units of the data)", "component 2 (stretched)", title)
        if dimensions == 3:
            axes.set_zlabel("component 3", color=INK, fontsize=10)
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)

    def _draw_shares(self, axes: Any) -> None:
        lines: tuple[tuple[Sequence[float], str, str], ...] = (
            (self.path_shares, PALETTE[0], "a path of states, own components"),
            (self.denoised_shares, PALETTE[1], "a path of outputs, own components"),
            (self.batch_shares, PALETTE[2], "all states of the batch"),
        )
        floor = 1e-12
        for shares, colour, name in lines:
            kept = [(k + 1, 1 - v) for k, v in enumerate(shares) if 1 - v > floor]
            if kept:
                axes.plot(*zip(*kept, strict=True), "o-", color=colour, markersize=3.5, linewidth=1.5, label=name)
        axes.axhline(1 - self.share, color=INK, alpha=0.45, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yscale("log")
        axes.set_ylim(bottom=axes.get_ylim()[0] * 1e-3)  # room for the legend
        axes.set_xticks(range(1, 1 + max(len(shares) for shares, _, _ in lines)))
        dress(
            axes, "components", "share of the variance left", f"what k components leave (dashed: {1 - self.share:.2g})"
        )
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower left")


def _cumulative(gram: Tensor) -> Tensor:
    """Shares of variance that 1, 2, … components hold, from Gram matrices (…, L, L): (…, L), ascending to 1."""
    values = torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0)
    total = values.sum(-1, keepdim=True)
    shares = values.cumsum(-1) / total.clamp(min=torch.finfo(values.dtype).tiny)
    # Paths that do not move are held by any component.
    return torch.where(total > 0, shares, torch.ones_like(shares))


def _paths(points: Tensor, share: float) -> tuple[Tensor, tuple[int, ...]]:
    """For paths (B, L, d): the shares (B, L) that each one's own components hold, and how many hold ``share``."""
    centred = points - points.mean(1, keepdim=True)
    shares = _cumulative(centred @ centred.mT)
    needed = (shares < share * (1 - 1e-12)).sum(1) + 1
    return shares, tuple(needed.clamp(max=shares.shape[1]).tolist())


def _components(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading directions (…, count, d) of centred points (…, n, d), and the spectrum, from the smaller Gram matrix.

    Signs are such that the point farthest out along a component has a positive coordinate.
    """
    n, d = centred.shape[-2:]
    if n <= d:
        values, vectors = torch.linalg.eigh(centred @ centred.mT)
        lengths = values.flip(-1).clamp(min=0).sqrt()[..., :count]
        raw = vectors.flip(-1)[..., :count].mT @ centred
        directions = raw / lengths.clamp(min=torch.finfo(raw.dtype).tiny)[..., None]
        directions = torch.where(lengths[..., None] > 1e-9 * lengths[..., :1, None], directions, 0.0)
    else:
        values, vectors = torch.linalg.eigh(centred.mT @ centred)
        directions = vectors.flip(-1)[..., :count].mT
    coordinates = centred @ directions.mT
    far = coordinates.abs().argmax(-2, keepdim=True)
    return directions * coordinates.gather(-2, far).sign().mT, values.flip(-1).clamp(min=0)


def trajectory_view(
    trajectory: Trajectory, *, basis: Basis = "each", components: int = 3, share: float = 0.999
) -> TrajectoryView:
    """Recorded trajectories in principal components.

    Args:
        trajectory: states (N + 1, B, *event), outputs (N, B, *event), N ≥ 2.
        basis: ``"each"`` path's own components, or those of the ``"batch"``.
        components: how many are kept, 2 or more.
        share: of a path's variance, in (0, 1): how many components hold it is counted.

    Raises:
        ArgumentError: for fewer than two steps, an unknown basis, or numbers out of range.
    """
    levels, members = trajectory.states.shape[:2]
    event = tuple(trajectory.states.shape[2:])
    dim = max(1, trajectory.states[0, 0].numel())
    if levels < 3 or len(trajectory.denoised) < 2 or dim < 2:
        raise ArgumentError(
            f"the trajectory has {levels} states of {dim} coordinates; expected at least two recorded steps in two dimensions"
        )
    if basis not in ("each", "batch"):
        raise ArgumentError(f"basis = {basis!r}; expected 'each' or 'batch'")
    if not 0 < share < 1:
        raise ArgumentError(f"share = {share}; expected a number between 0 and 1")
    most = min(dim, levels if basis == "each" else levels * members)
    if not 2 <= components <= most:
        raise ArgumentError(f"components = {components}; expected 2 to {most}")
    states = trajectory.states.double().flatten(2).transpose(0, 1)  # (B, L, d)
    outputs = trajectory.denoised.double().flatten(2).transpose(0, 1)
    shares, needed = _paths(states, share)
    denoised_shares, denoised_needed = _paths(outputs, share)
    pooled = states.flatten(0, 1)
    centre = pooled.mean(0)
    common, spectrum = _components(pooled - centre, min(components, dim, len(pooled)))
    batch = spectrum.cumsum(0) / spectrum.sum().clamp(min=torch.finfo(torch.float64).tiny)
    if basis == "each":
        middle = states.mean(1, keepdim=True)
        directions, _ = _components(states - middle, components)
    else:
        middle, directions = centre, common
    projected, projected_outputs = ((p - middle) @ directions.mT for p in (states, outputs))
    listed = min(_LISTED, levels, dim)
    return TrajectoryView(
        sigmas=tuple(map(float, trajectory.sigmas)),
        basis=basis,
        states=projected.transpose(0, 1).cpu(),
        denoised=projected_outputs.transpose(0, 1).cpu(),
        directions=directions.reshape(*directions.shape[:-1], *event).cpu(),
        batch_shares=tuple(batch[:listed].tolist()),
        path_shares=tuple(shares.mean(0)[:listed].tolist()),
        path_low=tuple(shares.amin(0)[:listed].tolist()),
        path_high=tuple(shares.amax(0)[:listed].tolist()),
        denoised_shares=tuple(denoised_shares.mean(0)[: min(listed, len(trajectory.denoised))].tolist()),
        share=share,
        needed=needed,
        denoised_needed=denoised_needed,
    )


@dataclass(frozen=True)
class ViewOptions:
    """Options of the analysis; see :func:`trajectory_view`.

    Attributes:
        n: trajectories, all of them held at once.
        levels: positive levels of the Karras grid within the model's range.
        solver: by its name.
        components: how many are kept; by default three, of data with two coordinates two.
    """

    n: int = 32
    levels: int = 18
    solver: str = "heun"
    basis: Basis = "each"
    components: int | None = None
    share: float = 0.999


@analysis("trajectory-view", about="sampling trajectories in their principal components", options=ViewOptions)
def analyze_view(subject: Subject, options: ViewOptions) -> TrajectoryView:
    """:func:`trajectory_view` of a subject's trajectories."""
    from farfield.analysis.entrants import sigma_range

    sampler = Sampler(options.solver, karras(options.levels, *sigma_range(subject.model)))
    run = sampler(subject.model, options.n, subject.seed, trajectory=True).trajectory
    assert run is not None
    kept = min(3, max(2, subject.model.dim)) if options.components is None else options.components
    return trajectory_view(run, basis=options.basis, components=kept, share=options.share)
