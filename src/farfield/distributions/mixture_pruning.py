"""The components of a mixture whose weight can matter, with certificate, from one pass in float32.

With ``h_ik = 1/(τ_i + σ²) − 1/(λ_ik + σ²)`` a logit is ``base_i − ½ [‖x − μ_i‖²/(τ_i + σ²) − Σ_k h_ik c_ik²]``. Distances
are cheap and exact (float64, B·K·d); the coefficients c cost B·K·r·d and come in float32, off by at most
``δ = sqrt(r) (sqrt(d) + 4) u (‖x‖ + ‖μ_i‖)`` together (Higham & Mary 2019), hence the logits by ``‖h c‖ δ + …``. That bound is
far too large to trust a weight at small σ, but there the logits are hundreds of nats apart: a component whose upper bound
is ``log(K/ε)`` below the log-sum of the lower bounds has, with all others like it, weight at most ε. Before any product,
``h ≥ 0`` bounds a logit by distances alone, ``base_i − ½ ‖x − μ_i‖²/(λ_max + σ²)``: where that rules out most components,
only the rest is projected. Survivors are evaluated anew in float64 where the likely error of float32 would be seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from farfield.distributions.base import unit_roundoff
from farfield.distributions.mixture_terms import CHUNK, TINY

if TYPE_CHECKING:
    from farfield.distributions.mixture import GaussianMixture

#: The weight that may be left out of a posterior mean in float32, and of anything in float64.
DISCARD, DISCARD_WIDE = 1e-9, 1e-30
#: Weights from float32 logits are trusted while their likely error stays below this.
TOLERANCE = 2e-5
#: Fewer multiplications than this are done in float64 without further thought.
SMALL = 1 << 24
#: Below this share of all pairs of a row and a component they are treated one component at a time.
SPARSE = 0.6


@dataclass(frozen=True)
class Pruned:
    """Which components can matter for which state.

    Attributes:
        kept: (B, K), true where a component is kept.
        discarded: (B,) in float64, a bound on the total weight of the others. The posterior mean over those kept, with
            weights that sum to 1, is off by at most this times the diameter of the components' posterior means.
    """

    kept: Tensor
    discarded: Tensor


class Pairs:
    """The pairs (row, component) of a mask (B, K), sorted by component."""

    def __init__(self, mask: Tensor) -> None:
        self.comp, self.row = mask.T.nonzero(as_tuple=True)
        self.counts: list[int] = mask.sum(0).tolist()


class Level:
    """What one σ² makes of a mixture's eigenvalues; σ² is a number, or (B, 1) with results in front of K."""

    def __init__(self, law: GaussianMixture, s2: float | Tensor) -> None:
        self.s2 = s2
        inner = s2.unsqueeze(-1) if isinstance(s2, Tensor) else s2
        open_ = law.tail_dims > 0
        self.rest = law.tails + s2
        self.spread = law.values + inner
        self.inverse = torch.where(open_, 1 / (self.rest + TINY), 0.0)
        self.h = (self.inverse.unsqueeze(-1) - 1 / (self.spread + TINY)) * law.mask
        self.steep = _largest(self.h.abs())
        self.tail = law.tails / (self.rest + TINY)
        self.gain = law.values / (self.spread + TINY) - self.tail.unsqueeze(-1)
        logs = torch.where(law.mask > 0, self.spread, 1.0).log().sum(-1)
        logs = logs + law.tail_dims * torch.where(open_, self.rest, 1.0).log()
        self.base = law.log_weights - 0.5 * (logs + law.dim * math.log(2 * math.pi))
        self.largest = torch.maximum(_largest(law.values), law.tails) + s2

    def at(self, value: Tensor, pairs: Pairs) -> Tensor:
        """The entries of (K, …) or (B, K, …) that belong to the pairs."""
        return value[pairs.row, pairs.comp] if isinstance(self.s2, Tensor) else value[pairs.comp]


def _largest(values: Tensor) -> Tensor:
    """The largest along the last axis, 0 where there are none."""
    return values.amax(-1) if values.shape[-1] else values.new_zeros(values.shape[:-1])


