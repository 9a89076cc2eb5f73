"""How much of a run is kept: every step, every k-th, its two ends, or statistics alone.

Memory for a batch of B samples of d coordinates on N steps: 2N B d numbers for all steps, 2N/k B d for every k-th, a few
B d for the ends and the statistics. A device of its own, usually ``"cpu"``, frees the accelerator at the price of one
transfer for each step kept. The last step and the final sample are kept always, since distances to the end need them.

Statistics are means and standard deviations over samples of ‖x_n‖, ‖r_n‖ and of the distances to the end ‖x_n − x_0‖ and
‖r_n − r_1‖, in float64. The end is known only at the end: with distances the run is made twice, once for its ends and once for
the statistics, which the addressed noise makes the same run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from farfield.errors import ArgumentError, unknown_name
from farfield.sampling.results import Trajectory


@dataclass(frozen=True)
class RunningMoments:
    """Mean and spread of K quantities over a stream of samples, merged without loss of digits (Chan et al. 1979).

    Attributes:
        count: samples so far.
        mean: (K,) float64.
        squares: (K,) float64, the sum of squared deviations from the mean.
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor) -> RunningMoments:
        """Of values (K, n)."""
        rows = values.double()
        mean = rows.mean(1)
        return cls(rows.shape[1], mean.cpu(), (rows - mean[:, None]).square().sum(1).cpu())

    @property
    def std(self) -> Tensor:
        """(K,) divided by ``count − 1``; 0 for a single sample."""
        return (self.squares / max(self.count - 1, 1)).sqrt()

    def merge(self, other: RunningMoments) -> RunningMoments:
        """Both streams together; the shorter one goes on with its last quantity, as a sample that has stopped does."""
        length = max(len(self.mean), len(other.mean))
        a, b = self._extended(length), other._extended(length)
        count, step = a.count + b.count, b.mean - a.mean
        mean = a.mean + step * (b.count / count)
        return RunningMoments(count, mean, a.squares + b.squares + step.square() * (a.count * b.count / count))

    def _extended(self, length: int) -> RunningMoments:
        index = torch.arange(length).clamp_(max=len(self.mean) - 1)
        return RunningMoments(self.count, self.mean[index], self.squares[index])

    def to_dict(self) -> dict[str, Any]:
        """Mean and standard deviation, JSON-safe."""
        return {"count": self.count, "mean": self.mean.tolist(), "std": self.std.tolist()}


@dataclass(frozen=True)
class TrajectoryStatistics:
    """Norms and distances along a run of N steps, over its samples.

    Attributes:
        sigmas, nfe: (N + 1,) as in a :class:`Trajectory`.
        norm, denoised_norm: ‖x_n‖ (N + 1,) and ‖r_n‖ (N,).
        distance, denoised_distance: ‖x_n − x_0‖ (N + 1,) and ‖r_n − r_1‖ (N,); None where they were not asked for.
    """

    sigmas: tuple[float, ...]
    nfe: tuple[int, ...]
    norm: RunningMoments
    denoised_norm: RunningMoments
    distance: RunningMoments | None = None
    denoised_distance: RunningMoments | None = None

    def merge(self, other: TrajectoryStatistics) -> TrajectoryStatistics:
        """Of the samples of both."""
        longer = self if len(self.sigmas) >= len(other.sigmas) else other
        pairs = {k: (getattr(self, k), getattr(other, k)) for k in _QUANTITIES}
        merged = {k: a.merge(b) for k, (a, b) in pairs.items() if a is not None and b is not None}
        return TrajectoryStatistics(longer.sigmas, longer.nfe, **merged)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""
        found = {k: getattr(self, k) for k in _QUANTITIES}
        curves = {k: None if v is None else v.to_dict() for k, v in found.items()}
        return {"sigmas": list(self.sigmas), "nfe": list(self.nfe), **curves}


_QUANTITIES = ("norm", "denoised_norm", "distance", "denoised_distance")


