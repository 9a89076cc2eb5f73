"""The far field: what the Gaussian of equal mean and covariance, or its first orders, miss of a law at large σ."""

import math

import numpy as np
import pytest
import torch

from farfield.denoiser import Denoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.distributions.series import GaussianSeries, far_field_fuv, third_cumulant_norm
from farfield.errors import ArgumentError, DataError
from farfield.numerics.spectrum import Spectrum

F64 = torch.float64


def column(*values):
    return torch.tensor(values, dtype=F64).unsqueeze(1)


def line(mean, variance):
    return Gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64))


def unexplained(exact, approximation, weights, centres, variances, sigma):
    """E‖s − s'‖²/E‖s‖² and E‖s − s'‖² over the noised law, by Gauss-Hermite nodes for each component."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(150)
    spread = np.sqrt(np.asarray(variances) + sigma**2)
    x = torch.from_numpy((np.asarray(centres)[:, None] + spread[:, None] * nodes).reshape(-1, 1))
    mass = torch.from_numpy((np.asarray(weights)[:, None] * masses / masses.sum()).ravel())
    gap = (exact(x, sigma) - approximation(x, sigma)).squeeze(1) / sigma**2
    size = exact.score(x, sigma).squeeze(1)
    error = float((mass * gap**2).sum())
    return error / float((mass * size**2).sum()), error


#: T2, T3 and T4 of the facts: weights, places, variances.
T2 = ([0.3, 0.7], [-2.0, 1.0], [0.09, 0.25])
T3 = ([0.5, 0.5], [-1.0, 1.0], [0.0, 0.0])
T4 = ([0.8, 0.2], [0.0, 1.0], [0.0, 0.0])


def mixture(toy):
    weights, places, variances = toy
    return GaussianMixture(weights, column(*places), torch.tensor(variances, dtype=F64).view(2, 1, 1))


GAUSSIAN = [
    # gaussian_score F42, F43, F50: the Gaussian of equal mean and covariance
    (T3, 0.0, 1.0, {1: 9.157058e-2, 2: 1.265355e-3, 5: 1.470996e-6, 10: 6.410320e-9, 20: 2.578386e-11}),
    (T4, 0.2, 0.16, {1: 3.118757e-3, 2: 6.427287e-5, 5: 2.893645e-7, 10: 4.586045e-9, 20: 7.191396e-11}),
    (T2, 0.1, 2.092, {80: 7.3646e-12, 20: 2.9889e-8, 10: 1.8610e-6, 5: 1.0894e-4, 2: 1.8142e-2, 1: 0.32439, 0.5: 0.77676}),
]  # fmt: skip


@pytest.mark.parametrize(("toy", "mean", "variance", "table"), GAUSSIAN)
def test_the_gaussian_of_equal_mean_and_covariance(toy, mean, variance, table):
    """Holds gaussian_score F42, F43, F50. (At σ = 80, F50 differs in its fifth digit by its own rounding.)"""
    for sigma, value in table.items():
        ours = unexplained(mixture(toy), line(mean, variance), *toy, float(sigma))[0]
        assert ours == pytest.approx(value, rel=2e-4 if toy is T2 else 1e-5)


ISOTROPIC = [
    (T3, 0.0, {1: 1.0, 2: 6.368627e-2, 5: 1.601469e-3, 10: 1.000064e-4, 20: 6.250026e-6}),
    (T2, 0.1, {80: 1.0685e-7, 20: 2.7383e-5, 10: 4.3951e-4, 5: 7.1105e-3, 2: 0.28671, 1: 3.2812}),
]


@pytest.mark.parametrize(("toy", "mean", "table"), ISOTROPIC)
def test_the_mean_alone(toy, mean, table):
    """Holds gaussian_score F42, F50: the isotropic score."""
    law = Gaussian.isotropic(torch.tensor([mean], dtype=F64))
    for sigma, value in table.items():
        assert unexplained(mixture(toy), law, *toy, float(sigma))[0] == pytest.approx(value, rel=1e-4)


def test_leading_cumulants():
    """Holds gaussian_score F42, F43: E‖Δs‖² tends to ‖κ₃‖²/(2σ⁸), or with κ₃ = 0 to κ₄²/(6σ¹⁰)."""
    third = unexplained(mixture(T4), line(0.2, 0.16), *T4, 20.0)[1]
    assert third == pytest.approx(1.797130e-13, rel=1e-5)
    assert third == pytest.approx(0.096**2 / (2 * 20.0**8), rel=3e-3)
    fourth = unexplained(mixture(T3), line(0.0, 1.0), *T3, 20.0)[1]
    assert fourth == pytest.approx(6.4299e-14, rel=1e-4)
    assert fourth == pytest.approx((-2) ** 2 / (6 * 20.0**10), rel=2e-2)


def test_a_cloud_in_five_dimensions():
    """Holds gaussian_score F44: E‖Δs‖² over ‖κ₃‖²/(2σ⁸) tends to 1 from below."""
    generator = torch.Generator().manual_seed(4)
    cloud = torch._standard_gamma(torch.full((40, 5), 1.5, dtype=F64), generator=generator) * 2
    law, gauss = Empirical(cloud), Gaussian.fit(cloud)
    z = torch.randn(60_000, 5, generator=generator, dtype=F64)
    ratios = []
    for sigma in (5.0, 10.0, 20.0, 40.0):
        x = cloud.repeat(1500, 1) + sigma * z
        gap = (law(x, sigma) - gauss(x, sigma)).square().sum(1).mean() / sigma**4
        ratios.append(float(gap) / (third_cumulant_norm(cloud) / (2 * sigma**8)))
    assert 0.2 < ratios[0] < 0.8
    assert ratios[0] < ratios[1] < ratios[2] < 1.02
    assert ratios[3] == pytest.approx(1, abs=0.05)
    share = (gauss.score(x, sigma) - law.score(x, sigma)).square().sum() / law.score(x, sigma).square().sum()
    assert far_field_fuv(cloud, 40.0) == pytest.approx(float(share), rel=0.06)


def test_product_data():
    """Holds gaussian_score F45: with independent coordinates the dimension does not matter, though sqrt(tr Σ) grows.

    (Its 0.0951 comes from sampling; by quadrature it is 0.09485.)
    """
    one = unexplained(mixture(T4), line(0.2, 0.16), *T4, 0.5)[0]
    assert one == pytest.approx(0.0951, abs=5e-4)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 10)
    weights = 0.8 ** (1 - corners).sum(1) * 0.2 ** corners.sum(1)
    law = GaussianMixture(weights, corners, Spectrum.isotropic(10, 0.0))
    gauss = Gaussian.isotropic(torch.full((10,), 0.2, dtype=F64), 0.16)
    x = law.sample(20_000, torch.Generator().manual_seed(0), sigma=0.5)
    score = law.score(x, 0.5)
    assert float((score - gauss.score(x, 0.5)).square().sum() / score.square().sum()) == pytest.approx(one, rel=0.02)
    assert gauss.spectrum.trace**0.5 == pytest.approx(1.26, abs=0.01)


def rank_two():
    return Gaussian(
        torch.tensor([1.0, -1.0, 0.5], dtype=F64), Spectrum.low_rank(torch.eye(3, dtype=F64)[:, :2], [4, 0.25])
    )


def quadratic_mean(law, deviations, of):
    """E of a quadratic function under N(μ, diag(deviations²)), exact from 2d points."""
    offsets = math.sqrt(law.dim) * torch.diag(torch.as_tensor(deviations, dtype=F64))
    return float(of(law.mean + torch.cat((offsets, -offsets))).mean())


def fuv(law, other, sigma, deviations):
    gap = quadratic_mean(law, deviations, lambda x: (law.score(x, sigma) - other.score(x, sigma)).square().sum(1))
    return gap / quadratic_mean(law, deviations, lambda x: law.score(x, sigma).square().sum(1))


def test_isotropic_against_gaussian():
    """Holds gaussian_score F46, F55, in both query protocols; and by projection alone."""
    law = rank_two()
    iso = Gaussian.isotropic(law.mean)
    for sigma, around, noised in (
        (0.5, 0.906142, 9.981132), (1.0, 0.404762, 1.625), (2.0, 0.118672, 0.206325), (5.0, 0.007022, 0.007772)
    ):  # fmt: skip
        assert fuv(law, iso, sigma, [sigma] * 3) == pytest.approx(around, abs=1e-6)
        own = [math.sqrt(v + sigma**2) for v in (4, 0.25, 0)]
        assert fuv(law, iso, sigma, own) == pytest.approx(noised, abs=1e-6)
        gap = quadratic_mean(law, own, lambda x, s=sigma: law.project(x).denoiser_squared(s) / s**4)
        size = quadratic_mean(law, own, lambda x, s=sigma: law.project(x).score_squared(s))
        assert gap / size == pytest.approx(noised, abs=1e-6)
    assert fuv(law, law, 1.0, [1.0] * 3) == 0
    assert 200.0**4 * fuv(law, iso, 200.0, [200.0] * 3) == pytest.approx(5.3535, abs=5e-5)
    assert pytest.approx(5.3542, abs=5e-5) == (4**2 + 0.25**2) / 3


def test_cross_term():
    """Holds gaussian_score F47: E|(x − μ)·(μ − y)| = sqrt(2/π) σ ‖μ − y‖."""
    gap, sigma = torch.tensor([3.0, -4.0, 1.0]), 1.7
    z = torch.randn(400_000, 3, generator=torch.Generator().manual_seed(0))
    mean = float((sigma * z @ gap).abs().mean())
    assert mean == pytest.approx(math.sqrt(2 / math.pi) * sigma * float(gap.norm()), rel=3e-3)


# -- the series -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["low rank", "tail", "dense"])
def test_series(kind):
    """gaussian_score 2.2.7: score ``Σ (−1)^m Σ^m (μ − x)/σ^(2m+2)``, which tends to the Gaussian's above sqrt(λ_max)."""
    root = torch.randn(5, 5, dtype=F64)
    q = torch.linalg.qr(root)[0]
    spectrum = {
        "low rank": Spectrum.low_rank(q[:, :2], [4.0, 0.25]),
        "tail": Spectrum.low_rank(q[:, :2], [4.0, 0.25], 0.1),
        "dense": Spectrum.from_covariance(root @ root.T),
    }[kind]
    law = Gaussian(torch.randn(5, dtype=F64), spectrum)
    x, v, dense = torch.randn(4, 5, dtype=F64), torch.randn(4, 5, dtype=F64), spectrum.dense()
    for sigma in (0.5, 3.0):
        total, power = torch.zeros_like(x), torch.eye(5, dtype=F64)
        for order in range(5):
            total = total + (-1) ** order * (law.mean - x) @ power / sigma ** (2 * order + 2)
            power = power @ dense
            series = GaussianSeries(law, order)
            torch.testing.assert_close(series.score(x, sigma), total)
            value, product = series.jvp(x, sigma, v)
            torch.testing.assert_close(value, series(x, sigma))
            torch.testing.assert_close(product, Denoiser.jvp(series, x, sigma, v)[1])
            assert torch.equal(series.vjp(x, sigma, v)[1], product)
    levels = torch.tensor([0.5, 1.0, 3.0, 9.0], dtype=F64)
    rows = torch.cat([series(x[i : i + 1], float(levels[i])) for i in range(4)])
    torch.testing.assert_close(series(x, levels), rows)
    assert series.radius == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1].sqrt()))
    far = 3 * series.radius
    errors = [float((GaussianSeries(law, m)(x, far) - law(x, far)).norm()) for m in (0, 1, 2, 6, 12)]
    assert sorted(errors, reverse=True) == errors
    assert errors[-1] < 1e-6
    near = 0.5 * series.radius
    assert float((GaussianSeries(law, 12)(x, near) - law(x, near)).norm()) > 1e3
    torch.testing.assert_close(GaussianSeries(law, 0)(x, 1.0), law.mean.expand(4, 5))


