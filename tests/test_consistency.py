"""Seed consistency of two models, and the linear preview of a seed's sample."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from farfield.analysis import Subject, analyze
from farfield.analysis.consistency import seed_consistency
from farfield.analysis.preview_linear import linear_preview
from farfield.data import load
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.sampling import LateStart, Sampler, karras
from farfield.sampling.solvers import Whitened

WIDE = torch.float64


def gaussian(seed: int, shape: tuple[int, ...] = (1, 3, 3)) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(9, 9, dtype=WIDE, generator=generator) / 3
    return Gaussian(0.3 * torch.randn(*shape, dtype=WIDE, generator=generator), root @ root.T)


# The preview


def test_the_preview_is_the_sample_of_a_gaussian():
    """Number for number: the sampler's noise, the Gaussian's flow."""
    law = gaussian(0)
    exact = Sampler(Whitened(1), karras(4), covariance=law)
    assert torch.allclose(linear_preview(law, 9, 5), exact(law, 9, 5).x, atol=1e-3)
    assert torch.allclose(linear_preview(law, 9, 5, dtype=WIDE), exact(law, 9, 5, dtype=WIDE).x, atol=1e-12)
    heun = Sampler("heun", karras(400))(law, 9, 5, dtype=WIDE).x
    assert torch.allclose(linear_preview(law, 9, 5, dtype=WIDE), heun, atol=1e-3)
    assert not torch.allclose(linear_preview(law, 9, 6), exact(law, 9, 5).x, atol=0.1)


def test_previews_are_addressed_like_samples():
    law = gaussian(1)
    whole = linear_preview(law, 8, 3, dtype=WIDE)
    assert torch.allclose(linear_preview(law, 3, 3, first=5, dtype=WIDE), whole[5:], atol=1e-13)
    assert torch.allclose(linear_preview(law, 8, 3, batch_size=3, dtype=WIDE), whole, atol=1e-13)
    lower = Sampler(Whitened(1), karras(3, sigma_max=20.0), covariance=law)
    assert torch.allclose(
        linear_preview(law, 2, 3, sigma_max=20.0, dtype=WIDE), lower(law, 2, 3, dtype=WIDE).x, atol=1e-12
    )
    start = linear_preview(law, 2, 3, sigma=80.0)
    assert float(start.square().mean().sqrt()) == pytest.approx(80, rel=0.5)
    for bad in ({"n": 0}, {"first": -1}, {"sigma": 81.0}, {"sigma_max": 0.0}, {"batch_size": 0}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            linear_preview(law, **({"n": 1, "seed": 0} | bad))


# Two models


def test_a_model_agrees_with_itself():
    law = gaussian(0)
    found = seed_consistency(law, law, law, law, n=12)
    assert max(found.distances["models"]) == 0
    assert found.consistency == found.gaussian_consistency == 1
    assert found.against_chance.closer == 1
    assert found.rank_correlation is None
    low, high = FunctionDenoiser(law, (1, 3, 3), 0.0, 50.0), FunctionDenoiser(law, (1, 3, 3), 0.01)
    grid = seed_consistency(low, high, law, law, n=2).sampler["sigmas"]
    assert (grid["sigma_min"], grid["sigma_max"]) == (0.01, 50.0)


def test_two_gaussians_differ_by_their_maps():
    """Then the models' distance is that of the two closed-form maps, and each is its own Gaussian."""
    a, b = gaussian(0), gaussian(1)
    found = seed_consistency(a, b, a, b, n=16, sampler=Sampler("heun", karras(200)))
    assert found.distances["models"] == pytest.approx(found.distances["gaussians"], rel=0.01)
    assert found.distances["shuffled"] == pytest.approx(found.distances["shuffled_gaussians"], rel=0.01)
    assert max(found.distances["own_a"]) < 1e-4 * found.statistics("models").mean
    assert max(found.distances["own_b"]) < 1e-4 * found.statistics("models").mean
    assert found.rank_correlation == pytest.approx(1, abs=0.02)
    maps = (linear_preview(a, 16) - linear_preview(b, 16)).square().flatten(1).mean(1)
    assert found.distances["gaussians"] == pytest.approx(maps.tolist(), rel=1e-4)


