"""Guidance: functions of (x, σ, D) that return a corrected D.

The solver sees the corrected output alone, so every solver, start and noise can be combined with every guidance. Parts are
applied in the order given. A part may ask the model again, under other conditions; what that costs at each noise level is
known before the run and counted in it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from farfield.errors import ArgumentError


class Ask(Protocol):
    """The model with the run's conditions bound; keywords replace some of them. Each call is counted."""

    def __call__(self, x: Tensor, sigma: float, **replaced: Any) -> Tensor:
        """``D(x, σ)``."""


class Guidance(ABC):
    """Base class; subclasses are frozen dataclasses."""

    name: ClassVar[str]

    def evaluations(self, sigma: float) -> int:
        """Evaluations of the model beyond the one that the solver asked for, at this level."""
        return 0

    def check(self, condition: Mapping[str, Any]) -> None:
        """Raise ``ArgumentError`` if a run under these conditions could not be guided."""
        return

    @abstractmethod
    def correct(self, x: Tensor, sigma: float, d: Tensor, ask: Ask) -> Tensor:
        """The corrected denoiser output.

        Args:
            x: the states (B, *event).
            sigma: their level, > 0.
            d: ``D(x, σ)``, or what the guidance before made of it.
            ask: the model.
        """

    def to_dict(self) -> dict[str, Any]:
        """The name and parameters, JSON-safe."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance ``D = D_null + w (D_labels − D_null)`` (Ho & Salimans 2022).

    Two evaluations for each one of the solver's, inside the interval; outside it, and for w = 1, one.

    Args:
        scale: w; 1 is the conditional model itself, 0 the unconditional one.
        interval: (low, high): guide where ``low < σ <= high`` alone (Kynkäänniemi et al. 2024); None everywhere.
        null_label: the class that stands for "no class"; None asks the model without labels.

    Raises:
        ArgumentError: for a scale that is not finite or an empty interval.
    """

    scale: float
    interval: tuple[float, float] | None = None
    null_label: int | None = None
    name: ClassVar[str] = "classifier_free"

    def __post_init__(self) -> None:
        if not isinstance(self.scale, int | float) or not math.isfinite(self.scale):
            raise ArgumentError(f"scale = {self.scale!r}; expected a finite number, 1 for no guidance")
        if self.interval is not None:
            ends = tuple(self.interval)
            if len(ends) != 2 or not all(isinstance(s, int | float) for s in ends) or not 0 <= ends[0] < ends[1]:
                raise ArgumentError(f"interval = {self.interval!r}; expected (low, high) with 0 <= low < high, or None")
            object.__setattr__(self, "interval", (float(ends[0]), float(ends[1])))
        if self.null_label is not None and not isinstance(self.null_label, int):
            raise ArgumentError(f"null_label = {self.null_label!r}; expected a class number, or None for no labels")

    def strength(self, sigma: float) -> float:
        """w at a level: ``scale`` inside the interval, 1 outside."""
        inside = self.interval is None or self.interval[0] < sigma <= self.interval[1]
        return float(self.scale) if inside else 1.0

    def evaluations(self, sigma: float) -> int:
        """One, where w differs from 1."""
        return int(self.strength(sigma) != 1)

    def check(self, condition: Mapping[str, Any]) -> None:
        """Labels are needed."""
        if condition.get("labels") is None:
            raise ArgumentError("labels are missing: classifier-free guidance needs the classes to guide towards")

    def correct(self, x: Tensor, sigma: float, d: Tensor, ask: Ask) -> Tensor:
        """``D_null + w (D − D_null)``."""
        scale = self.strength(sigma)
        if scale == 1:
            return d
        labels = None
        if self.null_label is not None:
            labels = torch.full((len(x),), self.null_label, dtype=torch.int64, device=x.device)
        return torch.lerp(ask(x, sigma, labels=labels), d, scale)


@dataclass(frozen=True)
class DynamicThreshold(Guidance):
    """Pull each output back into [−bound, bound] by its own quantile (Saharia et al. 2022, section 2.3).

    With s the quantile of |D| over a sample's coordinates, at least ``bound``: ``D → clip(D, −s, s) · bound/s``. Strong
    guidance drives outputs out of the range of the data; an output inside it stays as it is.

    Args:
        quantile: of |D|, in (0, 1].
        bound: of the data, 1 for images in [−1, 1].
    """

    quantile: float = 0.995
    bound: float = 1.0
    name: ClassVar[str] = "dynamic_threshold"

    def __post_init__(self) -> None:
        if not isinstance(self.quantile, int | float) or not 0 < self.quantile <= 1:
            raise ArgumentError(f"quantile = {self.quantile!r}; expected a number in (0, 1]")
        if not isinstance(self.bound, int | float) or not 0 < self.bound < math.inf:
            raise ArgumentError(f"bound = {self.bound!r}; expected a positive number")

    def correct(self, x: Tensor, sigma: float, d: Tensor, ask: Ask) -> Tensor:
        """``clip(D, −s, s) · bound/s``."""
        flat = d.flatten(1)
        # The k-th value instead of torch.quantile, which has a limit on the number of coordinates.
        rank = max(1, math.ceil(self.quantile * flat.shape[1]))
        s = flat.abs().kthvalue(rank, dim=1, keepdim=True).values.clamp(min=self.bound)
        return (flat.clamp(-s, s) * (self.bound / s)).view_as(d)


@dataclass(frozen=True, eq=False)
class FunctionGuidance(Guidance):
    """Any function ``f(x, sigma, D)`` that returns a corrected D, sample by sample; it cannot be written to JSON."""

    function: Callable[[Tensor, float, Tensor], Tensor]
    name: ClassVar[str] = "function"

    def correct(self, x: Tensor, sigma: float, d: Tensor, ask: Ask) -> Tensor:
        """``f(x, σ, D)``.

        Raises:
            ArgumentError: if the function changes the shape.
        """
        result = self.function(x, sigma, d)
        if result.shape != d.shape:
            raise ArgumentError(f"guidance returned shape {tuple(result.shape)}; expected {tuple(d.shape)}")
        return result

    def to_dict(self) -> dict[str, Any]:
        """Raises ArgumentError: a function is code and does not belong into a sampler's description."""
        raise ArgumentError("a sampler guided by a function cannot be written to JSON; leave the function out of it")


def as_guidance(parts: object) -> tuple[Guidance, ...]:
    """One guidance or function, or a sequence of them, as a tuple of guidances.

    Raises:
        ArgumentError: for anything else.
    """
    given = (parts,) if isinstance(parts, Guidance) or callable(parts) else parts
    if not isinstance(given, tuple | list):
        raise ArgumentError(
            f"guidance is a {type(parts).__name__}; expected guidances, functions f(x, sigma, D), or ()"
        )
    found = []
    for part in given:
        if not isinstance(part, Guidance) and not callable(part):
            raise ArgumentError(f"guidance holds a {type(part).__name__}; expected a guidance or f(x, sigma, D)")
        found.append(part if isinstance(part, Guidance) else FunctionGuidance(part))
    return tuple(found)


GUIDANCES: dict[str, type[Guidance]] = {g.name: g for g in (ClassifierFree, DynamicThreshold)}
