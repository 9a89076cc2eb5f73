"""A batch met with the components of a mixture in float64, in chunks that fit in memory; differentiable throughout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from farfield.distributions.stacking import Pick

if TYPE_CHECKING:
    from farfield.distributions.mixture import GaussianMixture

TINY = 1e-300
#: Coefficients B·K·r held at a time: 128 MB in float64.
CHUNK = 1 << 24


@dataclass
class Part:
    """Some components: which of the mixture's and of the terms', coefficients c (B, k, r), λ + σ², τ + σ², residuals."""

    pick: Pick
    own: slice
    c: Tensor
    spread: Tensor
    rest: Tensor
    residual: Tensor


class Terms:
    """Centred states y (B, d), logits ``log π_i + log N(x; μ_i, A_i)`` (B, k), and sums over the components.

    Args:
        law: the mixture.
        x: (B, *event).
        s2: σ², a number, () or (B, 1, 1).
        index: numbers of the components that count, (k,); all by default.
    """

    def __init__(self, law: GaussianMixture, x: Tensor, s2: float | Tensor, index: Tensor | None = None) -> None:
        self.law, self.s2 = law, s2
        self.y = x.flatten(1).double() - law.centre
        count = law.components if index is None else index.shape[0]
        step = max(1, CHUNK // max(1, x.shape[0] * law.rank))
        self._owns = [slice(i, min(i + step, count)) for i in range(0, count, step)]
        self._picks: list[Pick] = list(self._owns) if index is None else [index[own] for own in self._owns]
        hold = x.shape[0] * count * law.rank <= CHUNK
        self._held: list[Part] = []
        logits = []
        for part in self._make():
            logits.append(self._logits(part))
            if hold:
                self._held.append(part)
        self.logits = torch.cat(logits, 1)

    def parts(self) -> Iterator[Part]:
        """The components chunk by chunk, from memory where they fit."""
        return iter(self._held) if self._held else self._make()

    def _make(self) -> Iterator[Part]:
        law, y, s2 = self.law, self.y, self.s2
        half = y.square().sum(1, keepdim=True) / 2
        for own, pick in zip(self._owns, self._picks, strict=True):
            squared = 2 * (half + law.half_norms[pick] - y @ law.centred[pick].T).clamp(min=0)
            rest = law.tails[pick] + (s2.squeeze(-1) if isinstance(s2, Tensor) and s2.ndim else s2)
            spread = law.values[pick] + s2
            if law.rank:
                c = law.stacked.project(y, pick) - law.basis_means[pick]
                residual = (squared - c.square().sum(-1)).clamp(min=0)
            else:
                c, residual = y.new_zeros(y.shape[0], squared.shape[1], 0), squared
            residual = torch.where(law.tail_dims[pick] > 0, residual, 0.0)
            yield Part(pick, own, c, spread, rest, residual)

    def _logits(self, part: Part) -> Tensor:
        law, pick = self.law, part.pick
        tail_dims = law.tail_dims[pick]
        total = part.residual / (part.rest + TINY) + tail_dims * torch.where(tail_dims > 0, part.rest, 1.0).log()
        if law.rank:
            total = total + (part.c.square() / (part.spread + TINY)).sum(-1)
            total = total + torch.where(law.mask[pick] > 0, part.spread, 1.0).log().sum(-1)
        return law.log_weights[pick] - 0.5 * (total + law.dim * math.log(2 * math.pi))

    def mean(self, part: Part, w: Tensor, dtype: torch.dtype) -> Tensor:
        """``Σ_i w_i (d_i − centre)`` over one part, for any weights (B, k) of all parts: (B, d)."""
        law, w = self.law, w[:, part.own]
        tail = law.tails[part.pick] / (part.rest + TINY)
        result = ((w * (1 - tail)) @ law.centred[part.pick]).to(dtype)
        result = result + ((w * tail).sum(1, keepdim=True) * self.y).to(dtype)
        if law.rank:
            gain = law.values[part.pick] / (part.spread + TINY) - tail.unsqueeze(-1)
            result = result + law.stacked.lift(w.unsqueeze(-1) * gain * part.c, dtype, part.pick)
        return result

    def along(self, part: Part, w: Tensor, v: Tensor, cv: Tensor, dtype: torch.dtype) -> Tensor:
        """``Σ_i w_i Σ_i A_i⁻¹ v`` over one part, with ``cv = U_iᵀ v``: (B, d)."""
        law, w = self.law, w[:, part.own]
        tail = law.tails[part.pick] / (part.rest + TINY)
        result = ((w * tail).sum(1, keepdim=True) * v).to(dtype)
        if law.rank:
            gain = law.values[part.pick] / (part.spread + TINY) - tail.unsqueeze(-1)
            result = result + law.stacked.lift(w.unsqueeze(-1) * gain * cv, dtype, part.pick)
        return result

    def slope(self, part: Part, v: Tensor) -> tuple[Tensor, Tensor]:
        """``s_i · v`` (B, k) and ``U_iᵀ v`` (B, k, r), with ``s_i = −A_i⁻¹ (x − μ_i)``."""
        law = self.law
        along = (self.y * v).sum(1, keepdim=True) - v @ law.centred[part.pick].T
        if not law.rank:
            return -along / (part.rest + TINY), part.c
        c = law.stacked.project(v, part.pick)
        along = torch.where(law.tail_dims[part.pick] > 0, along - (part.c * c).sum(-1), 0.0)
        return -(along / (part.rest + TINY) + (part.c * c / (part.spread + TINY)).sum(-1)), c

    def jvp(self, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``D`` and ``(∂D/∂x) v``, both (B, d)."""
        w, v = self.logits.softmax(1), v.flatten(1).double()
        slope = torch.cat([self.slope(part, v)[0] for part in self.parts()], 1)
        tilt = w * (slope - (w * slope).sum(1, keepdim=True))
        value, product = self.law.centre.to(dtype), torch.zeros_like(self.y, dtype=dtype)
        for part in self.parts():
            value = value + self.mean(part, w, dtype)
            product = product + self.mean(part, tilt, dtype) + self.along(part, w, v, self.slope(part, v)[1], dtype)
        return value, product

    def trace(self) -> Tensor:
        """``Σ w_i tr(Σ_i A_i⁻¹) + σ² (Σ w_i ‖s_i‖² − ‖Σ w_i s_i‖²)``, (B,)."""
        law, w = self.law, self.logits.softmax(1)
        flat = self.s2.view(-1) if isinstance(self.s2, Tensor) and self.s2.ndim else self.s2
        column = flat.unsqueeze(1) if isinstance(flat, Tensor) and flat.ndim else flat
        total, mean = torch.zeros_like(self.y[:, 0]), torch.zeros_like(self.y)
        for part in self.parts():
            own = law.tail_dims[part.pick] * (law.tails[part.pick] / (part.rest + TINY))
            norm = part.residual / (part.rest + TINY) ** 2
            if law.rank:
                own = own + (law.values[part.pick] / (part.spread + TINY)).sum(-1)
                norm = norm + (part.c / (part.spread + TINY)).square().sum(-1)
            total = total + (w[:, part.own] * (own + column * norm)).sum(1)
            mean = mean + self.mean(part, w, torch.float64)
        # At small σ both are large: what is left of a trace near 0 may be rounding of either sign.
        return (total - (mean - self.y).square().sum(1) / flat).clamp(min=0)
