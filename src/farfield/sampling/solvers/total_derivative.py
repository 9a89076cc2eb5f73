"""How the denoiser's output changes along the sampling ODE: ``dD/dσ = ∂D/∂σ + (∂D/∂x) (x − D)/σ``.

One pass of the model in dual numbers, the state moving along the slope and the level at unit speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from farfield.distributions import Empirical
from farfield.errors import ArgumentError

_ADVICE = "use Taylor2(derivative='difference')"


def total_derivative(evaluate: Callable[[Tensor, Any], Tensor], x: Tensor, sigma: float, slope: Tensor) -> Tensor:
    """``dD/dσ`` along the ODE, shape of ``x``.

    Args:
        evaluate: ``D(x, σ)``; it gets σ as a tensor ().
        x: states (B, *event).
        sigma: their level, positive.
        slope: ``dx/dσ`` there, ``(x − D)/σ``.

    Raises:
        ArgumentError: if an operation of the model has no forward derivative.
    """
    level = torch.full((), sigma, dtype=x.dtype, device=x.device)
    try:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no forward derivative
            found: tuple[Tensor, Tensor]
            found = torch.func.jvp(evaluate, (x, level), (slope, torch.ones_like(level)))  # type: ignore[assignment]
    except (NotImplementedError, RuntimeError) as error:
        if "forward" not in str(error) and "jvp" not in str(error):
            raise
        reason = " ".join(str(error).split())[:120]
        raise ArgumentError(f"the model has no forward derivative ({reason}); {_ADVICE}") from error
    return found[1]


def check_level_derivative(denoiser: Callable[..., Tensor]) -> None:
    """Raise ``ArgumentError`` for a finite set under another process than diffusion: its derivative in σ is not known."""
    if isinstance(denoiser, Empirical) and not denoiser.process.gaussian:
        raise ArgumentError(f"the derivative in sigma of a finite set is not known for {denoiser.process!r}; {_ADVICE}")
