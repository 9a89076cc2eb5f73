"""The score as a picture: arrows and norm on a plane through three samples, for a model and for the simple laws.

At each point of a grid on the plane (:mod:`farfield.analysis.plane`) the score ``s = (D − x)/σ²`` is split into its part in
the plane, drawn as an arrow, and the rest, which points out of it: ``‖s‖² = ‖s_in‖² + ‖s_off‖²``. Panels run from the model
through the training set and mixtures down to the Gaussian (Wang & Vastola 2024, Figs. 2, 11, 13, 19-21, 26-28). Two numbers
go with each panel: how much of the model's score the law leaves unexplained on the grid, and how large the score is inside
the triangle of the three samples compared with outside: at low noise the source finds networks nearly still inside such
simplices, where the training set's own score pulls to the nearest sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.deviation_plot import law_words
from farfield.analysis.field_plot import draw_field
from farfield.analysis.plane import Choice, Plane, choose_images, plane_through
from farfield.analysis.subject_laws import subject_laws
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError, unknown_name

#: The default levels, in units of the triangle's mean edge: from a Gaussian blur of all three samples to each on its own.
#: (The source's panels are at 0.1, 0.2, 0.5, 1, 2, 5, 10 and 20, for images whose mutual distances are about 20.)
_LEVELS = (1.0, 0.2, 0.05, 0.015)

Quantity = Literal["norm", "in_plane", "off_plane", "mixing"]

#: Queries are float64 up to this many coordinates.
_WIDE = 64
#: The weights of a training set are looked at up to this many points.
_POINTS = 2000


@dataclass(frozen=True, eq=False)
class Slice:
    """One denoiser's score on the grid at one level.

    Attributes:
        along: the score within the plane (ny, nx, 2): its components along e₁ and e₂.
        norm: ``‖s‖`` in all coordinates (ny, nx).
        unexplained: ``Σ‖s_model − s‖²/Σ‖s_model‖²`` over the grid; 0 for the model itself.
        mixing: for mixtures the effective number of components at each point, exp of the entropy of their weights
            (ny, nx), 1 where one of them decides alone.
    """

    along: Tensor
    norm: Tensor
    unexplained: float
    mixing: Tensor | None = None

    @property
    def in_plane(self) -> Tensor:
        """``‖s_in‖`` (ny, nx)."""
        return self.along.norm(dim=-1)

    @property
    def off_plane(self) -> Tensor:
        """``‖s_off‖`` (ny, nx)."""
        return (self.norm.square() - self.along.square().sum(-1)).clamp(min=0).sqrt()

    def quantity(self, name: Quantity) -> Tensor | None:
        """One of the maps by name, (ny, nx), or None where there is none."""
        if name not in ("norm", "in_plane", "off_plane", "mixing"):
            raise unknown_name("quantity", name, ("norm", "in_plane", "off_plane", "mixing"))
        found: Tensor | None = getattr(self, name)
        return found


@dataclass(frozen=True, eq=False)
class ScoreField:
    """Scores on a plane.

    Attributes:
        plane: where.
        u, v: coordinates of the grid (nx,), (ny,).
        sigmas: the noise levels, decreasing.
        slices: for the model (``"model"``) and each law, in the order of the panels, one slice for each level.
    """

    plane: Plane
    u: Tensor
    v: Tensor
    sigmas: tuple[float, ...]
    slices: dict[str, tuple[Slice, ...]]

    @property
    def inside(self) -> Tensor:
        """Which points of the grid lie in the triangle, (ny, nx)."""
        return self.plane.inside(_places(self.u, self.v)).view(len(self.v), len(self.u))

    def mean_norm(self, law: str, place: int) -> tuple[float, float]:
        """Mean ``‖s‖`` inside the triangle and outside of it, for a law and the number of a level.

        Raises:
            ArgumentError: for a law that is not there.
        """
        if law not in self.slices:
            raise unknown_name("law", law, self.slices)
        norm, inside = self.slices[law][place].norm, self.inside
        return float(norm[inside].mean()), float(norm[~inside].mean())

    def stillness(self, law: str, place: int) -> float:
        """Mean ``‖s‖`` inside the triangle over that outside: near 0 where the field is still inside."""
        inside, outside = self.mean_norm(law, place)
        return inside / outside if outside > 0 else 0.0

    def to_dict(self, maps: bool = True) -> dict[str, Any]:
        """The numbers of each panel, and its arrows and norms as nested lists.

        Args:
            maps: whether to include the latter: four numbers for each point of each panel.
        """
        panels = []
        for name, column in self.slices.items():
            for k, found in enumerate(column):
                inside, outside = self.mean_norm(name, k)
                panel: dict[str, Any] = {
                    "law": name,
                    "sigma": self.sigmas[k],
                    "unexplained": found.unexplained,
                    "mean_norm_inside": inside,
                    "mean_norm_outside": outside,
                    "inside_over_outside": self.stillness(name, k),
                }
                if maps:
                    mixing = None if found.mixing is None else found.mixing.tolist()
                    panel |= {"along": found.along.tolist(), "norm": found.norm.tolist(), "mixing": mixing}
                panels.append(panel)
        images = self.plane.images
        return {
            "images": None if images is None else list(images),
            "corners": [list(p) for p in self.plane.points],
            "u": self.u.tolist(),
            "v": self.v.tolist(),
            "sigmas": list(self.sigmas),
            "panels": panels,
        }

    def summary(self) -> str:
        """How still the model's field is inside the triangle at the lowest level, and which law is nearest to it there."""
        last = len(self.sigmas) - 1
        inside, _ = self.mean_norm("model", last)
        text = (
            f"At σ = {self.sigmas[last]:g} the model's score inside the triangle is {self.stillness('model', last):.2g} times "
            "as large as around it"
        )
        if "empirical" in self.slices:
            own, _ = self.mean_norm("empirical", last)
            text += f", and {inside / max(own, 1e-300):.2g} times as large as the training set's own"
        rest = {name: column[last].unexplained for name, column in self.slices.items() if name != "model"}
        if not rest:
            return text + "."
        best = min(rest, key=rest.__getitem__)
        return f"{text}; of the laws the {law_words(best)} is nearest to it, with {100 * rest[best]:.3g} % unexplained."

    def tables(self) -> list[Table]:
        """The numbers of the panels."""
        rows = []
        for k, sigma in enumerate(self.sigmas):
            for name, column in self.slices.items():
                found = column[k]
                inside, outside = self.mean_norm(name, k)
                off = float(found.off_plane.square().mean() / found.norm.square().mean().clamp(min=1e-300))
                rows.append((sigma, name, inside, outside, self.stillness(name, k), off, found.unexplained))
        columns = (
            "σ", "law", "mean ‖s‖ inside", "outside", "inside/outside", "off-plane share of ‖s‖²", "unexplained"
        )  # fmt: skip
        return [Table("the score on the plane, inside and outside the triangle of the samples", columns, tuple(rows))]

    def plot(self, ax: Any = None, quantity: Quantity = "norm", corners: bool = True) -> Any:
        """A panel for each level (down) and law (across): arrows in the plane over a map of the norm.

        Args:
            ax: one axes for each panel, row by row, or None for a new figure.
            quantity: of the map: ``"norm"`` (all coordinates), ``"in_plane"``, ``"off_plane"``, or ``"mixing"``, the
                effective number of components of a mixture.
            corners: whether a new figure shows the three samples beside the panels, where they are images.
        """
        return draw_field(self, quantity, ax, corners)


