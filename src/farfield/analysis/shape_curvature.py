"""How a path of the sampling ODE bends at a state, from the denoising ODE.

Along a solution of ``dx/dσ = (x − r)/σ`` the denoiser's output r obeys (Chen et al., A geometric perspective on diffusion
models, Proposition 3)

    dr/dσ = −σ d²x/dσ²,

so the path is affine in σ where the output stands still, and a straight line where the output moves along the path. With
``⊥`` for what is across the direction of the path,

    curvature   κ = ‖x''_⊥‖/‖x'‖²  (one over the radius),        turning  dθ/d ln σ = ‖(dr/dσ)_⊥‖/‖dx/dσ‖.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.analysis.shape_rows import across, unit
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class PathCurvature:
    """The path's derivatives at a batch of states, float64.

    Attributes:
        velocity: dx/dσ, (B, *event).
        denoised_rate: dr/dσ along the path, (B, *event).
        acceleration: d²x/dσ² = −(dr/dσ)/σ, (B, *event).
        curvature: κ, (B,), in units of one over those of the data; 0 for a straight path.
        turning: dθ/d ln σ, (B,), degrees for each factor e of the noise level.
    """

    velocity: Tensor
    denoised_rate: Tensor
    acceleration: Tensor
    curvature: Tensor
    turning: Tensor


def path_curvature(
    denoiser: Denoiser, x: Tensor, sigma: float, *, step: float = 1e-3, **condition: Any
) -> PathCurvature:
    """Derivatives of the path through given states, from three evaluations.

    ``dr/dσ`` is a central difference along the path's tangent, whose error is of the order of ``step²``: the path's own
    bending moves both ends alike and drops out.

    Args:
        denoiser: the model; exact laws in float64 give about six digits with the default step.
        x: states (B, *event).
        sigma: their level, > 0.
        step: of the difference, as a share of σ. A float32 network wants about 1e-2.
        **condition: what the denoiser takes besides.

    Raises:
        ArgumentError: for a level or step that is not positive, a step of 1 or more, or a wrong shape.
    """
    denoiser.check_shape(x)
    if not sigma > 0 or not 0 < step < 1:
        raise ArgumentError(f"sigma = {sigma}, step = {step}; expected sigma > 0 and a step between 0 and 1")
    with torch.no_grad():
        slope = (x - denoiser(x, sigma, **condition)) / sigma
        h = step * sigma
        above, below = (denoiser(x + s * slope, sigma + s, **condition).double() for s in (h, -h))
    rate = ((above - below) / (2 * h)).flatten(1)
    velocity = slope.double().flatten(1)
    speed = velocity.norm(dim=1)
    beside = across(rate, unit(velocity)).norm(dim=1)
    tiny = torch.finfo(torch.float64).tiny
    moving = speed > 0
    return PathCurvature(
        velocity=velocity.view(x.shape),
        denoised_rate=rate.view(x.shape),
        acceleration=(-rate / sigma).view(x.shape),
        curvature=torch.where(moving, beside / (sigma * speed.square()).clamp(min=tiny), 0.0),
        turning=torch.where(moving, beside / speed.clamp(min=tiny), 0.0).rad2deg(),
    )
