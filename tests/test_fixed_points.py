"""Fixed points and their stability: two points, spheres, rectangles, normalised data."""

from __future__ import annotations

import math

import pytest
import torch

from farfield.analysis.critical_field import AveragedField, critical_ratio
from farfield.analysis.fixed_points import FixedPointMap, anderson, fixed_point_on_ray, fixed_points, newton
from farfield.analysis.potential import Potential
from farfield.distributions import Empirical, Gaussian, toy
from farfield.errors import ArgumentError
from farfield.processes import VP


def P(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def sigma_of(theta):
    return math.sqrt(1 / theta**2 - 1)


TWO = Empirical(P([-1.0], [1.0]))
OUTER = {
    0.65: (0.26105499, 0.06813130, 0.00059363), 0.70: (0.69917416, 0.62003429, 0.04635187),
    0.75: (0.86632852, 1.24019486, 0.17189323), 0.80: (0.94703858, 1.99277392, 0.40468496),
    0.85: (0.98213757, 3.01256258, 0.82077784), 0.90: (0.99431385, 4.75588021, 1.66226971),
    0.95: (0.99868593, 9.75640892, 4.17224586), 0.99: (0.99994950, 49.75125628, 24.17996847),
}  # fmt: skip


@pytest.mark.parametrize("theta", OUTER)
def test_outer_fixed_point_fact_f6(theta):
    """Holds symmetry_breaking F6: position, curvature and barrier (Brent), and the same from iteration."""
    place, curvature, barrier = OUTER[theta]
    sigma = sigma_of(theta)
    found = fixed_point_on_ray(TWO, sigma, P(1.0)[0:1].view(1))
    assert found == pytest.approx(place, abs=1e-8)
    potential, t = Potential(TWO), VP().time(sigma)
    x = P([found], [0.0])
    assert float(potential.hessian_product(x[:1], t, torch.ones(1, 1).double())) / potential.rate(t) == pytest.approx(
        curvature, rel=1e-7
    )
    u = potential.value(x, t) / potential.rate(t)
    assert float(u[1] - u[0]) == pytest.approx(barrier, abs=1e-8)
    every = fixed_points(TWO, sigma, P([0.0], [2.0], [-3.0]))
    assert sorted((theta * every.states.flatten()).tolist()) == pytest.approx([-place, 0, place], abs=1e-8)
    assert sorted(every.kinds) == ["maximum", "stable", "stable"]
    assert len(every.stable) == 2


def test_onset_fact_f6():
    """Holds symmetry_breaking F6, the square-root onset, and no fixed point but 0 before it."""
    critical = math.sqrt(math.sqrt(2) - 1)
    limit = 12 * math.sqrt(2) * (math.sqrt(2) - 1) / critical
    for offset, ratio in ((1e-3, 10.877), (1e-4, 10.9177), (1e-5, 10.92171)):
        found = fixed_point_on_ray(TWO, sigma_of(critical + offset), P(1.0))
        assert found**2 / offset == pytest.approx(ratio, abs=1e-3)
    assert found**2 / 1e-5 == pytest.approx(limit, rel=1e-4)
    assert fixed_point_on_ray(TWO, sigma_of(critical - 1e-4), P(1.0)) == 0
    only = fixed_points(TWO, sigma_of(0.6), P([0.0], [2.0], [-3.0]))
    assert only.kinds == ("stable",)
    assert float(only.states.abs().max()) < 1e-8


def test_curie_weiss_fact_f12():
    """Holds symmetry_breaking F12."""
    b = -2 * math.log(0.8)
    k = 1 / math.sinh(b)
    x = fixed_point_on_ray(TWO, sigma_of(0.8), P(1.0))
    m = x * math.cosh(b / 2)
    assert (k, m) == pytest.approx((2.168021680, 0.970714541), abs=1e-9)
    assert m == pytest.approx(math.tanh(k * m), rel=1e-12)


@pytest.mark.parametrize(
    ("dim", "radius", "theta", "stable"),
    [
        (2, 1, 0.9, 0.861827), (3, 1, 0.9, 0.695252), (3, 2, 0.9, 1.877105), (10, math.sqrt(10), 0.9, 2.824458),
        (100, 10, 0.9, 8.836789), (2, 1, 0.8, 0.374115), (3, 2, 0.8, 1.691705), (100, 10, 0.8, 7.182427),
    ],
)  # fmt: skip
def test_stable_radius_of_spheres_fact_f13(dim, radius, theta, stable):
    """Holds symmetry_breaking F13 and E3: the radius is neither θ r nor stable below the critical θ."""
    law = toy("sphere", dim=dim, radius=float(radius))
    found = fixed_point_on_ray(law, sigma_of(theta), torch.ones(dim, dtype=torch.float64))
    assert found == pytest.approx(stable, abs=6e-7)
    assert abs(found - theta * radius) > 1e-3


def test_rectangle_fact_f14():
    """The four corners attract late, the middles of the long sides early (symmetry_breaking F14)."""
    c, s = math.cos(0.3), math.sin(0.3)
    data = P([c, s], [c, -s], [-c, s], [-c, -s])
    law = Empirical(data)
    early = fixed_points(law, sigma_of(0.9), torch.cat((data, torch.zeros(1, 2).double())))
    assert sorted(early.kinds) == ["saddle", "stable", "stable"]
    assert float(early.stable[:, 1].abs().max()) < 1e-8
    late = fixed_points(law, sigma_of(0.97), torch.cat((data, torch.zeros(1, 2).double())))
    assert sorted(late.kinds) == ["maximum", *["saddle"] * 4, *["stable"] * 4]
    assert float((late.ratios[:4, 0]).max()) < 1


def test_iteration_converges_fact_f15():
    """Holds symmetry_breaking F15: x ← 2θ/(1 + q) m(x) ends where ∇u vanishes and the Hessian is positive."""
    half = torch.nn.functional.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1)
    law = Empirical(torch.cat((half, -half)))
    theta = 0.95
    sigma, t = sigma_of(theta), VP().time(sigma_of(theta))
    kappa = critical_ratio(VP(), sigma)
    assert kappa == pytest.approx((1 + theta**2) / 2, rel=1e-12)
    step = FixedPointMap(AveragedField(law, sigma), kappa)
    x = law.data.clone()
    for _ in range(1200):
        x = step(x)
    potential = Potential(law)
    assert float(potential.gradient(theta * x, t).norm(dim=1).max()) / potential.rate(t) < 2e-14
    assert float(potential.lowest_curvatures(theta * x, t).values.min()) > 0
    # Mixing gets there in fewer steps, and Newton's method in a handful.
    quick = anderson(step, law.data.clone(), tolerance=1e-13)
    assert quick.steps < 200
    assert torch.allclose(quick.x, x, atol=1e-9)
    near = newton(step, quick.x + 1e-3, tolerance=1e-13)
    assert near.steps <= 6
    assert torch.allclose(near.x, x, atol=1e-9)


