"""A finite set's posterior mean and log-density as functions that autograd can differentiate, by their closed forms.

Both average over the data in blocks, which autograd could not go through without keeping every block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from farfield.distributions.empirical import Empirical


def posterior_mean(law: Empirical, x: Tensor, sigma: float | Tensor, labels: Tensor | None) -> Tensor:
    """``Σ_i w_i y_i``, as :meth:`Empirical.forward` describes it."""
    result: Tensor = _Mean.apply(x, law, sigma, labels)
    return result


def log_density(law: Empirical, x: Tensor, sigma: float | Tensor, labels: Tensor | None) -> Tensor:
    """``log (1/N) Σ_i p(x | y_i, σ)``, as :meth:`Empirical.log_prob` describes it; differentiable in ``x`` alone."""
    result: Tensor = _Density.apply(x, law, sigma, labels)
    return result


class _Mean(torch.autograd.Function):
    """The posterior mean with closed-form derivatives in x and, under diffusion, in σ, in either mode."""

    @staticmethod
    def forward(x: Tensor, law: Empirical, sigma: float | Tensor, labels: Tensor | None) -> Tensor:
        averages = law._average(x, sigma, labels)
        return averages.vectors[0].to(x.dtype).view(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.law, sigma, ctx.labels = inputs
        ctx.set_materialize_grads(False)  # a level that does not move costs no pass
        ctx.number = None if isinstance(sigma, Tensor) else sigma
        saved = (x, sigma) if isinstance(sigma, Tensor) else (x,)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        x, sigma = _saved(ctx)
        (v,) = gradients
        if v is None:
            return None, None, None, None
        state = ctx.law.vjp(x, sigma, v, ctx.labels)[1] if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[2]:
            return state, None, None, None
        change = (_level_derivative(ctx.law, x, sigma, ctx.labels) * v).flatten(1).sum(1)
        return state, None, (change.sum() if sigma.numel() == 1 else change).reshape(sigma.shape).to(sigma), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        x, sigma = _saved(ctx)
        along, _, faster, _ = tangents
        moved = torch.zeros_like(x) if along is None else ctx.law.jvp(x, sigma, along, ctx.labels)[1]
        if faster is None:
            return moved
        rate = faster.reshape(-1, *(1,) * (x.ndim - 1)).to(x)
        return moved + rate * _level_derivative(ctx.law, x, sigma, ctx.labels)


def _saved(ctx: Any) -> tuple[Tensor, Any]:
    """The state and the level that a function was given."""
    return (*ctx.saved_tensors, ctx.number)[:2]


def _level_derivative(law: Empirical, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """``∂D/∂σ``, shape of ``x``."""
    from farfield.distributions.empirical_calculus import level_derivative  # which is made of this module's averages

    return level_derivative(law, x, sigma, labels)[1]


class _Density(torch.autograd.Function):
    """The log-density with ``Σ w_i m_i (y_i − x)`` as its derivative."""

    @staticmethod
    def forward(x: Tensor, law: Empirical, sigma: float | Tensor, labels: Tensor | None) -> Tensor:
        averages = law._average(x, sigma, labels, (), 0)
        counts = law._count_of(None if labels is None else torch.as_tensor(labels).expand(x.shape[0]))
        own = torch.as_tensor(counts, dtype=torch.float64, device=x.device).log()
        return averages.log_sum - own + law.process.log_normalizer(law._levels(sigma, x), law.dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.law, ctx.sigma, ctx.labels = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def _gradient(law: Empirical, x: Tensor, sigma: float | Tensor, labels: Tensor | None) -> Tensor:
        state = x.flatten(1).double()
        if law.process.gaussian:
            averages = law._average(x, sigma, labels)
            slope = (averages.vectors[0].double() - state) * law._levels(sigma, x).unsqueeze(1) ** -2
        else:
            averages = law._average(x, sigma, labels, ("1", "m"), 2)
            mean, steep = averages.vectors.double()
            reference = law.points.reference(x.flatten(1), law._levels(sigma, x), law.process).unsqueeze(1)
            slope = reference * (mean - state) + steep - averages.scalars[1].unsqueeze(1) * state
        return slope.to(x.dtype).view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        slope = _Density._gradient(ctx.law, x, ctx.sigma, ctx.labels)
        weight = gradients[0].to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        return weight * slope, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        slope = _Density._gradient(ctx.law, x, ctx.sigma, ctx.labels)
        return (slope.flatten(1).double() * tangents[0].flatten(1).double()).sum(1)
