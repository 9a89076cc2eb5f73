"""How spread out the posterior over a finite set of points is, and what a reference batch makes of it.

For N points, weights ``w = softmax_k(−‖x − x_k‖²/2σ²)`` and posterior mean m, each row of a batch of states has

    trace       tr Cov(x₀ | x) = Σ w_k ‖x_k − m‖²             σ⁴ times the variance of the denoising target
    entropy     −Σ w_k ln w_k / ln N                          0: one point explains the state, 1: all do equally
    ess         1/Σ w_k²                                      effective number of points
    divergence  D_f(p₀ ‖ p₀|t) = Σ w_k f(1/(N w_k))           (Xu 2024, theorem 2; f in :func:`divergence_generator`)
    spread      N Σ w_k² ‖x_k − m‖²                           σ⁴ lim n V_STF(n), i.i.d. references

and the posterior mean y over a reference batch that holds the source gives the stable target (y − x)/σ².

Everything is measured from an anchor among the points, the source or the heaviest one: what the posterior mean adds to
it is small where the posterior is narrow, so that variances of 1e-20 keep their digits and no float64 copy of the
points is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.numerics import streams

#: Weights held at a time: 16 MB in float64.
_ENTRIES = 1 << 21
#: Up to this many coordinates vectors are summed in float64.
_WIDE = 1024


def divergence_generator(y: Tensor) -> Tensor:
    """``f(y) = (1/y − 1)²`` below 1.5 and ``8y/27 − 1/3`` from there: convex, once differentiable, never below (1/y − 1)².

    (Xu 2024, theorem 2.) ``D_f(P ‖ Q) = E_Q f(dP/dQ)``.

    Args:
        y: positive, any shape.
    """
    return torch.where(y < 1.5, (1 / y - 1).square(), 8 * y / 27 - 1 / 3)


def _divergence(w: Tensor) -> Tensor:
    """``Σ w f(1/(N w))`` by rows, with the ratio never formed: weights may be 0."""
    count = w.shape[1]
    near = w * (count * w - 1).square()
    return torch.where(count * w > 2 / 3, near, 8 / (27 * count) - w / 3).sum(1)


@dataclass(frozen=True)
class PosteriorSpread:
    """The quantities at the head of this module for each state, (B,) in float64; ``mean`` is (B, *event)."""

    mean: Tensor
    trace: Tensor
    entropy: Tensor
    ess: Tensor
    divergence: Tensor
    spread: Tensor


def posterior_spread(law: Empirical, x: Tensor, sigma: float) -> PosteriorSpread:
    """Spread of the posterior at given states, by differences in float64: for small sets or few states.

    Args:
        law: the points, under Gaussian diffusion.
        x: states (B, *event).
        sigma: their noise level, > 0.

    Raises:
        ArgumentError: for another process, shapes that do not fit, or a level that is not positive.
    """
    if not law.process.gaussian:
        raise ArgumentError(f"the law's process is {law.process!r}; expected Gaussian diffusion")
    w = law.weights(x, sigma)
    points = law.data.flatten(1).double()
    anchor = w.argmax(1)
    squared = torch.cdist(points[anchor], points, compute_mode="donot_use_mm_for_euclid_dist").square()
    found = Rows(points, anchor, squared).spread(w)
    mean = (points[anchor] + found.mean).view(x.shape)
    return PosteriorSpread(mean, found.trace, found.entropy, found.ess, found.divergence, found.spread)


@dataclass
class Rows:
    """Points (N, d), the anchor's row of each state (B,), and its squared distances to all points (B, N) in float64."""

    points: Tensor
    anchor: Tensor
    squared: Tensor

    def shift(self, w: Tensor) -> Tensor:
        """``Σ w_k x_k − x_anchor`` for weights (B, N) that sum to 1: (B, d) in float64.

        The anchor's coefficient is minus the weight of the others, so rounding is relative to the shift itself.
        """
        return self.offset(w).double()

    def offset(self, w: Tensor) -> Tensor:
        """``Σ w_k (x_k − x_anchor)`` for any weights, in the type of the points."""
        others = w.scatter(1, self.anchor.unsqueeze(1), 0.0)
        balanced = others.scatter(1, self.anchor.unsqueeze(1), -others.sum(1, keepdim=True))
        return balanced.to(self.points.dtype) @ self.points

    def trace(self, w: Tensor, shift: Tensor) -> Tensor:
        """``Σ w ‖x_k − m‖²`` for weights that sum to 1, (B,)."""
        return ((w * self.squared).sum(1) - shift.square().sum(1)).clamp(min=0)

    def spread(self, w: Tensor) -> PosteriorSpread:
        """All statistics of posterior weights (B, N); ``mean`` is relative to the anchor."""
        count = w.shape[1]
        shift, square = self.shift(w), w.square()
        heavy = square.sum(1)
        tilted = self.offset(square).double()
        spread = (square * self.squared).sum(1) - 2 * (tilted * shift).sum(1) + heavy * shift.square().sum(1)
        return PosteriorSpread(
            mean=shift,
            trace=self.trace(w, shift),
            entropy=-torch.special.xlogy(w, w).sum(1) / math.log(max(count, 2)),
            ess=1 / heavy,
            divergence=_divergence(w),
            spread=count * spread.clamp(min=0),
        )


