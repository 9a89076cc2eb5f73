"""``‖D_model − D_law‖²`` for a mixture at every rank and level together.

    D_law(r) = Σ_i w_i(r) [μ_i + Σ_{k ≤ r} L_ik c_ik u_ik],    L = λ/(λ + σ²),    c_i = U_iᵀ (x − μ_i)

(Wang & Vastola 2024, Eqs. 138-139, eigenvalues beyond the rank taken as zero.) States ``y + σ z`` are projected once on the
basis of each component, which gives its density at all levels and ranks. The bracket of a rank is that of the rank before
plus the directions between, so lifting all ranks costs as much as lifting the highest, and a component is lifted for those
states alone that give it weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from farfield.distributions import Gaussian
from farfield.distributions.projection import GaussianProjection

#: Numbers in the denoisers of one batch at all ranks and levels.
_HELD = 1 << 25
#: A component is left out for states that give it less weight than this at every rank.
_WEIGHTLESS = 1e-11


def rows_at_once(dim: int, levels: int, ranks: int) -> int:
    """States for which the denoisers at all levels and ranks are held together."""
    return max(1, min(256, _HELD // (dim * levels * ranks)))


def rank_gaps(
    weights: Sequence[float],
    parts: Sequence[Gaussian],
    targets: Tensor,
    sigmas: Sequence[float],
    ranks: Sequence[int],
    y: Tensor,
    z: Tensor,
) -> Tensor:
    """Squared distances of a mixture's denoiser, truncated to each rank, from given vectors.

    Args:
        weights: of the components, (K,), ≥ 0, up to a factor.
        parts: the components, bases as matrices (``spectrum.kind == "basis"``) without a tail.
        targets: (L, B, *event), the model's output at the states ``y + σ z`` of each level.
        sigmas: L noise levels > 0.
        ranks: ascending; a component whose own rank is lower keeps all it has.
        y, z: clean part and noise of the states (B, *event).

    Returns:
        (R, L, B) in float64.
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float64, device=y.device).unsqueeze(1)
    step = rows_at_once(math.prod(y.shape[1:]), len(sigmas), len(ranks))
    found = []
    for i in range(0, len(y), step):
        rows = slice(i, i + step)
        found.append(_gaps(weights, parts, targets[:, rows].flatten(2), levels, ranks, y[rows], z[rows]))
    return torch.cat(found, 2)


def _gaps(
    weights: Sequence[float],
    parts: Sequence[Gaussian],
    targets: Tensor,
    levels: Tensor,
    ranks: Sequence[int],
    y: Tensor,
    z: Tensor,
) -> Tensor:
    total = math.fsum(weights)
    projections = [GaussianProjection(part, y, z) for part in parts]
    logits = torch.stack(
        [
            p.log_prob(levels, [min(r, p.rank) for r in ranks]) + math.log(w / total)
            for w, p in zip(weights, projections, strict=True)
        ]
    )
    shares = logits.softmax(0).flatten(2)  # (K, R, L B)
    count, dim = shares.shape[2], targets.shape[2]
    answer = targets.new_zeros(len(ranks), count, dim)
    for share, part, p in zip(shares, parts, projections, strict=True):
        alive = torch.nonzero(share.amax(0) > _WEIGHTLESS).squeeze(1)
        if not len(alive):
            continue
        own = share[:, alive].to(targets.dtype)
        coefficients = p.coefficients(levels)[..., 0, :].flatten(0, 1)[alive].to(targets.dtype)
        basis = part.spectrum.basis
        assert basis is not None
        basis = basis.to(targets.dtype)
        lifted = part.mean.to(targets.dtype).flatten().repeat(len(alive), 1)
        last = 0
        for k, rank in enumerate(ranks):
            stop = min(rank, p.rank)
            if stop > last:
                lifted.addmm_(coefficients[:, last:stop], basis[:, last:stop].T)
                last = stop
            answer[k].index_add_(0, alive, own[k].unsqueeze(1) * lifted)
    gaps = (targets.flatten(0, 1) - answer).double().square().sum(-1)
    return gaps.unflatten(1, targets.shape[:2])
