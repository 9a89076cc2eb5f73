"""Every law's interface, and the formulas that the Gaussian score paper prints wrongly, in the form that holds."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from farfield.denoiser import Denoiser
from farfield.distributions import TOYS, Empirical, Gaussian, GaussianMixture, posterior, toy
from farfield.distributions.series import GaussianSeries
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.processes import Diffusion

F64 = torch.float64


def orthonormal(d, r):
    return torch.linalg.qr(torch.randn(d, r, dtype=F64))[0]


def laws():
    """Every law of section 2.2, in six dimensions."""
    data, labels = torch.randn(60, 6, dtype=F64), torch.arange(60) % 3
    root = torch.randn(6, 6, dtype=F64)
    low = [Spectrum.low_rank(orthonormal(6, 2), [2.0, 0.5]) for _ in range(3)]
    return {
        "mean": Gaussian.isotropic(data[0]),
        "mean and std": Gaussian.fit_isotropic(data),
        "Gaussian": Gaussian(data[0], root @ root.T),
        "low-rank Gaussian": Gaussian(data[0], low[0]),
        "mixture": GaussianMixture.fit(data, 3),
        "low-rank mixture": GaussianMixture([0.2, 0.3, 0.5], data[:3], low),
        "per class": GaussianMixture.per_class(data, labels),
        "data set": Empirical(data, labels=labels),
    } | {name: toy(name) for name in TOYS}


@pytest.mark.parametrize("name", list(laws()))
def test_every_law_has_the_whole_interface(name):
    """Denoiser, score, noise, velocity, density, Jacobian products, trace, draws; σ as a number, () or one a row."""
    law = laws()[name]
    x = law.sample(3, torch.Generator().manual_seed(0), sigma=0.6).double()
    v, levels = torch.randn_like(x), torch.tensor([0.3, 0.6, 2.0], dtype=F64)
    assert x.shape == (3, *law.event_shape)
    calls = {
        "denoiser": law, "score": law.score, "noise": law.noise, "velocity": law.velocity, "density": law.log_prob,
        "jvp": lambda x, s: law.jvp(x, s, v[: len(x)])[1], "vjp": lambda x, s: law.vjp(x, s, v[: len(x)])[1],
        "trace": law.trace, "posterior trace": law.posterior_trace,
    }  # fmt: skip
    if isinstance(law, GaussianMixture | Empirical):
        calls["weights"] = law.weights
    for call in calls.values():
        rows = call(x, levels)
        assert rows.shape[0] == 3
        assert bool(rows.isfinite().all())
        torch.testing.assert_close(rows[:1], call(x[:1], 0.3), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(call(x, torch.tensor(0.6, dtype=F64))[1:2], rows[1:2], rtol=1e-6, atol=1e-6)
    d = calls["denoiser"](x, 0.6)
    torch.testing.assert_close(law.score(x, 0.6), (d - x) / 0.36)
    torch.testing.assert_close(law.noise(x, 0.6), (x - d) / 0.6)
    torch.testing.assert_close(law.jvp(x, 0.6, v)[1], law.vjp(x, 0.6, v)[1], atol=1e-7, rtol=1e-7)
    state = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(law.log_prob(state, 0.6).sum(), state)
    torch.testing.assert_close(law.score(x, 0.6), slope, atol=1e-6, rtol=1e-6)


def test_isotropic_laws():
    """gaussian_score 2.2.1: D = μ, or (σ₀² x + σ² μ)/(σ₀² + σ²) with σ₀² = tr Σ/d; fitted in one pass."""
    data = torch.randn(500, 2, 3) * torch.tensor([1.0, 2.0, 0.5]) + 3
    x = torch.randn(4, 2, 3)
    mean = Gaussian.fit_isotropic(data, variance=False)
    torch.testing.assert_close(mean(x, 0.7), data.mean(0).expand(4, 2, 3))
    full = Gaussian.fit_isotropic(iter(data.split(90)))
    variance = float(data.double().flatten(1).var(0, correction=0).mean())
    assert full.spectrum.tail == pytest.approx(variance, rel=1e-9)
    assert full.mean.dtype == torch.float32
    assert Gaussian.fit_isotropic(data.double()).mean.dtype == F64
    torch.testing.assert_close(full(x, 0.7), (variance * x + 0.49 * data.mean(0)) / (variance + 0.49))
    assert full.spectrum.trace == pytest.approx(Gaussian.fit(data).spectrum.trace, rel=1e-6)
    with pytest.raises(ArgumentError, match="tail"):
        Gaussian.isotropic(torch.zeros(2), -1.0)


def test_off_manifold_projector():
    """Holds gaussian_score E1: the projector is I − U Uᵀ; the printed I − Uᵀ U is an r×r zero."""
    u = orthonormal(6, 2)
    law = Gaussian(torch.zeros(6, dtype=F64), Spectrum.low_rank(u, [4.0, 1.0]))
    x = torch.randn(3, 6, dtype=F64)
    torch.testing.assert_close(u.T @ u, torch.eye(2, dtype=F64))
    along = x @ u * ((torch.tensor([4.0, 1.0]) + 0.25) / (torch.tensor([4.0, 1.0]) + 9)).sqrt().double()
    off = x @ (torch.eye(6, dtype=F64) - u @ u.T) * (0.5 / 3)
    torch.testing.assert_close(law.flow(x, 3.0, 0.5), along @ u.T + off, atol=1e-7, rtol=1e-7)


def test_the_isotropic_score_points_at_the_mean():
    """Holds gaussian_score E2: (μ − x)/σ², uphill; with the sign of the list in 4.2 it would lead away."""
    law = Gaussian.isotropic(torch.tensor([1.0, -2.0], dtype=F64))
    x = torch.randn(5, 2, dtype=F64)
    score = law.score(x, 0.5)
    torch.testing.assert_close(score, (law.mean - x) / 0.25)
    torch.testing.assert_close(GaussianSeries(law, 0).score(x, 0.5), score)
    assert bool((law.log_prob(x + 1e-3 * score, 0.5) > law.log_prob(x, 0.5)).all())
    assert bool((law.log_prob(x - 1e-3 * score, 0.5) < law.log_prob(x, 0.5)).all())


def test_weights_of_a_data_set():
    """Holds gaussian_score E3, E24: softmax of −‖x − y‖²/2σ² over N, so that squared distances meet the temperature 2σ².

    The printed softmax of an exponential, and a temperature of σ, give other weights and no gradient of the density.
    """
    data = torch.randn(20, 3, dtype=F64)
    law, x, sigma = Empirical(data), torch.randn(4, 3, dtype=F64), 0.6
    squared = torch.cdist(x, data).square()
    right = (-squared / (2 * sigma**2)).softmax(1)
    torch.testing.assert_close(law.weights(x, sigma), right)
    state = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(law.log_prob(state, sigma).sum(), state)
    torch.testing.assert_close((right @ data - x) / sigma**2, score)
    for wrong in ((-squared / (2 * sigma**2)).exp().softmax(1), (-squared / sigma).softmax(1)):
        assert float(((wrong @ data - x) / sigma**2 - score).norm()) > 0.1 * float(score.norm())


def test_variance_preserving_mixture():
    """Holds gaussian_score E8: components N(α μ_i, α² Σ_i + σ²) with λ_ik of each, not the variance-exploding marginal."""
    alpha, sigma = 0.6, 0.8
    spectra = [Spectrum.low_rank(orthonormal(5, 2), values) for values in ([2.0, 0.5], [1.0, 0.1], [3.0, 0.7])]
    means, weights = torch.randn(3, 5, dtype=F64), torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    law = GaussianMixture(weights, means, spectra)
    x = (alpha * law.sample(4) + sigma * torch.randn(4, 5, dtype=F64)).requires_grad_()

    def density(scale):
        parts = [
            MultivariateNormal(scale * m, scale**2 * s.dense() + sigma**2 * torch.eye(5, dtype=F64)).log_prob(x)
            for m, s in zip(means, spectra, strict=True)
        ]
        return (torch.stack(parts, 1) + weights.log()).logsumexp(1)

    right, printed = density(alpha), density(1.0)
    ours = law.log_prob(x / alpha, sigma / alpha) - 5 * torch.tensor(alpha, dtype=F64).log()
    torch.testing.assert_close(ours, right, atol=1e-7, rtol=1e-9)
    assert float((ours - printed).abs().max()) > 0.1
    (score,) = torch.autograd.grad(right.sum(), x)
    torch.testing.assert_close(law.score(x / alpha, sigma / alpha) / alpha, score, atol=1e-7, rtol=1e-7)


def test_denoiser_of_a_data_set():
    """Holds gaussian_score E9: D = x + σ² s = Σ w y; for x_t = α x₀ + σ z the state and σ² s are divided by α."""
    data = torch.randn(20, 3, dtype=F64)
    law, x = Empirical(data), torch.randn(4, 3, dtype=F64)
    mean = law.weights(x, 0.7) @ data
    torch.testing.assert_close(x + 0.49 * law.score(x, 0.7), mean)
    torch.testing.assert_close(law(x, 0.7), mean)
    alpha, sigma = 0.6, 0.8
    w = (-torch.cdist(x, alpha * data).square() / (2 * sigma**2)).softmax(1)
    score = (alpha * w @ data - x) / sigma**2
    torch.testing.assert_close((x + sigma**2 * score) / alpha, w @ data)
    torch.testing.assert_close(law(x / alpha, sigma / alpha), w @ data)


def test_gaussian_denoiser_in_both_orders():
    """Holds gaussian_score E19: Σ and (σ² + Σ)⁻¹ commute, D = σ² (σ² + Σ)⁻¹ μ + Σ (σ² + Σ)⁻¹ x."""
    root = torch.randn(4, 4, dtype=F64)
    law = Gaussian(torch.randn(4, dtype=F64), root @ root.T)
    sigma, x, covariance = 0.8, torch.randn(3, 4, dtype=F64), root @ root.T
    inverse = torch.linalg.inv(sigma**2 * torch.eye(4, dtype=F64) + covariance)
    for product in (covariance @ inverse, inverse @ covariance):
        torch.testing.assert_close(law(x, sigma), sigma**2 * law.mean @ inverse.T + x @ product.T)


def test_flow_in_all_directions():
    """Holds gaussian_score E20: the sum runs over all d directions, λ = 0 among them; over r alone it loses the rest."""
    u = orthonormal(5, 2)
    values = torch.tensor([4.0, 0.5], dtype=F64)
    law = Gaussian(torch.randn(5, dtype=F64), Spectrum.low_rank(u, values))
    whole = torch.linalg.qr(torch.cat((u, torch.randn(5, 3, dtype=F64)), 1))[0]
    every = torch.cat((values, torch.zeros(3, dtype=F64)))
    x = torch.randn(2, 5, dtype=F64)
    c = (x - law.mean) @ whole
    gain = ((every + 0.04) / (every + 9)).sqrt()
    torch.testing.assert_close(law.flow(x, 3.0, 0.2), law.mean + (c * gain) @ whole.T)
    short = law.mean + (c * gain)[:, :2] @ whole[:, :2].T
    assert float((law.flow(x, 3.0, 0.2) - short).norm()) > 0.01


def test_pruning_of_a_data_set():
    """Holds gaussian_score F17: for states from N(0, I) A4 keeps about 2, 50 and 1986 of 2000 points and loses under ε."""
    generator = torch.Generator().manual_seed(5)
    data = torch.randn(2000, 10, generator=generator, dtype=F64)
    law, eps = Empirical(data), 1e-6
    for sigma, count, slack in ((0.1, 2.0, 0.5), (0.3, 50, 12), (1.0, 1986, 8)):
        x = torch.randn(200, 10, generator=generator, dtype=F64)
        found = law.prune(x, sigma, eps)
        assert float(found.kept.sum(1).double().mean()) == pytest.approx(count, abs=slack)
        assert float(found.discarded.max()) < eps
        squared = torch.cdist(x, data, compute_mode="donot_use_mm_for_euclid_dist").square()
        rule = squared <= squared.amin(1, keepdim=True) + 2 * sigma**2 * torch.tensor(2000 / eps).log()
        assert float((rule != found.kept).double().mean()) < 1e-4
        w = torch.where(found.kept, law.weights(x, sigma), 0.0)
        pruned = w @ data / w.sum(1, keepdim=True)
        assert float((pruned - law(x, sigma)).abs().max()) < 1e-7
    with pytest.raises(ArgumentError, match="eps"):
        law.prune(x, 1.0, 1.0)


def test_shortlist_of_a_data_set():
    """Holds gaussian_score F17: what the shortlist leaves out weighs less than ε and moves the mean by less."""
    data = torch.randn(2000, 10)
    wide = torch.cat((data, torch.zeros(2000, 40)), 1)  # past NARROW, so that the shortlist is used
    law = Empirical(wide)
    for sigma in (0.1, 0.3, 1.0):
        x = wide[:20] + sigma * torch.randn(20, 50)
        request = posterior.Request(x, torch.full((20,), sigma, dtype=F64))
        norms = (x - law.points.centre).double().norm(dim=1)
        averages, done = law.points._shortlist(request, Diffusion(), norms)
        mean = law.weights(x, sigma) @ wide.double()
        torch.testing.assert_close(averages.vectors[0][done], mean[done], atol=1e-7, rtol=0)
        if sigma == 0.1:
            assert bool(done.all())


def test_denoisers_of_no_law_share_the_views():
    series = GaussianSeries(laws()["Gaussian"], 2)
    x = torch.randn(3, 6, dtype=F64)
    torch.testing.assert_close(series.noise(x, 4.0), -4.0 * series.score(x, 4.0))
    torch.testing.assert_close(Denoiser.vjp(series, x, 4.0, x)[1], series.vjp(x, 4.0, x)[1])
