"""Unexplained fractions in every convention: score and denoiser, both ratios, either denominator, with their bands."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from farfield.analysis.fidelity import default_sigmas, score_fidelity
from farfield.analysis.ratios import finite, ratios, resamples
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian
from farfield.numerics.spectrum import Spectrum

from .test_fidelity import T4, fuv


def draws(dim: int = 6, n: int = 400, seed: int = 0) -> Tensor:
    """Points of falling variance about a mean that is not 0."""
    g = torch.Generator().manual_seed(seed)
    scale = 2.0 ** -torch.arange(dim, dtype=torch.float64)
    return 0.7 + scale * torch.randn(n, dim, generator=g, dtype=torch.float64)


def mean_only(data: Tensor) -> Gaussian:
    return Gaussian(data.mean(0), Spectrum.isotropic(data[0].numel(), 0.0))


def test_both_ratios_are_kept_and_named():
    """Holds gaussian_score E23: ratio of means and mean of ratios are different numbers."""
    gap, norm = torch.tensor([[1.0, 3.0, 2.0, 2.0]]), torch.tensor([[1.0, 6.0, 4.0, 1.0]])
    found = ratios(gap, norm, resamples(4, 0))
    assert found.fuv == pytest.approx((8 / 12,))
    assert found.mean_ratio == pytest.approx(((1 + 0.5 + 0.5 + 2) / 4,))
    assert found.deviation[0] == pytest.approx(math.sqrt((0 + 0.25 + 0.25 + 1) / 3))
    assert found.quantiles[0][2] == pytest.approx(0.75)
    assert found.low[0] < found.fuv[0] < found.high[0]


def test_protocols_differ_at_low_noise_and_agree_far_away():
    """Holds gaussian_score E23: queries at noised data and at pure noise are told apart."""
    data = draws()
    model, law = Empirical(data), Gaussian.fit(data)
    both = {
        p: score_fidelity(model, data, sigmas=[40.0, 0.05], queries=400, protocol=p, laws={"gaussian": law})
        for p in ("noised", "noise")
    }
    far, near = ([found.laws["gaussian"].fuv[k] for found in both.values()] for k in (0, 1))
    assert [found.protocol for found in both.values()] == ["noised", "noise"]
    assert far[0] == pytest.approx(far[1], rel=0.6)
    assert max(near) > 1.5 * min(near)


@pytest.mark.parametrize("queries", [300, 5000])
def test_the_band_is_as_wide_as_its_standard_error_says(queries):
    """The bootstrap and the delta method agree, also where queries are drawn in groups."""
    g = torch.Generator().manual_seed(1)
    norm = 1 + torch.rand(2, queries, generator=g, dtype=torch.float64)
    gap = norm * torch.rand(2, queries, generator=g, dtype=torch.float64) ** 2
    found = ratios(gap, norm, resamples(queries, 3))
    for value, error, low, high in zip(found.fuv, found.standard_error, found.low, found.high, strict=True):
        assert low < value < high
        assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)
    assert ratios(gap, norm, resamples(queries, 3)) == found
    assert ratios(gap, norm, resamples(queries, 4)).low != found.low


def test_the_band_covers_the_truth():
    """In about 95 of 100 repetitions: here at least 85, which chance undercuts once in 10,000."""
    g = torch.Generator().manual_seed(2)
    norm = 1 + torch.rand(100, 200, generator=g, dtype=torch.float64)
    gap = torch.rand(100, 200, generator=g, dtype=torch.float64)
    found = ratios(gap, norm, resamples(200, 0))
    hits = sum(low <= 0.5 / 1.5 <= high for low, high in zip(found.low, found.high, strict=True))
    assert hits >= 85


def test_the_denoiser_tells_laws_apart_where_scores_do_not():
    """Holds gaussian_score E31: far away the mean alone explains the score, and nothing of the denoiser."""
    data = draws() - 0.7
    data -= data.mean(0)
    model = Gaussian.fit(data)
    laws = {"isotropic": mean_only(data), "gaussian": model}
    found = score_fidelity(model, data, sigmas=[50.0], queries=200, laws=laws)
    assert found.laws["isotropic"].fuv[0] < 1e-6
    assert found.laws["isotropic"].denoiser.fuv[0] == pytest.approx(1.0, rel=1e-6)
    assert found.laws["gaussian"].denoiser.fuv[0] == 0.0


def test_the_denominator_of_the_denoiser_holds_the_mean():
    """As in the published tables, whose value for the mean alone is 0.968 at low noise: tr Σ/(tr Σ + ‖μ‖²) for σ → 0."""
    data = draws(n=4000)
    found = score_fidelity(
        Empirical(data), data, sigmas=[1e-3], queries=4000, laws={"isotropic": mean_only(data)}, batch_size=1000
    )
    trace = float(data.var(0, correction=0).sum())
    expected = trace / (trace + float(data.mean(0).square().sum()))
    assert found.laws["isotropic"].denoiser.fuv[0] == pytest.approx(expected, rel=0.03)
    assert found.laws["isotropic"].denoiser_reversed.fuv[0] == pytest.approx(
        trace / float(data.mean(0).square().sum()), rel=0.05
    )


def test_reversed_denominators():
    data = draws()
    model, law = Empirical(data), Gaussian.fit(data)
    a = score_fidelity(model, data, sigmas=[1.0, 0.3], queries=100, laws={"law": law}).laws["law"]
    b = score_fidelity(law, data, sigmas=[1.0, 0.3], queries=100, laws={"law": model}).laws["law"]
    assert a.reversed.fuv == pytest.approx(b.fuv)
    assert a.denoiser_reversed.fuv == pytest.approx(b.denoiser.fuv)
    assert a.reversed.mean_ratio == pytest.approx(b.mean_ratio)
    assert a.reversed.fuv != pytest.approx(a.fuv)


@pytest.mark.parametrize("dim", [10, 1000])
def test_independent_coordinates_leave_the_fraction_of_one_f45(dim):
    """Holds gaussian_score F45: the same fraction whatever the dimension, though sqrt(tr Σ) grows from 0.4 to 12.6."""
    one = torch.tensor([0.2], dtype=torch.float64), torch.tensor([[0.16]], dtype=torch.float64)
    centres, weights = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([0.8, 0.2], dtype=torch.float64)
    exact = fuv(Empirical(T4), Gaussian(*one), centres, torch.zeros(2, dtype=torch.float64), weights, 0.5)
    assert exact == pytest.approx(0.0951, abs=4e-4)  # which is a Monte Carlo figure; exact is 0.09485

    def product(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.sigmoid((2 * x - 1) / (2 * sigma * sigma) + math.log(0.2 / 0.8))

    g = torch.Generator().manual_seed(dim)
    data = (torch.rand(20_000 // dim, dim, generator=g, dtype=torch.float64) < 0.2).double()
    law = Gaussian(torch.full((dim,), 0.2, dtype=torch.float64), Spectrum.diagonal([0.16] * dim))
    found = score_fidelity(
        FunctionDenoiser(product, (dim,)), data, sigmas=[0.5], queries=40_000 // dim, laws={"gaussian": law},
        dtype=torch.float64,
    )  # fmt: skip
    assert found.laws["gaussian"].fuv[0] == pytest.approx(exact, rel=0.06)
    assert found.total_scale == pytest.approx(0.4 * math.sqrt(dim))


def test_data_in_another_range_are_noticed():
    """Holds gaussian_score section 8, 17: the denoiser's fraction near sqrt(tr Σ) unmasks a wrong pixel range."""
    data = (draws(dim=8) - 0.9).clamp(-1, 1)
    model = Gaussian.fit(data)
    good = score_fidelity(model, data, queries=64, laws={"gaussian": model})
    assert good.mismatch is None
    assert "Warning" not in good.summary()
    for wrong in ((data + 1) / 2, (data + 1) * 127.5):
        bad = score_fidelity(model, wrong, queries=64, laws={"gaussian": Gaussian.fit(wrong)})
        assert bad.mismatch is not None
        assert bad.far_unexplained > 0.25
        assert "pixel range" in bad.summary()
        assert bad.to_dict()["mismatch"] == bad.mismatch
        # The score does not notice at the highest level.
        assert bad.laws["gaussian"].fuv[0] < 0.05 or wrong.max() > 1