def test_a_model_that_turns_every_sample_round_is_not_consistent():
    """x and −x of the same noise are farther apart than two different samples: −1, though the Gaussians agree."""
    law = Gaussian(torch.zeros(2, dtype=WIDE), torch.eye(2, dtype=WIDE))
    quarter = torch.tensor([[0.0, 1], [-1, 0]], dtype=WIDE)

    def turning(x: Tensor, sigma: Tensor) -> Tensor:
        # ∫ ½ π sech²(u) du = π: half a turn on the way from noise to sample.
        rate = 0.5 * math.pi / torch.cosh(torch.log(sigma)) ** 2
        return law(x, sigma) + rate * x @ quarter.to(x)

    other = FunctionDenoiser(turning, (2,))
    found = seed_consistency(law, other, law, law, n=64, sampler=Sampler("heun", karras(120)))
    assert found.consistency == pytest.approx(-1, abs=0.3)
    g = linear_preview(law, 64).double()
    others = torch.stack([(g + g.roll(-k, 0)).square().mean(1) for k in range(1, 5)]).mean(0)
    assert found.distances["shuffled"] == pytest.approx(others.tolist(), rel=0.02, abs=1e-3)
    assert found.gaussian_consistency == 1
    assert found.statistics("models").mean == pytest.approx(
        4 * float(linear_preview(law, 64).square().mean()), rel=0.01
    )
    assert found.against_chance.closer < 0.5


@pytest.fixture(scope="module")
def halves():
    """Mixtures fitted to disjoint halves of the digits."""
    images = load("digits").train.images
    a, b = images[::2], images[1::2]
    return a, b, GaussianMixture.fit(a, 6, rank=12), GaussianMixture.fit(b, 6, rank=12)


def test_disjoint_halves_make_the_same_images(halves):
    """The far field is shared: the Gaussian maps agree almost, the models by far more than chance."""
    data_a, data_b, a, b = halves
    found = seed_consistency(a, b, data_a, data_b, n=32)
    assert found.gaussian_consistency > 0.98
    assert 0.7 < found.consistency < found.gaussian_consistency
    assert found.against_chance.significant
    assert found.against_chance.closer > 0.95
    assert found.sampler["solver"]["name"] == "heun"
    assert set(found.pictures) == {"first model", "second model", "first Gaussian", "second Gaussian"}
    assert len(found.plot().axes) == 2
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["consistency"] == found.consistency
    assert len(found.tables()[0].rows) == 6
    assert "consistency 0." in found.summary()


@dataclass(frozen=True)
class Pair(Subject):
    """A subject with another model beside it."""

    other: Any = None
    other_data: Tensor | None = None


def test_by_name(halves):
    data_a, data_b, a, b = halves
    options = {"n": 4, "shown": 0}
    found = analyze("consistency", Pair(a, data_a, other=b, other_data=data_b), options)
    expected = seed_consistency(a, b, data_a, data_b, n=4)
    assert found.distances == expected.distances
    assert len(found.plot().axes) == 1
    shared = analyze("consistency", Pair(a, data_a, other=b), options)
    assert shared.distances["gaussians"] == (0.0,) * 4
    with pytest.raises(ArgumentError, match="name the second one"):
        analyze("consistency", Pair(a, data_a), options)


def test_bad_arguments(halves):
    data_a, _, a, b = halves
    plane = Gaussian(torch.zeros(2), torch.eye(2))
    late = Sampler("heun", karras(5), LateStart(Gaussian.fit(data_a), 5.0))
    for arguments, options, message in (
        ((a, plane, data_a, data_a), {}, "the models have shapes"),
        ((a, b, data_a, plane), {}, "data_b has events"),
        ((a, b, data_a, data_a), {"n": 1}, "n = 1"),
        ((a, b, data_a, data_a), {"batch_size": 0}, "batch_size = 0"),
        ((a, b, data_a, data_a), {"sampler": late}, "'late_start'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            seed_consistency(*arguments, **options)
