"""Log-sum-exp and softmax averages over blocks that are seen once.

The state is a running maximum M, a sum S of exp(logit − M) and weighted sums of values on the same scale; a block
with a larger logit rescales the sums by ``exp(M_old − M_new)`` (Milakov & Gimelshein 2018, "online softmax").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class OnlineSoftmax:
    """Accumulates ``log Σ exp(ℓ_i)`` and averages ``Σ softmax(ℓ)_i t_i v_i`` over blocks, for each of B rows.

    Args:
        rows: B.
        width: the length of the vectors v.
        vectors: how many weighted sums of vectors are kept, each with its multipliers t.
        scalars: how many sums ``Σ w_i t_i`` are kept, at least ``vectors``.
        dtype: type of the sums of vectors; everything else is float64.
        device: where to accumulate.
        scale: (B, 1) float64: logits come divided by it, so that scaling costs them no digits before their maximum
            is taken off.
        cutoff: weights below ``exp(-cutoff)`` times the running maximum are set to exactly zero. They change nothing
            at the precision of the sum, and the denormal ones among them slow a matrix product severely.
    """

    def __init__(
        self,
        rows: int,
        width: int = 0,
        vectors: int = 0,
        scalars: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        scale: Tensor | None = None,
        cutoff: float = 80.0,
    ) -> None:
        self.maximum = torch.full((rows,), -torch.inf, dtype=torch.float64, device=device)
        self.total = torch.zeros(rows, dtype=torch.float64, device=device)
        self.vector_sums = torch.zeros(vectors * rows, width, dtype=dtype, device=device)
        self.scalar_sums = torch.zeros(scalars, rows, dtype=torch.float64, device=device)
        self.width, self.vectors, self.scale, self.cutoff = width, vectors, scale, cutoff

    def update(
        self, logits: Tensor, values: Tensor | None = None, multipliers: Sequence[Tensor | None] = (None,)
    ) -> None:
        """Take in a block.

        Args:
            logits: (B, n), overwritten.
            values: (n, width).
            multipliers: for each scalar sum t, (B, n) or broadcastable, or None for 1; the first ``vectors`` of them
                serve the sums of vectors.
        """
        cpu = logits.device.type == "cpu"
        scale = 1.0 if self.scale is None else self.scale.squeeze(1)
        top = logits.amax(1).double()
        new = torch.maximum(self.maximum, top)
        # A row that has seen only −inf keeps M = −inf; shifting by 0 there avoids inf − inf.
        shift = torch.where(torch.isinf(new), 0.0, new)
        # On the CPU to ask costs nothing and may save the second matrix product; elsewhere it would stall the queue.
        if cpu and not bool(((top - shift) * scale > -self.cutoff).any()):
            return
        decay = torch.exp((self.maximum - shift) * scale)
        self.maximum = new
        if not cpu or bool((decay != 1).any()):
            self.total *= decay
            self.scalar_sums *= decay
            if self.vectors:
                self.vector_sums.mul_(decay.to(self.vector_sums.dtype).repeat(self.vectors).unsqueeze(1))
        logits.sub_(shift.to(logits.dtype).unsqueeze(1))
        if self.scale is not None:
            logits.mul_(self.scale.to(logits.dtype))
        weights = torch.threshold_(logits, -self.cutoff, -torch.inf).exp_()
        # A float32 sum over one block is pairwise and good to 1e-6; blocks are added in float64.
        own = weights.sum(1).double()
        self.total += own
        tilted = []
        for k in range(max(self.vectors, self.scalar_sums.shape[0])):
            t = multipliers[k]
            tilted.append(weights if t is None else weights * t.to(weights.dtype))
            if k < self.scalar_sums.shape[0]:
                self.scalar_sums[k] += own if t is None else tilted[k].sum(1).double()
        if self.vectors and values is not None:
            chosen = tilted[0] if self.vectors == 1 else torch.cat(tilted[: self.vectors])
            self.vector_sums.addmm_(chosen.to(values.dtype), values)

    @property
    def log_sum(self) -> Tensor:
        """``log Σ exp(ℓ_i)``, (B,) in float64; −inf where every logit was."""
        scale = 1.0 if self.scale is None else self.scale.squeeze(1)
        return self.maximum * scale + self.total.log()

    @property
    def vector_averages(self) -> Tensor:
        """``Σ softmax(ℓ)_i t_i v_i``, (vectors, B, width)."""
        total = self.total.to(self.vector_sums.dtype)
        return self.vector_sums.view(self.vectors, total.shape[0], self.width) / total.unsqueeze(1)

    @property
    def scalar_averages(self) -> Tensor:
        """``Σ softmax(ℓ)_i t_i``, (scalars, B) in float64."""
        return self.scalar_sums / self.total
