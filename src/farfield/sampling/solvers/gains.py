"""Measured gains: a linear part of the denoiser that is the model's own and not its data's.

In direction k of the data's covariance the Gaussian denoiser has the gain ``λ/(λ + σ²)``. A model trained briefly, or with
another loss or process, has another one, ``g(σ) = λ/(λ + σ²) + δ(σ)``, and the whitened solver's integrating factor becomes

    exp(−∫ (1 − g) d log σ) = sqrt((b² + λ)/(a² + λ)) · exp(Δ(a) − Δ(b)),      Δ(σ) = ∫ δ d log σ,

from level a to level b. δ is a smooth curve through its measured values, a monotone piecewise cubic in log σ with a closed
integral, and 0 outside the levels at which it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from farfield.errors import ArgumentError, DataError
from farfield.numerics import arrays
from farfield.sampling.grids import validated


@dataclass(frozen=True, eq=False)
class GainTable:
    """By how much a model's gains differ from the Gaussian ones; measured by :func:`farfield.sampling.calibration.calibrate`.

    Args:
        sigmas: K noise levels, decreasing, at least 2.
        deviations: δ (K, r + 1): a column for each mode of the covariance, the last for the directions outside its basis.
        evaluations: what measuring cost, in denoiser evaluations of one sample.

    Raises:
        ArgumentError: for levels that do not decrease, or deviations of another shape or not finite.
    """

    sigmas: Sequence[float]
    deviations: Tensor
    evaluations: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", validated(self.sigmas))
        table = torch.as_tensor(self.deviations).detach().to("cpu", torch.float64)
        if len(self.sigmas) < 2 or table.ndim != 2 or len(table) != len(self.sigmas) or not table.shape[1]:
            raise ArgumentError(
                f"{len(self.sigmas)} levels with deviations of shape {tuple(table.shape)}; expected (K, r + 1), K >= 2"
            )
        if not bool(torch.isfinite(table).all()):
            raise ArgumentError("deviations holds values that are not finite")
        object.__setattr__(self, "deviations", table)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GainTable):
            return NotImplemented
        return self.sigmas == other.sigmas and torch.equal(self.deviations, other.deviations)

    def __hash__(self) -> int:
        return hash((self.sigmas, self.modes))

    def __repr__(self) -> str:
        return f"GainTable({len(self.sigmas)} levels, {self.modes} modes, largest {self.largest:.3g})"

    @property
    def modes(self) -> int:
        """r + 1."""
        return int(self.deviations.shape[1])

    @property
    def largest(self) -> float:
        """The largest ``|δ|``."""
        return float(self.deviations.abs().max())

    @property
    def lowest(self) -> float:
        """log σ of the lowest level."""
        return math.log(self.sigmas[-1])

    @cached_property
    def _curves(self) -> tuple[Any, Any]:
        curve = PchipInterpolator(np.log(self.sigmas)[::-1], self.deviations.numpy()[::-1], axis=0)
        return curve, curve.antiderivative()

    def at(self, sigma: float) -> Tensor:
        """δ (r + 1,) at a level."""
        if not self.sigmas[-1] * (1 - 1e-9) <= sigma <= self.sigmas[0] * (1 + 1e-9):
            return torch.zeros(self.modes, dtype=torch.float64)
        return torch.from_numpy(np.asarray(self._curves[0](self._inside(math.log(sigma)))))

    def integral(self, log_sigma: np.ndarray | float) -> Tensor:
        """Δ (m, r + 1), or (r + 1,) for a number, counted from the lowest level."""
        return torch.from_numpy(np.asarray(self._curves[1](self._inside(log_sigma))))

    def _inside(self, log_sigma: np.ndarray | float) -> np.ndarray:
        return np.clip(log_sigma, self.lowest, math.log(self.sigmas[0]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; :meth:`from_dict` rebuilds the table bit for bit."""
        return {
            "sigmas": list(self.sigmas),
            "deviations": arrays.encode(self.deviations),
            "evaluations": self.evaluations,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> GainTable:
        """The table that :meth:`to_dict` wrote.

        Raises:
            DataError: if a field is missing or of the wrong type.
        """
        try:
            levels = [float(s) for s in value["sigmas"]]
            return cls(levels, arrays.decode(value["deviations"], "deviations"), int(value["evaluations"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a stored gain table: {error!r}") from error
