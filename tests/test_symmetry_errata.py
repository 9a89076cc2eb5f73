"""Errata of the source on symmetry breaking that no other test holds: what is printed fails, what is recommended holds."""

from __future__ import annotations

import math

import pytest
import torch

from farfield.analysis.critical_times import critical_times
from farfield.analysis.gaussianity import gaussianity
from farfield.analysis.late_start_curve import lowest
from farfield.analysis.potential import Potential
from farfield.analysis.reverse_sde import simulate_reverse
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.experiments.late_start_published import CELLS, TABLE_2
from farfield.processes import DDPM, VP
from farfield.sampling.late import late_sampler

F64 = torch.float64


def points(count=6, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=F64)


def normalised(r=1.3):
    half = torch.nn.functional.normalize(points(4, 3), dim=1)
    return r * torch.cat((half, -half))


def pieces(y, x, s):
    """θ, v and the bare weights exp(−‖x − θ y_j‖²/2v) at a state (1, d)."""
    theta = VP().alpha(s)
    v = 1 - theta**2
    return theta, v, torch.exp(-(x - theta * y).square().sum(1) / (2 * v))


def test_the_lowest_distance_is_chosen_e5():
    """Holds symmetry_breaking E5: not the "highest" Fréchet distance, which is that of the latest start."""
    starts = (50, 100, *range(200, 1001, 100))
    for name, best in (("MNIST", 1000), ("CIFAR10", 900), ("CelebA32", 800), ("ImageNet64", 1000), ("CelebA64", 900)):
        assert lowest(starts, TABLE_2[name])[0] == best
        assert starts[max(range(11), key=TABLE_2[name].__getitem__)] <= 200


def test_weights_are_divided_by_their_sum_e12():
    """Holds symmetry_breaking E12 (Eq. 44): ∇u = −β [x/2 − Σ b_j (x − θ y_j)/(v Σ b_j)]; x/v Σ b_j, as printed, is another."""
    y, x, s = points(), torch.tensor([[0.3, -0.2, 0.5]], dtype=F64), 0.25
    theta, v, b = pieces(y, x, s)
    found = Potential(Empirical(y)).gradient(x, s) / Potential(Empirical(y)).rate(s)
    pull = theta * (b @ y) / (v * b.sum())
    assert torch.allclose(found, -(x / 2 - x / v + pull), rtol=1e-11, atol=1e-12)
    assert float((found + (x / 2 - x / v * b.sum() + pull)).norm()) > 0.1


def test_weights_fall_with_the_squared_distance_e13():
    """Holds symmetry_breaking E13 (Eqs. 12, 45, 51): exponentials once, of −dist²/2v, in the posterior mean."""
    y, x, s = points(), torch.tensor([[0.3, -0.2, 0.5]], dtype=F64), 0.25
    theta, _, b = pieces(y, x, s)
    right = (b @ y) / b.sum()
    assert torch.allclose(Empirical(y)(x / theta, VP().sigma(s))[0], right, rtol=1e-11)
    twice = b.exp()
    assert float((twice @ y / twice.sum() - right).norm()) > 0.05
    # And the fixed points are those of (1 + q)/(2θ) x = m(x) with the same weights.
    x = y[:1].clone()
    for _ in range(2000):
        _, _, b = pieces(y, x, s)
        x = 2 * theta / (1 + theta**2) * (b @ y) / b.sum()
        x = x.view(1, -1)
    assert float(Potential(Empirical(y)).gradient(x, s).norm()) < 1e-10


def test_exponent_at_the_origin_has_theta_squared_e14():
    """Holds symmetry_breaking E14 (Eq. 52): at 0 every weight is exp(−θ² r²/2v), so that log p(0) has that exponent."""
    r, s = 1.3, 0.4
    law, theta = Empirical(normalised(r)), VP().alpha(0.4)
    v = 1 - theta**2
    zero = torch.zeros(1, 3, dtype=F64)
    log_p = float(law.log_prob(zero / theta, VP().sigma(s))) - 3 * math.log(theta)
    normal = -1.5 * math.log(2 * math.pi * v)
    assert log_p - normal == pytest.approx(-(theta**2) * r**2 / (2 * v), rel=1e-12)
    assert abs(log_p - normal + theta * r**2 / (2 * v)) > 0.1
    weights = torch.exp(-(theta * normalised(r)).square().sum(1) / (2 * v))
    assert float(weights.std()) < 1e-15


def test_noise_of_a_step_is_sqrt_beta_dw_e17():
    """Holds symmetry_breaking E17 (Eq. 20): the increments of a simulated path have variance β Δs, not β."""
    law, steps, n = Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64)), 200, 4000
    made = simulate_reverse(law, n, steps=steps, keep=(50, 51), seed=3)
    s = float(made.times[0])
    drift = Potential(law).drift(made.states[0], s) / steps
    kicks = made.states[1] - made.states[0] - drift
    assert float(kicks.var()) == pytest.approx(Potential(law).rate(s) / steps, rel=4 * math.sqrt(2 / n))


