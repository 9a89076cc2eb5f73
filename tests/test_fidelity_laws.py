"""The laws that models are compared with, the closed forms between them, and the analysis by name."""

from __future__ import annotations

import pytest
import torch

from farfield.analysis import Subject, analyze, reference_laws
from farfield.analysis.fidelity_closed_forms import (
    isotropic_fuv,
    modes_above,
    sufficient_rank,
    truncation_error,
    truncation_fuv,
)
from farfield.analysis.published import CIFAR10, EXPLAINED_ABOVE, MNIST
from farfield.analysis.reference_laws import mixture_rank, mixture_size
from farfield.distributions import GaussianMixture
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum


def plane() -> Spectrum:
    """Eigenvalues 4 and 0.25 in three dimensions."""
    return Spectrum.low_rank(torch.eye(3, dtype=torch.float64)[:, :2], [4.0, 0.25])


@pytest.mark.parametrize(
    ("sigma", "noise", "noised"),
    [(0.5, 0.906142, 9.981132), (1, 0.404762, 1.625), (2, 0.118672, 0.206325), (5, 0.007022, 0.007772)],
)
def test_the_mean_against_the_gaussian_f46(sigma, noise, noised):
    """Holds gaussian_score F46."""
    assert isotropic_fuv(plane(), sigma, "noise") == pytest.approx(noise, abs=6e-7)
    assert isotropic_fuv(plane(), sigma) == pytest.approx(noised, abs=6e-7)


def test_far_field_limit_of_the_mean_f55():
    """Holds gaussian_score F55: σ⁴ FUV tends to Σ λ²/d."""
    limit = (16 + 0.0625) / 3
    assert 200**4 * isotropic_fuv(plane(), 200, "noise") == pytest.approx(5.3535, abs=5e-5)
    for protocol in ("noise", "noised"):
        assert 2000**4 * isotropic_fuv(plane(), 2000, protocol) == pytest.approx(limit, rel=2e-6)


def test_truncation_predicts_the_rank_f54():
    """Holds gaussian_score F54: the eigenvalues above σ² are fewer than it takes."""
    spectrum = Spectrum.diagonal(100 * torch.arange(1, 1025, dtype=torch.float64) ** -1.5)
    sigmas = (10, 5, 2, 1, 0.5, 0.1)
    assert [sufficient_rank(spectrum, s, 1e-3) for s in sigmas] == [0, 2, 16, 68, 277, 1018]
    assert [modes_above(spectrum, s) for s in sigmas] == [0, 2, 8, 21, 54, 464]
    curve = truncation_fuv(spectrum, 1.0)
    assert curve.shape == (1025,)
    assert curve[0] == pytest.approx(isotropic_fuv(spectrum, 1.0))
    assert curve[-1] == 0
    assert bool((curve.diff() <= 0).all())
    with pytest.raises(ArgumentError, match="sigma = 0"):
        truncation_error(spectrum, 0.0)


def test_laws_by_name():
    g = torch.Generator().manual_seed(0)
    data = torch.randn(90, 5, generator=g, dtype=torch.float64)
    labels = torch.arange(90) % 3
    laws = reference_laws(data, components=(2, 4), labels=labels, spherical=True)
    assert list(laws) == ["isotropic", "spherical", "gaussian", "classes", "mixture:2", "mixture:4", "empirical"]
    x, sigma = torch.randn(7, 5, generator=g, dtype=torch.float64), 0.6
    mean, variance = data.mean(0), float(data.var(0, correction=0).mean())
    expected = (variance * x + sigma**2 * mean) / (variance + sigma**2)
    assert torch.allclose(laws["spherical"](x, sigma), expected, atol=1e-12)
    classes = laws["classes"]
    assert isinstance(classes, GaussianMixture)
    assert classes.components == 3
    own = GaussianMixture.per_class(data, labels)
    assert torch.allclose(classes(x, sigma), own(x, sigma), atol=1e-12)
    for bad in (0, (3, 3), (0, 2), 91):
        with pytest.raises(ArgumentError, match="components"):
            reference_laws(data, components=bad)
    with pytest.raises(ArgumentError, match="labels"):
        reference_laws(data, labels=labels[:5])


def test_mixtures_stay_small():
    assert [mixture_size(n) for n in (1, 100, 1500, 45_000)] == [1, 2, 10, 10]
    assert mixture_rank(768, 10) is None
    assert mixture_rank(64, 64) is None
    assert mixture_rank(3072, 10) == 819
    assert mixture_rank(768, 10_000) == 1


def test_published_tables_are_complete():
    """A value for each level; the figures say what the article says of them."""
    for table in (CIFAR10, MNIST):
        assert all(len(row) == len(table.sigmas) for row in table.score.values())
        assert all(len(row) == len(table.denoiser_sigmas) for row in table.denoiser.values())
        assert list(table.sigmas) == sorted(table.sigmas)
    assert CIFAR10.at("gaussian", 1.0) == 0.0157
    assert CIFAR10.at("gaussian", 1.1) is None
    assert CIFAR10.denoiser_at("isotropic", 80.0) == 0.511
    assert CIFAR10.denoiser_at("classes", 80.0) is None
    above = [v for s, v in zip(CIFAR10.sigmas, CIFAR10.score["gaussian"], strict=True) if s >= EXPLAINED_ABOVE]
    assert max(above) < 0.01
    best = {table.network: min(table.score, key=lambda law: table.score[law][1]) for table in (CIFAR10, MNIST)}
    assert best[MNIST.network] == "empirical"
    assert best[CIFAR10.network] != "empirical"


def test_the_analysis_and_its_options():
    g = torch.Generator().manual_seed(0)
    data = torch.randn(60, 4, generator=g)
    subject = Subject(reference_laws(data)["gaussian"], data, labels=torch.arange(60) % 2)
    few = {"queries": 8, "sigmas": [2.0, 0.5]}
    found = analyze("fidelity", subject, {**few, "components": [2, 3], "protocol": "noise"})
    assert list(found.laws) == ["isotropic", "spherical", "gaussian", "classes", "mixture:2", "mixture:3", "empirical"]
    assert found.protocol == "noise"
    assert found.components is None
    one = analyze("fidelity", subject, {**few, "components": 2, "classes": False})
    assert list(one.laws) == ["isotropic", "spherical", "gaussian", "mixture", "empirical"]
    assert one.components == 2
    titles = [table.title for table in one.tables()]
    assert [any(word in title for title in titles) for word in ("score", "denoiser", "by convention", "how far")] == [
        True
    ] * 4
    assert all(len(row) == len(table.columns) for table in one.tables() for row in table.rows)
