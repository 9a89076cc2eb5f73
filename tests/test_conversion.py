"""VP ↔ VE: models, states, grids and steps, on the toy T1 and against quadrature."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

from farfield.errors import ArgumentError
from farfield.processes import DDPM, VE, VP, SubVP
from farfield.sampling import Sampler, karras
from farfield.sampling.conversion import (
    PREDICTIONS,
    FromNative,
    ToNative,
    convert_latents,
    ddim_step,
    from_x0,
    grid_of_times,
    native_velocity,
    prior_ratio,
    times_of_grid,
    to_x0,
    ve_diffusion,
)
from tests.laws import T1, points, smooth_mixture

WIDE = torch.float64
#: β_d = 19.9, β_min = 0.1.
EDM_VP = VP(0.1, 20.0)
X = torch.tensor([[3.0, -2.0], [0.5, 0.5], [-7.0, 4.0]], dtype=WIDE)


def test_vp_constants():
    """Geometry fact 61: levels, the signal scale at the end, and the width of the native prior there."""
    for t, sigma in ((0.001, 0.0104859927867), (0.1, 0.340176529077), (0.5, 3.41291830907), (1.0, 152.166970284)):
        assert EDM_VP.sigma(t) == pytest.approx(sigma, rel=1e-11)
    assert EDM_VP.alpha(1.0) == pytest.approx(0.00657158649493, rel=1e-11)
    assert prior_ratio(EDM_VP) * EDM_VP.sigma(1.0) == pytest.approx(152.170256, rel=1e-8)
    assert prior_ratio(EDM_VP) - 1 == pytest.approx(2.2e-5, rel=0.03)


@pytest.mark.parametrize("process", [EDM_VP, SubVP(), VE()])
def test_scales_are_integrals_of_the_coefficients(process):
    """Geometry fact 61 (Eqs. 20 and 21): ``α = exp ∫f``, ``σ² = ∫(g/α)²``, to 1e-11; E13: ``g/α = sqrt(dσ²/dt)``."""
    start = 0.0 if not isinstance(process, VE) else 0.2
    for t in (0.3, 0.8):
        log_alpha = quad(process.drift, start, t, epsabs=1e-13, epsrel=1e-13)[0]
        variance = quad(lambda u: ve_diffusion(process, u) ** 2, start, t, epsabs=1e-13, epsrel=1e-13)[0]
        base = process.sigma(start) ** 2
        assert process.alpha(t) == pytest.approx(math.exp(log_alpha), rel=1e-11)
        assert process.sigma(t) ** 2 - base == pytest.approx(variance, rel=1e-11)
        h = 1e-6
        rate = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
        assert ve_diffusion(process, t) == pytest.approx(rate**0.5, rel=1e-8)


def test_ddim_is_euler():
    """Geometry fact 62: DDIM in VP divided by α is Euler in (x, σ): 4e-16 on T1, 7 steps."""
    law = points(T1)
    grid = karras(8, 0.5, 5.0)
    times = times_of_grid(grid, EDM_VP)
    network = ToNative(law, EDM_VP)
    x = X * EDM_VP.alpha(times[0])
    for a, b in pairwise(times):
        x = ddim_step(x, network(x, a), a, b, EDM_VP)
    euler = Sampler("euler", grid.levels).run(law, X, trajectory=True).trajectory
    assert float((x / EDM_VP.alpha(times[-1]) - euler.states[-2]).abs().max()) < 4e-15
    # The VP constants of fact 29's Euler row: the end from (3, −2).
    assert euler.states[-2, 0].tolist() == pytest.approx([0.812465897280, -0.183755269392], abs=1e-11)


def test_the_two_flows_are_one():
    """Geometry fact 62: the VP flow divided by α is the VE flow, integrated separately (5e-13)."""
    law = smooth_mixture()
    high, low = EDM_VP.time(8.0), EDM_VP.time(0.4)
    start = X[:1]

    def native(t, y):
        return native_velocity(law, torch.from_numpy(y)[None], t, EDM_VP)[0].numpy()

    def exploding(s, y):
        return law.noise(torch.from_numpy(y)[None], s)[0].numpy()

    tolerance = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-14}
    a = solve_ivp(native, (high, low), start[0].numpy() * EDM_VP.alpha(high), **tolerance).y[:, -1]
    b = solve_ivp(exploding, (8.0, 0.4), start[0].numpy(), **tolerance).y[:, -1]
    assert abs(a / EDM_VP.alpha(low) - b).max() < 5e-12


@pytest.mark.parametrize("process", [EDM_VP, SubVP(), VE(), DDPM()])
def test_native_velocity_is_the_ve_velocity(process):
    """``dx_t/dt = α' x + α σ' (x − D)/σ``, at any time of any process."""
    law = smooth_mixture()
    for share in (0.2, 0.7):
        t = process.t_min + share * (process.t_max - process.t_min)
        alpha, sigma = process.alpha(t), process.sigma(t)
        expected = process.alpha_derivative(t) * X + alpha * process.sigma_derivative(t) * law.noise(X, sigma)
        assert torch.allclose(native_velocity(law, alpha * X, t, process), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("process", [EDM_VP, SubVP(), VE(), DDPM(), DDPM(schedule="cosine")])
def test_there_and_back(process, prediction):
    """A denoiser told as a native network, and that as a denoiser again, for every prediction and one level for each row."""
    law = smooth_mixture()
    again = FromNative(ToNative(law, process, prediction), (2,), process, prediction)
    sigma = torch.tensor([0.3, 2.0, 20.0], dtype=WIDE)
    assert again.sigma_min == pytest.approx(process.sigma(process.t_min))
    assert again.sigma_max == pytest.approx(process.sigma(process.t_max))
    for level in (sigma, 0.7):
        assert torch.allclose(again(X, level), law(X, level), rtol=1e-9, atol=1e-10)
    assert again(X.float(), 0.7).dtype == torch.float32


def test_a_network_is_asked_in_its_own_coordinates():
    """State, time and clock reach the network as it was trained; conditions pass through."""
    seen = []

    def network(x_t, t, labels=None):
        seen.append((x_t, t, labels))
        return torch.zeros_like(x_t)

    model = FromNative(network, (2,), EDM_VP, clock=lambda t: 999 * t)
    sigma = EDM_VP.sigma(0.5)
    assert torch.equal(model(X, sigma, labels=7), X)  # ε = 0: the state is clean
    state, time, label = seen[0]
    assert torch.allclose(state, X * EDM_VP.alpha(0.5))
    assert time.shape == (3,)
    assert torch.allclose(time, torch.full((3,), 499.5, dtype=WIDE))
    assert label == 7


def test_a_module_is_sampled_and_moves():
    """Parameters of a network become the denoiser's; any sampler takes it."""
    network = torch.nn.Bilinear(2, 1, 2)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = network

        def forward(self, x, t):
            return self.layer(x, t[:, None])

    model = FromNative(Net(), (2,), EDM_VP, "v")
    assert len(list(model.parameters())) == 2
    out = Sampler("heun", karras(5, 0.02, 80.0))(model, n=4, seed=0)
    assert out.x.shape == (4, 2)
    with pytest.raises(ArgumentError, match="outside the"):
        Sampler("heun", karras(5, 0.002, 200.0))(model, n=1)