def test_forward_and_generative_time_name_one_marginal_e18():
    """Holds symmetry_breaking E18 (Eqs. 23, 24): the marginal at generative t is the forward one at s = T − t."""
    first = critical_times(Empirical(torch.tensor([[-1.0], [1.0]], dtype=F64))).first
    assert first.generative_time == pytest.approx(1 - first.time, abs=1e-12)
    made = simulate_reverse(
        Gaussian(torch.zeros(1, dtype=F64), 4 * torch.eye(1, dtype=F64)), 4000, steps=500, keep=(350,)
    )
    s, theta = float(made.times[0]), VP().alpha(float(made.times[0]))
    assert s == pytest.approx(0.3)
    # In generation 350 of 500 steps in, t = 0.7: the variance of the forward marginal at s = 0.3, not at s = 0.7.
    assert float(made.states[0].var()) == pytest.approx(4 * theta**2 + 1 - theta**2, rel=0.1)
    assert abs(4 * VP().alpha(0.7) ** 2 + 1 - VP().alpha(0.7) ** 2 - float(made.states[0].var())) > 0.5


def test_pndm_has_one_name_and_starts_at_999_e21_e22():
    """Holds symmetry_breaking E21 and E22: index 999 is allowed, ᾱ at −1 is 1; PNDM is its only name."""
    sampler = late_sampler("pndm", 5, 999, None)
    assert sampler.grid.levels[0] == pytest.approx(DDPM().sigma(999.0), rel=1e-9)
    # With ᾱ₋₁ = 1 the last step ends on the clean image, here the only point there is.
    y = torch.tensor([[0.7, -1.2]], dtype=torch.float32)
    assert torch.allclose(sampler(Empirical(y), n=3, seed=0).x, y.expand(3, 2), atol=1e-5)
    for name in ("psdm", "psndm"):
        with pytest.raises(ArgumentError, match=name):
            late_sampler(name, 5, 999, None)


def test_gain_factors_name_their_sampler_e26():
    """Holds symmetry_breaking E26: "2x and 3x on CelebA32" is DDPM's; DDIM gives 1.56 and 2.17, PNDM 1.71 and 1.57."""
    gains = {(c.sampler, c.n): c.gain for c in CELLS if c.data == "CelebA32"}
    told = {
        ("DDPM", 10): 2.42,
        ("DDPM", 5): 2.77,
        ("DDIM", 10): 1.56,
        ("DDIM", 5): 2.17,
        ("PNDM", 10): 1.71,
        ("PNDM", 5): 1.57,
    }
    for cell, gain in told.items():
        assert gains[cell] == pytest.approx(gain, abs=5e-3)


def test_theta_does_not_reach_zero_e32():
    """Holds symmetry_breaking E32: θ ranges from θ_T = 0.00657, not from 0."""
    assert VP().alpha(VP().t_max) == pytest.approx(0.00657, abs=5e-6)
    assert VP().alpha(0.0) == 1


def test_the_normality_test_names_its_reduction_e34():
    """Holds symmetry_breaking E34: one value for images is none; every curve says which columns were tested."""
    found = gaussianity(points(60, 4), times=[0.2, 0.8], n=50, columns=3, components=2, seed=0)
    text = found.summary() + str(found.tables())
    assert all(word in text for word in ("coordinates", "projections", "components"))


def test_reference_step_is_the_drift_to_second_order_fact_f32():
    """Holds symmetry_breaking F32: (x + β s)/sqrt(1 − β) − x = β (s + x/2) + β² (3x/8 + s/2) + O(β³)."""
    ddpm = DDPM()
    bars = [float(ddpm.alpha(i)) ** 2 for i in (499.0, 500.0)]
    beta, x, score = 1 - bars[1] / bars[0], 0.7, -1.1
    # A Gaussian of variance 1 has the variance 1 at every time, and the score m θ − x.
    theta = math.sqrt(bars[1])
    law = Gaussian(torch.tensor([(score + x) / theta], dtype=F64), torch.eye(1, dtype=F64))
    potential = Potential(law, VP())
    s = VP().time(ddpm.sigma(500.0))
    bend = float(potential.drift(torch.tensor([[x]], dtype=F64), s)) / potential.rate(s)
    assert bend == pytest.approx(score + x / 2, rel=1e-9)
    gap = (x + beta * score) / math.sqrt(1 - beta) - x - beta * bend
    assert gap == pytest.approx(-2.929e-5, abs=6e-9)
    assert beta**2 * (3 * x / 8 + score / 2) == pytest.approx(-2.910e-5, abs=6e-9)
