"""The calculus of the optimal denoiser: how the posterior mean of a data set changes with state and noise level.

For a finite set under Gaussian diffusion, with posterior weights w, ``D = Σ w_i y_i`` and ``Cov = Cov_w(y)``:

    ∂D/∂x  = Cov/σ²                                               Empirical.jvp
    ∂D/∂σ  = σ⁻³ Σ w_i ‖x − y_i‖² (y_i − D)                       level_derivative
    dD/dσ  = σ⁻³ [Σ w_i ‖y_i − D‖² (y_i − D) − Cov (x − D)]       flow_derivative, along the sampling ODE
    div    = (d − tr Cov/σ²)/σ                                    flow_divergence, of the ODE's field
    d log p(x_σ; σ)/dσ = −div                                     along the ODE: instantaneous change of variables

(derived from Chen et al., "A geometric perspective on diffusion models", section 5, Eqs. 7, 8.) No d × d matrix is formed:
every one of them is a posterior average, at the cost of one or two passes over the data, O(N d) for each state.

The two ends have rates. For σ → ∞ the posterior mean is the data's mean up to ``[C (x − μ) − ½ E (X − μ)‖X − μ‖²]/σ²``; for
σ → 0 it is the nearest point up to ``(N − 1) exp(−Δ/2σ²) max_i ‖y_i − y_nn‖``, Δ the gap of the two smallest squared
distances. In between, its Lipschitz constant is at most ``diam²/4σ²`` (Popoviciu's inequality for Cov along a direction).
"""

from __future__ import annotations

import torch
from torch import Tensor

from farfield.distributions.empirical import Empirical
from farfield.errors import ArgumentError


def _check(law: Empirical, what: str) -> None:
    if not law.process.gaussian:
        raise ArgumentError(f"{what} is known for diffusion, not for {law.process!r}")


