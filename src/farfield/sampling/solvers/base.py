"""What a step rule is: coefficients computed once for a grid, and a pure function from one state to the next.

A solver holds no state. ``plan`` turns the grid into one set of coefficients for each step, in float64; ``step`` takes the
state and what the run remembers from earlier steps and returns both anew. The run evaluates the denoiser at the start of
each step, which is why the denoising trajectory costs nothing extra.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from farfield.errors import ArgumentError

if TYPE_CHECKING:
    from farfield.distributions import Gaussian

#: What a step rule calls: the denoiser with the run's conditions already bound.
Evaluate = Callable[[Tensor, float], Tensor]


class Solver(ABC):
    """Base class of the step rules; subclasses are frozen dataclasses.

    Attributes:
        name: the plain name in the registry.
        order: the order of convergence, held by a test for every rule.
        evaluations_per_step: denoiser evaluations in one step, the one at its start included.
        uses_covariance: whether ``plan`` makes use of a Gaussian.
    """

    name: ClassVar[str]
    evaluations_per_step: ClassVar[int] = 1
    uses_covariance: ClassVar[bool] = False

    if TYPE_CHECKING:

        @property
        def order(self) -> int:
            """The order of convergence; a class constant or, where it can be chosen, a field."""

    @abstractmethod
    def plan(self, sigmas: Sequence[float], like: Tensor, covariance: Gaussian | None = None) -> list[Any]:
        """Coefficients of each step of a grid.

        Args:
            sigmas: the levels of the run, decreasing, the last one possibly 0.
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

    def evaluations(self, sigma: float, sigma_next: float) -> int:
        """Denoiser evaluations of the step: the last one, down to 0, never evaluates at 0."""
        return self.evaluations_per_step if sigma_next > 0 else 1

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


def on_device(gaussian: Gaussian, device: torch.device) -> Gaussian:
    """The Gaussian where the states are: itself, or a copy, so that the caller's stays where it is."""
    return gaussian if gaussian.mean.device == device else copy.deepcopy(gaussian).to(device)


def blend(d: Tensor, x: Tensor, ratio: float) -> Tensor:
    """``ratio · x + (1 − ratio) · d`` in one pass: the Euler step with the denoiser output d held fixed."""
    return torch.lerp(d, x, ratio)
