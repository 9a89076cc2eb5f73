"""Where a run starts: the level, and the state there as a function of each sample's own noise.

A start sees the grid it was given and returns the grid that is left to solve. ``Teleport`` and ``LateStart`` begin below the
top of the grid; ``grid_policy="regrid"`` spends all steps below the start, ``"truncate"`` drops the steps above it and so
saves their evaluations (Wang & Vastola 2024, section 6 and Alg. 1). The solver begins there without a memory, at first
order; with ``seed_history`` a multistep rule gets one from the Gaussian's own outputs above the start, at no evaluation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.processes import Process
from farfield.sampling.grids import Grid
from farfield.sampling.guidance import Guidance
from farfield.sampling.solvers.base import on_device

GridPolicy = Literal["regrid", "truncate"]

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Start(ABC):
    """Base class of the starts; subclasses are frozen dataclasses.

    Attributes:
        stored: whether it can be written to JSON.
    """

    name: ClassVar[str]
    stored: ClassVar[bool] = True

    @property
    def laws(self) -> tuple[Denoiser, ...]:
        """The laws that it starts from, whose samples have to be of the model's shape."""
        return ()

    @property
    def seeds_history(self) -> bool:
        """Whether :meth:`past` fills the memory of multistep rules."""
        return False

    def grid(self, grid: Grid) -> Grid:
        """The grid below the start."""
        return grid

    @abstractmethod
    def state(
        self,
        z: Tensor,
        top: float,
        process: Process,
        condition: Mapping[str, Any] = NOTHING,
        guidance: Sequence[Guidance] = (),
    ) -> Tensor:
        """The state at the start.

        Args:
            z: standard normal noise (B, *event), each sample's own.
            top: the highest level of the grid as it was given.
            process: the denoiser's process.
            condition: the conditions of this batch, e.g. its ``labels``, for starts that depend on them.
            guidance: the sampler's, likewise.
        """

    def past(self, x: Tensor, sigma: float, levels: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """States and outputs at levels above the start, on the path of the start's law to ``x`` at ``sigma``."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """The name and parameters; a Gaussian among them stays an object, for the sampler to write once."""
        return {"name": self.name}


@dataclass(frozen=True)
class Prior(Start):
    """The process's prior at the top of the grid; for diffusion ``σ_0 z``."""

    name: ClassVar[str] = "prior"

    def state(
        self,
        z: Tensor,
        top: float,
        process: Process,
        condition: Mapping[str, Any] = NOTHING,
        guidance: Sequence[Guidance] = (),
    ) -> Tensor:
        """``σ_0 z``."""
        if not process.gaussian:
            raise ArgumentError(f"Prior draws from noise streams, which {process!r} does not offer; use Given(x)")
        return top * z


@dataclass(frozen=True)
class LateGrid(Start):
    """What starts below the top of the grid have in common: subclasses have the fields ``sigma`` and ``grid_policy``."""

    if TYPE_CHECKING:

        @property
        def sigma(self) -> float:
            """The level of the start."""

        @property
        def grid_policy(self) -> GridPolicy:
            """What becomes of the levels above it."""

    def __post_init__(self) -> None:
        if not isinstance(self.sigma, int | float) or not 0 < self.sigma < math.inf:
            raise ArgumentError(f"sigma = {self.sigma!r}; expected a positive number")

    def grid(self, grid: Grid) -> Grid:
        """The grid from σ down.

        Raises:
            ArgumentError: if σ lies outside the grid, or the policy is unknown.
        """
        who, top, low = type(self).__name__, grid.levels[0], grid.levels[-1]
        if not low <= self.sigma <= top * (1 + 1e-9):
            raise ArgumentError(
                f"{who} at sigma = {self.sigma:g} lies outside the grid, which runs from {top:g} to {low:g}"
            )
        if self.grid_policy == "regrid":
            return grid.starting_at(self.sigma)
        if self.grid_policy == "truncate":
            return grid.truncated(self.sigma)
        raise ArgumentError(f"grid_policy = {self.grid_policy!r}; expected 'regrid' or 'truncate'")


@dataclass(frozen=True)
class GaussianStart(LateGrid):
    """A start below the top of the grid, from the data's Gaussian.

    Args:
        gaussian: the data's Gaussian: dense, of low rank, or diagonal in the cosine transform.
        sigma: the level of the start.
        grid_policy: ``"regrid"`` (same number of steps, all below σ) or ``"truncate"`` (the levels above σ are dropped).
        seed_history: give a multistep rule the Gaussian's outputs at levels above σ, spaced as the first step is in log σ.
            The first steps are then of full order, which helps where they are short; over a long one the outputs of a
            straight past may mislead.
    """

    gaussian: Gaussian
    sigma: float
    grid_policy: GridPolicy = "regrid"
    seed_history: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.gaussian, Gaussian):
            raise ArgumentError(f"gaussian is a {type(self.gaussian).__name__}; expected a Gaussian")
        super().__post_init__()

    @property
    def laws(self) -> tuple[Denoiser, ...]:
        """The Gaussian."""
        return (self.gaussian,)

    @property
    def seeds_history(self) -> bool:
        """``seed_history``."""
        return self.seed_history

    def past(self, x: Tensor, sigma: float, levels: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """The Gaussian's flow upwards from ``x``, and its denoiser there."""
        law = on_device(self.gaussian, x.device)
        states = [law.flow(x, sigma, level) for level in levels]
        return [(state, law(state, level)) for state, level in zip(states, levels, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """The parameters."""
        parameters = {"gaussian": self.gaussian, "sigma": self.sigma, "grid_policy": self.grid_policy}
        # Left out where it is not used, so that stored samplers and what was drawn with them keep their digest.
        return {"name": self.name, **parameters, **({"seed_history": True} if self.seed_history else {})}


@dataclass(frozen=True)
class LateStart(GaussianStart):
    """A draw from N(μ, Σ + σ² I) at a lower level (Raya & Ambrogioni 2023, section 4.2; Wang & Vastola 2024, section 8).

    Unlike a teleport it has no bias from the finite top of the grid, and it does not keep the noise-to-image map.
    """

    name: ClassVar[str] = "late_start"

    def state(
        self,
        z: Tensor,
        top: float,
        process: Process,
        condition: Mapping[str, Any] = NOTHING,
        guidance: Sequence[Guidance] = (),
    ) -> Tensor:
        """``μ + (Σ + σ²)^½ z``."""
        return on_device(self.gaussian, z.device).colour(z, self.sigma)


@dataclass(frozen=True)
class Teleport(GaussianStart):
    """The same noise carried along the Gaussian flow from the top of the grid to σ, at no evaluation.

    (Wang & Vastola 2024, Alg. 1.) The map from noise to image is kept.
    """

    name: ClassVar[str] = "teleport"

    def state(
        self,
        z: Tensor,
        top: float,
        process: Process,
        condition: Mapping[str, Any] = NOTHING,
        guidance: Sequence[Guidance] = (),
    ) -> Tensor:
        """``μ + sqrt((Σ + σ²)/(Σ + σ_0²)) (σ_0 z − μ)``."""
        return on_device(self.gaussian, z.device).flow(top * z, top, self.sigma)


@dataclass(frozen=True, eq=False)
class Given(Start):
    """States given at the top of the grid, (n, *event): for encoding, continuation and comparison of solvers."""

    x: Tensor
    name: ClassVar[str] = "given"
    stored: ClassVar[bool] = False

    def state(
        self,
        z: Tensor,
        top: float,
        process: Process,
        condition: Mapping[str, Any] = NOTHING,
        guidance: Sequence[Guidance] = (),
    ) -> Tensor:
        """The given states; the run picks the rows."""
        return self.x

    def to_dict(self) -> dict[str, Any]:
        """Raises ArgumentError: states are data and do not belong into a sampler's description."""
        raise ArgumentError(
            "a sampler that starts from Given(x) cannot be written to JSON; pass x to Sampler.run instead"
        )


STARTS: dict[str, type[Start]] = {s.name: s for s in (Prior, LateStart, Teleport, Given)}