def test_the_ranking_is_measured():
    """Holds gaussian_score E27: which law fits best is a result, not an assumption."""
    data = draws()
    laws = {"gaussian": Gaussian.fit(data), "empirical": Empirical(data)}
    for name, model in laws.items():
        found = score_fidelity(model, data, sigmas=[0.1], queries=50, laws=laws)
        assert found.ranking(0)[0] == name
        assert found.ranking(0, "denoiser")[0] == name


def test_numbers_at_one_and_between():
    data = draws()
    found = score_fidelity(Empirical(data), data, sigmas=[4.0, 1.0, 0.25], queries=200)
    own = found.laws["gaussian"].fuv
    assert found.unexplained_at(1.0) == own[1]
    assert found.unexplained_at(2.0) == pytest.approx(math.sqrt(own[0] * own[1]))
    assert found.unexplained_at(5.0) is None
    assert found.unexplained_at(0.1) is None
    assert f"it leaves {100 * own[1]:.3g} % of the score" in found.summary()
    reach = {row[0]: row[1:] for row in found.reach_table().rows}
    assert reach["gaussian"] == tuple(found.explained_until("gaussian", u) for u in (0.01, 0.1, 0.5))
    until = found.explained_until("gaussian", 0.5, "denoiser")
    assert until is None or found.sigmas[-1] <= until <= found.sigmas[0]


def test_default_levels_hold_one():
    levels = default_sigmas(Gaussian(torch.zeros(2), torch.eye(2)), 10)
    assert len(levels) == 10
    assert levels[0] == 80
    assert levels[-1] == pytest.approx(0.002)
    assert 1.0 in levels
    assert list(levels) == sorted(levels, reverse=True)
    assert default_sigmas(Gaussian(torch.zeros(2), torch.eye(2)), 2) == (80.0, pytest.approx(0.002))


def test_a_model_without_score_gives_plain_values():
    """A model that returns its input has score 0: fractions are infinite, which JSON cannot say."""
    model = FunctionDenoiser(lambda x, sigma: x, (2,))
    data = draws(dim=2)
    found = score_fidelity(model, data, sigmas=[1.0], queries=8, laws={"gaussian": Gaussian.fit(data)})
    assert found.laws["gaussian"].fuv == (math.inf,)
    assert found.gaussian_until is None
    text = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert text["laws"]["gaussian"]["fuv"] == [None]
    assert text["laws"]["gaussian"]["quantiles"] == [[None] * 5]
    assert finite({"a": (1.0, math.nan), "b": "text"}) == {"a": [1.0, None], "b": "text"}