def test_v_is_that_of_the_denoiser():
    """Under VP, v is ``Denoiser.velocity`` and ε its ``noise``; the score is the gradient of the native log-density."""
    law = smooth_mixture()
    sigma, alpha = 1.3, EDM_VP.alpha(EDM_VP.time(1.3))
    d = law(X, sigma)
    assert torch.allclose(from_x0(d, X, sigma, alpha, "v"), law.velocity(X, sigma))
    assert torch.allclose(from_x0(d, X, sigma, alpha, "epsilon"), law.noise(X, sigma))
    # p_t(x_t) = p(x_t/α) α^{-d}: its gradient is the variance-exploding score over α.
    assert torch.allclose(from_x0(d, X, sigma, alpha, "score"), law.score(X, sigma) / alpha)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(1e-3, 200), st.floats(1e-3, 1), st.sampled_from(PREDICTIONS),
    st.lists(st.floats(-50, 50), min_size=4, max_size=4),
)  # fmt: skip
def test_predictions_invert(sigma, alpha, prediction, numbers):
    """``to_x0`` undoes ``from_x0`` at any scales."""
    x0, x = torch.tensor(numbers, dtype=WIDE).view(2, 1, 2)
    found = to_x0(from_x0(x0, x, sigma, alpha, prediction), x, sigma, alpha, prediction)
    assert float((found - x0).abs().max()) < 1e-9 * (1 + float(x.abs().max()) / min(sigma, 1))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6, unique=True))
def test_grids_and_times(times):
    """Levels of times and times of levels are inverse, within the ends."""
    falling = sorted(times, reverse=True)
    if min(a - b for a, b in pairwise(falling)) < 1e-9:
        return
    grid = grid_of_times(falling, EDM_VP)
    assert times_of_grid(grid, EDM_VP) == pytest.approx(tuple(falling), rel=1e-9)


def test_latents():
    """The same noise names the same sample; a state keeps its level."""
    z = torch.randn(3, 2, dtype=WIDE)
    assert torch.allclose(convert_latents(80 * z, 80.0, EDM_VP), z * EDM_VP.std(1.0))
    assert torch.allclose(convert_latents(convert_latents(z, EDM_VP, VE()), VE(), EDM_VP), z)
    top = EDM_VP.sigma(1.0)
    assert torch.allclose(convert_latents(z, EDM_VP, top, unit=False), EDM_VP.to_ve(z, 1.0)[0])
    with pytest.raises(ArgumentError, match="expected one level"):
        convert_latents(z, EDM_VP, 80.0, unit=False)


def test_refusals():
    with pytest.raises(ArgumentError, match="time map"):
        FromNative(lambda x, t: x, (2,), 3.0)
    with pytest.raises(ArgumentError, match="unknown prediction 'eps'"):
        FromNative(lambda x, t: x, (2,), EDM_VP, "eps")
    with pytest.raises(ArgumentError, match="outside the process"):
        times_of_grid(karras(4, 0.002, 500.0), EDM_VP)
    with pytest.raises(ArgumentError, match="must decrease"):
        grid_of_times((0.1, 0.5), EDM_VP)
    with pytest.raises(ArgumentError, match="target = -1"):
        convert_latents(X, EDM_VP, -1.0)
