"""Toy laws: density, posterior mean, Jacobian and samples belong together."""

import math

import numpy as np
import pytest
import torch

from farfield.data.toys import TOY_NAMES, sample_toy
from farfield.denoiser import Denoiser
from farfield.distributions import TOYS, toy
from farfield.distributions.bessel import bessel_ratio, bessel_ratio_over, bessel_ratio_slope, log_bessel
from farfield.distributions.toys import Checkerboard, Sphere
from farfield.errors import ArgumentError

F64 = torch.float64


def test_every_toy_is_both_a_law_and_a_sample():
    assert set(TOYS) == set(TOY_NAMES)
    with pytest.raises(ArgumentError, match="swiss_roll"):
        toy("swis_roll")
    with pytest.raises(ArgumentError, match="heart"):
        sample_toy("hart", 3)
    with pytest.raises(ArgumentError, match="thickness"):
        toy("ring", thickness=1)


@pytest.mark.parametrize("name", TOY_NAMES)
@pytest.mark.parametrize("sigma", [0.1, 1.0, 30.0])
def test_score_and_jacobian(name, sigma):
    """gaussian_score F6, F9 for every toy: score = autograd of log_prob, closed Jacobian = finite differences."""
    law = toy(name)
    x = law.sample(6, torch.Generator().manual_seed(0), sigma=sigma).double().requires_grad_()
    density = law.log_prob(x, sigma)
    assert density.dtype == F64
    (score,) = torch.autograd.grad(density.sum(), x)
    x = x.detach()
    torch.testing.assert_close(law.score(x, sigma), score, rtol=1e-9, atol=1e-9 * float(score.abs().max()))
    v, h = torch.randn_like(x), 1e-5 * max(sigma, 0.1)
    difference = (law(x + h * v, sigma) - law(x - h * v, sigma)) / (2 * h)
    product = law.jvp(x, sigma, v)[1]
    torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(law.vjp(x, sigma, v)[1], product)
    torch.testing.assert_close(law.trace(x, sigma), Denoiser.divergence(law, x, sigma), atol=1e-9, rtol=1e-9)
    rows = torch.cat([law(x[i : i + 1], sigma) for i in range(6)])
    torch.testing.assert_close(law(x, torch.full((6,), sigma, dtype=F64)), rows)


@pytest.mark.parametrize("name", TOY_NAMES)
def test_samples_of_both_kinds_follow_the_density(name):
    law, count = toy(name), 20_000
    ours = law.sample(count, torch.Generator().manual_seed(1)).double()
    theirs = sample_toy(name, count, seed=2).double()
    assert sample_toy(name, 5, seed=2).equal(theirs[:5].float())
    for x in (ours, theirs):
        # The posterior mean at a high level tends to the mean; the score of the noised law has mean zero.
        noisy = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=F64)
        score = law.score(noisy, 0.5)
        assert bool((score.mean(0).abs() < 4.5 * score.std(0) / math.sqrt(count)).all())
        # E[x · score] = −d by parts: fails for a wrong spread.
        product = (noisy * score).sum(1)
        assert abs(float(product.mean()) + x.shape[1]) < 4.5 * float(product.std()) / math.sqrt(count)


def test_two_points_are_a_hyperbolic_tangent():
    """gaussian_score F11; geometry fact 8."""
    law = toy("two_points")
    for x, sigma, value in (
        (0.3, 1.0, 0.29131261),
        (0.3, 0.5, 0.83365461),
        (0.3, 0.8, 0.437188785142),
        (0.3, 2.0, 0.074859690687),
    ):
        assert float(law(torch.tensor([[x]], dtype=F64), sigma)) == pytest.approx(value, abs=5e-9)


