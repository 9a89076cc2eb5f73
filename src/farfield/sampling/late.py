"""The samplers of the late-start tables by their names: DDPM, DDIM and PNDM of n steps from an index of the schedule."""

from __future__ import annotations

from typing import Literal, get_args

from farfield.distributions import Gaussian
from farfield.errors import unknown_name
from farfield.processes import DDPM
from farfield.sampling.index_grids import IndexGrid, LateStartGrid, Schedule, VanillaGrid
from farfield.sampling.late_starts import LatePrior
from farfield.sampling.noise import Ancestral, DDPMNoise
from farfield.sampling.sampler import Sampler
from farfield.sampling.solvers.euler import Euler
from farfield.sampling.solvers.pndm import PNDM
from farfield.sampling.starts import LateStart, Start

Kind = Literal["ddpm", "ddim", "pndm", "ancestral"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def late_sampler(
    kind: Kind,
    n: int,
    s_start: float | None = None,
    law: Gaussian | Start | None = None,
    *,
    timesteps: int = 1000,
    schedule: Schedule = "linear",
) -> Sampler:
    """A sampler of n steps on whole indices of a DDPM schedule.

    Args:
        kind: ``"ddim"``; ``"ddpm"``, its stochastic twin with η = 1 (the n-step "DDPM" of the published tables); ``"pndm"``;
            or ``"ancestral"``, DDPM with the forward variances β, meant for all indices: ``late_sampler("ancestral", s + 1,
            s)`` is DDPM-1000 started at index s.
        n: steps.
        s_start: the index of the start; by default that of the vanilla grid.
        law: None draws N(0, I) in variance-preserving coordinates, a late start without a correction; a Gaussian is that of
            the clean data, for the Gaussian late start; any other start is used as it is.
        timesteps, schedule: of the DDPM schedule.

    Returns:
        The sampler; its cost is its ``nfe``: n, and for PNDM 4 min(n, 3) + max(0, n − 3) (3 less for n ≤ 3).

    Raises:
        ArgumentError: for an unknown kind, or a grid that does not exist.
    """
    if kind not in KINDS:
        raise unknown_name("sampler", kind, KINDS)
    grid: IndexGrid = (
        VanillaGrid(n, timesteps, schedule) if s_start is None else LateStartGrid(n, s_start, timesteps, schedule)
    )
    start: Start = LatePrior() if law is None else LateStart(law, grid.levels[0]) if isinstance(law, Gaussian) else law
    return Sampler(
        PNDM(timesteps, schedule) if kind == "pndm" else Euler(),
        grid,
        start=start,
        noise={"ddpm": Ancestral(1.0), "ancestral": DDPMNoise()}.get(kind),
    )


def vanilla_start(n: int, timesteps: int = 1000, schedule: Schedule = "linear") -> int:
    """The index at which a vanilla sampler of n steps starts."""
    return int(VanillaGrid(n, timesteps, schedule).indices[0])


def index_of(sigma: float, timesteps: int = 1000, schedule: Schedule = "linear") -> float:
    """The index of a noise level, with its fraction."""
    return DDPM(timesteps, schedule).time(float(sigma))


def sigma_of(index: float, timesteps: int = 1000, schedule: Schedule = "linear") -> float:
    """The noise level of an index, ``sqrt(1/ᾱ − 1)``."""
    return DDPM(timesteps, schedule).sigma(float(index))
