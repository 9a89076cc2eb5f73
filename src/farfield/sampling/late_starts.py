"""Late starts other than from the fitted Gaussian: from N(0, I), and from moments of data that were noised.

The plain late start of Raya & Ambrogioni (2023) draws the *variance-preserving* state from N(0, I) at whatever index the
sampler starts, their vanilla grids included. In the variance-exploding coordinates of this library, ``x = z/sqrt(ᾱ)``, that
is ``sqrt(1 + σ²) z``: the right second moments for centred data of unit variance, and for no others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.processes import Process
from farfield.sampling.grids import Grid
from farfield.sampling.guidance import Guidance
from farfield.sampling.solvers.base import on_device
from farfield.sampling.starts import NOTHING, STARTS, GridPolicy, LateGrid, Start


@dataclass(frozen=True)
class LatePrior(LateGrid):
    """``sqrt(1 + σ²) z``: N(0, I) in variance-preserving coordinates, at a level that may be far below the noise.

    Args:
        sigma: the level; None is the top of the grid, which is how the vanilla samplers start.
        grid_policy: ``"regrid"`` (same number of steps, all below σ) or ``"truncate"``.
    """

    sigma: float | None = None  # type: ignore[assignment]
    grid_policy: GridPolicy = "regrid"
    name: ClassVar[str] = "late_prior"

    def __post_init__(self) -> None:
        if self.sigma is not None:
            super().__post_init__()
        if self.grid_policy not in ("regrid", "truncate"):
            raise ArgumentError(f"grid_policy = {self.grid_policy!r}; expected 'regrid' or 'truncate'")

    def grid(self, grid: Grid) -> Grid:
        """The grid from σ down; as it is without σ."""
        return grid if self.sigma is None else super().grid(grid)

    def state(
        self,
        z: Tensor,
        top: float,
        process: Process,
        condition: Mapping[str, Any] = NOTHING,
        guidance: Sequence[Guidance] = (),
    ) -> Tensor:
        """``sqrt(1 + σ²) z``."""
        return math.hypot(1.0, top if self.sigma is None else self.sigma) * z

    def to_dict(self) -> dict[str, Any]:
        """The parameters."""
        return {"name": self.name, "sigma": self.sigma, "grid_policy": self.grid_policy}


@dataclass(frozen=True)
class NoisedStart(LateGrid):
    """A draw from a Gaussian that was fitted to *noised* data, with no noise added: ``μ̂ + Σ̂^½ z``.

    The source's own procedure, with the moments of :func:`~farfield.sampling.late_moments.noised_moments` in place of
    ``N(μ, Σ + σ² I)``: each level needs its own fit, and its sampling error.

    Args:
        gaussian: of the noised data, in variance-exploding coordinates.
        sigma: the level to which they were noised.
        grid_policy: ``"regrid"`` or ``"truncate"``.
    """

    gaussian: Gaussian
    sigma: float
    grid_policy: GridPolicy = "regrid"
    name: ClassVar[str] = "noised_start"

    def __post_init__(self) -> None:
        if not isinstance(self.gaussian, Gaussian):
            raise ArgumentError(f"gaussian is a {type(self.gaussian).__name__}; expected a Gaussian")
        super().__post_init__()

    @property
    def laws(self) -> tuple[Denoiser, ...]:
        """The Gaussian."""
        return (self.gaussian,)

    def state(
        self,
        z: Tensor,
        top: float,
        process: Process,
        condition: Mapping[str, Any] = NOTHING,
        guidance: Sequence[Guidance] = (),
    ) -> Tensor:
        """``μ̂ + Σ̂^½ z``."""
        return on_device(self.gaussian, z.device).colour(z)

    def to_dict(self) -> dict[str, Any]:
        """The parameters."""
        return {"name": self.name, "gaussian": self.gaussian, "sigma": self.sigma, "grid_policy": self.grid_policy}


LATE_STARTS: tuple[type[Start], ...] = (LatePrior, NoisedStart)
STARTS.update({s.name: s for s in LATE_STARTS})
