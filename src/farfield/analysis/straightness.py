"""Distillation as straightening: paths before and after, and how well teacher and student aim at the teacher's samples.

A student that takes one step must point, from the noise on, at the sample where the teacher's path ends (Chen et al., A
geometric perspective on diffusion models, appendix D). For teacher T, student S, the same noise x_N, and x_0 the teacher's
sample:

    straightness   max_n E[deviation]/E[distance between the ends], of each one's own paths
    miss           E‖D(x_n, σ_n) − x_0‖ / E‖x_0 − E x_0‖ at the teacher's states: 0 for one that jumps to the sample from there,
                   1 for one that answers with the mean of the samples
    aim            cos(D(x_N, σ_N) − x_N, x_0 − x_N)

Two kinds of student differ here. One whose output is constant along *its own* path has straight paths and may be run with any
number of steps (PD's limit, rectified flows). One whose output is constant along *the teacher's* path misses nothing there (CD,
TRACT, KD at the start), and is not meant to be run as an ODE: its own path leaves the teacher's, and need not be straight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.shape import ShapeSums
from farfield.analysis.shape_result import TrajectoryShape, percent
from farfield.analysis.shape_rows import unit
from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.sampling import Sampler


@dataclass(frozen=True, eq=False)
class Straightening:
    """A teacher and its student from the same noise.

    Attributes:
        before, after: shapes of the teacher's and of the student's own paths.
        sigmas: (N,) levels of the teacher's path.
        teacher_miss, student_miss: of a jump to the sample from the teacher's state, (N,).
        teacher_aim, student_aim: mean cosine at the first level.
        apart: mean distance between the two's finished samples, over the teacher's samples' mean distance from their mean.
    """

    before: TrajectoryShape
    after: TrajectoryShape
    sigmas: tuple[float, ...]
    teacher_miss: tuple[float, ...]
    student_miss: tuple[float, ...]
    teacher_aim: float
    student_aim: float
    apart: float

    def summary(self) -> str:
        """How much straighter the student's paths are, and how well it hits the teacher's samples in one step."""
        a, b = self.before, self.after
        return (
            f"The states leave their line by {percent(a.straightness)} % of its length before and {percent(b.straightness)} % "
            f"after, the outputs by {percent(a.denoised_straightness)} % and {percent(b.denoised_straightness)} %. In one step "
            f"from noise the teacher misses its own sample by {self.teacher_miss[0]:.3g} of the samples' spread, the student "
            f"by {self.student_miss[0]:.3g}; from anywhere on the teacher's path by at most {max(self.student_miss):.3g}. "
            f"Their finished samples are {self.apart:.3g} of it apart."
        )

    def tables(self) -> list[Table]:
        """Before and after, side by side; and the miss from each level."""
        a, b = self.before, self.after
        rows = (
            ("straightness of the states", a.straightness, b.straightness),
            ("straightness of the outputs", a.denoised_straightness, b.denoised_straightness),
            ("turning of all steps together, degrees", a.total_turning.mean[0], b.total_turning.mean[0]),
            ("smallest mean cosine", a.lowest_cosine, b.lowest_cosine),
            ("aim at the start, mean cosine", self.teacher_aim, self.student_aim),
            ("distance of the finished samples, over their spread", 0.0, self.apart),
            ("evaluations", a.nfe, b.nfe),
        )
        misses = tuple(zip(self.sigmas, self.teacher_miss, self.student_miss, strict=True))
        columns = ("", "teacher", "student")
        return [
            Table(f"distillation, {a.samples} own paths each", columns, rows),
            Table("miss of a jump from the teacher's state, over the samples' spread", ("σ", *columns[1:]), misses),
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return value | {"before": self.before.to_dict(), "after": self.after.to_dict()}

    def plot(self, ax: Any = None) -> Any:
        """Deviations of the own paths, and the miss from each level; the student dashed. Returns the figure.

        Args:
            ax: two axes, or None for a new figure.
        """
        from farfield.analysis.plotting import INK, PALETTE, axes_for, dress
        from farfield.analysis.shape_plot import draw_deviation

        left, right = axes_for(ax, 2, width=9.2, height=3.8)
        draw_deviation(self.before, left, self.after, "student")
        for miss, name, style in (
            (self.teacher_miss, "teacher", "solid"),
            (self.student_miss, "student", (0, (4, 2))),
        ):
            right.plot(self.sigmas, miss, color=PALETTE[1], linewidth=1.8, linestyle=style, label=name)
        right.set_xscale("log")
        right.set_xlim(self.sigmas[0], self.sigmas[-1])
        right.set_ylim(bottom=0)
        title = "miss of a jump from the teacher's state"
        dress(right, "noise level σ  (sampling runs to the right)", "distance to the sample ÷ spread", title)
        right.legend(frameon=False, fontsize=9, labelcolor=INK)
        return left.figure


def straightening(
    teacher: Denoiser,
    student: Denoiser,
    sampler: Sampler,
    n: int = 256,
    seed: int = 0,
    *,
    student_sampler: Sampler | None = None,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Straightening:
    """Measure the paths of a teacher and of its student.

    Args:
        teacher, student: denoisers of the same events.
        sampler: how the teacher is run.
        n, seed: the paths, by number and seed; two at least.
        student_sampler: how the student is run, from the same first level; by default as the teacher. A single step is
            straight whatever it hits.
        batch_size: paths held at once.
        dtype: of the states.

    Raises:
        ArgumentError: for different events, first levels that differ, or numbers out of range.
    """
    own = student_sampler if student_sampler is not None else sampler
    if teacher.event_shape != student.event_shape:
        raise ArgumentError(
            f"student takes events {student.event_shape}; expected {teacher.event_shape}, as the teacher does"
        )
    if own.levels[0] != sampler.levels[0]:
        raise ArgumentError(
            f"student_sampler starts at {own.levels[0]:g}; expected the teacher's {sampler.levels[0]:g}"
        )
    if n < 2 or batch_size < 1:
        raise ArgumentError(f"n = {n}, batch_size = {batch_size}; expected n >= 2 and batch_size >= 1")
    before, after = ShapeSums(), ShapeSums()
    ends: list[Tensor] = []
    # For each path: cosines of the first outputs, distance of the samples, then the distances that teacher and student miss by.
    found: list[Tensor] = []
    for first in range(0, n, batch_size):
        count = min(batch_size, n - first)
        path = sampler(teacher, count, seed, first=first, trajectory=True, dtype=dtype).trajectory
        other = own(student, count, seed, first=first, trajectory=True, dtype=dtype).trajectory
        assert path is not None
        assert other is not None
        before.update(path)
        after.update(other)
        with torch.no_grad():
            answers = [student(x, s) for x, s in zip(path.states[:-1], path.sigmas[:-1], strict=True)]
        end = path.states[-1].double().flatten(1)
        outputs = [torch.stack(tuple(d)).double().flatten(2) for d in (path.denoised, answers)]
        start = path.states[0].double().flatten(1)
        home = unit(end - start)
        cosines = [(unit(d[0] - start) * home).sum(1) for d in outputs]
        distance = (other.states[-1].double().flatten(1) - end).norm(dim=1)
        found.append(torch.cat((torch.stack((*cosines, distance)), *((d - end).norm(dim=2) for d in outputs))))
        ends.append(end)
    samples = torch.cat(ends)
    spread = float((samples - samples.mean(0)).norm(dim=1).mean())
    scale = 1 / spread if spread > 0 else 0.0
    teacher_aim, student_aim, apart, *misses = torch.cat(found, 1).mean(1).tolist()
    half = len(misses) // 2
    return Straightening(
        before=before.result(),
        after=after.result(),
        sigmas=before.sigmas[:half],
        teacher_miss=tuple(scale * v for v in misses[:half]),
        student_miss=tuple(scale * v for v in misses[half:]),
        teacher_aim=teacher_aim,
        student_aim=student_aim,
        apart=scale * apart,
    )
