"""Ratios of two mean squares measured on the same queries, with their errors: what an unexplained fraction is made of.

From numerators n_b and denominators m_b of B queries come two conventions, which differ where the ratios scatter:

    ratio of means  Σ n_b / Σ m_b,        mean of ratios  (1/B) Σ n_b/m_b.

The error of the first is that of the delta method; its band is the percentile interval of a bootstrap over the queries
(Efron 1979), whose draws are the same for every pair of rows, so that curves on the same queries move together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farfield.numerics import streams

#: Quantiles of the ratios of single queries.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: The band covers this share of the bootstrap's draws.
COVERED = 0.95
_DRAWS = 400
#: More queries are drawn in groups: as good, and the draws stay small.
_GROUPS = 2048


@dataclass(frozen=True)
class Ratios:
    """Ratios along the noise levels; every tuple has an entry for each.

    Attributes:
        fuv: the ratio of means, 0 where numerators vanish; may exceed 1.
        standard_error: of ``fuv`` over the queries, by the delta method.
        low, high: the ends of its 95 % bootstrap band.
        mean_ratio: the mean over queries of each query's own ratio (the convention of published explained variances).
        deviation: the standard deviation of those ratios over the queries.
        quantiles: their 5, 25, 50, 75 and 95 % quantiles.
    """

    fuv: tuple[float, ...]
    standard_error: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean_ratio: tuple[float, ...]
    deviation: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...]


def resamples(queries: int, seed: int, draws: int = _DRAWS) -> Tensor:
    """How often each query occurs in each bootstrap draw: (draws, min(queries, 2048)) in float64, rows sum to the width."""
    width = min(queries, _GROUPS)
    place = streams.uniform(seed, range(draws), (width,), purpose="fidelity bootstrap", dtype=torch.float64)
    chosen = (place * width).long().clamp_(max=width - 1)
    return torch.zeros(draws, width, dtype=torch.float64).scatter_add_(1, chosen, torch.ones_like(place))


def ratios(numerator: Tensor, denominator: Tensor, counts: Tensor) -> Ratios:
    """The ratios of two tables of squares.

    Args:
        numerator, denominator: (L, B) for L levels and B queries, ≥ 0.
        counts: from :func:`resamples` for the same number of queries.
    """
    n, m = numerator.double(), denominator.double()
    size = n.shape[1]
    over, under = n.mean(1), m.mean(1)
    fuv = _quotient(over, under)
    finite = fuv.isfinite()
    spread = (
        (n - torch.where(finite, fuv, 0.0)[:, None] * m).std(1, correction=1) if size > 1 else torch.zeros_like(fuv)
    )
    error = torch.where(finite & (under > 0), spread / (under * math.sqrt(size)), 0.0)
    single = _quotient(n, m)
    edges = torch.tensor([(1 - COVERED) / 2, (1 + COVERED) / 2], dtype=torch.float64, device=n.device)
    weights = counts.to(n.device)
    drawn = _quotient(_grouped(n, weights.shape[1]) @ weights.T, _grouped(m, weights.shape[1]) @ weights.T)
    low, high = torch.quantile(drawn, edges, dim=1).nan_to_num(nan=math.inf, posinf=math.inf)
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=n.device)
    # Between infinite neighbours the interpolation gives NaN.
    quantiles = torch.quantile(single, levels, dim=1).T.nan_to_num(nan=math.inf, posinf=math.inf)
    return Ratios(
        fuv=_floats(fuv),
        standard_error=_floats(error),
        low=_floats(low),
        high=_floats(high),
        mean_ratio=_floats(single.mean(1)),
        deviation=_floats(single.std(1, correction=1) if size > 1 else torch.zeros_like(fuv)),
        quantiles=tuple(_floats(row) for row in quantiles),
    )


def _quotient(over: Tensor, under: Tensor) -> Tensor:
    """``over / under``; 0 where both vanish and infinite where only the latter does."""
    return torch.where(over > 0, over / under, 0.0)


def _grouped(values: Tensor, groups: int) -> Tensor:
    """Sums of ``groups`` runs of the columns, (L, B) to (L, groups)."""
    size = values.shape[1]
    if groups == size:
        return values
    index = torch.arange(size, device=values.device) * groups // size
    return torch.zeros(len(values), groups, dtype=values.dtype, device=values.device).index_add_(1, index, values)


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def finite(value: Any) -> Any:
    """A nested value as JSON holds it: what is not finite becomes None, tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(entry) for entry in value]
    return value
