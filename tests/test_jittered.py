"""The law of jittered data: a mixture of equal Gaussians, written as the law of the points at a raised level."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.analysis.shape import trajectory_shape
from farfield.distributions import Empirical, GaussianMixture
from farfield.distributions.jittered import Jittered
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, karras
from tests.laws import T1
from tests.test_shape import t5

WIDE = torch.float64


def as_mixture(data: torch.Tensor, delta: float) -> GaussianMixture:
    n, d = data.shape
    return GaussianMixture([1 / n] * n, data, torch.eye(d, dtype=WIDE).expand(n, d, d) * delta**2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 2.0), st.floats(0.01, 30.0))
def test_it_is_a_mixture_of_equal_gaussians(seed, delta, sigma):
    """Denoiser, density, products, trace and spectrum of the mixture with means y_i and covariances δ² I."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(6, 3, dtype=WIDE, generator=generator)
    x = data[:4] + sigma * torch.randn(4, 3, dtype=WIDE, generator=generator)
    v = torch.randn(4, 3, dtype=WIDE, generator=generator)
    law, mixture = Jittered(data, delta), as_mixture(data, delta)
    scale = max(1.0, float(x.abs().max()))
    assert torch.allclose(law(x, sigma), mixture(x, sigma), rtol=1e-9, atol=1e-9 * scale)
    assert torch.allclose(law.log_prob(x, sigma), mixture.log_prob(x, sigma), rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(law.jvp(x, sigma, v), mixture.jvp(x, sigma, v), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-7, atol=1e-8 * scale)
    assert torch.equal(law.vjp(x, sigma, v)[1], law.jvp(x, sigma, v)[1])
    assert torch.allclose(law.trace(x, sigma), mixture.trace(x, sigma), rtol=1e-7, atol=1e-8)
    own, other = (part.posterior_spectrum(x, sigma, 3)[0] for part in (law, mixture))
    assert torch.allclose(own, other, rtol=1e-6, atol=1e-9)


def test_formula_of_the_stand_in():
    """Geometry 2.11: r_δ(x; t) = x + t²/(t² + δ²) (m(x; √(t² + δ²)) − x), with σ a number, () and (B,)."""
    x, delta = torch.tensor([[0.5, 0.5], [3.0, -2.0]], dtype=WIDE), 0.3
    law, points = Jittered(T1, delta), Empirical(T1)
    for t in (0.01, 0.5, 4.0):
        expected = x + t**2 / (t**2 + delta**2) * (points(x, math.hypot(t, delta)) - x)
        for sigma in (t, torch.tensor(t), torch.tensor([t, t])):
            assert torch.allclose(law(x, sigma), expected, atol=1e-7)
    mixed = law(x, torch.tensor([0.5, 4.0], dtype=WIDE))
    assert torch.allclose(mixed[0], law(x[:1], 0.5)[0], atol=1e-12)
    assert torch.allclose(mixed[1], law(x[1:], 4.0)[0], atol=1e-12)
    assert torch.allclose(law(x, 0.0), x, atol=1e-14)
    assert law.trace(x, torch.tensor([0.5, 4.0])).shape == (2,)
    assert law.posterior_spectrum(x, torch.tensor([0.5, 4.0]), 2)[0].shape == (2, 2)


def test_derivative_and_classes():
    """The closed-form product is the derivative; a class restricts the law."""
    x = torch.tensor([[0.5, 0.5]], dtype=WIDE, requires_grad=True)
    law = Jittered(T1, 0.4, labels=torch.tensor([0, 1, 0]))
    v = torch.tensor([[1.0, -2.0]], dtype=WIDE)
    (slope,) = torch.autograd.grad(law(x, 0.7), x, v)
    assert torch.allclose(slope, law.jvp(x, 0.7, v)[1], atol=1e-12)
    one = Jittered(T1[1:2], 0.4)
    label = torch.tensor([1])
    assert torch.allclose(law(x, 0.7, labels=label), one(x, 0.7), atol=1e-12)
    assert torch.allclose(law.log_prob(x, 0.7, labels=label), one.log_prob(x, 0.7), atol=1e-12)


def test_samples_and_arguments():
    """Samples have the points' covariance plus δ² I; types follow a move; δ has to be positive."""
    law = Jittered(T1, 0.5)
    drawn = law.sample(40_000, torch.Generator().manual_seed(0))
    expected = torch.cov(T1.T, correction=0) + 0.25 * torch.eye(2, dtype=WIDE)
    assert torch.allclose(torch.cov(drawn.T), expected, atol=0.03)
    wider = law.sample(40_000, torch.Generator().manual_seed(0), sigma=1.2)
    assert torch.allclose(torch.cov(wider.T), expected + 1.44 * torch.eye(2, dtype=WIDE), atol=0.06)
    assert law.float()(torch.zeros(1, 2), 0.3).dtype == torch.float32
    for delta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="delta"):
            Jittered(T1, delta)
    with pytest.raises(ArgumentError, match="not negative"):
        Jittered(T1, 0.5)(T1, -1.0)


#: max deviation of x, its level, end distance, ratio; the same of r; least mean cosine.
FACT_48 = {
    0.1: (0.846058, 3.520, 317.125890, 0.002668, 0.272342, 0.625, 1.330479, 0.204695, 0.969552),
    0.3: (0.550441, 5.380, 316.444982, 0.001739, 0.227675, 0.625, 1.742319, 0.130674, 0.989739),
}


@pytest.mark.parametrize("delta", [0.1, 0.3])
def test_shape_of_its_trajectories(delta):
    """Geometry facts 48 and 28: the rows of Jit(0.1) and Jit(0.3); no violation of the deviation bound."""
    data, start = t5()
    shape = trajectory_shape(Sampler("heun", karras(40)).run(Jittered(data, delta), start, trajectory=True).trajectory)
    peak, at, end, ratio, r_peak, r_at, r_end, r_ratio, cosine = FACT_48[delta]
    assert max(shape.deviation.mean) == pytest.approx(peak, rel=1e-4)
    assert shape.turning_point == pytest.approx(at, rel=1e-3)
    assert shape.endpoint == pytest.approx(end, rel=1e-7)
    assert shape.straightness == pytest.approx(ratio, abs=6e-7)
    assert max(shape.denoised_deviation.mean) == pytest.approx(r_peak, rel=1e-4)
    assert shape.denoised_turning_point == pytest.approx(r_at, rel=1e-3)
    assert shape.denoised_endpoint == pytest.approx(r_end, rel=1e-6)
    assert shape.denoised_straightness == pytest.approx(r_ratio, rel=1e-4)
    assert shape.lowest_cosine == pytest.approx(cosine, rel=1e-5)
    assert shape.monotone
    assert shape.denoised_monotone
    assert shape.denoised_ahead
    assert shape.tightness <= 1