class Screen:
    """One pass over a batch: logits, bounds on their error, and which components are kept.

    Args:
        law: the mixture.
        y: centred states (B, d) in float64.
        s2: σ², a number or (B, 1).
        discard: ε, the weight that may be left out for each row.
    """

    def __init__(self, law: GaussianMixture, y: Tensor, s2: float | Tensor, discard: float) -> None:
        self.law, self.y, self.level = law, y, Level(law, s2)
        self.flat = y.float()
        half = y.square().sum(1, keepdim=True) / 2
        self.squared = 2 * (half + law.half_norms - y @ law.centred.T).clamp(min=0)
        self.size = (2 * half).sqrt() + (2 * law.half_norms).sqrt()
        self.unit = unit_roundoff()
        self.dense: Tensor | None = None
        self.c, self.pairs = y.new_empty(0), None
        margin = math.log(law.components / discard)
        near = self._near(margin)
        logits = torch.full_like(self.squared, -torch.inf)
        error, likely = torch.zeros_like(logits), torch.zeros_like(logits)
        if near is None:
            level, self.dense = self.level, self._columns()
            logits, error, likely = self._bounds(
                self.dense, self.squared, self.size, level.base, level.h, level.inverse, level.steep
            )
        else:
            self.pairs = Pairs(near)
            self.c, found = self._project(self.pairs)
            for target, values in zip((logits, error, likely), found, strict=True):
                target[self.pairs.row, self.pairs.comp] = values
        floor = (logits - error).logsumexp(1, keepdim=True)
        self.kept = logits + error >= floor - margin
        out = torch.where(self.kept, -torch.inf, logits + error)
        if near is not None:
            out = torch.where(near, out, self._far)
        self.discarded = (out - floor).logsumexp(1).exp()
        self.logits, self.likely = logits.masked_fill(~self.kept, -torch.inf), likely

    def _columns(self) -> Tensor:
        """Coefficients of every component in float32, (B, K, r)."""
        law = self.law
        result = self.flat.new_empty(self.flat.shape[0], law.components, law.rank)
        rows, means = law.stacked.narrow(), law.basis_means.float()
        # A few components at a time are as fast as all of them, and their coefficients are still in the cache.
        step = max(1, 256 // max(1, law.rank))
        for i in range(0, law.components, step):
            c = self.flat @ rows[i : i + step].flatten(0, 1).T
            own = result[:, i : i + step]
            torch.sub(c.view(own.shape), means[i : i + step], out=own)
        return result

    def _near(self, margin: float) -> Tensor | None:
        """The pairs that distances leave in question, or None where they are too many."""
        # With what rounding may have taken from a distance.
        self._far = self.level.base - (0.5 * self.squared - 1e-14 * self.size.square()) / self.level.largest
        top, seed = self._far.max(1, keepdim=True)
        # No logit exceeds the largest bound, so that nothing above this line could be ruled out.
        if float((self._far >= top - margin).double().mean()) > SPARSE / 2:
            return None
        first = torch.zeros_like(self._far, dtype=torch.bool).scatter_(1, seed, True)
        pairs = Pairs(first)
        _, (logits, error, _) = self._project(pairs)
        floor = torch.empty_like(top).index_copy_(0, pairs.row, (logits - error).unsqueeze(1))
        near = (self._far >= floor - margin) | first
        return None if float(near.double().mean()) > SPARSE else near

    def _project(self, pairs: Pairs) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Coefficients (P, r) of the pairs in float32, and their logits with bounds."""
        law, level = self.law, self.level
        c = law.stacked.project_pairs(self.flat, pairs.row, pairs.counts, wide=False)
        c = c - law.basis_means[pairs.comp].float()
        return c, self._bounds(
            c, self.squared[pairs.row, pairs.comp], self.size[pairs.row, pairs.comp],
            *(level.at(value, pairs) for value in (level.base, level.h, level.inverse, level.steep)),
        )  # fmt: skip

    def _bounds(
        self, c: Tensor, squared: Tensor, size: Tensor, base: Tensor, h: Tensor, inverse: Tensor, steep: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, a bound on their error, and their likely error: one rounding of size u in each coefficient."""
        rank, unit, outer = self.law.rank, self.unit, squared * inverse
        tilted = c * h.float()
        total = (tilted * c).sum(-1).double()
        reach, length = tilted.square().sum(-1).double().sqrt(), c.square().sum(-1).double().sqrt()
        logits = base - 0.5 * (outer - total)
        delta = math.sqrt(rank) * (math.sqrt(self.law.dim) + 4) * unit * size
        error = reach * delta + steep * delta.square() + unit * (math.sqrt(rank) + 8) * reach * length
        error = error + 1e-14 * (outer + size.square() * inverse + base.abs())
        return logits, error, unit * reach * (size + length)

    # -- float64 --------------------------------------------------------------------------------------------------------

    def exact(self, mask: Tensor) -> tuple[Pairs, Tensor, Tensor]:
        """Pairs of the mask, their coefficients (P, r) and logits (P,), in float64."""
        law, level, pairs = self.law, self.level, Pairs(mask)
        c = law.stacked.project_pairs(self.y, pairs.row, pairs.counts, wide=True) - law.basis_means[pairs.comp]
        squares = c.square()
        # The residual, not the difference with h: that is how it cancels least.
        residual = (self.squared[pairs.row, pairs.comp] - squares.sum(-1)).clamp(min=0)
        total = residual * level.at(level.inverse, pairs) + (squares / (level.at(level.spread, pairs) + TINY)).sum(-1)
        return pairs, c, level.at(level.base, pairs) - 0.5 * total

    def weights(self) -> Tensor:
        """w (B, K): from float32 logits where those will do, otherwise from float64 ones."""
        w = self.logits.softmax(1)
        likely = torch.where(self.kept, self.likely, 0.0).amax(1)
        blurred = torch.expm1(2 * likely) * (1 - w.amax(1)) > TOLERANCE
        # Where the bounds alone decide, a component may hold all the weight by an error in its logit.
        blurred |= (self.kept.sum(1) > 1) & (likely > 1)
        if not bool(blurred.any()):
            return w
        mask = self.kept & blurred.unsqueeze(1)
        pairs, _, logits = self.exact(mask)
        return self.logits.index_put((pairs.row, pairs.comp), logits).softmax(1)


def combine(law: GaussianMixture, x: Tensor, w: Tensor, tail: Tensor, c: Tensor, pairs: Pairs | None = None) -> Tensor:
    """``Σ_i w_i [(1 − t_i) μ_i + t_i x + U_i c_i]``, (B, d) in the type of ``x``; only what has weight is lifted.

    Args:
        law: the mixture.
        x: (B, *event).
        w: (B, K) float64, zero where nothing is to be added.
        tail: t, (K,) or (B, K).
        c: (B, K, r), or (P, r) for the pairs given.
        pairs: those of ``c``.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.flatten(1).double() - law.centre
    total = law.centre + (w * (1 - tail)) @ law.centred
    total += (w * tail).sum(1, keepdim=True) * y
    total = total.to(dtype)
    if not law.rank:
        return total.to(x.dtype)
    active = w > (DISCARD_WIDE if dtype == torch.float64 else DISCARD) / law.components
    # To ask how many there are would make another device wait.
    if pairs is None and (x.device.type != "cpu" or float(active.double().mean()) > SPARSE):
        return (total + law.stacked.lift(w.to(c.dtype).unsqueeze(-1) * c, dtype)).to(x.dtype)
    if pairs is None:
        pairs = Pairs(active)
        c = c[pairs.row, pairs.comp]
    own = w[pairs.row, pairs.comp].unsqueeze(1).to(c.dtype) * c
    law.stacked.lift_pairs(own.to(dtype), pairs.row, pairs.counts, total)
    return total.to(x.dtype)


# -- what the mixture calls -----------------------------------------------------------------------------------------------


def batches(law: GaussianMixture, x: Tensor, sigma: float | Tensor) -> Iterator[tuple[Tensor, float | Tensor]]:
    """Rows that fit in memory together, with their σ² as a number or (b, 1)."""
    s2: float | Tensor
    if isinstance(sigma, Tensor):
        s = sigma.double().reshape(-1)
        uniform = bool((s == s[0]).all())
        s2 = float(s[0]) ** 2 if uniform else s.square().unsqueeze(1).expand(x.shape[0], 1)
    else:
        s2 = float(sigma) ** 2
    step = max(1, CHUNK // max(1, law.components * law.rank))
    for i in range(0, x.shape[0], step):
        yield x[i : i + step], s2[i : i + step] if isinstance(s2, Tensor) else s2


def mean(law: GaussianMixture, x: Tensor, s2: float | Tensor) -> Tensor:
    """The posterior mean of a batch, (B, d)."""
    y = x.flatten(1).double() - law.centre
    if x.dtype == torch.float64:
        screen = Screen(law, y, s2, DISCARD_WIDE)
        level = screen.level
        pairs, c, logits = screen.exact(screen.kept)
        w = screen.logits.index_put((pairs.row, pairs.comp), logits).softmax(1)
        return combine(law, x, w, level.tail, level.at(level.gain, pairs) * c, pairs)
    screen = Screen(law, y, s2, DISCARD)
    level = screen.level
    w = screen.weights()
    if screen.dense is None:
        assert screen.pairs is not None
        return combine(law, x, w, level.tail, screen.c * level.at(level.gain, screen.pairs).float(), screen.pairs)
    return combine(law, x, w, level.tail, screen.dense.mul_(level.gain.float()))


def logits(law: GaussianMixture, x: Tensor, s2: float | Tensor) -> Tensor:
    """Logits (B, K) in float64, −inf for the components that certainly have no weight above 1e-30 together."""
    screen = Screen(law, x.flatten(1).double() - law.centre, s2, DISCARD_WIDE)
    pairs, _, values = screen.exact(screen.kept)
    return screen.logits.index_put((pairs.row, pairs.comp), values)
