"""The shape of sampling trajectories: how straight they are, where they turn, what the denoiser's output does meanwhile.

For a run x_N … x_0 with denoiser outputs r_N … r_1 (Chen et al., A geometric perspective on diffusion models, section 3):

    distance to the end   ‖x_n − x_0‖,              ‖r_n − r_1‖
    deviation             distance of x_n from the line through x_0 and x_N;  of r_n from the line through r_1 and r_N
    angle                 cos(r_n − x_n, x_0 − x_n)
    bounds                dev(x_n) ≤ (1 − σ_n/σ_N) max_{m ≥ n} ‖r_m − x_0‖,
                          cos ≥ sqrt(1 − (‖r_n − x_0‖/‖x_n − x_0‖)²)

Lines are infinite ones. The first bound is exact for the flow and for Euler steps; it does not grow with σ_N, which is why
the paths look straight. The second holds for any three points. Ratios are a maximum of expectations over an expectation.
Statistics are taken in float64, a batch at a time, and their means with the intervals of Student's t; trajectories are not
kept. With a last step to zero noise the sample is the last output, x_0 = r_1, as every solver here ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.shape_comparison import ShapeFindings, forward_magnitude
from farfield.analysis.shape_result import TrajectoryShape, argmax
from farfield.analysis.shape_rows import CURVES, Coordinates, Rows, rows_of
from farfield.analysis.shape_sums import Curve, Running, student
from farfield.data.progress import track
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, Trajectory, karras

__all__ = [
    "Curve",
    "ShapeFindings",
    "ShapeOptions",
    "ShapeSums",
    "TrajectoryShape",
    "analyze_shape",
    "shape_statistics",
    "trajectory_shape",
]


class ShapeSums:
    """Shape statistics of many batches of one sampler, of which only sums are kept.

    Args:
        coordinates: ``"ve"``, or ``"vp"`` for states divided by ``sqrt(1 + σ²)``.

    Raises:
        ArgumentError: for other coordinates.
    """

    def __init__(self, coordinates: Coordinates = "ve") -> None:
        if coordinates not in ("ve", "vp"):
            raise ArgumentError(f"coordinates = {coordinates!r}; expected 've' or 'vp'")
        self.coordinates = coordinates
        self.curves = {name: Running() for name in CURVES}
        self.sigmas: tuple[float, ...] = ()
        self.nfe = 0
        self._tightness: Tensor | None = None
        self._counts: Tensor | None = None

    def update(self, run: Trajectory) -> None:
        """Take in a batch.

        Args:
            run: states (N + 1, B, *event), denoiser outputs (N, B, *event).

        Raises:
            ArgumentError: if it holds no step, or other levels than the batches before.
        """
        if len(run.denoised) == 0 or len(run.states) < 2:
            raise ArgumentError("the trajectory holds no step; run the sampler with trajectory=True")
        sigmas = tuple(map(float, run.sigmas))
        if self.sigmas and sigmas != self.sigmas:
            raise ArgumentError(
                f"a batch has {len(sigmas)} levels from {sigmas[0]:g}; expected those of the first batch"
            )
        self.sigmas, self.nfe = sigmas, run.nfe[-1]
        self._add(rows_of(run, self.coordinates))

    def _add(self, rows: Rows) -> None:
        for name, running in self.curves.items():
            ends = "denoised_distance" if name.startswith("denoised") else "distance"
            running.update(rows.curves[name], rows.curves[ends][0])
        parts = (
            rows.tightness > 1,
            rows.angle_gap < -1e-9,
            rows.angle_gap.isfinite(),
            rows.closer,
            rows.denoised_closer,
            rows.forward,
        )
        counts = torch.stack([part.sum() for part in parts])
        tightness = rows.tightness.amax()
        self._counts = counts if self._counts is None else self._counts + counts
        self._tightness = tightness if self._tightness is None else torch.maximum(self._tightness, tightness)

    def result(self, confidence: float = 0.95) -> TrajectoryShape:
        """What has been found so far.

        Args:
            confidence: of the intervals, between 0 and 1.

        Raises:
            ArgumentError: before the first batch, or for a wrong confidence.
        """
        if self._counts is None or self._tightness is None:
            raise ArgumentError("no trajectory has been taken in; expected at least one batch")
        samples = self.curves["distance"].count
        student(samples, confidence)  # refuses a wrong confidence
        curves = {name: running.curve(confidence) for name, running in self.curves.items()}

        def interval(name: str) -> tuple[float, float]:
            return self.curves[name].ratio_interval(argmax(curves[name].mean), confidence)

        violations, wrong, checked, closer, denoised_closer, forward = self._counts.tolist()
        return TrajectoryShape(
            sigmas=self.sigmas,
            **curves,
            endpoint=curves["distance"].mean[0],
            denoised_endpoint=curves["denoised_distance"].mean[0],
            straightness_interval=interval("deviation"),
            denoised_straightness_interval=interval("denoised_deviation"),
            tightness=float(self._tightness),
            bound_violations=violations,
            angle_violations=wrong,
            angle_checked=checked,
            closer=closer / samples,
            denoised_closer=denoised_closer / samples,
            forward=forward / samples,
            samples=samples,
            nfe=self.nfe,
            coordinates=self.coordinates,
            confidence=confidence,
        )


def trajectory_shape(
    trajectory: Trajectory, *, coordinates: Coordinates = "ve", confidence: float = 0.95
) -> TrajectoryShape:
    """The shape statistics of recorded trajectories.

    Args:
        trajectory: of a run with ``trajectory=True``: states (N + 1, B, *event), denoiser outputs (N, B, *event). In one that
            kept fewer steps the deviation may exceed its bound, which needs every output.
        coordinates: ``"ve"``, or ``"vp"`` for states divided by ``sqrt(1 + σ²)``.
        confidence: of the intervals.

    Raises:
        ArgumentError: if it holds no step, or for other coordinates or a confidence outside (0, 1).
    """
    sums = ShapeSums(coordinates)
    sums.update(trajectory)
    return sums.result(confidence)


def shape_statistics(
    denoiser: Denoiser,
    sampler: Sampler | None = None,
    n: int = 256,
    seed: int = 0,
    *,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    coordinates: Coordinates = "ve",
    confidence: float = 0.95,
    progress: bool = False,
    **condition: Any,
) -> TrajectoryShape:
    """Sample ``n`` trajectories of a model and measure their shape, a batch at a time.

    Args:
        denoiser: the model.
        sampler: how to sample; by default Heun on the 18-level Karras grid within the model's range.
        n, seed: the trajectories, by number and seed; batches do not change them.
        batch_size: trajectories held at once.
        dtype: of the states; the statistics are taken in float64 all the same.
        coordinates: ``"ve"``, or ``"vp"`` for states divided by ``sqrt(1 + σ²)``.
        confidence: of the intervals.
        progress: show progress on standard error.
        **condition: passed to the denoiser; a tensor with n rows is cut along with the batch.

    Raises:
        ArgumentError: for sizes below 1, other coordinates, or what the sampler refuses.
    """
    if n < 1 or batch_size < 1:
        raise ArgumentError(f"n = {n}, batch_size = {batch_size}; expected at least 1")
    student(n, confidence)  # refuses a wrong confidence before anything is drawn
    if sampler is None:
        from farfield.analysis.entrants import baseline

        sampler = baseline(denoiser)
    sums = ShapeSums(coordinates)
    firsts: Sequence[int] = range(0, n, batch_size)
    for first in track(firsts, len(firsts), "trajectories", 2 if progress else len(firsts) + 1):
        count = min(batch_size, n - first)
        rows = {k: _cut(value, first, count, n) for k, value in condition.items()}
        run = sampler(denoiser, count, seed, first=first, trajectory=True, dtype=dtype, **rows).trajectory
        assert run is not None
        sums.update(run)
    return sums.result(confidence)


def _cut(value: Any, first: int, count: int, n: int) -> Any:
    """The rows of a condition that belong to a batch."""
    return value[first : first + count] if isinstance(value, Tensor) and value.ndim and len(value) == n else value


@dataclass(frozen=True)
class ShapeOptions:
    """Options of the analysis; see :func:`shape_statistics`.

    Attributes:
        n: trajectories.
        levels: positive levels of the Karras grid within the range of the model (of both models, where two are compared).
        solver: by its name.
        coordinates: ``"ve"`` or ``"vp"``.
        confidence: of the intervals.
        batch_size: trajectories held at once.
        magnitude: whether norms of noised data are measured beside those of the states.
    """

    n: int = 256
    levels: int = 18
    solver: str = "heun"
    coordinates: Coordinates = "ve"
    confidence: float = 0.95
    batch_size: int = 256
    magnitude: bool = True


@analysis("shape", about="how straight sampling trajectories are, and where they turn", options=ShapeOptions)
def analyze_shape(subject: Subject, options: ShapeOptions) -> ShapeFindings:
    """:func:`shape_statistics` of a subject, and of the second model where there is one: same grid, same seed."""
    from farfield.analysis.entrants import sigma_range

    models = {subject.name: subject.model}
    if subject.other is not None:
        models["other" if subject.name != "other" else "second"] = subject.other
    ranges = [sigma_range(model) for model in models.values()]
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    sampler = Sampler(options.solver, karras(options.levels, low, high))
    found = {
        name: shape_statistics(
            model,
            sampler,
            options.n,
            subject.seed,
            batch_size=options.batch_size,
            coordinates=options.coordinates,
            confidence=options.confidence,
            progress=subject.progress,
        )
        for name, model in models.items()
    }
    first = next(iter(found.values()))
    forward = None
    if options.magnitude and options.coordinates == "ve":
        forward = forward_magnitude(subject.data, [s for s in first.sigmas if s > 0], subject.seed)
    return ShapeFindings(found, forward, options.solver, subject.seed)
