"""The preconditionings of the score networks before EDM: VP and VE (Song et al. 2021), improved DDPM (Nichol & Dhariwal 2021).

In the form of Karras, Aittala, Aila, Laine 2022, table 1, with c_skip = 1:

| | c_out | c_in | c_noise |
| --- | --- | --- | --- |
| VP | −σ | 1/√(σ² + 1) | (M − 1) t(σ) |
| VE | σ | 1 | ln(σ/2) |
| iDDPM | −σ | 1/√(σ² + 1) | M − 1 − j(σ), j the index of the trained level nearest to σ |

c_noise is taken in float32 in the published order of operations, because the networks turn its last bits into angles.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from farfield.networks.preconditioning import Coefficients, Preconditioned


def vp_time(sigma: Tensor, beta_d: float = 19.9, beta_min: float = 0.1) -> Tensor:
    """``t(σ) = (√(β_min² + 2 β_d ln(1 + σ²)) − β_min)/β_d``, in the precision of σ.

    ``processes.VP.time`` is the same map in a form that keeps its digits; the networks were trained with this one.
    """
    return ((beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt() - beta_min) / beta_d


def vp_sigma(t: Tensor, beta_d: float = 19.9, beta_min: float = 0.1) -> Tensor:
    """``σ(t) = √(exp(β_d t²/2 + β_min t) − 1)``, the inverse of :func:`vp_time`, in the precision of t."""
    return ((0.5 * beta_d * t**2 + beta_min * t).exp() - 1).sqrt()


@functools.lru_cache(maxsize=8)
def _iddpm_table(steps: int, c_1: float, c_2: float) -> tuple[float, ...]:
    j = torch.arange(steps + 1, dtype=torch.float32, device="cpu")
    bar = (0.5 * math.pi * j / steps / (c_2 + 1)).sin() ** 2
    ratio = (bar[:-1] / bar[1:]).clamp(min=c_1).numpy()
    u, one = np.zeros(steps + 1, dtype=np.float32), np.float32(1)
    for k in range(steps, 0, -1):  # from float32 to float32: the published levels have its rounding
        u[k - 1] = np.sqrt((u[k] * u[k] + one) / ratio[k - 1] - one)
    return tuple(u.tolist())


def iddpm_levels(steps: int = 1000, c_1: float = 0.001, c_2: float = 0.008) -> Tensor:
    """The M + 1 noise levels of the cosine schedule, falling from u₀ to u_M = 0, in float32 on the CPU.

    ``u_{j−1} = √((u_j² + 1)/max(ᾱ(j−1)/ᾱ(j), C₁) − 1)``, ``ᾱ(j) = sin²(π j/(2M(C₂ + 1)))``.
    """
    return torch.tensor(_iddpm_table(steps, c_1, c_2), dtype=torch.float32, device="cpu")


class VPPreconditioned(Preconditioned):
    """A network that predicts the noise of the variance-preserving process, ``D = x − σ F(x/√(σ²+1), (M−1) t(σ))``.

    Args:
        model, event_shape, sigma_data, sigma_min, sigma_max, label_dim: as for :class:`Preconditioned`; σ_d enters
            objectives only.
        beta_d, beta_min: the linear β(t) = β_min + β_d t.
        M: the number of time steps that the network counts.
    """

    kind: ClassVar[str] = "vp"

    def __init__(
        self,
        model: nn.Module,
        event_shape: tuple[int, ...],
        *arguments: Any,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__(model, event_shape, *arguments, **options)
        self.beta_d, self.beta_min, self.M = float(beta_d), float(beta_min), int(M)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See the table of this module."""
        noise = (self.M - 1) * vp_time(sigma, self.beta_d, self.beta_min)
        return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), noise)


class VEPreconditioned(Preconditioned):
    """A network that predicts minus the noise of the variance-exploding process, ``D = x + σ F(x, ln(σ/2))``."""

    kind: ClassVar[str] = "ve"

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See the table of this module."""
        one = torch.ones_like(sigma)
        return Coefficients(one, sigma, one, (0.5 * sigma).log())


class IDDPMPreconditioned(Preconditioned):
    """A network of the discrete levels u₀ > … > u_M = 0 that predicts the noise, and a variance that is not used.

    Args:
        model, event_shape, sigma_data, sigma_min, sigma_max, label_dim: as for :class:`Preconditioned`; the model has
            twice the channels of a sample.
        M, C_1, C_2: the number of levels and the constants of :func:`iddpm_levels`.
    """

    kind: ClassVar[str] = "iddpm"
    channels_factor: ClassVar[int] = 2
    u: Tensor

    def __init__(
        self,
        model: nn.Module,
        event_shape: tuple[int, ...],
        *arguments: Any,
        M: int = 1000,
        C_1: float = 0.001,
        C_2: float = 0.008,
        **options: Any,
    ) -> None:
        super().__init__(model, event_shape, *arguments, **options)
        self.register_buffer("u", iddpm_levels(M, C_1, C_2).to(torch.get_default_device()))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        levels = self.u
        result = super()._apply(fn, recurse)
        if self.u.element_size() < 4:  # a network in half precision still has to find its level
            self.u = levels.to(self.u.device)
        return result

    def index(self, sigma: Tensor) -> Tensor:
        """``j(σ)``, the number of the level nearest to σ: int64, the shape of ``sigma``."""
        return (sigma.unsqueeze(-1) - self.u).abs().argmin(-1)

    def round_sigma(self, sigma: float | Tensor) -> Tensor:
        """The level u nearest to σ."""
        return self.u[self.index(torch.as_tensor(sigma, dtype=self.u.dtype, device=self.u.device))]

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See the table of this module; a σ below half the smallest positive level has c_noise = −1."""
        noise = (len(self.u) - 2 - self.index(sigma)).to(sigma.dtype)
        return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), noise)