def test_a_wide_gaussian_has_no_second_fixed_point_fact_f17():
    """Holds symmetry_breaking F17: beyond the instability the origin stays the only fixed point."""
    law = Gaussian(torch.zeros(1, dtype=torch.float64), 4 * torch.eye(1, dtype=torch.float64))
    found = fixed_points(law, sigma_of(0.8), P([0.0], [1.0], [-5.0]), steps=300)
    assert found.kinds == ("maximum",)
    assert fixed_point_on_ray(law, sigma_of(0.8), P(1.0)) == math.inf


def test_dynamics_and_origin():
    """ODE and density have their own fixed points; data off the origin pull the state towards the origin."""
    x = fixed_points(TWO, 0.5, P([1.0]), dynamics="langevin").states
    assert float(TWO(x, 0.5)) == pytest.approx(float(x), rel=1e-9)
    shifted = Empirical(P([2.0], [4.0]))
    centred = fixed_points(shifted, 0.5, P([4.0]), origin=P(3.0)[0:1])
    assert float(centred.states) - 3 == pytest.approx(float(fixed_points(TWO, 0.5, P([1.0])).states), abs=1e-8)
    plain = fixed_points(shifted, 0.5, P([4.0]))
    kappa = critical_ratio(VP(), 0.5)
    assert float(shifted(plain.states, 0.5)) == pytest.approx(kappa * float(plain.states), rel=1e-9)
    with pytest.raises(ArgumentError, match="starts is empty"):
        fixed_points(TWO, 0.5, torch.zeros(0, 1))
