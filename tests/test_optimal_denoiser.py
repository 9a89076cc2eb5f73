"""The calculus of the optimal denoiser and its flow on a line, against the facts of the geometry paper."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from farfield.distributions import Empirical
from farfield.distributions.empirical_calculus import (
    diameter,
    far_expansion,
    flow_derivative,
    flow_divergence,
    level_derivative,
    lipschitz_bound,
    mean_and_log_prob,
    nearest_bound,
)
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, karras
from farfield.sampling.reference_ode import monotone_map, reference_path

from .laws import T1
from .test_empirical import StudentT

F64 = torch.float64
T3 = torch.tensor([[-1.0], [0.2], [3.0]], dtype=F64)
X = torch.tensor([[0.5, 0.5]], dtype=F64)


def random_law(seed, count, dim, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return Empirical(scale * torch.randn(count, dim, generator=generator, dtype=F64)), generator


def test_one_pass_gives_mean_and_density():
    """The posterior mean and the log-density of one pass are those of two, with classes too, in either precision."""
    data = torch.randn(60, 40)
    law = Empirical(data, labels=torch.arange(60) % 3)
    x, labels = torch.randn(7, 40), torch.arange(7) % 3
    for sigma in (0.05, torch.full((7,), 2.0), 30.0):
        mean, density = mean_and_log_prob(law, x, sigma)
        assert torch.equal(mean, law(x, sigma))
        torch.testing.assert_close(density, law.log_prob(x, sigma), rtol=1e-6, atol=1e-4)
        mean, density = mean_and_log_prob(law, x, sigma, labels)
        assert torch.equal(mean, law(x, sigma, labels))
        torch.testing.assert_close(density, law.log_prob(x, sigma, labels), rtol=1e-6, atol=1e-4)
    heavy = Empirical(T1, StudentT(3.0))
    mean, density = mean_and_log_prob(heavy, X, 0.7)
    torch.testing.assert_close(mean, heavy(X, 0.7))
    torch.testing.assert_close(density, heavy.log_prob(X, 0.7))


def test_derivatives_along_the_flow():
    """Geometry fact 11: the partial derivative by differences, the total one by chain rule and in numbers."""
    law = Empirical(T1)
    values = {
        0.5: (-0.504855202308, 0.951281615583),
        1.0: (-0.894781229506, 0.381417874823),
        3.0: (-0.037292519833, -0.008387399373),
    }
    for t, value in values.items():
        mean, partial = level_derivative(law, X, t)
        _, total = flow_derivative(law, X, t)
        step = 1e-5
        difference = (law(X, t + step) - law(X, t - step)) / (2 * step)
        torch.testing.assert_close(partial, difference, rtol=0, atol=1e-9)
        chain = partial + law.jvp(X, t, (X - mean) / t)[1]
        torch.testing.assert_close(total, chain, rtol=0, atol=5e-15)
        torch.testing.assert_close(total, torch.tensor([value], dtype=F64), rtol=0, atol=2e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 20))
def test_both_forms_of_the_total_derivative(seed, t):
    """Geometry fact 11 for random laws, states and levels of each sample."""
    law, generator = random_law(seed, 12, 3)
    x = torch.randn(4, 3, generator=generator, dtype=F64)
    levels = t * torch.tensor([1.0, 1.5, 2.0, 3.0], dtype=F64)
    mean, partial = level_derivative(law, x, levels)
    _, total = flow_derivative(law, x, levels)
    chain = partial + law.jvp(x, levels, (x - mean) / levels[:, None])[1]
    torch.testing.assert_close(total, chain, rtol=1e-9, atol=1e-11)
    w = law.weights(x, levels)
    gap = law.data[None] - mean[:, None]
    square = (x[:, None] - law.data[None]).square().sum(2)
    plain = (w * square)[:, :, None].mul(gap).sum(1) / levels[:, None] ** 3
    torch.testing.assert_close(partial, plain, rtol=1e-9, atol=1e-11)


def test_derivatives_in_float32():
    """In 700 coordinates and float32, at small and large levels alike, the derivatives are those of float64."""
    data = torch.randn(300, 700)
    law, wide = Empirical(data), Empirical(data.double())
    for t in (0.3, 3.0, 5.0, 40.0):
        x = data[:6] + t * torch.randn(6, 700)
        ours, exact = flow_derivative(law, x, t)[1], flow_derivative(wide, x.double(), t)[1]
        scale = float(data.norm(dim=1).max()) / t  # a change of the mean from one point to another
        assert float((ours.double() - exact).norm()) < 3e-5 * scale
    assert float(flow_derivative(wide, x.double(), 5.0)[1].norm()) > 0.1


def test_the_denoiser_bends_the_path():
    """Geometry fact 12: dD/dσ = −σ d²x/dσ² along a dense solution on T1."""
    law, t, step = Empirical(T1), 1.5, 1e-3
    path = reference_path(
        law, torch.tensor([[3.0, -2.0]], dtype=F64), (5.0, t + step, t, t - step), rtol=1e-12, atol=1e-13
    )
    slope = [(path.states[k] - path.denoised[k]) / path.sigmas[k] for k in (1, 3)]
    second = (slope[0] - slope[1]) / (2 * step)
    torch.testing.assert_close(flow_derivative(law, path.states[2], t)[1], -t * second, rtol=0, atol=1e-6)


def test_far_expansion_and_its_rate():
    """Geometry fact 13: t²(D − μ) → C(x − μ) − κ₃/2 = (2/3, 1/3), and what is left falls as t⁻⁴."""
    law = Empirical(T1)
    limit = 1000.0**2 * (far_expansion(law, X, 1000.0) - T1.mean(0))
    torch.testing.assert_close(limit, torch.tensor([[2 / 3, 1 / 3]], dtype=F64), rtol=0, atol=1e-9)
    gaps = [float((law(X, t) - far_expansion(law, X, t)).norm()) for t in (20.0, 40.0)]
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(4, abs=0.05)
    single = torch.randn(40, 5)
    assert far_expansion(Empirical(single), single[:3], 50.0).dtype == torch.float32


def test_nearest_bound():
    """Geometry fact 14: the distance to the nearest point stays below the bound; which a copy of it makes useless."""
    data = torch.randn(50, 3, dtype=F64)
    law, x = Empirical(data), torch.randn(40, 3, dtype=F64)
    nearest = data[law.nearest(x)[1][:, 0]]
    for t in (0.5, 0.3, 0.1):
        bound = nearest_bound(law, x, t)
        assert bool(((law(x, t) - nearest).norm(dim=1) <= bound + 1e-12).all())
    assert float(nearest_bound(law, x, 0.03).median()) < 1e-6  # and says something
    twice = Empirical(torch.cat((data, data)))
    assert bool((nearest_bound(twice, x, 0.1) >= 99 * 0.1).all())
    assert float(nearest_bound(Empirical(data[:1]), x, 0.1).max()) == 0


def test_lipschitz_bound_and_hull():
    """Geometry fact 15: diam² = 10 on T1, and no slope is above diam²/4t²; close pairs come near it; D is in the hull."""
    law = Empirical(T1)
    assert diameter(law) ** 2 == pytest.approx(10, abs=1e-12)
    a = 2 * torch.randn(2000, 2, dtype=F64)
    b = a + 1e-4 * torch.randn(2000, 2, dtype=F64)
    best = 0.0
    for t in (0.3, 0.7, 2.0):
        bound = lipschitz_bound(law, t)
        assert bound == pytest.approx(2.5 / t**2)
        slope = (law(a, t) - law(b, t)).norm(dim=1) / (a - b).norm(dim=1)
        best = max(best, float(slope.max()) / bound)
    assert 0.8 < best <= 1
    # Barycentric coordinates of the triangle's points are not negative.
    system = torch.cat((T1.T, torch.ones(1, 3, dtype=F64)))
    inside = torch.linalg.solve(system, torch.cat((law(a, 0.7).T, torch.ones(1, 2000, dtype=F64))))
    assert float(inside.min()) > -1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 400), st.sampled_from([1, 2, 20]))
def test_diameter(seed, count, dim):
    """The pruned search finds the largest distance that all pairs have."""
    law, _ = random_law(seed, count, dim)
    expected = float(torch.pdist(law.data).max()) if count > 1 else 0.0
    assert diameter(law) == pytest.approx(expected, abs=1e-9)


def test_diameter_far_from_the_origin():
    """A common offset costs no digits beyond those of the points themselves."""
    data = torch.randn(400, 5, generator=torch.Generator().manual_seed(0), dtype=F64) * torch.tensor([3.0, 1, 1, 1, 1])
    moved = data + 1e6
    exact = torch.cdist(moved, moved, compute_mode="donot_use_mm_for_euclid_dist").amax()
    assert diameter(Empirical(moved)) == pytest.approx(float(exact), rel=1e-12)


def test_losses_of_a_denoiser_and_of_its_score():
    """Geometry fact 16, with the gradient in the noisy argument (erratum E14): L_DAE = σ⁴ L_DSM; L_DSM − L_ESM; the minimum."""
    sigma = 0.7
    law = Empirical(torch.tensor([[-1.0], [1.0]], dtype=F64))
    z, weight = np.polynomial.hermite_e.hermegauss(120)
    z, weight = torch.from_numpy(z), torch.from_numpy(weight / weight.sum())
    clean = torch.tensor([-1.0, 1.0], dtype=F64)
    noisy = clean[:, None] + sigma * z
    share = weight / 2

    def mean(values):
        return float((share * values).sum())

    def losses(r):
        score = (r(noisy) - noisy) / sigma**2
        truth = law.score(noisy.reshape(-1, 1), sigma).reshape(noisy.shape)
        target = (clean[:, None] - noisy) / sigma**2
        constant = mean(target.square()) - mean(truth.square())
        return (
            mean((r(noisy) - clean[:, None]).square()),
            mean((score - target).square()),
            mean((score - truth).square()),
            constant,
        )

    dae, dsm, esm, constant = losses(lambda x: 0.5 * x + 0.1)
    assert dae == pytest.approx(0.3825, abs=1e-12)
    assert sigma**4 * dsm == pytest.approx(dae, abs=1e-12)
    assert dsm - esm == pytest.approx(0.937500364, abs=2e-9)
    assert dsm - esm == pytest.approx(constant, abs=1e-11)
    best, _, zero, _ = losses(lambda x: law(x.reshape(-1, 1), sigma).reshape(x.shape))
    assert best == pytest.approx(0.22509383742, abs=2e-9)
    assert zero == pytest.approx(0, abs=1e-20)
    assert best == pytest.approx(mean(1 - torch.tanh(noisy / sigma**2).square()), abs=1e-9)


def test_density_along_the_flow():
    """The divergence of the flow's field is its trace by differences, and integrates to the change of log p on T1 (2.9)."""
    law = Empirical(T1)
    step = 1e-5 * torch.eye(2, dtype=F64)
    trace = sum((law.noise(X + e, 1.3) - law.noise(X - e, 1.3))[0, k] / 2e-5 for k, e in enumerate(step))
    assert float(flow_divergence(law, X, 1.3)) == pytest.approx(float(trace), abs=1e-9)
    node, weight = np.polynomial.legendre.leggauss(30)
    levels = 2.75 - 2.25 * node  # from 5 down to 0.5
    path = reference_path(law, torch.tensor([[3.0, -2.0]], dtype=F64), (5.0, *levels, 0.5), rtol=1e-12, atol=1e-13)
    total = sum(
        2.25 * w * float(flow_divergence(law, path.states[k + 1], float(t)))
        for k, (t, w) in enumerate(zip(levels, weight, strict=True))
    )
    change = float(law.log_prob(path.states[-1], 0.5) - law.log_prob(path.states[0], 5.0))
    assert change == pytest.approx(3.74188999, abs=5e-9)
    assert total == pytest.approx(change, abs=1e-7)


