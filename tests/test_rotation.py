"""Rotations of noise into samples: the identity and its remainder, the right bound, flatness, on laws that are known."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.planarity import planarity, vp_alpha, vp_states
from farfield.analysis.rotation import gaussian_rotation_error, rotation, rotation_of
from farfield.analysis.rotation_gains import (
    deepest_deficit,
    extrapolation_error,
    frozen_flow,
    rotation_bound,
    rotation_deficit,
    rotation_remainder,
    rotation_weights,
)
from farfield.distributions import Gaussian
from farfield.distributions.gaussian_flow import GaussianFlow
from farfield.distributions.gaussian_modes import principal_components
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum
from farfield.processes import VP, SubVP
from farfield.sampling import Sampler, karras

F64 = torch.float64


def law(values=(9.0, 1.0, 0.04), d=6, tail=0.0):
    generator = torch.Generator().manual_seed(4)
    basis = torch.linalg.qr(torch.randn(d, len(values), generator=generator, dtype=F64))[0]
    return Gaussian(torch.randn(d, generator=generator, dtype=F64), Spectrum.low_rank(basis, list(values), tail))


@pytest.mark.parametrize("start", [1.0, 0.3])
def test_the_exact_identity(start):
    """Holds gaussian_score F37, α_T not small included, and E21: coefficients are those of x_T − α_T μ."""
    gaussian = law()
    flow = GaussianFlow(gaussian, VP())
    path = flow.path(torch.randn(4, 6, dtype=F64), start)
    x_top, x_0 = path.state(start), path.endpoint()
    top = float(flow.scales(start)[0])
    for t in (0.9 * start, 0.4 * start, 0.05 * start):
        alpha = float(flow.scales(t)[0])
        for_sample, for_noise = rotation_weights(alpha, top)
        remainder = rotation_remainder(gaussian.spectrum.values, alpha, top) * path.coefficients
        built = for_sample * x_0 + for_noise * x_top + gaussian.spectrum.expand(remainder)
        torch.testing.assert_close(path.state(t), built, rtol=0, atol=2e-15)


@settings(max_examples=80, deadline=None)
@given(st.floats(0, 1), st.floats(1e-6, 1e6))
def test_the_deficit(alpha, variance):
    """Holds gaussian_score F38 and E7 (the root covers σ² + λα² only): two forms, a symmetry, and the bounds."""
    noise = math.sqrt((1 - alpha) * (1 + alpha))
    found = float(rotation_deficit(alpha, variance))
    naive = math.sqrt(noise**2 + variance * alpha**2) - alpha * math.sqrt(variance) - noise
    assert found == pytest.approx(naive, abs=1e-12 * (1 + math.sqrt(variance)))
    if 1e-3 < alpha < 1 - 1e-6:  # beyond, the mirror image of α is rounded away
        mirrored = math.sqrt(variance) * float(rotation_deficit(noise, 1 / variance))
        assert found == pytest.approx(mirrored, rel=1e-6, abs=1e-9)
    assert -min(noise, alpha * math.sqrt(variance)) * (1 + 1e-12) <= found <= 0
    assert float(rotation_remainder(variance, alpha)) == pytest.approx(found, abs=1e-12 * (1 + math.sqrt(variance)))
    if alpha > 1e-3:
        assert float(extrapolation_error(alpha, variance)) == pytest.approx(found / alpha, rel=1e-9, abs=1e-15)


def test_the_deepest_deficit():
    """Holds gaussian_score F39: the minimum over α, its place, where it passes the published bound, and its limit."""
    values = [0.01, 0.1, 0.5, 1, 2, 4, 10, 100, 1e4, 1e6]
    alpha, depth = deepest_deficit(torch.tensor(values, dtype=F64))
    expected = [
        -0.081418,
        -0.204183,
        -0.344022,
        -0.414214,
        -0.486520,
        -0.557780,
        -0.645682,
        -0.814179,
        -0.956910,
        -0.990586,
    ]
    assert depth.tolist() == pytest.approx(expected, abs=6e-7)
    places = {0.01: 0.9290591, 1: 0.7071068, 4: 0.6006515, 10: 0.5292589, 100: 0.3699314}
    for value, place in places.items():
        assert float(alpha[values.index(value)]) == pytest.approx(place, abs=1e-7)
    assert float(deepest_deficit(5.302277)[1]) == pytest.approx(-(2 - math.sqrt(2)), abs=1e-7)
    place, low = deepest_deficit(1e9)
    assert float(place) == pytest.approx((4e9) ** (-1 / 6), rel=2e-3)
    assert float(low) == pytest.approx(-1 + 1.5 * (4e9) ** (-1 / 3), abs=1e-5)
    grid = torch.linspace(0, 1, 100_001, dtype=F64)
    for value, least in zip((0.1, 100.0), (depth[1], depth[7]), strict=True):
        curve = rotation_deficit(grid, value)
        assert float(curve.min()) == pytest.approx(float(least), abs=1e-9)
        assert int((curve.diff().sign().diff() != 0).sum()) == 1  # one minimum only


def test_the_right_bound():
    """Holds gaussian_score E4: |J| passes 2 − √2 above λ = 5.30, and at 1/sqrt(1 + λ) is not least; min(1, λ) always holds."""
    for variance in (1.0, 4.0, 100.0):
        at = float(rotation_deficit(1 / math.sqrt(1 + variance), variance))
        assert at == pytest.approx(-(2 - math.sqrt(2)) * math.sqrt(variance / (1 + variance)))
        assert (float(deepest_deficit(variance)[1]) < at - 1e-6) == (variance != 1)
    gaussian = law((1000.0, 20.0, 0.3))
    path = GaussianFlow(gaussian, VP()).path(torch.randn(50, 6, dtype=F64), 1.0)
    alphas = torch.linspace(0.001, 0.999, 300, dtype=F64)
    gains = rotation_remainder(gaussian.spectrum.values, alphas[:, None])
    size = gains.square() @ path.coefficients.square().T
    assert bool((size <= rotation_bound(path.coefficients, gaussian.spectrum.values)).all())
    published = (2 - math.sqrt(2)) ** 2 * path.coefficients.square().sum(1)
    assert bool((size.max(0).values > published).any())


def test_relative_error_in_high_dimension():
    """Holds gaussian_score F40, E5 and E6: relative to ‖x_T‖² ~ D the error is (r/D) max J², above both published values."""
    dim, rank = 3072, 50
    x = streams.normal(0, range(2000), (dim,), dtype=torch.float32)
    gain = float(deepest_deficit(100.0)[1]) ** 2
    share = (x[:, :rank].square().sum(1) / x.square().sum(1)).double() * gain
    assert float(share.mean()) == pytest.approx(0.01085, abs=1.5e-4)
    assert rank / dim * gain == pytest.approx(0.01079, abs=1e-5)
    appendix = rank / dim * (2 - math.sqrt(2)) ** 2
    assert appendix == pytest.approx(0.00559, abs=1e-5)
    assert appendix / 4 == pytest.approx(0.00140, abs=1e-5)
    assert float(share.min()) > appendix / 4
    assert float(share.mean()) > appendix


@pytest.mark.parametrize("schedule", [VP(), SubVP()])
def test_the_frozen_denoiser(schedule):
    """Holds gaussian_score F41: the frozen flow is DDIM's update, for any scales, and (x − αD)/s is conserved."""
    x, d = torch.randn(2, 5, dtype=F64), torch.randn(2, 5, dtype=F64)
    a, s = schedule.alpha(0.7), schedule.std(0.7)
    b, r = schedule.alpha(0.3), schedule.std(0.3)
    moved = frozen_flow(x, d, a, s, b, r)
    noise = (x - a * d) / s
    torch.testing.assert_close(moved, b * d + r * noise, rtol=0, atol=1e-14)
    torch.testing.assert_close((moved - b * d) / r, noise, rtol=0, atol=1e-14)
    # The same in variance-exploding coordinates, by the library's own Euler step.
    euler = Sampler("euler", [s / a, r / b])
    ended = euler.run(lambda x, sigma: d, x / a, trajectory=True)
    torch.testing.assert_close(ended.trajectory.states[1] * b, moved, rtol=0, atol=1e-13)
    with pytest.raises(ArgumentError, match="std = 0"):
        frozen_flow(x, d, 1.0, 0.0, b, r)


