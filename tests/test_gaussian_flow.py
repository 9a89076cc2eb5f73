"""The exact flow of a Gaussian under any schedule, against the facts of the Gaussian score paper."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from farfield.distributions import Gaussian
from farfield.distributions.gaussian_flow import GaussianFlow
from farfield.distributions.gaussian_modes import principal_components, psi, shrinkage, xi
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.processes import DDPM, VE, VP, SubVP
from farfield.processes.schedules import EDM, FlowMatching, Scales, as_schedule

F64 = torch.float64
MEAN = torch.tensor([1.0, -1.0, 0.5], dtype=F64)
X_T = torch.tensor([[40.0, -80.0, 120.0]], dtype=F64)
X_VP = torch.tensor([[0.5, -1.0, 1.5]], dtype=F64)


def t1():
    return Gaussian(MEAN, Spectrum.low_rank(torch.eye(3, dtype=F64)[:, :2], [4.0, 0.25]))


def random_law(kind, seed=0, d=6):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=generator, dtype=F64)
    values = torch.rand(d, generator=generator)
    basis = torch.linalg.qr(root)[0][:, :2]
    spectrum = {
        "dense": lambda: Spectrum.from_covariance(root @ root.T),
        "tail": lambda: Spectrum.low_rank(basis, [3.0, 0.5], 0.1),
        "zero tail": lambda: Spectrum.low_rank(basis, [3.0, 0.5]),
        "isotropic": lambda: Spectrum.isotropic(d, 0.4),
        "diagonal": lambda: Spectrum.diagonal(values),
        "dct": lambda: Spectrum.dct((2, 3), values),
    }[kind]()
    return Gaussian(torch.randn(d, generator=generator, dtype=F64), spectrum).double()


KINDS = ("dense", "tail", "zero tail", "isotropic", "diagonal", "dct")
SCHEDULES = {
    "edm": (EDM(), 80.0, (40.0, 2.0, 0.05)),
    "vp": (VP(), 1.0, (0.7, 0.3, 0.02)),
    "sub-vp": (SubVP(), 1.0, (0.7, 0.3, 0.02)),
    "ve": (VE(), 1.0, (0.7, 0.3, 0.02)),
    "ddpm": (DDPM(), 999.0, (600.4, 200.0, 3.3)),
    "flow matching": (FlowMatching(), 1.0, (0.7, 0.3, 0.02)),
    "own": (Scales(lambda t: torch.cos(t) + 0.1, lambda t: torch.sin(t).square()), 1.5, (1.1, 0.6, 0.2)),
}


def test_states_and_denoiser_of_t1():
    """Holds gaussian_score F18 and F19."""
    path = GaussianFlow(t1()).path(X_T, 80.0)
    states = path.state([12.91, 2.0, 0.5, 0.002, 0.0])
    expected = torch.tensor(
        [
            [7.366710788, -13.757933628, 19.7843125],
            [2.378427532, -3.035743642, 3.4875],
            [2.004693079, -1.698254309, 1.246875],
            [1.974695943, -1.493744307, 0.5029875],
            [1.974695455, -1.493740357, 0.5],
        ],
        dtype=F64,
    )
    torch.testing.assert_close(states[:, 0], expected, atol=2e-9, rtol=1e-9)
    torch.testing.assert_close(path.endpoint()[0], expected[-1], atol=2e-9, rtol=0)
    outputs = torch.tensor(
        [[1.149218531, -1.019108074, 0.5], [1.689213766, -1.119749626, 0.5], [1.945593486, -1.349127154, 0.5]],
        dtype=F64,
    )
    torch.testing.assert_close(path.denoised([12.91, 2.0, 0.5])[:, 0], outputs, atol=1e-9, rtol=0)
    torch.testing.assert_close(path.denoised(2.0), t1()(path.state(2.0), 2.0), atol=1e-13, rtol=0)


def test_the_flow_against_an_integrator():
    """Holds gaussian_score F20 and E18: stop above 0; default tolerances err by 2.7e-3 in 86 evaluations."""
    law = t1()

    def slope(sigma, x):
        return law.noise(torch.from_numpy(x)[None], float(sigma))[0].numpy()

    exact = GaussianFlow(law).transport(X_T, 80.0, 0.002)[0].numpy()
    fine = solve_ivp(slope, (80.0, 0.002), X_T[0].numpy(), "DOP853", rtol=1e-12, atol=1e-12)
    assert np.abs(fine.y[:, -1] - exact).max() < 1e-10
    plain = solve_ivp(slope, (80.0, 0.002), X_T[0].numpy())
    assert plain.nfev == 86
    assert np.abs(plain.y[:, -1] - exact).max() == pytest.approx(2.7e-3, rel=0.02)


def test_vp_states_of_t1():
    """Holds gaussian_score F26: E1 (the projector outside is I − U Uᵀ) and E20 (its explicit term) in the VP form."""
    path = GaussianFlow(t1(), VP()).path(X_VP, 1.0)
    expected = torch.tensor([0.829983352, -1.244722722, 1.576950534], dtype=F64)
    torch.testing.assert_close(path.state(0.5)[0], expected, atol=1e-9, rtol=0)
    expected = torch.tensor([1.498914858, -1.072002310, 0.5], dtype=F64)
    torch.testing.assert_close(path.denoised(0.5)[0], expected, atol=1e-9, rtol=0)
    expected = torch.tensor([1.514791768, -1.497804962, 1.394822582], dtype=F64)
    torch.testing.assert_close(path.state(0.25)[0], expected, atol=1e-9, rtol=0)
    alpha, std = GaussianFlow(t1(), VP()).scales(0.5)
    assert float(alpha) == pytest.approx(0.2811828808, abs=1e-10)
    assert float(std) == pytest.approx(0.9596542021, abs=1e-10)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_solves_its_own_equation(name):
    """Holds gaussian_score F26 (closed form against ODE) and E25 (time falls) for every schedule, α_T = 0 included."""
    schedule, start, times = SCHEDULES[name]
    if name == "ddpm":  # piecewise in time: one piece at a time is smooth
        start, times = 600.9, (600.5, 600.1)
    flow = GaussianFlow(random_law("tail"), schedule)
    x = torch.randn(1, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    path = flow.path(x, start)

    def slope(t, y):
        return flow.velocity(torch.from_numpy(y)[None], float(t))[0].numpy()

    solved = solve_ivp(slope, (start, times[-1]), x[0].numpy(), "DOP853", times, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(path.state(times)[:, 0].numpy(), solved.y.T, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_quantities_agree_with_their_definitions(kind, name):
    """Holds gaussian_score F27 (any schedule = EDM under x/α, s/α) and F29 (ε, v and score), for every spectrum."""
    schedule, start, times = SCHEDULES[name]
    law = random_law(kind)
    flow = GaussianFlow(law, schedule)
    x = torch.randn(3, 6, dtype=F64)
    path = flow.path(x, start)
    for t in times:
        alpha, std = (float(v) for v in flow.scales(t))
        state = path.state(t)
        denoised = law(state / alpha, std / alpha)
        torch.testing.assert_close(path.denoised(t), denoised, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(flow.denoised(state, t), denoised, rtol=1e-10, atol=1e-10)
        noise = (state - alpha * denoised) / std
        torch.testing.assert_close(path.noise(t), noise, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(path.score(t), -path.noise(t) / std)
        torch.testing.assert_close(path.v(t), alpha * path.noise(t) - std * path.denoised(t))
        signal_rate, noise_rate = flow.rates(t)
        torch.testing.assert_close(path.velocity(t), signal_rate * path.denoised(t) + noise_rate * path.noise(t))
        first = float(flow.scales(start)[0])
        if first > 0:
            ve = law.flow(x / first, float(flow.scales(start)[1]) / first, std / alpha)
            torch.testing.assert_close(state, alpha * ve, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_many_times_at_once(kind):
    """One projection, read at a sequence of times, is the same as time by time, lifted or in coefficients."""
    flow = GaussianFlow(random_law(kind), VP())
    path = flow.path(torch.randn(2, 6, dtype=F64), 1.0)
    times = torch.linspace(0.9, 0.05, 7, dtype=F64)
    for of in ("state", "denoised", "noise", "score", "velocity", "v"):
        together = getattr(path, of)(times)
        assert together.shape == (7, 2, 6)
        for k, t in enumerate(times.tolist()):
            torch.testing.assert_close(together[k], getattr(path, of)(t), rtol=1e-12, atol=1e-12)
    inside = flow.gaussian.spectrum.project(path.denoised(0.4) - flow.gaussian.mean)
    torch.testing.assert_close(path.coordinates(0.4, "denoised"), inside)
    assert path.coordinates(times).shape == (7, 2, flow.gaussian.spectrum.rank)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(1e-3, 1.0), st.floats(1e-3, 1.0), st.floats(1e-3, 1.0), st.sampled_from(KINDS),
    st.sampled_from(["vp", "sub-vp", "ve", "flow matching"]),
)  # fmt: skip
def test_semigroup_and_inverse(a, b, c, kind, name):
    """Holds gaussian_score F21 under every schedule."""
    flow = GaussianFlow(random_law(kind), SCHEDULES[name][0])
    x = flow.marginal(a).colour(torch.randn(2, 6, dtype=F64))
    there = flow.transport(x, a, b)
    torch.testing.assert_close(flow.transport(there, b, c), flow.transport(x, a, c), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(flow.transport(there, b, a), x, rtol=1e-7, atol=1e-7)
    both = flow.log_det(a, b) + flow.log_det(b, c)
    torch.testing.assert_close(both, flow.log_det(a, c), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1e4), st.floats(0, 100), st.floats(1e-3, 100), st.floats(0, 2), st.floats(0.01, 2))
def test_properties_of_the_gains(variance, std, std_from, alpha, alpha_from):
    """Holds gaussian_score F22, F23 and the properties of 2.6: ψ(T) = 1, limits in λ, ξ = shrinkage ψ/α ≤ ψ at α = 1."""
    assert float(psi(variance, std_from, std_from, alpha_from, alpha_from)) == 1
    assert float(psi(0.0, std, std_from, alpha, alpha_from)) == pytest.approx(std / std_from)
    assert float(psi(1e30, std, std_from)) == pytest.approx(1.0)
    gain, end = psi(variance, std, std_from, alpha, alpha_from), xi(variance, std, std_from, alpha, alpha_from)
    believed = float(shrinkage(variance, std, alpha))
    assert float(end) * alpha == pytest.approx(believed * float(gain), rel=1e-9, abs=1e-12)
    if std > 1e-3:
        assert believed == pytest.approx(alpha**2 * variance / (alpha**2 * variance + std**2), abs=1e-12)
    assert float(xi(variance, std, std_from)) <= float(psi(variance, std, std_from)) * (1 + 1e-12)
    assert float(psi(variance + 1, std, std_from)) * (1 + 1e-12) >= min(float(psi(variance, std, std_from)), 1)
    assert float(xi(variance, 0.0, std_from)) == pytest.approx(float(psi(variance, 0.0, std_from)))


def test_endpoint_gain():
    """Holds gaussian_score F22 and F23: the residue off the span, ψ(0) = ξ(0) = sqrt(λ/(λ + 6400))."""
    assert float(psi(0.0, 0.002, 80.0)) == pytest.approx(2.5e-5)
    for variance in (0.25, 4.0, 100.0):
        assert float(psi(variance, 0.0, 80.0)) == pytest.approx(math.sqrt(variance / (variance + 6400)))
        assert float(xi(variance, 0.0, 80.0)) == pytest.approx(math.sqrt(variance / (variance + 6400)))
    assert float(xi(0.0, 0.0, 80.0)) == 0
    assert float(psi(0.0, 0.0, 80.0)) == 0


def test_change_of_variables():
    """Holds gaussian_score F24, and its likeness under VP."""
    flow = GaussianFlow(t1())
    before, after = flow.log_prob(X_T, 80.0), flow.log_prob(flow.transport(X_T, 80.0, 5.0), 5.0)
    assert float(before) == pytest.approx(-17.6251849517, abs=1e-9)
    assert float(after) == pytest.approx(-9.3862720197, abs=1e-9)
    assert float(flow.log_det(80.0, 5.0)) == pytest.approx(-8.2389129320, abs=1e-9)
    for kind in KINDS:
        flow = GaussianFlow(random_law(kind), FlowMatching())
        x = torch.randn(4, 6, dtype=F64)
        arrived = flow.log_prob(flow.transport(x, 1.0, 0.2), 0.2)
        torch.testing.assert_close(flow.log_prob(x, 1.0), arrived + flow.log_det(1.0, 0.2))


def test_the_image_of_pure_noise():
    """Holds gaussian_score F25 and E28: N(0, σ_T²) is not the exact start; short in std, and off in the mean."""
    values = [1.0, 10.0, 100.0, 200.0, 400.0]
    law = Gaussian(torch.ones(5, dtype=F64), Spectrum.diagonal(values))
    image = GaussianFlow(law).image(80.0, 0.0)
    ratio = (image.spectrum.values / torch.tensor(values)).sqrt().tolist()
    assert ratio == pytest.approx([0.99992, 0.99922, 0.99228, 0.98473, 0.97014], abs=6e-6)
    offset = (law.mean - image.mean).tolist()
    assert offset == pytest.approx([0.0125, 0.0395, 0.1240, 0.1741, 0.2425], abs=6e-5)
    exact = GaussianFlow(law).transport(torch.zeros(1, 5, dtype=F64), 80.0, 0.0)
    torch.testing.assert_close(exact[0], image.mean)


@pytest.mark.parametrize("kind", KINDS)
def test_push_forward_of_the_marginal_is_the_marginal(kind):
    """Holds gaussian_score 2.6: N(αμ, α²Σ + s²) is carried onto the law of every other time, matrix by matrix."""
    flow = GaussianFlow(random_law(kind), VP())
    a, b = flow.marginal(0.8), flow.marginal(0.2)
    matrix = flow.push(torch.eye(6, dtype=F64), 0.8, 0.2)
    torch.testing.assert_close(matrix @ a.spectrum.dense() @ matrix.T, b.spectrum.dense(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flow.transport(a.mean[None], 0.8, 0.2)[0], b.mean)
    assert float(matrix.logdet()) == pytest.approx(float(flow.log_det(0.8, 0.2)), abs=1e-6)


def test_gain_velocities():
    """Holds gaussian_score F28: Eqs. 97-98 at t = 0.4, λ = 4, with GSP's β half the usual one."""
    law = Gaussian(torch.zeros(2, dtype=F64), Spectrum.low_rank(torch.eye(2, dtype=F64)[:, :1], [4.0]))
    flow = GaussianFlow(law, VP())
    path = flow.path(torch.ones(1, 2, dtype=F64), 1.0)
    found = path.velocity(0.4)[0]
    assert found.tolist() == pytest.approx([-1.87669584, 0.87860383], abs=5e-9)
    difference = (path.state(0.4 + 1e-6) - path.state(0.4 - 1e-6))[0] / 2e-6
    torch.testing.assert_close(found, difference, rtol=1e-8, atol=0)
    alpha, top = (float(flow.scales(t)[0]) for t in (0.4, 1.0))
    beta = (0.1 + 0.4 * 19.9) / 2
    on = -3 * alpha**2 * beta / math.sqrt((1 + 3 * top**2) * (1 + 3 * alpha**2))
    off = alpha**2 * beta / math.sqrt((1 - top**2) * (1 - alpha**2))
    assert found.tolist() == pytest.approx([on, off], rel=1e-9)