class Recorder(ABC):
    """Takes in one batch's run, step by step; the rows that only fill the batch are left out before."""

    @abstractmethod
    def step(self, index: int, sigma: float, x: Tensor, d: Tensor, spent: int) -> None:
        """State and output at the start of a step, and the evaluations spent to reach the state."""

    @abstractmethod
    def end(self, sigma: float, x: Tensor, spent: int) -> None:
        """The final sample."""

    @property
    def trajectory(self) -> Trajectory | None:
        """What was kept, if that is curves."""
        return None

    @property
    def statistics(self) -> TrajectoryStatistics | None:
        """What was kept, if that is statistics."""
        return None


class Recording(ABC):
    """Base class of the policies; subclasses are frozen dataclasses.

    Attributes:
        needs_ends: whether the run has to be made once before, to know where it ends.
    """

    name: ClassVar[str]

    @property
    def needs_ends(self) -> bool:
        """Whether the run has to be made once before, to know where it ends."""
        return False

    @abstractmethod
    def recorder(self, ends: tuple[Tensor, Tensor] | None = None) -> Recorder:
        """A fresh recorder for one batch; ``ends`` are its x_0 and r_1 where the policy needs them."""


def as_recording(value: bool | str | Recording) -> Recording | None:
    """A policy from what a caller gave: True keeps all, False nothing; or a name.

    Raises:
        ArgumentError: for anything else.
    """
    if isinstance(value, Recording):
        return value
    if isinstance(value, str):
        if value not in RECORDINGS:
            raise unknown_name("recording", value, RECORDINGS)
        return RECORDINGS[value]()
    if not isinstance(value, bool):
        raise ArgumentError(f"trajectory = {value!r}; expected True, False, a name or a Recording")
    return KeepAll() if value else None


@dataclass(frozen=True)
class KeepEvery(Recording):
    """Every k-th step, the last step and the final sample.

    Args:
        k: ≥ 1.
        device: where to keep them; None leaves them where the run is.
    """

    k: int = 2
    device: str | None = None
    name: ClassVar[str] = "every"

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ArgumentError(f"k = {self.k!r}; expected to keep every k-th step, k >= 1")

    def recorder(self, ends: tuple[Tensor, Tensor] | None = None) -> Recorder:
        """Keeps those steps."""
        return _Curves(self.k, self.device)


@dataclass(frozen=True)
class KeepAll(Recording):
    """Every step; what ``trajectory=True`` means.

    Args:
        device: where to keep them; None leaves them where the run is.
    """

    device: str | None = None
    name: ClassVar[str] = "all"

    def recorder(self, ends: tuple[Tensor, Tensor] | None = None) -> Recorder:
        """Keeps all steps."""
        return _Curves(1, self.device)


@dataclass(frozen=True)
class KeepEnds(Recording):
    """The first step, the last step and the final sample: x_N, r_N, x_1, r_1, x_0.

    Args:
        device: where to keep them; None leaves them where the run is.
    """

    device: str | None = None
    name: ClassVar[str] = "ends"

    def recorder(self, ends: tuple[Tensor, Tensor] | None = None) -> Recorder:
        """Keeps the ends."""
        return _Curves(None, self.device)


@dataclass(frozen=True)
class KeepStatistics(Recording):
    """Norms and, where asked for, distances to the end; see the head of this module.

    Args:
        distances: also the distances, for which the run is made twice; callbacks see the second.
    """

    distances: bool = True
    name: ClassVar[str] = "statistics"

    @property
    def needs_ends(self) -> bool:
        """For distances."""
        return self.distances

    def recorder(self, ends: tuple[Tensor, Tensor] | None = None) -> Recorder:
        """Keeps sums."""
        return _Sums(ends if self.distances else None)


RECORDINGS: dict[str, type[Recording]] = {r.name: r for r in (KeepAll, KeepEvery, KeepEnds, KeepStatistics)}