def test_flatness_of_a_plane_and_of_a_helix():
    """Numbers of a rotation in a plane, of an off-plane part of known size, and of states that go nowhere."""
    angle = torch.linspace(90, 0, 10, dtype=F64).deg2rad()
    flat = torch.stack((angle.sin(), angle.cos(), torch.zeros(10)), 1)[:, None]
    states = flat * torch.tensor([1.0, 3.0], dtype=F64)[:, None]
    found = planarity(states, angle.cos().tolist())
    assert found.samples == 2
    assert max(found.off_plane_worst) < 1e-14
    assert found.angle == pytest.approx(found.expected_angle, abs=1e-9)
    assert found.weight_angle == pytest.approx(found.expected_angle, abs=1e-9)
    assert found.in_plane == pytest.approx(1)
    assert found.explained[2] == pytest.approx(0, abs=1e-14)
    raised = states.clone()
    raised[4, :, 2] += 0.5 * raised[4].norm(dim=1)
    found = planarity(raised, angle.cos().tolist())
    assert found.off_plane[4] == pytest.approx(0.2)
    assert found.worst_off_plane == pytest.approx(0.2)
    line = torch.linspace(1, 2, 4, dtype=F64)[:, None, None] * torch.ones(1, 1, 3, dtype=F64)
    found = planarity(line, [0.0, 0.3, 0.6, 1.0])
    assert found.off_plane == pytest.approx([0] * 4, abs=1e-14)
    assert found.explained[0] == pytest.approx(1)
    oblique = torch.tensor([[0.0, 2.0], [1.0, 1.0], [3.0, -1.0]], dtype=F64)[:, None]
    found = planarity(oblique, [0.0, 0.5, 1.0])
    # x_T = (0, 2), x_0 = (3, −1): x_1 = (1, 1) = x_0/3 + 2 x_T/3.
    assert found.sample_weight[1] == pytest.approx(1 / 3)
    assert found.noise_weight[1] == pytest.approx(2 / 3)
    assert found.coordinates[1, 0].tolist() == pytest.approx([0.5, 0.5])
    with pytest.raises(ArgumentError, match="L >= 3"):
        planarity(states[:2], [0.0, 1.0])