def _places(u: Tensor, v: Tensor) -> Tensor:
    """The grid's coordinates row by row, (ny·nx, 2)."""
    rows, columns = torch.meshgrid(v, u, indexing="ij")
    return torch.stack((columns.flatten(), rows.flatten()), 1)


def default_levels(model: Denoiser, plane: Plane) -> tuple[float, ...]:
    """Four levels, 1 to 0.015 times the triangle's mean edge, to two digits, as far as the model's range goes."""
    corners = torch.tensor(plane.points, dtype=torch.float64)
    edge = float((corners - corners.roll(1, 0)).norm(dim=1).mean())
    levels = [float(f"{edge * share:.2g}") for share in _LEVELS]
    kept = tuple(s for s in levels if model.sigma_min <= s <= model.sigma_max)
    return kept or (min(max(levels[1], model.sigma_min), model.sigma_max),)


def _complexity(name: str) -> tuple[int, float]:
    """Falling complexity: the training set, mixtures by falling number of components, classes, Gaussians, the mean."""
    kind, _, size = name.partition(":")
    order = ["empirical", "mixture", "classes", "gaussian", "spherical", "isotropic"]
    return (order.index(kind) if kind in order else len(order), -float(size) if size.isdigit() else 0.0)


def _mixing(law: Denoiser) -> Callable[[Tensor, float], Tensor] | None:
    """The effective number of components, for laws that have weights."""
    weights = getattr(law, "weights", None)
    if not callable(weights) or (isinstance(law, Empirical) and law.count > _POINTS):
        return None

    def count(x: Tensor, sigma: float) -> Tensor:
        w: Tensor = weights(x, sigma)
        return torch.special.entr(w).sum(1).exp()

    return count


