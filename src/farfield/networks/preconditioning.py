"""From a raw network to a denoiser: ``D(x, σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x, c_noise(σ))``.

The coefficients of Karras, Aittala, Aila, Laine 2022, table 1 and appendix B.6, for data of standard deviation σ_d:

    c_skip = σ_d²/(σ² + σ_d²)   c_out = σ σ_d/√(σ² + σ_d²)   c_in = 1/√(σ² + σ_d²)   c_noise = ln(σ)/4

They keep the input and the training target of F at unit variance for every σ, and make c_out as small as that allows,
so that the network's errors are amplified as little as possible.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError
from farfield.processes import Process
from farfield.processes.base import expand


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in and c_noise, each of the shape of σ."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    noise: Tensor


def edm_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """The four coefficients at noise levels σ > 0, in σ's own precision."""
    total = sigma * sigma + sigma_data**2
    root = total.sqrt()
    return Coefficients(sigma_data**2 / total, sigma * sigma_data / root, 1 / root, sigma.log() / 4)


class Preconditioned(Denoiser):
    """A raw network ``F(x, c_noise, labels=None, augment=None)`` as a denoiser, with EDM's coefficients.

    Subclasses have other coefficients (:mod:`farfield.networks.score_preconditioning`).

    σ and the coefficients are float32 and the network works in its own precision; states keep theirs. The product
    ``c_skip x``, almost all of D at small σ, is then taken in the states' precision, with a c_skip rounded to float32.

    Args:
        model: the raw network.
        event_shape: the shape of one sample.
        sigma_data: standard deviation of the data, > 0.
        sigma_min, sigma_max: the noise levels for which the network was trained.
        label_dim: number of classes; 0 for an unconditional network.
        process: the perturbation process; Gaussian diffusion by default.

    Attributes:
        kind: the name of the preconditioning.
        channels_factor: how many times the channels of a sample the raw network returns; the first ones are used.
        card: what is known about a loaded model (see ``farfield.networks.model_file``); empty for a new one.
    """

    kind: ClassVar[str] = "edm"
    channels_factor: ClassVar[int] = 1

    def __init__(
        self,
        model: nn.Module,
        event_shape: tuple[int, ...],
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        label_dim: int = 0,
        process: Process | None = None,
    ) -> None:
        super().__init__(event_shape, sigma_min, sigma_max, process)
        if not (sigma_data > 0 and math.isfinite(sigma_data)):
            raise ArgumentError(f"sigma_data = {sigma_data}; expected a positive number")
        self.model = model
        self.sigma_data = float(sigma_data)
        self.label_dim = int(label_dim)
        self.card: dict[str, Any] = {}
        self._dtype = next((p.dtype for p in model.parameters()), torch.float32)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        # Looking for the precision at every call would cost more than the coefficients.
        self._dtype = next((p.dtype for p in self.model.parameters()), torch.float32)
        return result

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The four coefficients at noise levels σ > 0, (B,) or (), in float32."""
        return edm_coefficients(sigma, self.sigma_data)

    def round_sigma(self, sigma: float | Tensor) -> Tensor:
        """The nearest noise levels at which the network was trained: for a continuous range, σ itself, in float32."""
        return torch.as_tensor(sigma, dtype=torch.float32)

    def one_hot(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        """Labels as the network takes them: (B or 1, label_dim) rows, zeros for "no class", or None.

        Args:
            labels: class numbers (B,) or () of an integer type, −1 for "no class"; or rows (B, label_dim); or None.
            x: the states, for device and precision.

        Raises:
            ArgumentError: labels given to an unconditional network, or of the wrong shape.
        """
        if self.label_dim == 0:
            if labels is not None:
                raise ArgumentError("labels given, but this network is unconditional (label_dim = 0)")
            return None
        if labels is None:
            return torch.zeros(1, self.label_dim, dtype=self._dtype, device=x.device)
        if not labels.is_floating_point() and labels.ndim < 2:
            # Only where looking is free: on a GPU it would wait for the device at every call.
            if labels.device.type == "cpu" and labels.numel():
                low, high = int(labels.min()), int(labels.max())
                if not -1 <= low <= high < self.label_dim:
                    raise ArgumentError(f"labels reach from {low} to {high}; expected -1 to {self.label_dim - 1}")
            classes = torch.arange(self.label_dim, device=x.device)
            labels = labels.to(x.device).reshape(-1, 1) == classes
        if labels.ndim != 2 or labels.shape[1] != self.label_dim or labels.shape[0] not in (1, x.shape[0]):
            raise ArgumentError(
                f"labels have shape {tuple(labels.shape)}; expected ({x.shape[0]},) class numbers "
                f"or ({x.shape[0]}, {self.label_dim}) rows"
            )
        return labels.to(x.device, self._dtype)

    def forward(
        self,
        x: Tensor,
        sigma: float | Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
        **condition: Any,
    ) -> Tensor:
        """The denoised samples, shape and precision of ``x``.

        Args:
            x: (B, *event).
            sigma: number, () or (B,), > 0.
            labels: see :meth:`one_hot`.
            augment: augmentation labels (B, augment_dim), for networks trained with them.
            **condition: further inputs that the raw network takes.
        """
        # A number is written into a tensor on the device (a fill, no copy), so there is nothing to wait for.
        level = (
            sigma.to(x.device, torch.float32)
            if isinstance(sigma, Tensor)
            else torch.full((), sigma, dtype=torch.float32, device=x.device)
        )
        c = self.coefficients(level)
        raw = self.model(
            (expand(c.inp, x) * x).to(self._dtype),
            # The embedding of c_noise is made in float32 at least: VP's reaches 999, and a half has three digits.
            c.noise.reshape(-1).to(torch.promote_types(self._dtype, torch.float32)),
            labels=self.one_hot(labels, x),
            augment=augment,
            **condition,
        )
        if self.channels_factor > 1:
            raw = raw[:, : x.shape[1]]
        # c_skip and c_out in float32 as published; float64 states are multiplied and added to in their own precision.
        return (expand(c.skip, x) * x + expand(c.out, x) * raw).to(x.dtype)
