"""What a step rule is: coefficients computed once for a grid, and a pure function from one state to the next.

A solver holds no state. ``plan`` turns the steps of a run into one set of coefficients each, in float64; ``step`` takes the
state and what the run remembers from earlier steps and returns both anew. The run evaluates the denoiser at the start of
each step, which is why the denoising trajectory costs nothing extra.

With noise the steps are no longer end to end (``farfield.sampling.legs``). A rule that takes noise goes from ``start`` to
``end`` of each leg; one that remembers outputs knows them at the starts, and extrapolates them over the fall of the noise
level that is left once the noise has been added, from ``start`` to ``level``, not over the longer way to ``end``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from farfield.errors import ArgumentError
from farfield.sampling.legs import Leg

if TYPE_CHECKING:
    from farfield.distributions import Gaussian

#: What a step rule calls: the denoiser with the run's conditions already bound.
Evaluate = Callable[[Tensor, float], Tensor]

LawT = TypeVar("LawT", bound=nn.Module)


class Solver(ABC):
    """Base class of the step rules; subclasses are frozen dataclasses.

    Attributes:
        name: the plain name in the registry.
        order: the order of convergence, held by a test for every rule.
        evaluations_per_step: denoiser evaluations in one step, the one at its start included.
        uses_covariance: whether ``plan`` makes use of a Gaussian.
        takes_noise: whether the rule is right where noise is added between its steps; a sampler refuses noise otherwise.
        history: how many outputs of earlier steps a step makes use of, 0 for one-step rules.
    """

    name: ClassVar[str]
    evaluations_per_step: ClassVar[int] = 1
    uses_covariance: ClassVar[bool] = False
    takes_noise: ClassVar[bool] = False

    if TYPE_CHECKING:

        @property
        def order(self) -> int:
            """The order of convergence; a class constant or, where it can be chosen, a field."""

    @property
    def history(self) -> int:
        """How many outputs of earlier steps a step makes use of."""
        return 0

    @abstractmethod
    def plan(self, legs: Sequence[Leg], like: Tensor, covariance: Gaussian | None = None) -> list[Any]:
        """Coefficients of each step of a pass.

        Args:
            legs: the steps, their starts decreasing; the last one may end at 0.
            like: a state; coefficients that are tensors take its device and dtype.
            covariance: the Gaussian whose flow a whitened solver integrates exactly.
        """

    @abstractmethod
    def step(self, evaluate: Evaluate, x: Tensor, d: Tensor, memory: Any, plan: Any) -> tuple[Tensor, Any]:
        """One step.

        Args:
            evaluate: ``D(x, σ)``, for the rules that need more than one evaluation.
            x: the state (B, *event) at the start of the step.
            d: ``D(x, σ)`` there.
            memory: what the previous step returned, None at the first.
            plan: the coefficients of this step.

        Returns:
            The next state and the memory for the next step.
        """

    def moved(self, memory: Any, x: Tensor) -> Any:
        """What is left of the memory once the state has been moved to ``x`` by noise, or carried there by a law.

        All of it, for rules that remember outputs alone; a rule that remembers states has to let go of them.
        """
        return memory

    def visits(self, legs: Sequence[Leg]) -> list[tuple[float, ...]]:
        """The levels at which each step of a pass evaluates the denoiser, its start first; never at 0."""
        return [(leg.start,) for leg in legs]

    def to_dict(self) -> dict[str, Any]:
        """Name and options, JSON-safe."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """The solver with these options.

        Raises:
            ArgumentError: for an option that it does not have.
        """
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for key in options:
            if key not in known:
                raise ArgumentError(f"solver {cls.name!r} has no option {key!r}; it has: {', '.join(known) or 'none'}")
        return cls(**options)


def on_device(law: LawT, device: torch.device) -> LawT:
    """A law where the states are: itself, or a copy, so that the caller's stays where it is."""
    at = next((t.device for t in law.buffers()), device)
    return law if at == device else copy.deepcopy(law).to(device)


def blend(d: Tensor, x: Tensor, ratio: float) -> Tensor:
    """``ratio · x + (1 − ratio) · d`` in one pass: the Euler step with the denoiser output d held fixed."""
    return torch.lerp(d, x, ratio)
