"""Planes through three samples: where the pictures of a score field in many dimensions are taken.

With samples a, b, c: ``e₁ = (b − a)/‖b − a‖``, ``e₂`` the Gram-Schmidt remainder of ``c − a``; coordinates (u, v) of the
point ``a + u e₁ + v e₂`` are Euclidean lengths in the units of the data (Wang & Vastola 2024, Figs. 11 and 19-21).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.numerics import streams

#: Triples drawn, from which one is taken.
_DRAWS = 16

Choice = Literal["classes", "same", "any"]


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane with its own coordinates.

    Attributes:
        corners: the three samples (3, *event).
        axes: e₁ and e₂, (2, d) orthonormal, float64.
        points: their coordinates: (0, 0), (‖b − a‖, 0) and that of c, with positive v.
        images: their numbers in the data, where they come from some.
    """

    corners: Tensor
    axes: Tensor
    points: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    images: tuple[int, ...] | None = None

    def at(self, places: Tensor) -> Tensor:
        """The points of the plane with coordinates (n, 2): (n, *event), float64."""
        origin = self.corners[0].double().flatten()
        return (origin + places.to(self.axes) @ self.axes).view(-1, *self.corners.shape[1:])

    def along(self, vectors: Tensor) -> Tensor:
        """The components within the plane of vectors (n, *event): (n, 2), float64."""
        return vectors.double().flatten(1) @ self.axes.T

    def inside(self, places: Tensor) -> Tensor:
        """Which of the coordinates (n, 2) lie in the triangle of the three samples, its edges left out."""
        (length, _), (foot, height) = self.points[1:]
        third = places[:, 1] / height
        second = (places[:, 0] - third * foot) / length
        return (third > 0) & (second > 0) & (second + third < 1)

    def grid(self, count: int, margin: float = 0.25) -> tuple[Tensor, Tensor]:
        """Coordinates u (count,) and v (count,) that cover the triangle and a margin, a fraction of its own width and height.

        For a margin of 0.25 and c above the middle of ab they run over [−0.25, 1.25] times the edge and the height.
        """
        (length, _), (foot, height) = self.points[1:]
        low, high = min(0.0, foot), max(length, foot)
        wide, tall = margin * (high - low), margin * height
        u = torch.linspace(low - wide, high + wide, count, dtype=torch.float64)
        return u, torch.linspace(-tall, height + tall, count, dtype=torch.float64)


def plane_through(corners: Tensor, images: Sequence[int] | None = None) -> Plane:
    """The plane through three samples.

    Args:
        corners: (3, *event) with at least two coordinates.
        images: their numbers in the data, to be remembered.

    Raises:
        ArgumentError: for another number of samples, fewer than two coordinates, or samples on one line.
    """
    if corners.ndim < 2 or len(corners) != 3 or corners[0].numel() < 2:
        raise ArgumentError(
            f"corners has shape {tuple(corners.shape)}; expected (3, *event) of at least two coordinates"
        )
    a, b, c = corners.double().flatten(1)
    edge, side = b - a, c - a
    length = float(edge.norm())
    first = edge / max(length, 1e-300)
    rest = side - (side @ first) * first
    rest = rest - (rest @ first) * first  # once more: the first remainder of a long side is not orthogonal to rounding
    height = float(rest.norm())
    if not (length > 0 and height > 1e-6 * max(length, float(side.norm()))):
        raise ArgumentError("the three samples lie on one line; a plane needs three that do not")
    points = ((0.0, 0.0), (length, 0.0), (float(side @ first), height))
    return Plane(corners, torch.stack((first, rest / height)), points, None if images is None else tuple(images))


def choose_images(
    data: Tensor,
    labels: Tensor | None = None,
    choice: Choice | None = None,
    classes: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[int, int, int]:
    """The numbers of three samples for a plane, drawn by seed; the first two are those farthest apart.

    Of sixteen draws the one with the roundest triangle is taken: a flat one shows little.

    Args:
        data: (N, *event), N ≥ 3.
        labels: (N,) classes.
        choice: ``"classes"`` for three different classes, ``"same"`` for one, ``"any"`` for three samples whatever their
            class; by default the first of ``"classes"`` and ``"any"`` that the data allow.
        classes: the three classes, repeated or not, instead of drawn ones: (2, 5, 7), (5, 5, 5).
        seed: names the draw.

    Raises:
        ArgumentError: where the data have too few samples or classes.
    """
    if len(data) < 3:
        raise ArgumentError(f"the data hold {len(data)} samples; a plane needs three")
    order = streams.permutation(seed, len(data), purpose="field plane")
    known = labels.cpu()[order] if labels is not None else None
    if choice is None:
        choice = "classes" if known is not None and len(torch.unique(known)) >= 3 else "any"
    if choice not in ("classes", "same", "any"):
        raise ArgumentError(f"plane = {choice!r}; expected 'classes', 'same' or 'any'")
    if classes is None and choice == "any":
        return _roundest(data, [order[k : k + 3].tolist() for k in range(0, min(3 * _DRAWS, len(data) - 2), 3)])
    if known is None:
        raise ArgumentError("the data have no classes; choose plane = any, or three images")
    if classes is None:
        kinds = list(dict.fromkeys(known.tolist()))  # in the order of the draw
        if choice == "same":
            large = [k for k in kinds if int((known == k).sum()) >= 3]
            classes = large[:1] * 3
        else:
            classes = kinds[:3]
    if len(classes) != 3:
        raise ArgumentError(f"plane = {choice!r}: the data have too few classes or samples in them")
    members = {kind: order[known == kind].tolist() for kind in classes}
    for kind, found in members.items():
        if len(found) < list(classes).count(kind):
            raise ArgumentError(f"classes = {list(classes)}: the data have too few samples of class {kind}")
    queues = {kind: iter(found) for kind, found in members.items()}
    draws = []
    for _ in range(_DRAWS):
        draw = [next(queues[kind], None) for kind in classes]
        if None in draw:
            break
        draws.append([i for i in draw if i is not None])
    return _roundest(data, draws)


def _roundest(data: Tensor, draws: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """Of several triples the one whose triangle is farthest from a line, its longest edge first: panels are wide, not tall."""
    best, chosen = -1.0, (0, 0, 0)
    for i, j, k in draws:
        rows = data[[i, j, k]].double().flatten(1)
        gaps = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        turns = {(i, j, k): gaps[0, 1], (j, k, i): gaps[1, 2], (k, i, j): gaps[2, 0]}
        turned = max(turns, key=lambda t: float(turns[t]))
        a, b, c = sorted(float(g) for g in turns.values())
        # Heron: the area over the square of the longest edge.
        shape = (a + b + c) * (a + b - c) * (a - b + c) * (b + c - a) / max(c, 1e-300) ** 4
        if shape > best:
            best, chosen = shape, turned
    return chosen
