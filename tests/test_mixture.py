"""Mixtures of Gaussians against the facts of the Gaussian score paper and against textbook formulas."""

import json
import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from farfield.denoiser import Denoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture, toy
from farfield.distributions import mixture_terms as module
from farfield.errors import ArgumentError, DataError
from farfield.numerics.spectrum import Spectrum

F64 = torch.float64


def t2():
    """T2 of the facts: one dimension, π = (0.3, 0.7), means (−2, 1), variances (0.09, 0.25)."""
    means = torch.tensor([[-2.0], [1.0]], dtype=F64)
    return GaussianMixture([0.3, 0.7], means, torch.tensor([0.09, 0.25], dtype=F64).view(2, 1, 1))


def column(*values):
    return torch.tensor(values, dtype=F64).unsqueeze(1)


def orthonormal(d, r):
    return torch.linalg.qr(torch.randn(d, r, dtype=F64))[0]


def mixed(d=6):
    """Every kind of component in one mixture: low rank with and without a tail, full, isotropic, diagonal."""
    root = torch.randn(d, d, dtype=F64)
    spectra = [
        Spectrum.low_rank(orthonormal(d, 3), [2.0, 1.0, 0.1]),
        Spectrum.low_rank(orthonormal(d, 2), [1.5, 0.2], 0.3),
        Spectrum.from_covariance(root @ root.T),
        Spectrum.isotropic(d, 0.5),
        Spectrum.diagonal(torch.rand(d) + 0.1),
    ]
    return GaussianMixture(torch.rand(5) + 0.1, 3 * torch.randn(5, d, dtype=F64) + 4, spectra), spectra


def reference_log_prob(law, spectra, x, sigma):
    eye = sigma**2 * torch.eye(law.dim, dtype=F64)
    parts = [MultivariateNormal(m, s.dense() + eye).log_prob(x) for m, s in zip(law.means, spectra, strict=True)]
    return torch.logsumexp(torch.stack(parts, 1) + law.weights_.log(), 1)


