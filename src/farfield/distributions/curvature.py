"""Leading eigenpairs of posterior covariances ``Cov(x₀ | x) = σ² ∂D/∂x``, from thin factors or from Jacobian products.

A factor F (d, m) with signs or scales s stands for ``c I + F diag(s) Fᵀ``: a mixture's posterior covariance is one with the
bases and the posterior means of the components that have weight, a finite set's with the points that have weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from farfield.distributions.base import level
from farfield.errors import ArgumentError

if TYPE_CHECKING:
    from farfield.distributions.base import Distribution
    from farfield.distributions.mixture import GaussianMixture

#: Up to this many coordinates the whole Jacobian is formed.
DENSE = 256
#: Weight that a posterior covariance may leave out.
DISCARD = 1e-13


def check_count(count: int, dim: int) -> None:
    """Raise ``ArgumentError`` unless 1 ≤ count ≤ d."""
    if not 1 <= count <= dim:
        raise ArgumentError(f"count = {count}; expected 1 to the number of coordinates, {dim}")


def factored(factor: Tensor, scale: Tensor, constant: float, count: int) -> tuple[Tensor, Tensor]:
    """The leading eigenpairs of ``constant I + F diag(scale) Fᵀ``: values (count,) descending, vectors (count, d).

    Args:
        factor: F, (d, m) float64.
        scale: (m,), of either sign.
        constant: what every direction has at least.
        count: 1 to d.
    """
    dim, width = factor.shape
    if width >= dim:
        values, vectors = torch.linalg.eigh((factor * scale) @ factor.T)
        return values.flip(0)[:count] + constant, vectors.flip(1)[:, :count].T
    # Directions outside of the factor have the constant alone; as many as could be asked for are added to its span.
    extra = max(0, min(count, dim - width))
    filling = torch.randn(dim, extra, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    span = torch.linalg.qr(torch.cat((factor, filling.to(factor.device)), 1))[0]
    small = span.T @ factor
    values, vectors = torch.linalg.eigh((small * scale) @ small.T)
    return values.flip(0)[:count] + constant, (span @ vectors.flip(1)[:, :count]).T


def mixture_spectrum(law: GaussianMixture, x: Tensor, sigma: float | Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``Σ_i w_i [σ² Σ_i A_i⁻¹ + (d_i − D)(d_i − D)ᵀ]`` for a mixture: values (B, count), vectors (B, count, d).

    The factor is made of the bases and the posterior means of the components that carry weight.
    """
    s = level(sigma, x.device, x.shape[0])
    with torch.no_grad():
        weights = law.weights(x, sigma)
        y = x.flatten(1).double() - law.centre
        values, vectors = [], []
        for b in range(x.shape[0]):
            s2 = float(s.reshape(-1)[b if s.numel() > 1 else 0]) ** 2 if isinstance(s, Tensor) else s * s
            active = torch.nonzero(weights[b] > DISCARD).squeeze(1)
            w = weights[b, active] / weights[b, active].sum()
            tail = law.tails[active] / (law.tails[active] + s2)
            gain = law.values[active] / (law.values[active] + s2) - tail.unsqueeze(1)
            bases = [law.stacked.straight(int(k)) for k in active]
            c = torch.cat([(y[b] - law.centred[k]) @ u for k, u in zip(active.tolist(), bases, strict=True)])
            gap = y[b] - law.centred[active]
            moved = [u @ part for u, part in zip(bases, (gain * c.view(gain.shape)), strict=True)]
            means = law.centred[active] + tail.unsqueeze(1) * gap + torch.stack(moved)
            means = (means - w @ means) * w.sqrt().unsqueeze(1)
            scale = (w.unsqueeze(1) * gain * s2 * law.mask[active]).flatten()
            factor, scale = torch.cat((*bases, means.T), 1), torch.cat((scale, torch.ones_like(w)))
            used = scale != 0
            top, directions = factored(factor[:, used], scale[used], float((w * tail).sum()) * s2, count)
            values.append(top.clamp(min=0))
            vectors.append(directions)
    if not values:
        return y.new_zeros(0, count), y.new_zeros(0, count, law.dim)
    return torch.stack(values), torch.stack(vectors)


def weighted_points(points: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The leading eigenpairs of the covariance of points (n, d) with weights (n,) of sum 1."""
    gaps = (points - weights @ points) * weights.sqrt().unsqueeze(1)
    values, vectors = factored(gaps.T, torch.ones_like(weights), 0.0, count)
    return values.clamp(min=0), vectors


def by_products(
    law: Distribution, x: Tensor, sigma: float | Tensor, count: int, condition: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """The leading eigenpairs by products with the Jacobian: values (B, count), vectors (B, count, *event)."""
    law.check_shape(x)
    check_count(count, law.dim)
    values, vectors = [], []
    for b in range(x.shape[0]):
        own = sigma.reshape(-1)[b if sigma.numel() > 1 else 0] if isinstance(sigma, Tensor) else sigma
        state = x[b : b + 1].double()
        told = {k: v[b : b + 1] if isinstance(v, Tensor) and v.ndim else v for k, v in condition.items()}

        def product(v: Tensor, own: float | Tensor = own, state: Tensor = state, told: Any = told) -> Tensor:
            n = v.shape[0]
            many = {k: t.expand(n, *t.shape[1:]) if isinstance(t, Tensor) and t.ndim else t for k, t in told.items()}
            return law.jvp(state.expand(n, *law.event_shape), own, v.view(n, *law.event_shape), **many)[1].flatten(1)

        # Lanczos' method cannot find all of them, nor is it cheap for most.
        whole = law.dim <= DENSE or 2 * count > law.dim
        top, directions = (_dense if whole else _lanczos)(product, law.dim, count, x)
        values.append(top * float(own) ** 2)
        vectors.append(directions)
    return torch.stack(values), torch.stack(vectors).to(x.dtype).view(x.shape[0], count, *law.event_shape)


def _dense(product: Any, dim: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    jacobian = product(torch.eye(dim, dtype=torch.float64, device=like.device))
    values, vectors = torch.linalg.eigh((jacobian + jacobian.T) / 2)
    return values.flip(0)[:count], vectors.flip(1)[:, :count].T


def _lanczos(product: Any, dim: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    from scipy.sparse.linalg import LinearOperator, eigsh

    def multiply(v: np.ndarray) -> np.ndarray:
        columns = torch.from_numpy(np.ascontiguousarray(v.reshape(dim, -1).T)).to(like.device)
        return product(columns).double().cpu().numpy().T.reshape(v.shape)

    operator = LinearOperator((dim, dim), matvec=multiply, matmat=multiply, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(dim)
    values, vectors = eigsh(operator, k=count, which="LA", v0=start)
    order = np.argsort(-values)
    pairs = torch.from_numpy(values[order].copy()), torch.from_numpy(vectors.T[order].copy())
    return pairs[0].to(like.device), pairs[1].to(like.device)
