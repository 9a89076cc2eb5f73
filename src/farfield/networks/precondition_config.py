"""The preconditioning as configurations and cards hold it: a kind and its numbers, with the published ones as defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from farfield.errors import ArgumentError, unknown_name
from farfield.networks.preconditioning import Preconditioned
from farfield.networks.score_preconditioning import (
    IDDPMPreconditioned,
    VEPreconditioned,
    VPPreconditioned,
    iddpm_levels,
    vp_sigma,
)

#: The preconditionings by name.
PRECONDITIONINGS: dict[str, type[Preconditioned]] = {
    cls.kind: cls for cls in (Preconditioned, VPPreconditioned, VEPreconditioned, IDDPMPreconditioned)
}
#: The arguments that only some kinds have, as published.
_OWN: dict[str, dict[str, float]] = {
    "vp": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000},
    "iddpm": {"M": 1000, "C_1": 0.001, "C_2": 0.008},
}
_BOUNDS = {"beta_d": (1e-3, 100), "beta_min": (0, 10), "M": (2, 100_000), "C_1": (1e-6, 1), "C_2": (0, 1)}


@dataclass(frozen=True)
class Preconditioning:
    """What is around the raw network: the kind and the numbers of a :class:`Preconditioned`.

    A number that is None is replaced by the published one, if the kind has it.

    Args:
        kind: ``edm``, ``vp``, ``ve`` or ``iddpm``.
        sigma_data: standard deviation of the data; None takes it from the training images.
        sigma_min, sigma_max: the noise levels for which the model is meant: 0.002 and 80 for ``edm``, 0.02 and 100 for
            ``ve``, those of t = 1e-5 and 1 for ``vp``, the last and first trained level for ``iddpm``.
        beta_d, beta_min: of ``vp``, β(t) = β_min + β_d t.
        M: time steps of ``vp``, levels of ``iddpm``.
        C_1, C_2: of ``iddpm``, see :func:`iddpm_levels`.

    Raises:
        ArgumentError: a number out of bounds, or one that the kind does not have.
    """

    kind: Literal["edm", "vp", "ve", "iddpm"] = "edm"
    sigma_data: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    beta_d: float | None = None
    beta_min: float | None = None
    M: int | None = None
    C_1: float | None = None
    C_2: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in PRECONDITIONINGS:
            raise unknown_name("preconditioning.kind", self.kind, PRECONDITIONINGS)
        if self.sigma_data is not None and not 0 < self.sigma_data < math.inf:
            raise ArgumentError(f"preconditioning.sigma_data = {self.sigma_data}; expected a positive number")
        own = _OWN.get(self.kind, {})
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, own.get(name))
            elif name not in own:
                raise ArgumentError(f"preconditioning.{name} = {value}; expected none, {self.kind!r} does not have it")
            elif not low <= value <= high:
                raise ArgumentError(f"preconditioning.{name} = {value}; expected a value from {low:g} to {high:g}")
        least, most = self._published_range()
        object.__setattr__(self, "sigma_min", least if self.sigma_min is None else self.sigma_min)
        object.__setattr__(self, "sigma_max", most if self.sigma_max is None else self.sigma_max)
        if not 0 < self.noise_range[0] < self.noise_range[1]:
            raise ArgumentError(
                f"preconditioning.sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}; expected 0 < min < max"
            )

    def _published_range(self) -> tuple[float, float]:
        if self.kind == "vp":
            beta_d, beta_min = self.own["beta_d"], self.own["beta_min"]
            # In float32, as published: 0.0009765625, where exact arithmetic has 0.0010005.
            low = vp_sigma(torch.tensor(1e-5, dtype=torch.float32, device="cpu"), beta_d, beta_min)
            return float(low), math.sqrt(math.expm1(beta_d / 2 + beta_min))
        if self.kind == "iddpm":
            levels = iddpm_levels(self.own["M"], self.own["C_1"], self.own["C_2"])
            return float(levels[-2]), float(levels[0])
        return (0.02, 100.0) if self.kind == "ve" else (0.002, 80.0)

    @property
    def noise_range(self) -> tuple[float, float]:
        """``sigma_min`` and ``sigma_max`` as numbers."""
        assert self.sigma_min is not None
        assert self.sigma_max is not None
        return self.sigma_min, self.sigma_max

    @property
    def own(self) -> dict[str, Any]:
        """The arguments that only this kind has."""
        return {name: getattr(self, name) for name in _OWN.get(self.kind, {})}

    def build(self, model: torch.nn.Module, event_shape: tuple[int, ...], label_dim: int) -> Preconditioned:
        """The denoiser around a raw network.

        Raises:
            ArgumentError: if ``sigma_data`` is not a number yet.
        """
        if self.sigma_data is None:
            raise ArgumentError("preconditioning.sigma_data is missing; expected the standard deviation of the data")
        cls = PRECONDITIONINGS[self.kind]
        return cls(model, event_shape, self.sigma_data, *self.noise_range, label_dim, **self.own)
