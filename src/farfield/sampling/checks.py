"""What a sampler refuses: parts that do not fit together, and models, conditions and states that do not fit it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError

if TYPE_CHECKING:
    from farfield.sampling.sampler import Sampler


def check_floating(name: str, x: Tensor) -> None:
    """Raise ``ArgumentError`` unless ``x`` holds floating-point numbers."""
    if not x.is_floating_point():
        raise ArgumentError(f"{name} holds {x.dtype}; expected floating-point numbers, such as {name}.float()")


def check_parts(sampler: Sampler) -> None:
    """Raise ``ArgumentError`` where a sampler's parts do not fit together."""
    if sampler.covariance is not None and not sampler.rule.uses_covariance:
        raise ArgumentError(
            f"covariance is given, but solver {sampler.rule.name!r} makes no use of one; did you mean 'whitened'?"
        )
    if sampler.noise is not None and not sampler.rule.takes_noise:
        raise ArgumentError(
            f"noise = {sampler.noise!r}: solver {sampler.rule.name!r} would be wrong with noise between its steps; "
            "choose another solver or no noise"
        )
    if sampler.rule.adaptive and any(getattr(part, "interval", None) is not None for part in sampler.parts):
        raise ArgumentError(
            f"guidance in an interval of levels: solver {sampler.rule.name!r} has a level of its own for each sample; "
            "guide at all levels or choose another solver"
        )
    if sampler.noise is not None and sampler.start.seeds_history:
        raise ArgumentError(
            "seed_history has no meaning with noise, which leaves the Gaussian's path; drop one of them"
        )
    if not sampler.levels:
        raise ArgumentError("the grid leaves no level to visit")
    if sampler.finish.rule is not None and len(sampler.rule.stops(sampler.levels)) < len(sampler.levels):
        raise ArgumentError(
            f"finish = {sampler.finish!r}: solver {sampler.rule.name!r} passes over the levels at which the rule would look; "
            "give it stops_at='grid'"
        )


def check_model(sampler: Sampler, denoiser: Denoiser, condition: dict[str, Any]) -> None:
    """Raise ``ArgumentError`` for a model that this sampler cannot sample, and conditions under which it cannot."""
    laws = [("covariance", sampler.covariance), *((f"start {sampler.start.name!r}", law) for law in sampler.start.laws)]
    for name, law in laws:
        if law is not None and law.event_shape != denoiser.event_shape:
            raise ArgumentError(
                f"{name} is a {type(law).__name__} of shape {law.event_shape}; "
                f"the model's samples have {denoiser.event_shape}"
            )
    if sampler.noise is not None and not denoiser.process.gaussian:
        raise ArgumentError(f"noise = {sampler.noise!r} is Gaussian, which does not belong to {denoiser.process!r}")
    for part in sampler.parts:
        part.check(condition)
    for s in sampler.visits():
        if not denoiser.sigma_min * (1 - 1e-6) <= s <= denoiser.sigma_max * (1 + 1e-6):
            which, advice = "of the grid", ""
            if sampler.noise is not None and s > sampler.grid.levels[0]:
                which = "to which the noise lifts"
            elif sampler.noise is not None and not any(math.isclose(s, level) for level in sampler.levels):
                which = f"to which {sampler.rule.name!r} goes down before the noise lifts it"
                advice = "; 'euler', 'dpmpp_2m' and 'whitened' do not evaluate there"
            raise ArgumentError(
                f"noise level {s:g} {which} lies outside the "
                f"model's range [{denoiser.sigma_min:g}, {denoiser.sigma_max:g}]{advice}"
            )