def quantile(x, t):
    return float(norm.cdf((x - T3[:, 0].numpy()) / t).mean())


def test_quantiles_are_conserved():
    """Geometry fact 24: F_t(x_t) does not change along the flow on T3."""
    starts = torch.tensor([[-100.0], [-20.0], [10.0], [60.0]], dtype=F64)
    levels = (80.0, 20.0, 5.0, 1.0, 0.3, 0.05)
    path = reference_path(Empirical(T3), starts, levels, rtol=1e-11, atol=1e-12)
    expected = (0.1040348854, 0.3977755059, 0.5460978793, 0.7705535571)
    for k, t in enumerate(levels):
        for b, value in enumerate(expected):
            assert quantile(float(path.states[k, b]), t) == pytest.approx(value, abs=2e-7 if t < 0.1 else 2e-9)


def edges(sampler):
    """Where the sample's nearest point changes from the first to the second and from there to the third, to 1e-5."""
    law, found = Empirical(T3), []
    for k in (0, 1):
        low, high = (-60.0, 0.0) if k == 0 else (0.0, 60.0)
        while high - low > 1e-5:
            x = torch.linspace(low, high, 101, dtype=F64)[:, None]
            index = law.nearest(sampler.run(law, x).x)[1][:, 0]
            place = int((index <= k).sum())
            low, high = float(x[place - 1]), float(x[place])
        found.append((low + high) / 2)
    return found