def test_ring_and_sphere_by_quadrature():
    angle = torch.arange(4000, dtype=F64) / 4000 * 2 * math.pi
    circle = 1.5 * torch.stack((angle.cos(), angle.sin()), 1)
    x, sigma = torch.tensor([[0.4, -1.0]], dtype=F64), 0.3
    log_weights = -(x - circle).square().sum(1) / (2 * sigma**2)
    expected = log_weights.softmax(0) @ circle
    law = toy("ring", radius=1.5)
    torch.testing.assert_close(law(x, sigma)[0], expected, atol=1e-12, rtol=0)
    density = log_weights.logsumexp(0) - math.log(4000) - math.log(2 * math.pi * sigma**2)
    torch.testing.assert_close(law.log_prob(x, sigma)[0], density, atol=1e-11, rtol=0)
    # In three dimensions A(κ) = coth κ − 1/κ.
    y = torch.tensor([[0.2, 0.5, -0.1]], dtype=F64)
    kappa = float(y.norm()) * 2 / 0.49
    expected = 2 * (1 / math.tanh(kappa) - 1 / kappa) * y / y.norm()
    torch.testing.assert_close(Sphere(3, 2.0)(y, 0.7), expected, atol=1e-13, rtol=0)


def test_bessel_functions_against_mpmath():
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 40
    for dim in (2, 3, 10, 100, 1000, 3072):
        for kappa in (1e-6, 0.1, 3.0, 60.0, 1000.0, 1e5):
            nu = mpmath.mpf(dim) / 2 - 1
            low, high = mpmath.besseli(nu, kappa), mpmath.besseli(nu + 1, kappa)
            k = torch.tensor([kappa], dtype=F64)
            ratio = float(high / low)
            assert float(bessel_ratio(k, dim)) == pytest.approx(ratio, rel=1e-12)
            exact = mpmath.log(mpmath.gamma(nu + 1) * (2 / mpmath.mpf(kappa)) ** nu * low) - kappa
            assert float(log_bessel(k, dim)) == pytest.approx(float(exact), rel=1e-10, abs=1e-9)
            slope = 1 - (high / low) ** 2 - (dim - 1) * high / low / kappa
            assert float(bessel_ratio_slope(k, dim)) == pytest.approx(float(slope), rel=1e-4, abs=1e-15)
    zero = torch.zeros(1, dtype=F64)
    assert float(bessel_ratio_over(zero, 7)) == pytest.approx(1 / 7)
    assert float(log_bessel(zero, 7)) == 0