def score_field(
    model: Denoiser,
    laws: Mapping[str, Denoiser],
    plane: Plane,
    *,
    sigmas: Sequence[float] | None = None,
    grid: int = 25,
    margin: float = 0.25,
    batch_size: int = 512,
) -> ScoreField:
    """The score of a model and of laws on a plane.

    Args:
        model: a network or an exact law.
        laws: by name; the panels follow the order of falling complexity.
        plane: from :func:`~farfield.analysis.plane.plane_through`.
        sigmas: noise levels, > 0; by default :func:`default_levels`.
        grid: points along either side.
        margin: how far the grid reaches beyond the triangle, as a fraction of its width and height.
        batch_size: points evaluated at once.

    Raises:
        ArgumentError: for shapes that do not fit, an argument out of range, or a process without a score.
    """
    event = tuple(plane.corners.shape[1:])
    for name, law in (("model", model), *laws.items()):
        if law.event_shape != event:
            raise ArgumentError(f"{name} takes events {law.event_shape}; the plane lies among {event}")
        if not law.process.gaussian:
            raise ArgumentError(f"{name} belongs to {law.process!r}, which has a field and no score")
    if "model" in laws:
        raise ArgumentError("a law may not be called 'model'")
    given = sigmas if sigmas is not None else default_levels(model, plane)
    levels = tuple(sorted({float(s) for s in given}, reverse=True))
    if not levels or not (levels[-1] > 0 and math.isfinite(levels[0])):
        raise ArgumentError(f"sigmas = {list(given)}; expected positive noise levels")
    if grid < 3 or batch_size < 1 or not 0 <= margin < math.inf:
        raise ArgumentError(
            f"grid = {grid}, batch_size = {batch_size}, margin = {margin}; expected at least 3, 1 and 0"
        )
    u, v = plane.grid(grid, margin)
    x = plane.at(_places(u, v).to(plane.axes.device))
    x = x if model.dim <= _WIDE else x.float()
    ordered = dict(sorted(laws.items(), key=lambda item: _complexity(item[0])))
    slices: dict[str, list[Slice]] = {name: [] for name in ("model", *ordered)}

    def measure(denoiser: Denoiser, sigma: float) -> Tensor:
        answer = torch.cat([denoiser(part, sigma) for part in x.split(batch_size)])
        return (answer.double() - x.double()).flatten(1) / sigma**2

    with torch.no_grad():
        for sigma in levels:
            own = measure(model, sigma)
            size = own.square().sum().clamp(min=1e-300)
            for name, law in (("model", model), *ordered.items()):
                score = own if name == "model" else measure(law, sigma)
                count = None if name == "model" else _mixing(law)
                mixed = None
                if count is not None:
                    mixed = torch.cat([count(part, sigma) for part in x.split(batch_size)]).view(grid, grid).cpu()
                slices[name].append(
                    Slice(
                        plane.along(score).view(grid, grid, 2).cpu(),
                        score.norm(dim=1).view(grid, grid).cpu(),
                        float((own - score).square().sum() / size),
                        mixed,
                    )
                )
    return ScoreField(plane, u.cpu(), v.cpu(), levels, {name: tuple(column) for name, column in slices.items()})


@dataclass(frozen=True)
class FieldOptions:
    """Options of the analysis; see :func:`score_field` and :func:`~farfield.analysis.plane.choose_images`.

    ``images`` are three numbers of training samples; without them ``plane`` (classes, same or any) or ``classes`` (three
    labels) says which are drawn.
    """

    sigmas: tuple[float, ...] | None = None
    images: tuple[int, ...] | None = None
    plane: Choice | None = None
    classes: tuple[int, ...] | None = None
    grid: int = 25
    laws: tuple[str, ...] | None = None
    components: int | None = None


@analysis("field", about="the score on a plane through three samples, beside the simple laws", options=FieldOptions)
def analyze_field(subject: Subject, options: FieldOptions) -> ScoreField:
    """:func:`score_field` of a subject."""
    data = subject.data
    images = options.images
    if images is None:
        images = choose_images(data, subject.labels, options.plane, options.classes, subject.seed)
    if len(images) != 3 or not all(0 <= i < len(data) for i in images):
        raise ArgumentError(f"images = {list(images)}; expected three numbers from 0 to {len(data) - 1}")
    plane = plane_through(data[list(images)], images)
    names = options.laws
    if names is None:
        names = ("empirical", "mixture", "gaussian")
    laws = subject_laws(subject, names, options.components)
    return score_field(subject.model, laws, plane, sigmas=options.sigmas, grid=options.grid)
