"""Bounds, curvature and basins of trajectories: the statements behind their shape, on point sets and Gaussians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from farfield.analysis.shape import ShapeSums, shape_statistics, trajectory_shape
from farfield.analysis.shape_curvature import path_curvature
from farfield.analysis.shape_rows import angle_between, off_line, rows_of, unit
from farfield.distributions import Empirical, Gaussian
from farfield.distributions.jittered import Jittered
from farfield.errors import ArgumentError
from farfield.experiments.straightness import replica
from farfield.sampling import Sampler, Trajectory, karras, reference_path
from tests.laws import T1, points
from tests.test_shape import t5

T3 = torch.tensor([[-1.0], [0.2], [3.0]], dtype=torch.float64)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("delta", [None, 0.2])
def test_no_bound_is_violated(solver, delta):
    """Geometry fact 28: T5, N = 40, optimal and jittered; tightness 0.957 for the optimal denoiser."""
    data, start = t5()
    law = points(data) if delta is None else Jittered(data, delta)
    shape = trajectory_shape(Sampler(solver, karras(40)).run(law, start, trajectory=True).trajectory)
    assert shape.bound_violations == 0
    assert shape.angle_violations == 0
    assert shape.angle_checked > 0.5 * 32 * 40
    if delta is None and solver == "heun":
        assert shape.tightness == pytest.approx(0.957, abs=2e-3)


def test_a_deviation_beyond_its_bound_is_counted():
    """A path that no denoiser of its outputs could have made: the bound is crossed, and said to be."""
    states = torch.tensor([[[8.0, 0.0]], [[4.0, 3.0]], [[0.0, 0.0]]], dtype=torch.float64)
    outputs = torch.tensor([[[0.1, 0.0]], [[0.0, 0.0]]], dtype=torch.float64)
    shape = trajectory_shape(Trajectory((4.0, 2.0, 0.0), states, outputs, (0, 1, 2)))
    assert shape.bound_violations == 1
    assert shape.tightness == pytest.approx(3 / 0.05, rel=1e-6)
    assert shape.angle_violations == 0  # a fact about any three points


@given(st.lists(st.floats(-5, 5), min_size=9, max_size=9))
def test_angle_bound_holds_for_any_three_points(values):
    x, r, end = torch.tensor(values, dtype=torch.float64).view(3, 1, 3)
    run = Trajectory((1.0, 0.0), torch.stack((x, end)), r[None], (0, 1))
    assert not bool((rows_of(run).angle_gap < -1e-9).any())


@pytest.mark.parametrize(
    ("delta", "peak", "at", "end", "ratio", "r_peak", "r_at", "r_end", "r_ratio", "cosine"),
    [
        (0.1, 0.846058, 3.520, 317.125890, 0.002668, 0.272342, 0.625, 1.330479, 0.204695, 0.969552),
        (0.3, 0.550441, 5.380, 316.444982, 0.001739, 0.227675, 0.625, 1.742319, 0.130674, 0.989739),
    ],
)
def test_shape_with_a_jittered_denoiser(delta, peak, at, end, ratio, r_peak, r_at, r_end, r_ratio, cosine):
    """Geometry fact 48, the rows of Jit(δ)."""
    data, start = t5()
    shape = trajectory_shape(Sampler("heun", karras(40)).run(Jittered(data, delta), start, trajectory=True).trajectory)
    assert max(shape.deviation.mean) == pytest.approx(peak, rel=1e-4)
    assert shape.turning_point == pytest.approx(at, rel=1e-3)
    assert shape.endpoint == pytest.approx(end, rel=1e-7)
    assert shape.straightness == pytest.approx(ratio, abs=5e-7)  # as printed
    assert max(shape.denoised_deviation.mean) == pytest.approx(r_peak, rel=1e-4)
    assert shape.denoised_turning_point == pytest.approx(r_at, rel=1e-3)
    assert shape.denoised_endpoint == pytest.approx(r_end, rel=1e-6)
    assert shape.denoised_straightness == pytest.approx(r_ratio, rel=1e-4)
    assert shape.lowest_cosine == pytest.approx(cosine, rel=1e-5)
    assert shape.monotone
    assert shape.denoised_monotone
    assert shape.denoised_ahead


def test_high_dimensional_replica():
    """Geometry fact 53, ±10 %: rank 40 in 3072 dimensions, 1000 points, 32 starts."""
    shape = shape_statistics(Empirical(replica(0)), n=32, seed=0)
    assert 0.9 * 0.0033 < shape.straightness < 1.1 * 0.0034
    assert shape.denoised_straightness == pytest.approx(0.32, rel=0.1)
    assert 12 < shape.turning_point < 15
    assert 8 < shape.denoised_turning_point < 10
    assert shape.lowest_cosine == pytest.approx(0.9996, abs=1e-4)
    assert shape.endpoint == pytest.approx(4440, rel=2e-3)
    assert shape.bound_violations == shape.angle_violations == 0


def test_denoising_ode():
    """Geometry fact 12: ṙ = −t ẍ on T1 at t = 1.5, the second difference of a reference solution beside dr/dσ."""
    law, h = Empirical(T1), 1e-3
    start = torch.tensor([[3.0, -2.0]], dtype=torch.float64)
    levels = (5.0, 1.5 + h, 1.5, 1.5 - h)
    path = reference_path(law, start, levels, rtol=1e-13, atol=1e-13)
    above, here, below = path.states[1:]
    second = (above - 2 * here + below) / h**2
    rate = (path.denoised[1] - path.denoised[3]) / (2 * h)
    assert float((rate + 1.5 * second).abs().max()) < 1e-6  # rounding of the second difference is 1e-16/h²
    found = path_curvature(law, here, 1.5)
    assert torch.allclose(found.denoised_rate, rate, atol=1e-6)
    assert torch.allclose(found.acceleration, second, atol=1e-6)


def test_curvature_of_a_gaussian_path():
    """With λ = (4, 1) the states are x_i = c_i √(λ_i + σ²), whose derivatives give κ by the textbook formula."""
    variances = torch.tensor([4.0, 1.0], dtype=torch.float64)
    law, sigma = Gaussian(torch.zeros(2, dtype=torch.float64), torch.diag(variances)), 1.3
    c = torch.tensor([[0.7, -1.9], [2.0, 0.3]], dtype=torch.float64)
    root = (variances + sigma**2).sqrt()
    first, second = c * sigma / root, c * variances / root**3
    cross = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).abs()
    found = path_curvature(law, c * root, sigma)
    assert torch.allclose(found.velocity, first, rtol=1e-12)
    assert torch.allclose(found.acceleration, second, rtol=1e-5)
    assert torch.allclose(found.curvature, cross / first.norm(dim=1) ** 3, rtol=1e-5)
    assert torch.allclose(found.turning, (sigma * cross / first.norm(dim=1) ** 2).rad2deg(), rtol=1e-5)
    straight = path_curvature(Gaussian(torch.zeros(2).double(), torch.eye(2).double()), c, sigma)
    assert float(straight.curvature.max()) < 1e-9


def test_turning_and_bending_agree_on_a_fine_grid():
    """The angle between steps, divided by their length in ln σ, is the turning of the denoising ODE."""
    law = Gaussian(torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)))
    levels = tuple(math.exp(4 - 0.02 * k) for k in range(250))
    start = torch.tensor([[40.0, 45.0]], dtype=torch.float64)
    states = [law.flow(start, levels[0], s) for s in levels]
    outputs = [law(x, s) for x, s in zip(states, levels, strict=True)]
    run = Trajectory(levels, torch.stack(states), torch.stack(outputs[:-1]), tuple(range(len(levels))))
    shape = trajectory_shape(run)
    k = 150
    exact = float(path_curvature(law, states[k], levels[k]).turning)
    assert shape.turning.mean[k - 1] / 0.02 == pytest.approx(exact, rel=1e-3)
    assert (shape.bending.mean[k - 1] + shape.bending.mean[k]) / 2 == pytest.approx(exact, rel=1e-3)
    assert shape.total_turning.mean[0] == pytest.approx(sum(shape.turning.mean))


def test_quantiles_are_conserved():
    """Geometry fact 24: F_t(x_t) is constant along the flow of T3."""
    start = torch.tensor([[-100.0], [-20.0], [10.0], [60.0]], dtype=torch.float64)
    levels = (80.0, 20.0, 5.0, 1.0, 0.3, 0.05)
    path = reference_path(Empirical(T3), start, levels, rtol=1e-12, atol=1e-12)
    expected = [0.1040348854, 0.3977755059, 0.5460978793, 0.7705535571]
    for x, t in zip(path.states, levels, strict=True):
        quantile = ndtr((x.numpy() - T3.numpy().T) / t).mean(1)
        assert quantile == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("solver", "n", "edges"),
    [
        ("heun", 18, (-31.1105, 34.9887)),
        ("heun", 40, (-33.2992, 35.1154)),
        ("heun", 200, (-33.7173, 35.1945)),
        ("euler", 18, (-41.9050, 40.3909)),
        ("euler", 200, (-34.3563, 35.6111)),
        ("dpm2", 40, (-33.4529, 35.1696)),
    ],
)
def test_basin_edges(solver, n, edges):
    """Geometry fact 25: where F_80 = 1/3 and 2/3 for the flow, and where solvers put the edges."""
    exact = (-33.73245704700906, 35.199034829907426)
    for edge, share in zip(exact, (1 / 3, 2 / 3), strict=True):
        assert ndtr((edge - T3.numpy()) / 80).mean() == pytest.approx(share, abs=1e-12)
    low, high = torch.tensor([[-60.0], [20.0]]).double(), torch.tensor([[-20.0], [60.0]]).double()
    sampler, middles = Sampler(solver, karras(n)), torch.tensor([[-0.4], [1.6]]).double()
    for _ in range(22):
        middle = (low + high) / 2
        below = sampler.run(points(T3), middle).x < middles
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    assert low.flatten().tolist() == pytest.approx(edges, abs=1e-4)


def test_instantaneous_change_of_variables():
    """Geometry fact 27: T1 from (3, −2), t = 5 to 0.5: log p rises by ∫(d − tr Cov_u/t²)/t dt = 3.74188999."""
    law, start = Empirical(T1), torch.tensor([[3.0, -2.0]], dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    span = math.log(5 / 0.5)
    logs = math.log(5) - span * (1 + nodes) / 2
    levels = (5.0, *np.exp(logs).tolist(), 0.5)
    path = reference_path(law, start, levels, rtol=1e-13, atol=1e-13)
    trace = [2 - float(law.trace(x, s)) for x, s in zip(path.states[1:-1], levels[1:-1], strict=True)]
    integral = span / 2 * float(np.dot(weights, trace))
    change = float(law.log_prob(path.states[-1], 0.5) - law.log_prob(path.states[0], 5.0))
    assert change == pytest.approx(3.74188999, abs=1e-8)
    assert change == pytest.approx(integral, abs=1e-9)


def test_small_angles_and_lines():
    u = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for angle in (1e-9, 1e-3, 1.0, math.pi):
        v = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        assert float(angle_between(u, v)) == pytest.approx(math.degrees(angle), rel=1e-6)
    assert float(angle_between(u, torch.zeros_like(u))) == 0
    assert float(unit(torch.zeros(1, 2)).norm()) == 0
    # Erratum E30: the line through both ends, not the segment between them.
    p, a, b = (torch.tensor([v], dtype=torch.float64) for v in ([5.0, 2.0], [0.0, 0.0], [1.0, 0.0]))
    assert float(off_line(p, a, b)) == pytest.approx(2)


def test_single_paths_may_retreat():
    """Erratum E21: closer at every step in expectation, not for each path; a path that turns away is counted."""
    states = torch.zeros(4, 2, 2, dtype=torch.float64)
    states[:, 0, 0] = torch.tensor([8.0, 4.0, 1.0, 0.0])
    states[:, 1, 0] = torch.tensor([8.0, 2.0, 2.5, 0.0])
    outputs = torch.zeros(3, 2, 2, dtype=torch.float64)
    outputs[1, 1, 0] = 3.0  # its direction points away from the end
    shape = trajectory_shape(Trajectory((4.0, 2.0, 1.0, 0.0), states, outputs, (0, 1, 2, 3)))
    assert shape.monotone
    assert shape.closer == 0.5
    assert shape.forward == 0.5
    assert shape.denoised_closer == 0.5


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm2", "dpmpp_2m"])
def test_the_last_step_is_eulers(solver):
    """Erratum E24: with a last step to zero noise the denoising trajectory ends at the sample, x_0 = r_1."""
    data, start = t5()
    run = Sampler(solver, karras(8)).run(points(data), start, trajectory=True).trajectory
    assert torch.allclose(run.states[-1], run.denoised[-1], atol=1e-12)


def test_sums_refuse_what_does_not_belong_together():
    sums = ShapeSums()
    with pytest.raises(ArgumentError, match="no trajectory"):
        sums.result()
    law = Gaussian(torch.zeros(2), torch.eye(2))
    for n in (4, 5):
        run = Sampler("euler", karras(n))(law, 2, trajectory=True).trajectory
        if n == 4:
            sums.update(run)
        else:
            with pytest.raises(ArgumentError, match="expected those of the first batch"):
                sums.update(run)
    with pytest.raises(ArgumentError, match="confidence = 1"):
        sums.result(confidence=1)
    with pytest.raises(ArgumentError, match="sigma = 0"):
        path_curvature(law, torch.zeros(1, 2), 0)