@pytest.mark.parametrize("dim", [2, 3, 16, 3072])
def test_bessel_functions_at_huge_arguments(dim):
    """Past κ ≈ 1e9, where scipy's scaled values are not usable, and on both sides of the change of formula."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 50
    nu = mpmath.mpf(dim) / 2 - 1
    for kappa in (998.0, 999.9999, 1000.0001, 1002.0, 1e7, 1e9, 3e9, 1e12, 1e15):
        low, high = mpmath.besseli(nu, kappa), mpmath.besseli(nu + 1, kappa)
        k, ratio = torch.tensor([kappa], dtype=F64), high / low
        assert float(bessel_ratio(k, dim)) == pytest.approx(float(ratio), rel=1e-13)
        assert float(bessel_ratio_over(k, dim)) == pytest.approx(float(ratio / kappa), rel=1e-13)
        exact = mpmath.log(mpmath.gamma(nu + 1) * (2 / mpmath.mpf(kappa)) ** nu * low) - kappa
        assert float(log_bessel(k, dim)) == pytest.approx(float(exact), rel=1e-12, abs=1e-12)
        slope = 1 - ratio**2 - (dim - 1) * ratio / kappa
        assert float(bessel_ratio_slope(k, dim)) == pytest.approx(float(slope), rel=1e-8)


@pytest.mark.parametrize(("dim", "radius"), [(2, 1.0), (3, 1.0), (16, 4.0), (3072, 55.4)])
@pytest.mark.parametrize("sigma", [1e-6, 1e-5, 3e-5, 1e-3, 0.1])
def test_sphere_at_small_levels(dim, radius, sigma):
    """Posterior mean, density, trace and Jacobian against mpmath at states within a few σ of the sphere."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 50
    law, nu = Sphere(dim, radius), mpmath.mpf(dim) / 2 - 1
    points = law.sample(3, torch.Generator().manual_seed(0)).double()
    x = points + sigma * torch.randn(points.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    mean, density, trace, unit = law(x, sigma), law.log_prob(x, sigma), law.trace(x, sigma), x / x.norm(dim=1)[:, None]
    along = (unit * law.jvp(x, sigma, unit)[1]).sum(1)
    for i in range(3):
        norm, s2 = mpmath.sqrt(sum(mpmath.mpf(v) ** 2 for v in x[i].tolist())), mpmath.mpf(sigma) ** 2
        kappa = norm * radius / s2
        low, high = mpmath.besseli(nu, kappa), mpmath.besseli(nu + 1, kappa)
        ratio = high / low
        assert float(mean[i].norm()) == pytest.approx(float(radius * ratio), rel=1e-13)
        torch.testing.assert_close(mean[i], float(radius * ratio) * unit[i], rtol=1e-12, atol=0)
        exact = mpmath.log(mpmath.gamma(nu + 1) * (2 / kappa) ** nu * low) - kappa
        exact -= (norm - radius) ** 2 / (2 * s2) + mpmath.mpf(dim) / 2 * mpmath.log(2 * mpmath.pi * s2)
        # The distance to the sphere is known to one rounding of r, which is 1e-10 σ or more.
        assert float(density[i]) == pytest.approx(float(exact), rel=1e-10, abs=1e-14 * radius / sigma * 10)
        assert float(trace[i]) == pytest.approx(float(radius**2 * (1 - ratio**2) / s2), rel=1e-9)
        slope = radius**2 * (1 - ratio**2 - (dim - 1) * ratio / kappa) / s2
        assert float(along[i]) == pytest.approx(float(slope), rel=1e-3, abs=1e-12)
    assert law(x.float(), sigma).isfinite().all()


def test_critical_level_of_the_sphere():
    """symmetry_breaking 2.4: the centre loses stability where r²/(D σ_c²) q-terms balance; here ∂D/∂x = r²/(D σ²) at 0."""
    for dim, radius, sigma in ((2, 1.0, 0.5), (30, 2.0, 0.7)):
        centre, v = torch.zeros(1, dim, dtype=F64), torch.randn(1, dim, dtype=F64)
        product = Sphere(dim, radius).jvp(centre, sigma, v)[1]
        torch.testing.assert_close(product, radius**2 / (dim * sigma**2) * v)


def test_checkerboard_by_quadrature_and_in_the_tails():
    law = Checkerboard()
    edge = (torch.arange(400, dtype=F64) + 0.5) / 400
    grid = torch.cartesian_prod(edge, edge)
    points = torch.cat([grid + corner for corner in law.corners])
    x, sigma = torch.tensor([[0.3, -0.2]], dtype=F64), 0.4
    log_weights = -(x - points).square().sum(1) / (2 * sigma**2)
    torch.testing.assert_close(law(x, sigma)[0], log_weights.softmax(0) @ points, atol=1e-5, rtol=0)
    density = log_weights.logsumexp(0) - math.log(len(points)) - math.log(2 * math.pi * sigma**2)
    torch.testing.assert_close(law.log_prob(x, sigma)[0], density, atol=1e-5, rtol=0)
    for sigma in (1e-3, 0.1, 10.0, 1e3):
        far = torch.tensor([[500.0, 500.5], [-30.0, 0.5], [0.0, 0.0], [2.0, 2.0]], dtype=F64)
        mean = law(far, sigma)
        assert mean.isfinite().all()
        assert float(mean.abs().max()) <= 2 + 1e-9
    corner = law(torch.tensor([[500.0, 500.0]], dtype=F64), 0.1)
    assert np.allclose(corner, 2, atol=1e-3)
    assert float(law.log_prob(torch.tensor([[0.5, 0.5]]))) == pytest.approx(-math.log(8))
    assert float(law.log_prob(torch.tensor([[0.5, -0.5]]))) == -math.inf


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match="dim"):
        Sphere(1)
    with pytest.raises(ArgumentError, match="sigma"):
        Sphere(3)(torch.zeros(1, 3), 0.0)
    with pytest.raises(ArgumentError, match="shape"):
        Sphere(3)(torch.zeros(1, 4), 1.0)
    with pytest.raises(ArgumentError, match="shape"):
        Checkerboard()(torch.zeros(1, 3), 1.0)
    with pytest.raises(ArgumentError, match="weight"):
        toy("two_points", weight=1.0)
    with pytest.raises(ArgumentError, match="n ="):
        sample_toy("ring", -1)
