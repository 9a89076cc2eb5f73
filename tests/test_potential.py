"""The potential of the reverse dynamics: closed forms of two points and spheres, derivatives, symmetries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.analysis.potential import Potential, symmetry_error
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, GaussianMixture, toy
from farfield.errors import ArgumentError
from farfield.processes import DDPM, VE, VP, Diffusion, SubVP

P = lambda *rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
TWO = Empirical(P([-1.0], [1.0]))


class Shell(Diffusion):
    """A process without a score."""

    gaussian = False


MAPS = (VP(), SubVP(), VE(), DDPM())


def time_of(theta, process=None):
    return (process or VP()).time(math.sqrt(1 / theta**2 - 1))


def random_law(seed=0, count=6, dim=3):
    generator = torch.Generator().manual_seed(seed)
    return Empirical(torch.randn(count, dim, generator=generator, dtype=torch.float64))


def test_schedule_fact_f1():
    """Holds symmetry_breaking F1."""
    vp, ddpm = VP(), DDPM()
    assert -2 * math.log(vp.alpha(1.0)) == pytest.approx(10.05, rel=1e-12)
    assert vp.alpha(1.0) == pytest.approx(0.00657158649, rel=1e-8)
    assert Potential(TWO).rate(time_of(math.sqrt(math.sqrt(2) - 1))) == pytest.approx(5.92356892, rel=1e-8)
    bars = ddpm.alpha(P(0, 499, 500, 999).flatten()) ** 2
    assert bars.tolist() == pytest.approx([0.9999, 0.0785872429, 0.0777966584, 4.03582977e-5], rel=1e-8)


@pytest.mark.parametrize(
    ("theta", "curvature"),
    [(0.2, 0.498263889), (0.5, 0.388888889), (math.sqrt(math.sqrt(2) - 1), 0.0), (0.8, -2.660493827), (0.95, -85.18113083)],
)  # fmt: skip
def test_curvature_of_two_points_fact_f4(theta, curvature):
    """Holds symmetry_breaking F4 and, at the limit of weak signal, the bowl of one half."""
    potential, t = Potential(TWO), time_of(theta)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    found = potential.hessian_product(zero, t, torch.ones_like(zero))
    assert float(found) / potential.rate(t) == pytest.approx(curvature, rel=2e-9, abs=1e-12)
    assert float(potential.lowest_curvatures(zero, t).values) == pytest.approx(float(found), rel=1e-12, abs=1e-12)
    h = 1e-4
    u = potential.value(P([-h], [0.0], [h]), t)
    assert float(u[0] - 2 * u[1] + u[2]) / h**2 / potential.rate(t) == pytest.approx(curvature, rel=2e-5, abs=1e-6)


def test_curvature_far_from_the_data():
    weak = Potential(TWO)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert float(weak.hessian_product(zero, 1.0, torch.ones_like(zero))) / weak.rate(1.0) == pytest.approx(
        0.5, abs=1e-4
    )


@pytest.mark.parametrize(
    ("s", "x", "score", "drift", "height"),
    [
        (0.1, 0.5, 4.30510524, 4.55510524, -2.72819810), (0.1, 1.0, -0.51368430, -0.01368430, -3.86394038),
        (0.2, 0.5, 0.50726054, 0.75726054, -0.27991440), (0.2, 1.0, -0.59280266, -0.09280266, -0.47694480),
        (0.2926416543281432, 0.5, -0.30418174, -0.05418174, 0.00702935),
        (0.2926416543281432, 1.0, -0.82813108, -0.32813108, 0.09267031),
        (0.5, 1.0, -0.99542220, -0.49542220, 0.24702144), (0.9, 0.5, -0.49999996, -0.24999996, 0.06249999),
    ],
)  # fmt: skip
def test_spot_values_fact_f5(s, x, score, drift, height):
    """Holds symmetry_breaking F5 (and errata E1, E4: one function of the forward time)."""
    potential = Potential(TWO)
    state, beta = P([x]), potential.rate(s)
    assert float(potential.drift(state, s)) / beta == pytest.approx(drift, abs=1e-8)
    assert float(Potential(TWO, dynamics="langevin").drift(state, s)) == pytest.approx(score, abs=1e-8)
    u = potential.value(P([x], [0.0]), s)
    assert float(u[0] - u[1]) / beta == pytest.approx(height, abs=1e-8)


@pytest.mark.parametrize(
    ("lam", "s", "value"), [(1, 0.1, -74.1762701), (1, 0.3, 0.0689513), (1, 0.6, 0.4992761), (4, 0.3, -3.1938237)]
)
def test_curvature_identity_fact_f8(lam, s, value):
    """Holds symmetry_breaking F8: the Hessian is (sinh B − λ)/(4 sinh²(B/2)) in units of β."""
    law = Empirical(math.sqrt(lam) * P([-1.0], [1.0]))
    potential, b = Potential(law), -2 * math.log(VP().alpha(s))
    closed = (math.sinh(b) - lam) / (4 * math.sinh(b / 2) ** 2)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    found = float(potential.hessian_product(zero, s, torch.ones_like(zero))) / potential.rate(s)
    assert found == pytest.approx(closed, rel=1e-12)
    assert found == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(
    ("dim", "radius", "theta", "value"),
    [(3, 1, 0.5, 2.05555556), (3, 2, 0.5, 0.72222222), (3, 2, 0.6, -0.328125), (2, 1, 0.8, -0.38271605)],
)
def test_laplacian_of_spheres_fact_f13(dim, radius, theta, value):
    """Holds symmetry_breaking F13 (Laplacians; E8: the marginal has a closed form)."""
    law = toy("sphere", dim=dim, radius=float(radius))
    potential, t = Potential(law), time_of(theta)
    zero = torch.zeros(1, dim, dtype=torch.float64)
    assert float(potential.laplacian(zero, t)) / potential.rate(t) == pytest.approx(value, abs=1e-8)
    steps = 1e-3 * torch.eye(dim, dtype=torch.float64)
    u = potential.value(torch.cat((zero, steps, -steps)), t)
    finite = float(u[1:].sum() - 2 * dim * u[0]) / 1e-6 / potential.rate(t)
    assert finite == pytest.approx(value, rel=1e-4)


def test_normalised_data_fact_f15():
    """Holds symmetry_breaking F15: gradient and trace at the origin; E10, the Laplacian anywhere; E11."""
    half = torch.nn.functional.normalize(torch.randn(5, 4, dtype=torch.float64), dim=1)
    law, r = Empirical(1.7 * torch.cat((half, -half))), 1.7
    potential, zero = Potential(law), torch.zeros(1, 4, dtype=torch.float64)
    for s in (0.1, 0.3, 0.7):
        q, beta = VP().alpha(s) ** 2, potential.rate(s)
        assert float(potential.gradient(zero, s).norm()) / beta < 1e-14
        closed = -(4 / 2 + ((4 + r * r) * q - 4) / (q - 1) ** 2)
        assert float(potential.laplacian(zero, s)) / beta == pytest.approx(closed, rel=1e-12)
    x = torch.randn(2, 4, dtype=torch.float64)
    v = 1 - VP().alpha(0.3) ** 2
    w = law.weights(x / VP().alpha(0.3), VP().sigma(0.3))
    mean = w @ law.data
    trace = (w * law.data.square().sum(1)).sum(1) - mean.square().sum(1)
    anywhere = -(2 - 4 / v + (1 - v) / v**2 * trace) * potential.rate(0.3)
    assert torch.allclose(potential.laplacian(x, 0.3), anywhere, rtol=1e-10)


@pytest.mark.parametrize("dynamics", ["sde", "ode", "langevin"])
@pytest.mark.parametrize("process", MAPS, ids=lambda p: type(p).__name__)
def test_derivatives_belong_together(process, dynamics):
    """Gradient and Hessian are those of the value, for every time map, both dynamics and the density."""
    potential = Potential(random_law(), process, dynamics, origin=P(0.3, -0.2, 0.1))
    t = process.time(0.9)
    x, v = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    x, h = 0.7 * process.alpha(t) * x, 1e-5
    slope = (potential.value(x + h * v, t) - potential.value(x - h * v, t)) / (2 * h)
    assert torch.allclose((potential.gradient(x, t) * v).sum(1), slope, rtol=1e-7, atol=1e-9 * potential.rate(t))
    change = (potential.gradient(x + h * v, t) - potential.gradient(x - h * v, t)) / (2 * h)
    assert torch.allclose(potential.hessian_product(x, t, v), change, rtol=1e-6, atol=1e-8)
    assert torch.equal(potential.hessian_product(x, t, v, transposed=True), potential.hessian_product(x, t, v))
    full = torch.stack([potential.hessian_product(x, t, e.expand(2, 3).contiguous()) for e in torch.eye(3).double()], 1)
    assert torch.allclose(potential.laplacian(x, t), full.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-9)
    lowest = potential.lowest_curvatures(x, t, 3)
    assert torch.allclose(lowest.values, torch.linalg.eigvalsh(full), rtol=1e-8, atol=1e-9)


def test_reverse_dynamics_in_its_own_terms():
    """SDE: g² score − f X; ODE: half the score (2.7); for several times at once as for each."""
    law, process = random_law(1), SubVP()
    x, t = torch.randn(3, 3, dtype=torch.float64), P(0.2, 0.5, 0.8).flatten()
    alpha, s2 = process.alpha(t)[:, None], process.std(t)[:, None] ** 2
    score = (alpha * law(x / alpha, process.sigma(t)) - x) / s2
    g2, f = process.diffusion(t)[:, None] ** 2, process.drift(t)[:, None]
    assert torch.allclose(Potential(law, process).drift(x, t), g2 * score - f * x, rtol=1e-10)
    assert torch.allclose(Potential(law, process, "ode").drift(x, t), g2 * score / 2 - f * x, rtol=1e-10)
    one = torch.cat([Potential(law, process).value(x[k : k + 1], float(t[k])) for k in range(3)])
    assert torch.allclose(Potential(law, process).value(x, t), one, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(s=st.floats(0.05, 0.95), angle=st.floats(0.1, 3.0))
def test_symmetries_fact_f33(s, angle):
    """Holds symmetry_breaking F33."""
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    turn = P([math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)])
    quarter = P([0.0, -1.0], [1.0, 0.0])
    c, d = math.cos(0.3), math.sin(0.3)
    rectangle = Potential(Empirical(P([c, d], [c, -d], [-c, d], [-c, -d])))
    square = Potential(Empirical(P([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0])))
    ring = Potential(toy("ring"))
    scale = 1e-12 * max(1.0, float(rectangle.value(x, s).abs().max()), float(rectangle.gradient(x, s).abs().max()))
    flip = P([1.0, 0.0], [0.0, -1.0])
    for potential, matrix in (
        (rectangle, flip), (rectangle, -flip), (rectangle, -torch.eye(2).double()), (square, quarter), (ring, turn),
        (Potential(TWO), P([-1.0])),
    ):  # fmt: skip
        value, gradient = symmetry_error(potential, lambda z, m=matrix: z @ m.T, x[:, : len(matrix)], s)
        assert max(value, gradient) <= 10 * scale


def test_rectangle_lacks_the_quarter_turn_fact_f33():
    """The turn of a rectangle is no symmetry, which the check shows plainly."""
    law = Empirical(P([0.9, 0.3], [0.9, -0.3], [-0.9, 0.3], [-0.9, -0.3]))
    value, gradient = symmetry_error(Potential(law), lambda z: z @ P([0.0, 1.0], [-1.0, 0.0]), P([0.5, 0.1]), 0.3)
    assert value > 0.01
    assert gradient > 0.1


def test_networks_have_a_gradient_and_no_value():
    mixture = GaussianMixture([0.5, 0.5], P([1.0, 0.0], [-1.0, 0.5]), 0.1 * torch.eye(2).double().expand(2, 2, 2))
    network = FunctionDenoiser(lambda x, sigma: mixture(x, sigma), (2,))
    x = torch.randn(3, 2, dtype=torch.float64)
    assert torch.allclose(Potential(network).gradient(x, 0.4), Potential(mixture).gradient(x, 0.4))
    with pytest.raises(ArgumentError, match="no log_prob"):
        Potential(network).value(x, 0.4)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="dynamics = 'pde'"):
        Potential(TWO, dynamics="pde")
    with pytest.raises(ArgumentError, match="origin has shape"):
        Potential(TWO, origin=torch.zeros(2))
    with pytest.raises(ArgumentError, match="needs a score"):
        Potential(Empirical(P([-1.0], [1.0]), process=Shell()))