def test_a_component_of_variance_one_rests_under_vp():
    """Holds gaussian_score F30."""
    law = Gaussian(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64))
    x = torch.randn(2, 3, dtype=F64)
    states = GaussianFlow(law, VP()).path(x, 1.0).state(torch.linspace(0, 1, 9, dtype=F64))
    torch.testing.assert_close(states, x.expand(9, 2, 3), rtol=1e-14, atol=1e-14)


def test_flow_matching_starts_in_pure_noise():
    """At α = 0 the state is noise alone, the denoiser says μ, and the endpoint is the map of optimal transport."""
    law = random_law("dense")
    flow = GaussianFlow(law, FlowMatching())
    z = torch.randn(4, 6, dtype=F64)
    path = flow.path(z, 1.0)
    torch.testing.assert_close(path.denoised(1.0), law.mean.expand(4, 6))
    torch.testing.assert_close(path.noise(1.0), z)
    torch.testing.assert_close(path.endpoint(), law.colour(z))
    torch.testing.assert_close(path.state(0.0), path.endpoint())
    torch.testing.assert_close(path.velocity(1.0), z - law.mean)


def test_images_in_float32_and_principal_components():
    """Events keep their shape, states their type; a transform's components are found in order of variance."""
    law = Gaussian.fit(torch.randn(64, 1, 4, 4) * torch.linspace(0.2, 2, 4), basis="dct")
    path = GaussianFlow(law).path(80 * torch.randn(3, 1, 4, 4), 80.0)
    assert path.state(1.0).shape == (3, 1, 4, 4)
    assert path.state(1.0).dtype == torch.float32
    assert path.state([1.0, 0.1]).shape == (2, 3, 1, 4, 4)
    variances, vectors = principal_components(law, 3)
    assert variances.tolist() == sorted(law.spectrum.values.tolist(), reverse=True)[:3]
    flat = vectors.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(3, dtype=F64), atol=1e-6, rtol=0)
    torch.testing.assert_close((flat @ law.spectrum.dense() @ flat.T).diagonal(), variances, atol=1e-6, rtol=1e-6)


