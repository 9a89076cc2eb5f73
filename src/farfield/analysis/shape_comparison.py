"""Shapes of one or two models' trajectories side by side, with the norms of noised data: what the analysis returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from farfield.analysis.shape_result import TrajectoryShape, percent
from farfield.analysis.tables import Cell, Table


@dataclass(frozen=True)
class ForwardMagnitude:
    """Norms of noised data, ``‖y + σ z‖``: what the norms of the states on the way back should be.

    Attributes:
        sigmas: positive levels, as the states have them.
        mean, std: over the data.
    """

    sigmas: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ShapeFindings:
    """The shape of a model's trajectories, and of a second one's from the same noise on the same grid.

    Attributes:
        shapes: by the name of the model, one or two.
        forward: norms of noised data, or None.
        solver: by its name.
        seed: of the trajectories.
    """

    shapes: dict[str, TrajectoryShape]
    forward: ForwardMagnitude | None
    solver: str
    seed: int

    @property
    def shape(self) -> TrajectoryShape:
        """The first model's."""
        return next(iter(self.shapes.values()))

    @property
    def magnitude_gap(self) -> float | None:
        """The largest relative difference between the norms of noised data and those of the states on the way back."""
        if self.forward is None:
            return None
        pairs = zip(self.forward.mean, self.shape.magnitude.mean, strict=False)
        return max((abs(back / norm - 1) for norm, back in pairs if norm > 0), default=0.0)

    def summary(self) -> str:
        """The first model's shape, how well the norms agree, and what differs in the second."""
        words = [self.shape.summary()]
        if self.magnitude_gap is not None:
            words.append(f"The norms of the states are within {percent(self.magnitude_gap)} % of those of noised data.")
        words += [self._difference(name, found) for name, found in list(self.shapes.items())[1:]]
        return " ".join(words)

    def _difference(self, name: str, found: TrajectoryShape) -> str:
        """Whether the intervals of the two ratios part."""
        said = []
        for what, ours, theirs, ratio in (
            ("states", self.shape.straightness_interval, found.straightness_interval, found.straightness),
            (
                "outputs",
                self.shape.denoised_straightness_interval,
                found.denoised_straightness_interval,
                found.denoised_straightness,
            ),
        ):
            apart = theirs[0] > ours[1] or theirs[1] < ours[0]
            verb = "bend more" if apart and theirs[0] > ours[1] else "bend less" if apart else "bend as much"
            said.append(f"its {what} {verb} ({percent(ratio)} %)")
        return f"Beside it, {name}: {' and '.join(said)}."

    def tables(self) -> list[Table]:
        """The comparison, where there are two models; then each model's tables."""
        if len(self.shapes) == 1:
            return self.shape.tables()
        names = list(self.shapes)
        rows: list[tuple[Cell, ...]] = []
        for parts in zip(*(found.rows() for found in self.shapes.values()), strict=True):
            rows.append((parts[0][0], *(value for part in parts for value in part[1:])))
        columns = ("", *(f"{name}: {what}" for name in names for what in ("state x", "output D")))
        tables = [Table(f"two models, same noise (seed {self.seed}), {self.solver}, same grid", columns, tuple(rows))]
        for name, found in self.shapes.items():
            tables += [Table(f"{name}: {t.title}", t.columns, t.rows) for t in found.tables()[1:]]
        return tables

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "shapes": {name: found.to_dict() for name, found in self.shapes.items()},
            "forward": None if self.forward is None else asdict(self.forward),
            "magnitude_gap": self.magnitude_gap,
            "solver": self.solver,
            "seed": self.seed,
        }

    def plot(self, ax: Any = None) -> Any:
        """Deviation, distance to the end and magnitude against σ; the second model dashed. Returns the figure.

        Args:
            ax: three axes, or None for a new figure.
        """
        from farfield.analysis.plotting import axes_for
        from farfield.analysis.shape_plot import draw, draw_magnitude

        panels = axes_for(ax, 3, width=13.4, height=3.9)
        name, other = next(iter(list(self.shapes.items())[1:]), ("other", None))
        draw(self.shape, panels[:2], other, name)
        if len(panels) > 2:
            draw_magnitude(self.shape, self.forward, panels[2], other, name)
        return panels[0].figure


def forward_magnitude(data: Tensor, sigmas: Sequence[float], seed: int) -> ForwardMagnitude:
    """Norms of noised data at given levels: :func:`farfield.analysis.magnitude.noised_norms`.

    Args:
        data: (N, *event), all of which are used.
        sigmas: positive levels.
        seed: of the noise.
    """
    from farfield.analysis.magnitude import noised_norms

    mean, std = noised_norms(data, sigmas, seed)
    return ForwardMagnitude(tuple(map(float, sigmas)), tuple(mean.tolist()), tuple(std.tolist()))
