"""What a step rule is: coefficients computed once for a grid, and a pure function from one state to the next.

A solver holds no state. ``plan`` turns the steps of a run into one set of coefficients each, in float64; ``step`` takes the
state and what the run remembers from earlier steps and returns both anew. The run evaluates the denoiser at the start of
each step, which is why the denoising trajectory costs nothing extra.

With noise the steps are no longer end to end (``farfield.sampling.legs``). A rule that takes noise goes from ``start`` to
``end`` of each leg; one that remembers outputs knows them at the starts, and extrapolates them over the fall of the noise
level that is left once the noise has been added, from ``start`` to ``level``, not over the longer way to ``end``.

The step down to σ = 0 is Euler's, ``x' = D(x, σ)``, in every rule but ``pndm``, which carries its mean slope there: no rule
evaluates the denoiser at 0, and the denoising trajectory ends at the sample. What a rule is as a finite difference of the
denoiser it says in its class constant ``row`` (:class:`Row`), and ``describe()`` puts that together with its order and cost.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from farfield.errors import ArgumentError
from farfield.sampling.legs import Leg

if TYPE_CHECKING:
    from farfield.distributions import Gaussian

#: What a step rule calls: the denoiser with the run's conditions already bound; σ is a number, or (B,) for adaptive rules.
Evaluate = Callable[[Tensor, float | Tensor], Tensor]

LawT = TypeVar("LawT", bound=nn.Module)


@runtime_checkable
class Differentiable(Protocol):
    """What a run's evaluations are besides: they know how the output changes along the ODE."""

    def derivative(self, x: Tensor, sigma: float, slope: Tensor) -> Tensor:
        """``dD/dσ`` where the state moves along ``slope``, shape of ``x``; counted as one evaluation."""


@dataclass(frozen=True)
class Row:
    """A rule in the table of finite differences (Chen et al., table 1): what each rule declares of itself, in words.

    In ``x' = (σ'/σ) x + (1 − σ'/σ) r − ½ (h²/σ) Ṙ`` with ``h = σ' − σ``, r₁ the output at σ, r₂ the one of the step before
    (at σ₋), r_s one at a level s inside the step.

    Attributes:
        derivative: Ṙ, e.g. ``"γ (r' − r₁)/h"``; ``"0"`` for Euler, ``"–"`` for a rule that is no such difference.
        gamma: γ, e.g. ``"σ/σ'"``, or ``"–"``.
        identity: whether the row is the rule itself, to rounding: ``"yes"``, or when and how far it is.
        startup: what the first steps are.
        final: what the step to σ = 0 is, and any other rule for the last steps.
        cost: evaluations of one step in words, where one number does not say it all; ``""`` for that number.
        source: authors, year, equation.
    """

    derivative: str = "–"
    gamma: str = "–"
    identity: str = "no such form"
    startup: str = "none needed"
    final: str = "Euler"
    cost: str = ""
    source: str = ""


@dataclass(frozen=True)
class Description:
    """What :meth:`Solver.describe` returns; ``str()`` of it is a readable block of lines.

    Attributes:
        name, options: of the rule.
        order: of convergence.
        evaluations: denoiser evaluations of one step, in words where they vary.
        derivative, gamma, identity, startup, final, source: as in :class:`Row`.
    """

    name: str
    options: Mapping[str, Any]
    order: int
    evaluations: str
    derivative: str
    gamma: str
    identity: str
    startup: str
    final: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """The same, JSON-safe."""
        return {**self.__dict__, "options": dict(self.options)}

    def __str__(self) -> str:
        options = ", ".join(f"{key} = {value}" for key, value in self.options.items())
        lines = [
            ("solver", f"{self.name} ({options})" if options else self.name),
            ("order", str(self.order)),
            ("evaluations per step", self.evaluations),
            ("Ṙ", self.derivative),
            ("γ", self.gamma),
            ("the rule itself", self.identity),
            ("first steps", self.startup),
            ("step to σ = 0", self.final),
            ("source", self.source),
        ]
        return "\n".join(f"{key + ':':<22}{value}" for key, value in lines if value)


class Solver(ABC):
    """Base class of the step rules; subclasses are frozen dataclasses.

    Attributes:
        name: the plain name in the registry.
        order: the order of convergence, held by a test for every rule.
        evaluations_per_step: denoiser evaluations in one step, the one at its start included.
        uses_covariance: whether ``plan`` makes use of a Gaussian.
        takes_noise: whether the rule is right where noise is added between its steps; a sampler refuses noise otherwise.
        history: how many outputs of earlier steps a step makes use of, 0 for one-step rules.
        adaptive: whether the rule chooses its own steps, so that its evaluations are known only after a run.
        row: the rule in the table of finite differences.
    """

    name: ClassVar[str]
    evaluations_per_step: ClassVar[int] = 1
    uses_covariance: ClassVar[bool] = False
    takes_noise: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    row: ClassVar[Row] = Row()

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

    def stops(self, levels: Sequence[float]) -> Sequence[float]:
        """The levels of a grid at which a run with this rule stops: all of them, but for a rule with its own steps."""
        return levels

    def describe(self) -> Description:
        """The rule's row in the table of finite differences, with its order, cost, first and last steps; printable."""
        row = self.row
        return Description(
            self.name,
            {key: value for key, value in self.to_dict().items() if key != "name"},
            self.order,
            row.cost or str(self.evaluations_per_step),
            row.derivative,
            row.gamma,
            row.identity,
            row.startup,
            row.final,
            row.source,
        )

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