@pytest.mark.parametrize(
    ("solver", "n", "expected"),
    [
        ("heun", 18, (-31.1105, 34.9887)),
        ("heun", 40, (-33.2992, 35.1154)),
        ("heun", 200, (-33.7173, 35.1945)),
        ("euler", 18, (-41.9050, 40.3909)),
        ("euler", 200, (-34.3563, 35.6111)),
        ("dpm2", 40, (-33.4529, 35.1696)),
    ],
)
def test_basins_of_the_samplers(solver, n, expected):
    """Geometry fact 25: edges of the basins at σ = 80 as a solver finds them."""
    assert edges(Sampler(solver, karras(n))) == pytest.approx(expected, abs=1e-4)


def test_basins_of_the_flow():
    """Geometry fact 25: the exact edges are where F_80 = 1/3 and 2/3; the flow's quantile map agrees on either side."""
    exact = [brentq(lambda x, q=q: quantile(x, 80.0) - q, -100, 100, xtol=1e-13) for q in (1 / 3, 2 / 3)]
    assert exact == pytest.approx([-33.73245704700906, 35.199034829907426], abs=1e-9)
    beside = torch.tensor([exact[0] - 1e-3, exact[0] + 1e-3, exact[1] - 1e-3, exact[1] + 1e-3], dtype=F64)
    law = {"weights": [1 / 3] * 3, "means": T3[:, 0], "variances": [0.0] * 3}
    ends = monotone_map(beside, 80.0, 0.01, **law)
    assert Empirical(T3).nearest(ends[:, None])[1][:, 0].tolist() == [0, 1, 1, 2]


def test_mistakes_are_named():
    """Other processes and levels."""
    law = Empirical(T1, StudentT(3.0))
    for function in (level_derivative, flow_derivative, flow_divergence, far_expansion, nearest_bound):
        with pytest.raises(ArgumentError, match="is known for diffusion"):
            function(law, X, 1.0)
    with pytest.raises(ArgumentError, match="lipschitz_bound is known for diffusion"):
        lipschitz_bound(law, 1.0)
    with pytest.raises(ArgumentError, match="sigma = 0"):
        lipschitz_bound(Empirical(T1), 0.0)