def test_mistakes_are_named():
    """Wrong times, laws and schedules."""
    flow = GaussianFlow(t1(), VP())
    with pytest.raises(ArgumentError, match="singular"):
        flow.path(X_VP, 0.0)
    with pytest.raises(ArgumentError, match="the rate of std"):
        flow.path(X_VP, 1.0).velocity(0.0)
    with pytest.raises(ArgumentError, match="alpha is -1"):
        GaussianFlow(t1(), FlowMatching()).path(X_VP, 2.0)
    with pytest.raises(ArgumentError, match="one time or a sequence"):
        flow.path(X_VP, 1.0).state(torch.ones(2, 2))
    with pytest.raises(ArgumentError, match="schedule is a str"):
        GaussianFlow(t1(), "vp")
    with pytest.raises(ArgumentError, match="expected a Gaussian"):
        GaussianFlow(torch.zeros(2))
    with pytest.raises(ArgumentError, match="of = 'x'"):
        flow.path(X_VP, 1.0).coordinates(0.5, "x")
    with pytest.raises(ArgumentError, match="shape"):
        flow.path(torch.zeros(1, 4), 1.0)
    with pytest.raises(ArgumentError, match="principal"):
        principal_components(Gaussian(torch.zeros(2), Spectrum.isotropic(2, 1.0)))
    with pytest.raises(ArgumentError, match="at least 1"):
        principal_components(t1(), 0)
    assert as_schedule(EDM()) == EDM()