def test_a_gaussian_is_its_own_prediction():
    """The analysis on exact trajectories of the law: measured error and plane are those of the closed form, to rounding."""
    for tail in (0.0, 0.2):
        gaussian = law(tail=tail)
        sigmas = (80.0, 20.0, 5.0, 1.0, 0.2, 0.0)
        x = 80 * torch.randn(7, 6, dtype=F64)
        states = GaussianFlow(gaussian).path(x, 80.0).state(sigmas)
        found = rotation_of(states, sigmas, gaussian)
        assert found.error == pytest.approx(found.gaussian_error, rel=1e-8, abs=1e-15)
        assert found.plane.off_plane == pytest.approx(found.gaussian_plane.off_plane, abs=1e-13)
        assert max(found.error) <= found.bound
        assert found.error[0] == pytest.approx(0, abs=1e-20)
        assert found.error[-1] == pytest.approx(0, abs=1e-20)
        error, bound = gaussian_rotation_error(gaussian, x, 80.0, torch.tensor(sigmas))
        assert error.shape == (6, 7)
        assert bool((error <= bound).all())


def test_variance_preserving_states():
    """x/sqrt(1 + σ²) of the flow under EDM is the flow under a variance-preserving schedule."""
    gaussian = law()
    schedule = VP()
    x = torch.randn(2, 6, dtype=F64)
    times = (1.0, 0.6, 0.2)
    sigmas = [float(schedule.sigma(t)) for t in times]
    ve = GaussianFlow(gaussian).path(x / schedule.alpha(1.0), sigmas[0]).state(sigmas)
    torch.testing.assert_close(vp_states(ve, sigmas), GaussianFlow(gaussian, schedule).path(x, 1.0).state(times))
    assert vp_alpha(0.0) == 1


def test_a_model_beside_the_gaussian():
    """A run on the law itself is the prediction up to the solver; figure, tables and JSON are whole."""
    gaussian = law()
    found = rotation(gaussian, gaussian, sampler=Sampler("heun", karras(60)), n=5)
    assert found.error[20:50] == pytest.approx(found.gaussian_error[20:50], rel=0.2)
    assert found.nfe == 119
    assert found.worst[0] == max(found.error)
    json.dumps(found.to_dict())
    assert "of ‖x_T‖²" in found.summary()
    assert len(found.tables()) == 2
    assert len(found.plot().axes) == 3
    data = torch.randn(40, 6)
    named = analyze(
        "rotation", Subject(gaussian.float(), data), {"n": 3, "steps": 6, "solver": "euler", "grid": "log_snr"}
    )
    assert named.nfe == 6
    assert named.samples == 3
    with pytest.raises(ArgumentError, match="at least 2"):
        rotation(gaussian, gaussian, sampler=Sampler("euler", karras(1)), n=2)
    assert principal_components(gaussian, 2)[0].tolist() == pytest.approx([9, 1])