def test_first_order_weights_are_the_first_order_score():
    """gaussian_score 2.2.7: weights (1 + (x − μ)·(y_i − μ)/σ²)/N of a cloud reproduce the first order exactly."""
    cloud, x, sigma = torch.randn(30, 4, dtype=F64), torch.randn(3, 4, dtype=F64), 2.5
    gauss = Gaussian.fit(cloud)
    w = (1 + (x - gauss.mean) @ (cloud - gauss.mean).T / sigma**2) / 30
    torch.testing.assert_close((w @ cloud - x) / sigma**2, GaussianSeries(gauss, 1).score(x, sigma))


def test_remainder_of_the_first_order():
    """Holds gaussian_score E16: O(‖Σ‖²/σ⁶), far below the term kept; and F44's Σ λ⁴/(d σ⁸)."""
    law = rank_two()
    series, x = GaussianSeries(law, 1), law.mean + torch.tensor([[1.0, 2.0, 3.0]], dtype=F64)
    for sigma in (20.0, 80.0):
        rest = (law.score(x, sigma) - series.score(x, sigma)).norm() * sigma**6
        expected = (law.spectrum.dense() @ law.spectrum.dense() @ (law.mean - x)[0]).norm()
        assert float(rest) == pytest.approx(float(expected), rel=5 / sigma**2 * 3)
    sigma = 200.0
    own = [math.sqrt(v + sigma**2) for v in (4, 0.25, 0)]
    assert fuv(law, series, sigma, own) * sigma**8 == pytest.approx((4**4 + 0.25**4) / 3, rel=1e-2)


