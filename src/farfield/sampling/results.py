"""What a run returns: the samples, the evaluations they cost, and the trajectory when it was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from farfield.errors import ArgumentError

if TYPE_CHECKING:
    from farfield.denoiser import Denoiser
    from farfield.sampling.recording import TrajectoryStatistics
    from farfield.sampling.sampler import Sampler


@dataclass(frozen=True)
class Step:
    """What a callback or a stop rule sees at each step, before the step is taken.

    Attributes:
        index: number of the step, from 0.
        sigma, sigma_next: the levels it leads from and to; the last callback of a jump has ``sigma_next = 0``.
        x: the state at ``sigma`` (B, *event).
        denoised: the x₀-prediction ``D(x, σ)`` there.
        nfe: evaluations spent so far, the one of ``denoised`` included.
        first: number of the batch's first sample.
        previous: the x₀-prediction of the step before, None at the first.
    """

    index: int
    sigma: float
    sigma_next: float
    x: Tensor
    denoised: Tensor
    nfe: int
    first: int
    previous: Tensor | None = None


@dataclass(frozen=True)
class Stops:
    """Where a stop rule ended each sample.

    Attributes:
        sigma: (n,) float64 the level of the jump; 0 for a sample that went all the way.
        nfe: (n,) int64 evaluations until then; with a solver that chooses its own steps, those of the sample's batch.
    """

    sigma: Tensor
    nfe: Tensor


@dataclass(frozen=True)
class Replay:
    """A trajectory beside the same run made again.

    Attributes:
        states, denoised: largest absolute difference of any coordinate.
    """

    states: float
    denoised: float

    @property
    def exact(self) -> bool:
        """Whether both agree to the last bit."""
        return self.states == 0 and self.denoised == 0


@dataclass(frozen=True)
class Trajectory:
    """The two coupled curves of a run (Chen et al., A geometric perspective on diffusion models, section 3).

    With all N steps kept K = N; a recording may keep fewer (:mod:`farfield.sampling.recording`). A sample that a stop rule
    ended earlier than others stays at its output from there on, in both curves.

    Attributes:
        sigmas: (K + 1,) the levels of the states, decreasing but where noise lifts them.
        states: (K + 1, B, *event) the sampling trajectory, the final sample last.
        denoised: (K, B, *event) the denoising trajectory: ``D`` at the start of each step kept.
        nfe: (K + 1,) evaluations spent to reach each state.
        steps: (K + 1,) the number of the step that each state starts; that of the final sample is N. None stands for all.
        seed: of the noise; None where it is not known.
        first: number of the first sample.
        drawn: whether the sampler drew its starts from the seed, or they were given.
    """

    sigmas: tuple[float, ...]
    states: Tensor
    denoised: Tensor
    nfe: tuple[int, ...]
    steps: tuple[int, ...] | None = None
    seed: int | None = None
    first: int = 0
    drawn: bool = False

    @property
    def noise(self) -> Tensor:
        """The slope ``ε = (x − D)/σ = dx/dσ`` at the start of each step kept, (K, B, *event); computed when asked for."""
        levels = torch.tensor(self.sigmas[:-1], dtype=self.states.dtype, device=self.states.device)
        return (self.states[:-1] - self.denoised) / levels.view(-1, *[1] * (self.states.ndim - 1))

    @property
    def step_numbers(self) -> tuple[int, ...]:
        """``steps``, written out where all were kept."""
        return self.steps if self.steps is not None else tuple(range(len(self.sigmas)))

    def to(self, device: torch.device | str) -> Trajectory:
        """The same on another device."""
        return replace(self, states=self.states.to(device), denoised=self.denoised.to(device))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, atomically; see :func:`farfield.sampling.trajectory_file.save_trajectory`."""
        from farfield.sampling.trajectory_file import save_trajectory

        save_trajectory(path, self)

    @staticmethod
    def load(path: str | Path) -> Trajectory:
        """Read what :meth:`save` wrote; see :func:`farfield.sampling.trajectory_file.load_trajectory`."""
        from farfield.sampling.trajectory_file import load_trajectory

        return load_trajectory(path)

    def replay(self, sampler: Sampler, denoiser: Denoiser, **condition: Any) -> Replay:
        """Run the sampler again and compare.

        Args:
            sampler, denoiser, condition: those of the run.

        Returns:
            The largest differences; 0 on the machine and with the number of threads that made the trajectory.

        Raises:
            ArgumentError: if the seed is not known, the sampler takes other steps, or it lifted the given starts by noise
                before their first step, so that the trajectory does not hold them.
        """
        if self.seed is None:
            raise ArgumentError("seed is None: this trajectory does not know the noise of its run")
        n = self.states.shape[1]
        kwargs: dict[str, Any] = {"seed": self.seed, "first": self.first, "trajectory": True, **condition}
        if self.drawn:
            out = sampler(denoiser, n, device=self.states.device, dtype=self.states.dtype, **kwargs)
        else:
            route = sampler.route
            if route.legs and route.legs[0].start > route.first:
                raise ArgumentError("the run lifted its given starts by noise; repeat it with Sampler.run and compare")
            out = sampler.run(denoiser, self.states[0], **kwargs)
        again, kept = out.trajectory, list(self.step_numbers)
        assert again is not None
        if kept[-1] >= len(again.sigmas) or tuple(again.sigmas[k] for k in kept) != tuple(self.sigmas):
            raise ArgumentError(
                f"sampler takes other steps: through {len(again.sigmas)} levels, not these {kept[-1] + 1}"
            )
        return Replay(_apart(again.states[kept], self.states), _apart(again.denoised[kept[:-1]], self.denoised))


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if b.numel() else 0.0


@dataclass(frozen=True)
class Samples:
    """The result of a run.

    Attributes:
        x: (n, *event) the samples.
        nfe: denoiser evaluations for each sample; under a rule that stops samples one by one, those of the last to stop.
        trajectory: the states and denoiser outputs on the way, or None.
        statistics: norms and distances on the way, where only those were asked for.
        stops: where each sample stopped, under a rule that looks at samples; None without one.
    """

    x: Tensor
    nfe: int
    trajectory: Trajectory | None = None
    statistics: TrajectoryStatistics | None = None
    stops: Stops | None = None

    def __len__(self) -> int:
        return self.x.shape[0]
