"""The trade-off of components and rank, against mixtures made one by one and the closed form."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from farfield.analysis import Subject, analyze, rank_gaps
from farfield.analysis.fidelity import score_fidelity
from farfield.analysis.fidelity_closed_forms import truncation_fuv
from farfield.analysis.rank_sweep import rank_sweep
from farfield.analysis.rank_sweep_result import RankSweep
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.distributions.mixture_fit import fit
from farfield.errors import ArgumentError
from farfield.numerics import streams

from .laws import mixture


def clusters(n: int = 240, dim: int = 6, seed: int = 0) -> Tensor:
    """Three clusters of falling variances."""
    g = torch.Generator().manual_seed(seed)
    data = torch.randn(n, dim, generator=g, dtype=torch.float64) * 0.6 ** torch.arange(dim, dtype=torch.float64)
    data[:, 0] += 3.0 * torch.randint(0, 3, (n,), generator=g)
    return data


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.floats(0.02, 20), st.integers(0, 6), st.integers(0, 3))
def test_every_rank_is_the_truncated_mixture(components, sigma, rank, seed):
    """All ranks in one pass are those of mixtures fitted with that rank."""
    data = clusters(seed=seed)
    weights, means, spectra = fit(data, components, None, seed, "zero", 0.0)
    parts = [Gaussian(m, s) for m, s in zip(means, spectra, strict=True)]
    g = torch.Generator().manual_seed(seed)
    z, target = (torch.randn(9, 6, generator=g, dtype=torch.float64) for _ in range(2))
    y = data[:9]
    ranks = sorted({0, rank, 6})
    gaps = rank_gaps.rank_gaps(weights, parts, target.unsqueeze(0), [sigma], ranks, y, z)
    for k, r in enumerate(ranks):
        law = GaussianMixture.fit(data, components, rank=r, seed=seed, tail="zero")
        expected = (target - law(y + sigma * z, sigma)).square().sum(1)
        assert torch.allclose(gaps[k, 0], expected, rtol=1e-7, atol=1e-10)


def test_batches_change_nothing(monkeypatch):
    data = clusters()
    first = rank_sweep(Empirical(data), data, components=(1, 3), sigmas=[1.0, 0.2], queries=20)
    monkeypatch.setattr(rank_gaps, "_HELD", 200)
    again = rank_sweep(Empirical(data), data, components=(1, 3), sigmas=[1.0, 0.2], queries=20, batch_size=3)
    a, b = (torch.tensor(found.fuv, dtype=torch.float64) for found in (first, again))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_full_rank_is_that_of_score_fidelity():
    """The same queries, the same clusters, the same numbers."""
    data = clusters()
    kmeans = streams.derive(0, "kmeans") % 2**32
    laws = {"one": Gaussian.fit(data), "three": GaussianMixture.fit(data, 3, seed=kmeans)}
    model = Empirical(data)
    found = rank_sweep(model, data, components=(1, 3), sigmas=[2.0, 0.3], queries=40)
    other = score_fidelity(model, data, sigmas=[2.0, 0.3], queries=40, laws=laws)
    for level in (0, 1):
        expected = [law.fuv[level] for law in other.laws.values()]
        assert found.full(level) == pytest.approx(expected, rel=1e-8)
        ratio = [law.mean_ratio[level] for law in other.laws.values()]
        assert [row[-1] for row in found.mean_ratio[level]] == pytest.approx(ratio, rel=1e-8)


def test_one_component_follows_the_closed_form():
    """On Gaussian data and an exact model, prediction and measurement agree."""
    values = 4.0 * torch.arange(1, 41, dtype=torch.float64) ** -1.5
    g = torch.Generator().manual_seed(0)
    data = torch.randn(4000, 40, generator=g, dtype=torch.float64) * values.sqrt()
    model = Gaussian.fit(data)
    found = rank_sweep(model, data, components=(1,), sigmas=[2.0, 0.5, 0.1], queries=1500)
    for k, sigma in enumerate(found.sigmas):
        expected = truncation_fuv(model.spectrum, sigma)[list(found.ranks)]
        for measured, predicted, exact in zip(found.fuv[k][0], found.predicted[k], expected, strict=True):
            assert predicted == pytest.approx(float(exact), rel=0.05, abs=1e-12)
            assert measured == pytest.approx(float(exact), rel=0.1, abs=1e-12)
        for enough in (
            1e9,
            1e12,
        ):  # the model is the law: full rank leaves rounding alone, so compare in absolute terms
            assert found.minimal_rank(k, 1, enough) == found.ranks[-1] or found.fuv[k][0][-1] > 0
    assert found.fuv[0][0][-1] < 1e-20


def test_a_smooth_law_is_best_fitted_by_as_many_components_as_it_has():
    """Too few are too coarse, too many follow the sample: a U, whose bottom and error bars are told."""
    means = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]], dtype=torch.float64)
    model = mixture(means, torch.full((4,), 0.3, dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64))
    g = torch.Generator().manual_seed(1)
    data = means[torch.randint(0, 4, (400,), generator=g)] + 0.3**0.5 * torch.randn(
        400, 2, generator=g, dtype=torch.float64
    )
    found = rank_sweep(model, data, components=(1, 2, 4, 40, 200), sigmas=[8.0, 0.2], queries=400)
    assert found.best_components(1) == 4
    assert found.is_u_shaped(1)
    assert found.gain(1, 4) > found.gain(1, 40) > found.gain(1, 200)
    assert found.gain(1, 1) == 0
    assert "too many hurt" in found.summary()
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["best_components"][1] == 4
    assert record["largest"][0] == 2
    assert all(len(row) == len(table.columns) for table in found.tables() for row in table.rows)
    assert len(found.plot().axes) == 3


def made(
    full: list[float], errors: float, ranks: tuple[int, ...] = (1, 2, 4), rows: list[float] | None = None
) -> RankSweep:
    """A sweep of one level with given numbers."""
    curves = tuple((*(rows or [9 * v, 1.05 * v]), v) for v in full)
    n = len(full)
    return RankSweep(
        sigmas=(0.1,), components=(1, 2, 5)[:n], ranks=ranks, fuv=(curves,), mean_ratio=(curves,),
        standard_error=(curves,), differences=(tuple((errors,) * n for _ in full),), predicted=None, queries=2, seed=0,
        count=10, dim=4, largest=(4,) * n,
    )  # fmt: skip


def test_a_u_needs_more_than_noise():
    assert made([0.3, 0.2, 0.3], 0.04).is_u_shaped(0)
    assert not made([0.3, 0.2, 0.3], 0.06).is_u_shaped(0)
    assert not made([0.3, 0.2, 0.1], 0.001).is_u_shaped(0)
    sweep = made([0.3, 0.2, 0.3], 0.04)
    assert sweep.minimal_rank(0, 2) == 2
    assert sweep.minimal_rank(0, 2, 1.01) == 4
    assert sweep.predicted_rank(0) is None
    with pytest.raises(ArgumentError, match="components = 7; this sweep has 1, 2, 5"):
        sweep.minimal_rank(0, 7)
    assert len(made([0.3], 0.1).plot().axes) == 3


def test_the_analysis_and_bad_arguments():
    data = clusters(n=60)
    model = Gaussian.fit(data)
    options = {"components": [1, 4, 100], "ranks": [2, 50], "sigmas": [1.0], "queries": 6}
    found = analyze("rank", Subject(model, data), options)
    assert found.components == (1, 4)
    assert found.ranks == (2, 6)
    assert found.queries == 6
    for bad in ({"components": (0, 1)}, {"components": ()}, {"ranks": (-1,)}, {"queries": 1}, {"sigmas": (0.0,)}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            rank_sweep(model, data, **bad)
    with pytest.raises(ArgumentError, match="data has shape"):
        rank_sweep(model, torch.zeros(5, 3))