@dataclass
class _Curves(Recorder):
    """Every k-th step, or the first alone, and whatever step turns out to be the last."""

    every: int | None
    device: str | None
    kept: list[tuple[int, float, Tensor, Tensor, int]] = field(default_factory=list)
    final: tuple[float, Tensor, int] | None = None
    last: int = -1

    def _here(self, x: Tensor) -> Tensor:
        return x if self.device is None else x.to(self.device)

    def step(self, index: int, sigma: float, x: Tensor, d: Tensor, spent: int) -> None:
        if self.kept and not self._wanted(self.kept[-1][0]):
            self.kept.pop()  # was held only in case it was the last
        self.kept.append((index, sigma, self._here(x), self._here(d), spent))
        self.last = index

    def _wanted(self, index: int) -> bool:
        return index == 0 if self.every is None else index % self.every == 0

    def end(self, sigma: float, x: Tensor, spent: int) -> None:
        self.final = (sigma, self._here(x), spent)

    @property
    def trajectory(self) -> Trajectory | None:
        assert self.final is not None
        sigma, x, spent = self.final
        empty = x.new_empty(0, *x.shape)
        return Trajectory(
            (*(row[1] for row in self.kept), sigma),
            torch.stack([*(row[2] for row in self.kept), x]),
            torch.stack([row[3] for row in self.kept]) if self.kept else empty,
            (*(row[4] for row in self.kept), spent),
            None if self.every == 1 else (*(row[0] for row in self.kept), self.last + 1),
        )


def _norms(x: Tensor) -> Tensor:
    """‖x‖ of each row, (B,) in float64."""
    return x.double().flatten(1).square().sum(1).sqrt()


@dataclass
class _Sums(Recorder):
    """Norms and distances of each sample at each step: (B,) numbers that stay on the device until the end."""

    ends: tuple[Tensor, Tensor] | None
    levels: list[float] = field(default_factory=list)
    spent: list[int] = field(default_factory=list)
    rows: dict[str, list[Tensor]] = field(default_factory=lambda: {k: [] for k in _QUANTITIES})

    def _state(self, sigma: float, x: Tensor, spent: int) -> None:
        self.levels.append(sigma)
        self.spent.append(spent)
        self.rows["norm"].append(_norms(x))
        if self.ends is not None:
            self.rows["distance"].append(_norms(x.double() - self.ends[0].double()))

    def step(self, index: int, sigma: float, x: Tensor, d: Tensor, spent: int) -> None:
        self._state(sigma, x, spent)
        self.rows["denoised_norm"].append(_norms(d))
        if self.ends is not None:
            self.rows["denoised_distance"].append(_norms(d.double() - self.ends[1].double()))

    def end(self, sigma: float, x: Tensor, spent: int) -> None:
        self._state(sigma, x, spent)

    @property
    def statistics(self) -> TrajectoryStatistics | None:
        asked = _QUANTITIES if self.ends is not None else _QUANTITIES[:2]
        samples = self.rows["norm"][0].numel()
        # A run without a step, which ends at its only level, has no outputs: curves of no length.
        curves = {k: torch.stack(self.rows[k]) if self.rows[k] else torch.empty(0, samples) for k in asked}
        found = {k: RunningMoments.of(curve) for k, curve in curves.items()}
        return TrajectoryStatistics(tuple(self.levels), tuple(self.spent), **found)


def joined(parts: list[Trajectory]) -> Trajectory:
    """The batches of a run side by side; one whose samples all stopped earlier stays where it ended."""
    longest = max(parts, key=lambda part: part.step_numbers[-1])
    steps = longest.step_numbers

    def aligned(part: Trajectory) -> tuple[Tensor, Tensor]:
        if part.step_numbers == steps:
            return part.states, part.denoised
        place = {step: row for row, step in enumerate(part.step_numbers[:-1])}
        rows = [place.get(step, -1) for step in steps[:-1]]
        return part.states[[*rows, -1]], part.denoised[rows]

    states, outputs = zip(*map(aligned, parts), strict=True)
    return replace(
        longest,
        states=torch.cat(states, dim=1),
        denoised=torch.cat(outputs, dim=1),
        first=parts[0].first,
    )
