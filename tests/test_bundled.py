"""The bundled digits model: its card, its quality measured anew, and samples that depend on the seed alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from farfield.data import load as load_data
from farfield.distributions import Gaussian
from farfield.interop import load
from farfield.metrics import sample_quality
from farfield.sampling import Sampler, karras, spectral
from farfield.training import from_dict, load_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def digits():
    return load("digits"), load_data("digits")


def test_card_names_configuration_data_and_quality(digits):
    model, data = digits
    training = model.card["training"]
    assert from_dict(training["config"]) == load_config(ROOT / "configs/digits.yaml")
    assert training["data"] == {"name": "digits", "count": 1500, "digest": data.train.digest}
    assert len(data.validation) == 297
    quality = training["metrics"]["quality"]
    assert quality["n"] == 1500
    assert quality["frechet_ratio"] <= 2
    assert quality["memorisation"]["copies"] <= 0.01
    assert (ROOT / "src/farfield/interop/bundled/digits/model.safetensors").stat().st_size <= 4 << 20


def test_quality_measured_anew(digits):
    """Fréchet distance at most twice that of held-out images of the same number, and no copies."""
    model, data = digits
    gaussian = Gaussian.fit(data.train.images)
    sampler = Sampler("whitened", spectral(12, gaussian), covariance=gaussian)
    x = sampler(model, 600, seed=1, batch_size=200).x
    quality = sample_quality(x, data.train.images, data.validation.images)
    assert quality.ratio is not None
    assert quality.ratio <= 2
    assert quality.copying.copies <= 0.01
    assert quality.copying.median_ratio is not None
    assert quality.copying.median_ratio > 0.8


def test_fast_sampler_is_as_exact_as_the_slow_one(digits):
    """14 evaluations of the whitened solver against 35 of Heun, both against a fine solution of the model's own ODE."""
    model, data = digits
    gaussian = Gaussian.fit(data.train.images)
    fine = Sampler("whitened", spectral(160, gaussian), covariance=gaussian)(model, 24, seed=2).x

    def error(sampler):
        return float((sampler(model, 24, seed=2).x - fine).square().mean().sqrt())

    fast = error(Sampler("whitened", spectral(14, gaussian), covariance=gaussian))
    assert fast <= error(Sampler("heun", karras(18)))
    assert fast <= 0.5 * error(Sampler("dpmpp_2m", karras(14)))


def test_samples_depend_on_the_seed_alone(digits):
    model, _ = digits
    sampler = Sampler("heun", karras(18))
    whole = sampler(model, 40, seed=7).x
    for size in (17, 3, 1):
        torch.testing.assert_close(sampler(model, 40, seed=7, batch_size=size).x, whole, rtol=0, atol=1e-6)


def test_score_is_gaussian_at_high_noise(digits):
    """At σ = 5 the Gaussian of the data leaves under 0.1 % of the network's score unexplained."""
    model, data = digits
    gaussian = Gaussian.fit(data.train.images)
    generator = torch.Generator().manual_seed(0)
    x = data.train.images[:256] + 5 * torch.randn(256, 1, 8, 8, generator=generator)
    ours, theirs = model.score(x, 5.0), gaussian.score(x, 5.0)
    assert float((ours - theirs).square().sum() / ours.square().sum()) < 1e-3
