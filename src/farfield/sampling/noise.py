"""Fresh noise during a run: where each step starts and ends, so that noise brings the state back to the level it belongs to.

The solver itself stays deterministic. ``Churn`` lifts the state before a step, ``Ancestral`` lets the step end too low and
lifts the state after it; both leave the marginal laws as they are where the solver is exact, so that a Gaussian with the
whitened solver keeps its law whatever the noise. Any solver can be used that says so (``Solver.takes_noise``): a one-step
rule is applied to the step as it is, and a multistep rule keeps the outputs D that it saw at the starts of earlier steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

from farfield.errors import ArgumentError


class Noise(ABC):
    """Base class of the noises; subclasses are frozen dataclasses."""

    name: ClassVar[str]

    @property
    def inflation(self) -> float:
        """Factor on the standard deviation of all noise that is added; 1 keeps the marginal laws."""
        return 1.0

    def factors(self, levels: Sequence[float]) -> tuple[float, ...] | None:
        """A factor for the noise at each level instead, where they differ; at the first and at 0 none is added."""
        return None

    @abstractmethod
    def steps(self, levels: Sequence[float], n: int) -> list[tuple[float, float]]:
        """Where each step starts and ends.

        Args:
            levels: the levels of the run, decreasing, the last possibly 0.
            n: positive levels of the whole grid, before a start or a finish has dropped some.
        """

    def to_dict(self) -> dict[str, Any]:
        """The name and parameters, JSON-safe."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


def _number(name: str, value: object, low: float, high: float, words: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ArgumentError(f"{name} = {value!r}; expected {words}")


@dataclass(frozen=True)
class Churn(Noise):
    """Noise before each step: from σ up to ``σ̂ = (1 + γ) σ``, then the solver's step from σ̂ (Karras et al. 2022, Alg. 2).

    ``γ = min(s_churn/n, sqrt(2) − 1)`` where ``s_min <= σ <= s_max``, else 0. n is the number of levels of the grid as it was
    given: a teleport that drops the levels above it leaves γ as it was in the whole run (Wang & Vastola 2024, section 6).

    Args:
        s_churn: amount of noise; 0 adds none.
        s_min, s_max: levels between which it is added. The lifted level has to lie in the model's range as well.
        s_noise: factor on its standard deviation; a little above 1 makes up for a denoiser that removes too much.

    Raises:
        ArgumentError: for values out of range.
    """

    s_churn: float
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.0
    name: ClassVar[str] = "churn"

    def __post_init__(self) -> None:
        _number("s_churn", self.s_churn, 0, math.inf, "a number >= 0")
        _number("s_min", self.s_min, 0, math.inf, "a noise level >= 0")
        _number("s_max", self.s_max, self.s_min, math.inf, f"a noise level >= s_min = {self.s_min:g}")
        # Without any noise the lift would only rename the level, and the samples come out wrong.
        _number("s_noise", self.s_noise, 0.5, 2, "a factor in [0.5, 2], 1 to keep the marginal law")

    @property
    def inflation(self) -> float:
        """``s_noise``."""
        return self.s_noise

    def steps(self, levels: Sequence[float], n: int) -> list[tuple[float, float]]:
        """``(σ̂_k, σ_{k+1})``."""
        gamma = min(self.s_churn / n, math.sqrt(2) - 1)
        return [(a * (1 + gamma) if self.s_min <= a <= self.s_max else a, b) for a, b in pairwise(levels)]


@dataclass(frozen=True)
class Ancestral(Noise):
    """Noise after each step: the solver goes from σ to ``σ_down < σ'``, and noise of size σ_up lifts the state to σ'.

    ``σ_up = η σ' sqrt(1 − σ'²/σ²)``, ``σ_down = sqrt(σ'² − σ_up²)``. With Euler's rule this is DDIM(η) (Song, Meng & Ermon
    2021, Eq. 16) in variance-exploding coordinates: η = 1 is DDPM's ancestral sampling with the posterior variance, η = 0
    deterministic.

    Args:
        eta: share of the noise, in [0, 1].

    Raises:
        ArgumentError: for an η outside [0, 1].
    """

    eta: float = 1.0
    name: ClassVar[str] = "ancestral"

    def __post_init__(self) -> None:
        _number("eta", self.eta, 0, 1, "a number in [0, 1]")

    def steps(self, levels: Sequence[float], n: int) -> list[tuple[float, float]]:
        """``(σ_k, σ_down)``."""
        return [(a, _down(a, b, self.eta)) for a, b in pairwise(levels)]


@dataclass(frozen=True)
class DDPMNoise(Ancestral):
    """Noise after each step with the *forward* variance: DDPM's ancestral sampling with ``σ² = β`` (Ho et al. 2020).

    The solver goes down as for ``Ancestral(1)``, to ``σ'²/σ``; the variance-preserving state then gets ``β z``'s variance
    ``β = 1 − ᾱ/ᾱ'`` instead of the posterior's ``β (1 − ᾱ')/(1 − ᾱ)``. In variance-exploding coordinates the noise has

        σ_up² = (σ² − σ'²) (1 + σ'²)/(1 + σ²),

    right for data of unit variance and a little too much for all others. It is the variance of the 1000-step sampler of
    Raya & Ambrogioni (2023), whose last step returns the mean, as a run to σ = 0 does here.
    """

    eta: float = field(default=1.0, init=False)
    name: ClassVar[str] = "ddpm"

    def factors(self, levels: Sequence[float]) -> tuple[float, ...]:
        """The ratio of the two standard deviations, ``sqrt((1 + σ'²)/(1 + σ²)) σ/σ'``."""
        return (1.0, *(_ratio(a, b) for a, b in pairwise(levels)))

    def to_dict(self) -> dict[str, Any]:
        """The name."""
        return {"name": self.name}


def _ratio(a: float, b: float) -> float:
    return math.hypot(1.0, b) / math.hypot(1.0, a) * a / b if b else 1.0


def _down(a: float, b: float, eta: float) -> float:
    # The share of the variance that is kept, (σ_down/σ')² = 1 − η² (1 − σ'²/σ²), without cancellation; 1 for η = 0.
    return b * math.sqrt(1 - eta * eta * ((a - b) * (a + b) / (a * a))) if b else 0.0


NOISES: dict[str, type[Noise]] = {n.name: n for n in (Churn, Ancestral, DDPMNoise)}
