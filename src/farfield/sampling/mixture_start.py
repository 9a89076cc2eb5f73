"""Teleports along the flow of an exact law that is closer to the model than one Gaussian: a mixture, or the training set.

The law's own sampling ODE is integrated from the top of the grid down to the start, at no evaluation of the network (Wang &
Vastola 2024, A.7). The level that can be reached without loss is lower than a Gaussian's. The law's evaluations are not free:
those of a training set of 45,000 images cost more than a small network's. The chain Gaussian → law → network, with a switch at
two levels, spends them where they tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.processes import Process
from farfield.sampling.grids import Grid
from farfield.sampling.guidance import Guidance
from farfield.sampling.law_flow import law_flow
from farfield.sampling.solvers.base import on_device
from farfield.sampling.starts import NOTHING, STARTS, GridPolicy, LateGrid


@dataclass(frozen=True, eq=False)
class LawTeleport(LateGrid):
    """The same noise carried along a law's flow from the top of the grid to σ; the map from noise to image is kept.

    The law gets the run's conditions (a conditional training set makes use of ``labels``) and the sampler's guidance.

    Args:
        law: a denoiser, usually a ``GaussianMixture`` or an ``Empirical``.
        sigma: the level of the start.
        grid_policy: as for :class:`~farfield.sampling.starts.Teleport`.
        gaussian: the data's Gaussian, the integrating factor of the law's steps.
        switch: carry the noise along ``gaussian``'s flow down to this level first, in closed form; None starts the law at
            the top.
        steps: of the law's integration.

    Raises:
        ArgumentError: if the shapes disagree, or the levels are not in order.
    """

    law: Denoiser
    sigma: float
    grid_policy: GridPolicy = "regrid"
    gaussian: Gaussian | None = None
    switch: float | None = None
    steps: int = 48
    name: ClassVar[str] = "law_teleport"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.law, Denoiser):
            raise ArgumentError(f"law is a {type(self.law).__name__}; expected a denoiser")
        if self.gaussian is not None and not isinstance(self.gaussian, Gaussian):
            raise ArgumentError(f"gaussian is a {type(self.gaussian).__name__}; expected a Gaussian")
        if not isinstance(self.steps, int) or not 1 <= self.steps <= 10_000:
            raise ArgumentError(f"steps = {self.steps!r}; expected a whole number from 1 to 10,000")
        if self.switch is not None and (self.gaussian is None or not self.sigma <= self.switch):
            raise ArgumentError(
                f"switch = {self.switch!r}; expected a level of at least sigma = {self.sigma:g}, with a gaussian above it"
            )

    @property
    def laws(self) -> tuple[Denoiser, ...]:
        """The law, and the Gaussian if there is one."""
        return (self.law,) if self.gaussian is None else (self.law, self.gaussian)

    def grid(self, grid: Grid) -> Grid:
        """The grid from σ down.

        Raises:
            ArgumentError: if σ lies outside the grid, or the switch above it.
        """
        if self.switch is not None and self.switch > grid.levels[0] * (1 + 1e-9):
            raise ArgumentError(f"switch = {self.switch:g} lies above the grid, which starts at {grid.levels[0]:g}")
        return super().grid(grid)

    def state(
        self,
        z: Tensor,
        top: float,
        process: Process,
        condition: Mapping[str, Any] = NOTHING,
        guidance: Sequence[Guidance] = (),
    ) -> Tensor:
        """The Gaussian's flow down to the switch, the law's from there."""
        law = on_device(self.law, z.device)
        gaussian = None if self.gaussian is None else on_device(self.gaussian, z.device)
        x = top * z
        if self.switch is not None and gaussian is not None:
            x, top = gaussian.flow(x, top, self.switch), self.switch
        return law_flow(
            law, x, top, self.sigma,
            steps=self.steps, gaussian=gaussian, condition=condition, guidance=guidance,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The parameters.

        Raises:
            ArgumentError: for a law that is neither a Gaussian nor a mixture; a training set is data.
        """
        if not isinstance(self.law, Gaussian | GaussianMixture):
            raise ArgumentError(
                f"a sampler that starts from a {type(self.law).__name__} cannot be written to JSON; a Gaussian or a "
                "GaussianMixture can"
            )
        names: Sequence[str] = ("law", "sigma", "grid_policy", "gaussian", "switch", "steps")
        return {"name": self.name, **{name: getattr(self, name) for name in names}}


STARTS[LawTeleport.name] = LawTeleport