@dataclass
class Probes(Rows):
    """Noised points x = x_j + σε with known sources; the same j and ε at every level.

    With the source known the logits relative to its own are ``−(‖δ_k‖² + 2σ ε·δ_k)/2σ²``, δ_k = x_j − x_k: the distances
    and projections are made once for all levels, and nothing cancels at small σ.

    Attributes:
        points: here with their ``centre`` (d,) taken off.
        noise: ε, (B, d) in float64.
        along: ε·δ_k, (B, N) in float64.
        rank: place of each point among the probe's references, its source first; None if they are ``numbers``.
        numbers: points drawn i.i.d. as references besides the source, or None.
    """

    centre: Tensor
    noise: Tensor
    along: Tensor
    rank: Tensor | None
    numbers: Tensor | None

    def states(self, sigma: float) -> Tensor:
        """``x_j + σε``, (B, d) in float64."""
        return self.sources() + sigma * self.noise

    def sources(self) -> Tensor:
        """``x_j``, (B, d) in float64."""
        return self.points[self.anchor].double() + self.centre

    def weights(self, sigma: float) -> Tensor:
        """The posterior weights of all points, (B, N) in float64."""
        return ((self.squared + 2 * sigma * self.along) / (-2 * sigma * sigma)).softmax(1)

    def reference_weights(self, w: Tensor, n: int) -> Tensor:
        """The weights restricted to a reference batch of n points with the source in it, (B, N)."""
        if self.rank is not None:
            held = w * (self.rank < n)
        else:
            assert self.numbers is not None
            counts = torch.zeros_like(w).scatter_(1, self.anchor.unsqueeze(1), 1.0)
            drawn = self.numbers[:, : n - 1]
            held = w * counts.scatter_add_(1, drawn, torch.ones((), dtype=w.dtype, device=w.device).expand(drawn.shape))
        return held / held.sum(1, keepdim=True)


def draw_probes(points: Tensor, count: int, references: int, replacement: bool, seed: int) -> Iterator[Probes]:
    """``count`` probes in chunks of bounded memory; probe i is the same for every chunk size.

    Args:
        points: (N, *event).
        count: number of probes.
        references: the largest reference batch that will be asked for.
        replacement: draw references i.i.d. instead of without replacement; the source is in the batch either way.
        seed: names sources, noise and references.
    """
    event, total = tuple(points.shape[1:]), points.shape[0]
    flat = points.flatten(1)
    dtype = torch.float64 if flat.shape[1] <= _WIDE else flat.dtype
    centre = flat.mean(0, dtype=torch.float64).to(dtype)
    summed = flat.to(dtype) - centre
    centre = centre.double()
    block = max(64, (1 << 22) // flat.shape[1])
    rows = max(1, min(512, _ENTRIES // total))
    norms = torch.cat([part.double().square().sum(1) for part in summed.split(block)])
    for first in range(0, count, rows):
        ids = torch.arange(first, min(first + rows, count), device=points.device)
        place = streams.uniform(seed, ids, purpose="target source", dtype=torch.float64)
        source = (place * total).long().clamp_(max=total - 1)
        noise = streams.normal(seed, ids, event, purpose="target noise", dtype=torch.float64).flatten(1)
        own = summed[source].double()
        products = torch.cat([torch.cat((own, noise)) @ part.double().T for part in summed.split(block)], 1)
        inner, aligned = products.split(len(ids))
        squared = (norms[source].unsqueeze(1) + norms - 2 * inner).clamp_(min=0)
        along = (noise * own).sum(1, keepdim=True) - aligned
        # The source's own entries are exactly zero, whatever the products rounded to.
        squared.scatter_(1, source.unsqueeze(1), 0.0)
        along.scatter_(1, source.unsqueeze(1), 0.0)
        rank = numbers = None
        if replacement:
            draw = streams.uniform(seed, ids, (max(references - 1, 1),), purpose="references", dtype=torch.float64)
            numbers = (draw * total).long().clamp_(max=total - 1)
        else:
            keys = streams.uniform(seed, ids, (total,), purpose="references", dtype=torch.float64)
            rank = keys.scatter_(1, source.unsqueeze(1), -1.0).argsort(1).argsort(1)
        yield Probes(summed, source, squared, centre, noise, along, rank, numbers)
