"""The flow of an exact law by steps: for laws that have no closed form, mixtures and guided Gaussians among them.

Every sample is solved on its own, on a grid fixed beforehand, so that its state does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.sampling.grids import karras
from farfield.sampling.guidance import Guidance
from farfield.sampling.legs import Route, legs_between
from farfield.sampling.run import Evaluations, solve
from farfield.sampling.solvers import Whitened


@torch.no_grad()
def law_flow(
    law: Denoiser,
    x: Tensor,
    sigma_from: float,
    sigma_to: float,
    *,
    steps: int = 64,
    gaussian: Gaussian | None = None,
    condition: Mapping[str, Any] | None = None,
    guidance: Sequence[Guidance] = (),
) -> Tensor:
    """The solution of ``dx/dσ = (x − D)/σ`` of a law, from one level to a lower one, by third-order whitened steps.

    Args:
        law: any denoiser.
        x: states (B, *event) at ``sigma_from``.
        sigma_from, sigma_to: the levels, ``sigma_from >= sigma_to > 0``.
        steps: on a Karras grid between them; one evaluation of the law each.
        gaussian: a Gaussian close to the law, whose flow every step integrates exactly.
        condition: passed to the law.
        guidance: corrects the law's outputs.

    Raises:
        ArgumentError: for levels that do not fall, or no steps.
        NonFiniteError: if the law's outputs are not finite.
    """
    if steps < 1 or not 0 < sigma_to <= sigma_from:
        raise ArgumentError(
            f"sigma_from = {sigma_from}, sigma_to = {sigma_to}, steps = {steps}; "
            "expected 0 < sigma_to <= sigma_from and at least one step"
        )
    if sigma_to == sigma_from:
        return x
    levels = karras(steps + 1, sigma_to, sigma_from).levels
    route = Route(sigma_from, legs_between(levels), sigma_to)
    evaluate = Evaluations(law, dict(condition or {}), guidance)
    return solve(evaluate, Whitened(3), route, x, covariance=gaussian).x