@pytest.mark.parametrize("sigma", [5.0, 0.5, 0.01])
@pytest.mark.parametrize("chunk", [1 << 24, 40])
def test_density_score_and_jacobian(sigma, chunk, monkeypatch):
    """gaussian_score F5, F6, F9: density of the dense formula, score its gradient, ∂D/∂x = Cov/σ², in chunks or whole."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    law, spectra = mixed()
    x = law.sample(7, sigma=sigma).requires_grad_()
    ours = law.log_prob(x, sigma)
    torch.testing.assert_close(ours, reference_log_prob(law, spectra, x, sigma), rtol=1e-9, atol=1e-7)
    (score,) = torch.autograd.grad(ours.sum(), x)
    x = x.detach()
    torch.testing.assert_close(law.score(x, sigma), score, rtol=1e-8, atol=1e-8 * float(score.abs().max()))
    v = torch.randn_like(x)
    value, product = law.jvp(x, sigma, v)
    torch.testing.assert_close(value, law(x, sigma))
    torch.testing.assert_close(product, Denoiser.jvp(law, x, sigma, v)[1], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(law.trace(x, sigma), Denoiser.divergence(law, x, sigma), atol=1e-8, rtol=1e-8)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: law(z[None], sigma)[0]))(x)
    torch.testing.assert_close(jacobian, jacobian.transpose(1, 2), atol=1e-8, rtol=1e-8)
    assert float(torch.linalg.eigvalsh(jacobian).min()) > -1e-8


def test_large_low_rank_mixture():
    """gaussian_score F5: D = 40, r = 6, K = 5, density against scipy and score against dense inverses."""
    from scipy.stats import multivariate_normal

    bases = torch.stack([orthonormal(40, 6) for _ in range(5)])
    values, means = torch.rand(5, 6, dtype=F64) * 4, torch.randn(5, 40, dtype=F64)
    law = GaussianMixture(torch.ones(5), means, (bases, values, torch.zeros(5, dtype=F64)))
    for sigma, tolerance in ((5.0, 1e-12), (0.01, 1e-8)):
        x = law.sample(4, sigma=sigma)
        covariances = bases @ torch.diag_embed(values) @ bases.transpose(1, 2) + sigma**2 * torch.eye(40, dtype=F64)
        logs = np.stack([multivariate_normal(means[k], covariances[k]).logpdf(x) for k in range(5)])
        expected = torch.logsumexp(torch.from_numpy(logs), 0) - math.log(5)
        torch.testing.assert_close(law.log_prob(x, sigma), expected, atol=10 * tolerance, rtol=1e-12)
        w = torch.from_numpy(logs).softmax(0)
        slopes = torch.stack([torch.linalg.solve(covariances[k], (means[k] - x).T).T for k in range(5)])
        score = (w.unsqueeze(2) * slopes).sum(0)
        torch.testing.assert_close(law.score(x, sigma), score, atol=tolerance * float(score.abs().max()), rtol=0)


def test_special_cases():
    """gaussian_score F7: weights sum to one; K = 1 is the Gaussian; point components are the data set; N = 1 its mean."""
    law, _ = mixed()
    x = torch.randn(4, 6, dtype=F64)
    torch.testing.assert_close(law.weights(x, 0.3).sum(1), torch.ones(4, dtype=F64))
    spectrum, mean = Spectrum.low_rank(orthonormal(6, 2), [2.0, 1.0], 0.2), torch.randn(6, dtype=F64)
    single = GaussianMixture([1.0], mean[None], spectrum)
    gauss = Gaussian(mean, spectrum)
    torch.testing.assert_close(single(x, 0.4), gauss(x, 0.4))
    torch.testing.assert_close(single.log_prob(x, 0.4), gauss.log_prob(x, 0.4))
    points = torch.randn(9, 6, dtype=F64)
    masses = GaussianMixture(torch.ones(9), points, Spectrum.isotropic(6, 0.0))
    exact = Empirical(points)
    torch.testing.assert_close(masses(x, 0.8), exact(x, 0.8))
    torch.testing.assert_close(masses.log_prob(x, 0.8), exact.log_prob(x, 0.8))
    torch.testing.assert_close(Empirical(points[:1])(x, 0.8), points[:1].expand(4, 6))


def test_values_of_t2():
    """gaussian_score F9, F10. (The last digit of F10 at σ = 0.1 is 8: 3/13 − 1.8e-11 = 0.23076923075.)"""
    law, x = t2(), column(0.2)
    for sigma, value in ((80.0, 0.1001862321), (1.0, 0.6792143206), (0.1, 0.23076923075)):
        assert float(law(x, sigma)) == pytest.approx(value, abs=1e-10)
    expected = torch.tensor([[0.02403942, 0.97596058]], dtype=F64)
    torch.testing.assert_close(law.weights(x, 0.8), expected, atol=1e-8, rtol=0)
    assert float(law(x, 0.8)) == pytest.approx(0.7150850435, abs=1e-10)
    assert float(law.posterior_trace(x, 0.8)) == pytest.approx(0.3244601684, abs=1e-10)
    assert float(law.jvp(x, 0.8, torch.ones_like(x))[1]) == pytest.approx(0.5069690131, abs=1e-10)


def test_two_symmetric_components():
    """gaussian_score F12."""
    law = GaussianMixture([0.5, 0.5], column(1.0, -1.0), Spectrum.isotropic(1, 0.25))
    assert float(law(column(0.3), 0.5)) == pytest.approx(0.4185247835, abs=1e-10)


def test_posterior_mean_by_quadrature():
    law = t2()
    grid = torch.linspace(-8, 8, 200_001, dtype=F64)
    prior = law.log_prob(grid.unsqueeze(1)).exp()
    for x, sigma in ((0.2, 0.8), (-1.0, 0.3), (3.0, 2.0)):
        weight = prior * torch.exp(-((x - grid) ** 2) / (2 * sigma**2))
        assert float(law(column(x), sigma)) == pytest.approx(float((weight * grid).sum() / weight.sum()), abs=1e-9)
        density = float(torch.trapezoid(weight, grid)) / math.sqrt(2 * math.pi) / sigma
        assert float(law.log_prob(column(x), sigma)) == pytest.approx(math.log(density), abs=1e-9)


def test_mean_score_is_zero():
    """gaussian_score F13."""
    law = t2()
    x = law.sample(400_000, torch.Generator().manual_seed(1), sigma=0.7)
    score = law.score(x, 0.7)
    assert abs(float(score.mean())) < 3 * float(score.std()) / math.sqrt(len(x))


def test_flow_of_one_dimension_is_the_monotone_map():
    """gaussian_score F48: the sampling ODE carries quantiles to quantiles."""
    from scipy.integrate import solve_ivp

    law = t2()
    start = np.array([-160.0, -80, -40, 0, 40, 80, 160])

    def slope(u, x):
        return x - law(torch.from_numpy(x).unsqueeze(1), math.exp(u)).squeeze(1).numpy()

    end = solve_ivp(slope, (math.log(80), math.log(1e-5)), start, "DOP853", rtol=1e-9, atol=1e-10).y[:, -1]
    expected = [-2.430448192, -1.978945796, -0.134915432, 0.715976667, 1.073662112, 1.374150660, 1.921792418]
    assert np.allclose(end, expected, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
def test_float32_is_sound_at_small_sigma(sigma):
    d, k, r = 512, 6, 8
    bases = torch.stack([orthonormal(d, r) for _ in range(k)]).float()
    means = torch.randn(k, d) + 2
    law = GaussianMixture(torch.ones(k), means, (bases, torch.rand(k, r) + 0.5, torch.full((k,), 0.0)))
    x = law.sample(16, sigma=sigma)
    wide = law(x.double(), sigma)
    torch.testing.assert_close(law(x, sigma).double(), wide, atol=2e-5, rtol=0)
    torch.testing.assert_close(law.log_prob(x, sigma), law.log_prob(x.double(), sigma), rtol=0, atol=1e-9)
    spectra = [Spectrum.low_rank(torch.linalg.qr(b.double())[0], v) for b, v in zip(law.bases, law.values, strict=True)]
    if sigma >= 0.1:
        expected = reference_log_prob(
            GaussianMixture(torch.ones(k), means.double(), spectra), spectra, x.double(), sigma
        )
        torch.testing.assert_close(law.log_prob(x, sigma), expected, rtol=0, atol=1e-6)


def test_levels_may_be_numbers_scalars_or_one_a_row():
    law, _ = mixed()
    x, levels = law.sample(3), torch.tensor([0.1, 1.0, 9.0])
    for call in (law.forward, law.log_prob, law.trace, law.weights, lambda x, s: law.jvp(x, s, x + 1)[1]):
        rows = torch.cat([call(x[i : i + 1], float(levels[i])) for i in range(3)])
        torch.testing.assert_close(call(x, levels), rows)
        torch.testing.assert_close(call(x, torch.tensor(0.3)), call(x, float(torch.tensor(0.3))))


def test_fit_keeps_mean_and_covariance():
    """gaussian_score F16: the law of total covariance, with cluster means and divisor N_i."""
    x = torch.randn(400, 2, 3, dtype=F64) @ torch.randn(3, 3, dtype=F64) + 1
    law = GaussianMixture.fit(x, 7)
    means = law.means.flatten(1)
    mean = law.weights_ @ means
    inner = torch.einsum("k,kdr,kr,ker->de", law.weights_, law.bases, law.values, law.bases)
    total = inner + (means - mean).T @ (law.weights_[:, None] * (means - mean))
    torch.testing.assert_close(mean, x.flatten(1).mean(0), atol=1e-13, rtol=0)
    torch.testing.assert_close(total, torch.cov(x.flatten(1).T, correction=0), atol=1e-12, rtol=0)
    assert torch.equal(GaussianMixture.fit(x, 7).means, law.means)


def test_fit_handles_ranks_floors_singletons_and_duplicates():
    x = torch.randn(60, 4)
    low = GaussianMixture.fit(x, 3, rank=1)
    assert low.rank == 1
    assert bool((low.tails > 0).all())
    assert bool((GaussianMixture.fit(x, 3, rank=1, tail="zero").tails == 0).all())
    # As many clusters as points: point masses; and more clusters than distinct points: empty ones are dropped.
    masses = GaussianMixture.fit(x[:5], 5)
    assert masses.smallest == 0
    assert masses(x[:2], 0.1).isfinite().all()
    same = GaussianMixture.fit(x[:1].expand(6, 4).clone(), 3, floor=0.01)
    assert same.components == 1
    assert same.smallest == pytest.approx(0.01)
    for bad in (0, 61):
        with pytest.raises(ArgumentError, match="components"):
            GaussianMixture.fit(x, bad)
    with pytest.raises(DataError):
        GaussianMixture.fit(torch.full((4, 2), float("nan")), 2)


def test_per_class():
    x, labels = torch.randn(90, 3) + torch.arange(90).remainder(3)[:, None] * 5, torch.arange(90).remainder(3) * 2
    law = GaussianMixture.per_class(x, labels, rank=2)
    torch.testing.assert_close(law.means, torch.stack([x[labels == k].mean(0) for k in (0, 2, 4)]))
    torch.testing.assert_close(law.weights_, torch.full((3,), 1 / 3, dtype=F64))
    assert law.weights(x, 0.1).argmax(1).mul(2).eq(labels).float().mean() > 0.95
    with pytest.raises(ArgumentError, match="labels"):
        GaussianMixture.per_class(x, labels[:5])


def test_samples_have_the_laws_moments():
    law, spectra = mixed()
    x = law.sample(200_000, torch.Generator().manual_seed(0), sigma=0.5)
    mean = law.weights_ @ law.means
    dense = torch.stack([s.dense() for s in spectra])
    gap = law.means - mean
    total = torch.einsum("k,kde->de", law.weights_, dense) + gap.T @ (law.weights_[:, None] * gap)
    total += 0.25 * torch.eye(6, dtype=F64)
    torch.testing.assert_close(x.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), total, atol=0.03 * float(total.max()), rtol=0)


def test_storage_and_types():
    law, _ = mixed()
    again = GaussianMixture.from_dict(json.loads(json.dumps(law.to_dict())))
    x = law.sample(3)
    torch.testing.assert_close(again(x, 0.4), law(x, 0.4), atol=1e-12, rtol=1e-12)
    narrow = toy("eight_gaussians").float()
    assert narrow.stacked.rows.dtype == torch.float32
    assert narrow.values.dtype == F64
    assert narrow(x[:, :2].float(), 0.4).dtype == torch.float32
    for bad in ({}, {"type": "GaussianMixture"}, law.to_dict() | {"tails": law.to_dict()["weights"] | {"shape": [4]}}):
        with pytest.raises(DataError):
            GaussianMixture.from_dict(bad)


def test_bad_arguments_are_named():
    means = torch.zeros(2, 3)
    for weights, covariances, match in (
        ([1.0], torch.zeros(2, 3, 3), "weights"),
        ([-1.0, 2.0], torch.zeros(2, 3, 3), "weights"),
        ([1.0, 1.0], torch.zeros(3, 3), "covariances"),
        ([1.0, 1.0], [Spectrum.isotropic(3, 1.0)], "covariances"),
        ([1.0, 1.0], [Spectrum.isotropic(2, 1.0)] * 2, "covariances"),
        ([1.0, 1.0], (torch.zeros(2, 3, 1), torch.zeros(2, 2), torch.zeros(2)), "covariances"),
    ):
        with pytest.raises(ArgumentError, match=match):
            GaussianMixture(weights, means, covariances)
    with pytest.raises(ArgumentError, match="finite"):
        GaussianMixture([1.0], torch.full((1, 2), float("nan")), Spectrum.isotropic(2, 1.0))
    law = GaussianMixture([1.0, 1.0], means, Spectrum.isotropic(3, 0.0))
    with pytest.raises(ArgumentError, match="singular"):
        law.log_prob(torch.zeros(1, 3))
    with pytest.raises(ArgumentError, match="shape"):
        law(torch.zeros(1, 4), 1.0)
    with pytest.raises(ArgumentError, match="sigma"):
        law(torch.zeros(3, 3), torch.ones(2))


def test_a_call_under_inference_mode_leaves_the_mixture_usable():
    law, _ = mixed()
    x = torch.randn(2, 6)
    with torch.inference_mode():
        value = law(x, 0.5)
    state = x.clone().requires_grad_()
    torch.autograd.grad(law(state, 0.5).sum(), state)
    assert torch.equal(law(x, 0.5), value)