def mean_and_log_prob(
    law: Empirical, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``D(x, σ)`` and ``log p(x; σ)`` from one pass over the data, where two calls would take two.

    Args:
        law: the data set, under any process.
        x: states (B, *event).
        sigma: a positive number, () or (B,).
        labels: classes, as :meth:`Empirical.forward` takes them.

    Returns:
        The posterior mean, shape and type of ``x``, and the log-density in nats, (B,) in float64.
    """
    found = law._average(x, sigma, labels)
    counts = law._count_of(None if labels is None else torch.as_tensor(labels, device=x.device).expand(x.shape[0]))
    own = torch.as_tensor(counts, dtype=torch.float64, device=x.device).log()
    density = found.log_sum - own + law.process.log_normalizer(law._levels(sigma, x), law.dim)
    return found.vectors[0].to(x.dtype).view(x.shape), density


def level_derivative(
    law: Empirical, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``D(x, σ)`` and its partial derivative ``∂D/∂σ`` at fixed x, both shaped like ``x``; one pass.

    Arguments as for :func:`mean_and_log_prob`.

    Raises:
        ArgumentError: for a process whose kernel is not Gaussian.
    """
    _check(law, "level_derivative")
    gap = x.flatten(1) - law.points.centre.to(x.dtype)
    mean, bent, along = _tilted(law, x, sigma, labels, gap)
    # ‖x − y‖² = ‖y − c‖² − 2 (x − c)·(y − c) + what is the same for all points, which drops out.
    change = (bent - 2 * along) * law._levels(sigma, x).unsqueeze(1) ** -3
    return mean.to(x.dtype).view(x.shape), change.to(x.dtype).view(x.shape)


def flow_derivative(
    law: Empirical, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``D(x, σ)`` and its total derivative ``dD/dσ = ∂D/∂σ + (∂D/∂x)(x − D)/σ`` along the sampling ODE.

    The derivative that a second-order Taylor step needs, and by ``dD/dσ = −σ d²x/dσ²`` (Chen et al., Eq. 5) the curvature of
    the path. Two passes over the data. Arguments as for :func:`mean_and_log_prob`.

    Returns:
        Both shaped like ``x``; the derivative in units of x over units of σ.

    Raises:
        ArgumentError: for a process whose kernel is not Gaussian.
    """
    _check(law, "flow_derivative")
    centre = law.points.centre.to(x.dtype)
    first = law._average(x, sigma, labels).vectors[0].to(x.dtype)
    # Σ w ‖y − D‖² (y − D) − Cov (x − D) = Σ w ‖y − c‖² (y − D) − Cov (x + D − 2c)
    mean, bent, along = _tilted(law, x, sigma, labels, x.flatten(1) + first - 2 * centre)
    change = (bent - along) * law._levels(sigma, x).unsqueeze(1) ** -3
    return mean.to(x.dtype).view(x.shape), change.to(x.dtype).view(x.shape)


def _tilted(
    law: Empirical, x: Tensor, sigma: float | Tensor, labels: Tensor | None, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``D``, ``Σ w ‖y − c‖² (y − D)`` and ``Cov v``, (B, d) in float64."""
    found = law._average(x, sigma, labels, ("1", "h", "b"), 3, v)
    mean, bent, along = found.vectors.double()
    _, square, part = found.scalars.unsqueeze(-1)
    return mean, bent - square * mean, along - part * mean


def flow_divergence(law: Empirical, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
    """``∇·[(x − D)/σ] = (d − tr Cov/σ²)/σ``, (B,) in float64; minus it is ``d log p(x_σ; σ)/dσ`` along the sampling ODE.

    Raises:
        ArgumentError: for a process whose kernel is not Gaussian.
    """
    _check(law, "flow_divergence")
    return (law.dim - law.trace(x, sigma, labels)) / law._levels(sigma, x)


def diameter(law: Empirical) -> float:
    """The largest distance of two points of the data, exact.

    Points so near the centre that they cannot be an end of the longest pair are passed over: a first guess comes from going
    to the farthest point and from there to the farthest of all. At worst O(N² d).
    """
    points = law.points
    radius = (2 * points.half).sqrt()
    order = radius.argsort(descending=True)
    best = 0.0
    start = order[:1]
    for _ in range(2):
        reach = _distances(law, start)[0]
        best = max(best, float(reach.amax()))
        start = reach.argmax().reshape(1)
    sorted_radius = radius[order]
    centre = points.centre.double()  # cdist multiplies matrices, and would lose the digits of a common offset
    for i in range(0, law.count, 256):
        if float(sorted_radius[i] + sorted_radius[0]) <= best:
            break
        # Only partners whose radius could lengthen the best pair.
        partners = int((sorted_radius + sorted_radius[i] > best).sum())
        mine = points.data[order[i : i + 256]].double() - centre
        for j in range(0, partners, law.block):
            other = points.data[order[j : min(j + law.block, partners)]].double() - centre
            best = max(best, float(torch.cdist(mine, other).amax()))
    return best


def _distances(law: Empirical, index: Tensor) -> Tensor:
    """Distances of some points (n,) to all points, (n, N) in float64."""
    mine = law.points.data[index].double()
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(mine, part, compute_mode=exact) for _, part in law.points.blocks(True)], 1)


def lipschitz_bound(law: Empirical, sigma: float, diam: float | None = None) -> float:
    """``diam²/4σ²``, which no slope ``‖D(a, σ) − D(b, σ)‖/‖a − b‖`` exceeds.

    Below 1 the denoiser contracts, so that mean shift of this bandwidth has one mode whatever the data.

    Args:
        law: the data set.
        sigma: the level, positive.
        diam: the data's diameter where it is known, else :func:`diameter`.

    Raises:
        ArgumentError: for a level that is not positive or another process.
    """
    _check(law, "lipschitz_bound")
    if not sigma > 0:
        raise ArgumentError(f"sigma = {sigma}; expected a positive level")
    span = diameter(law) if diam is None else diam
    return span * span / (4 * sigma * sigma)


def far_expansion(law: Empirical, x: Tensor, sigma: float | Tensor) -> Tensor:
    """The posterior mean far from the data: ``μ + [C (x − μ) − ½ E (X − μ)‖X − μ‖²]/σ²``, with an error of O(σ⁻⁴) at fixed x.

    C is the data's covariance (divisor N). One pass, without weights. Shape and type of ``x``.

    Raises:
        ArgumentError: for a process whose kernel is not Gaussian.
    """
    _check(law, "far_expansion")
    law.check_shape(x)
    mean = torch.zeros(law.dim, dtype=torch.float64, device=x.device)
    for _, part in law.points.blocks(True):
        mean += part.sum(0) / law.count
    gap = x.flatten(1).double() - mean
    term = torch.zeros_like(gap)
    for _, part in law.points.blocks(True):
        own = part - mean
        term += (gap @ own.T - own.square().sum(1) / 2) @ own / law.count
    value = mean + term * law._levels(sigma, x).unsqueeze(1) ** -2
    return value.to(x.dtype).view(x.shape)


def nearest_bound(law: Empirical, x: Tensor, sigma: float | Tensor) -> Tensor:
    """``(N − 1) exp(−Δ/2σ²) max_i ‖y_i − y_nn‖``, which bounds ``‖D(x, σ) − y_nn‖`` for the nearest point: (B,) in float64.

    Δ is the gap of the two smallest squared distances: 0, and the bound without use, where the nearest point occurs twice.

    Raises:
        ArgumentError: for a process whose kernel is not Gaussian.
    """
    _check(law, "nearest_bound")
    level = law._levels(sigma, x)
    if law.count == 1:
        law.check_shape(x)
        return torch.zeros_like(level)
    squared, index = law.nearest(x, 2)
    reach = _distances(law, index[:, 0]).amax(1)
    return (law.count - 1) * torch.exp(-(squared[:, 1] - squared[:, 0]) / (2 * level * level)) * reach