def test_third_cumulants():
    """The norm from blocks of the Gram matrix is that of the tensor; without i = j it is unbiased."""
    cloud = torch.randn(50, 4, dtype=F64) ** 2
    y = cloud - cloud.mean(0)
    tensor = torch.einsum("na,nb,nc->abc", y, y, y) / 50
    for block in (7, 50, 2048):
        assert third_cumulant_norm(cloud, block=block) == pytest.approx(float(tensor.square().sum()))
    own = (tensor.square().sum() * 2500 - y.square().sum(1).pow(3).sum()) / (50 * 49)
    assert third_cumulant_norm(cloud.numpy(), unbiased=True, block=9) == pytest.approx(float(own))
    # Exponential coordinates have κ₃ = 2 each; few draws of many overestimate it unless i = j is left out.
    draws = torch.empty(60, 400, 2, dtype=F64).exponential_(generator=torch.Generator().manual_seed(0))
    plain, fair = (np.mean([third_cumulant_norm(d, u) for d in draws]) for u in (False, True))
    assert fair == pytest.approx(8, rel=0.25)
    assert plain > fair
    assert far_field_fuv(8.0, 10.0, dim=2) == pytest.approx(8 / (4 * 1e6))


def test_bad_arguments_are_named():
    law = rank_two()
    with pytest.raises(ArgumentError, match="order"):
        GaussianSeries(law, -1)
    with pytest.raises(ArgumentError, match="sigma"):
        GaussianSeries(law)(torch.zeros(1, 3, dtype=F64), 0.0)
    with pytest.raises(ArgumentError, match="shape"):
        GaussianSeries(law)(torch.zeros(1, 4), 1.0)
    with pytest.raises(ArgumentError, match="sigma"):
        far_field_fuv(torch.randn(5, 2), 0.0)
    with pytest.raises(ArgumentError, match="dim"):
        far_field_fuv(1.0, 1.0)
    with pytest.raises(DataError, match="points"):
        third_cumulant_norm(torch.randn(1, 2), unbiased=True)
