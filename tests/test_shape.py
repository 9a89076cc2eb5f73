"""Shape statistics against the facts of Chen et al.'s setting (closed forms and the 64-point toy T5)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from farfield.analysis import Subject, analyze
from farfield.analysis.shape import ShapeSums, shape_statistics, trajectory_shape
from farfield.analysis.shape_rows import rows_of
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, Trajectory, karras
from tests.laws import points

LEVELS = (80.0, 40.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.002)


def exact_run(gaussian: Gaussian, x: torch.Tensor) -> Trajectory:
    """The Gaussian's own flow, sampled at LEVELS and at 0."""
    states = [gaussian.flow(x, 80.0, s) for s in LEVELS]
    outputs = [gaussian(state, s) for state, s in zip(states, LEVELS, strict=True)]
    return Trajectory((*LEVELS, 0.0), torch.stack([*states, gaussian.flow(x, 80.0, 0.0)]), torch.stack(outputs),
                      tuple(range(len(LEVELS) + 1)))  # fmt: skip


def test_exact_flow_facts_19_and_20():
    gaussian = Gaussian(
        torch.zeros(3, dtype=torch.float64), torch.diag(torch.tensor([4.0, 1.0, 0.01], dtype=torch.float64))
    )
    shape = trajectory_shape(exact_run(gaussian, torch.tensor([[50.0, -70.0, 30.0]], dtype=torch.float64)))
    deviation = (
        0,
        0.3254018206,
        0.4729591758,
        0.5171410973,
        0.4846147633,
        0.342475768,
        0.2119110756,
        0.1128634532,
        6.4903e-6,
    )
    denoised = (0, 0.0091459317, 0.02723222, 0.0618149532, 0.1198026607, 0.1840208322, 0.1355097335, 0.0606302788, 0)
    cosine = (0.9999736674, 0.9998979416, 0.9996176746, 0.9986692023, 0.9960276722, 0.9881402025, 0.9771644427, 0.9738093703,
              0.9999999997)  # fmt: skip
    distance = (89.7364310123, 44.2057824894, 21.4628545656, 10.1348791237, 4.5511844425, 1.3951683655, 0.5179451648,
                0.1891343824, 7.726e-6)  # fmt: skip
    assert shape.deviation.mean[:-1] == pytest.approx(deviation, rel=1e-5, abs=1e-9)
    assert shape.denoised_deviation.mean == pytest.approx(denoised, rel=1e-6, abs=1e-9)
    assert shape.cosine.mean == pytest.approx(cosine, abs=2e-9)
    assert shape.distance.mean[:-1] == pytest.approx(distance, rel=1e-4, abs=1e-9)
    assert shape.endpoint == pytest.approx(89.7364310123, rel=1e-9)
    assert shape.denoised_endpoint == pytest.approx(1.4940997435, rel=1e-8)
    # Fact 20 measures the distance of r to the sample x₀, from which r(0.002) is 7.7e-6 away.
    r_distance = (
        1.4941014528,
        1.4623884525,
        1.3994932487,
        1.2771938741,
        1.0550252555,
        0.6075726482,
        0.2901972574,
        0.104080937,
    )
    assert shape.denoised_distance.mean[:-1] == pytest.approx(r_distance, abs=1e-5)
    assert shape.monotone
    assert shape.denoised_monotone
    assert shape.denoised_ahead
    assert (shape.turning_point, shape.denoised_turning_point) == (10.0, 2.0)
    assert shape.tightness <= 1


def test_isotropic_gaussian_is_straight_fact_21():
    gaussian = Gaussian(torch.zeros(5, dtype=torch.float64), 0.7 * torch.eye(5, dtype=torch.float64))
    shape = trajectory_shape(exact_run(gaussian, 80 * torch.randn(6, 5, dtype=torch.float64)))
    assert max(shape.deviation.mean) < 1e-10
    assert max(shape.denoised_deviation.mean) < 1e-12
    assert min(shape.cosine.mean) == pytest.approx(1, abs=1e-12)


def test_endpoint_distance_fact_23():
    gaussian = Gaussian(
        torch.zeros(48, dtype=torch.float64), torch.diag(torch.linspace(0.1, 1, 48, dtype=torch.float64))
    )
    x = 80 * torch.randn(2000, 48, dtype=torch.float64)
    shape = trajectory_shape(exact_run(gaussian, x))
    chi = math.sqrt(2) * math.exp(math.lgamma(24.5) - math.lgamma(24))
    expected = 80 * chi - float(torch.linspace(0.1, 1, 48).sqrt().sum()) / math.sqrt(48)
    assert shape.endpoint == pytest.approx(expected, abs=5 * 80 * 0.71 / math.sqrt(2000))


def t5() -> tuple[torch.Tensor, torch.Tensor]:
    """Fact 47: 64 points in 16 dimensions and 32 starts."""
    i = torch.arange(1, 65, dtype=torch.float64)[:, None]
    j = torch.arange(1, 17, dtype=torch.float64)
    b = torch.arange(1, 33, dtype=torch.float64)[:, None]
    data = torch.sin(0.7 * i * j + 0.3 * i**2 / 64) / j.sqrt()
    return data, 80 * math.sqrt(2) * torch.sin(1.3 * b * j + 0.37 * b**2 + 0.11 * j**2)


FACT_48 = {
    18: (1.011640, 3.257, 317.466414, 0.003187, 0.311154, 0.585, 1.267844, 0.245420, 0.963006),
    40: (1.017099, 3.520, 317.466414, 0.003204, 0.319222, 0.625, 1.267844, 0.251783, 0.959998),
}


@pytest.mark.parametrize("n", [18, 40])
@pytest.mark.parametrize("law", [Empirical, points])
def test_optimal_denoiser_facts_47_48_and_28(n, law):
    data, start = t5()
    assert float(data[0, 0]) == pytest.approx(0.6477957943, abs=1e-9)
    assert float(start[31, 15]) == pytest.approx(-110.5589570376, abs=1e-9)  # 30-digit arithmetic
    run = Sampler("heun", karras(n)).run(law(data), start, trajectory=True)
    shape = trajectory_shape(run.trajectory)
    peak, at, end, ratio, r_peak, r_at, r_end, r_ratio, cosine = FACT_48[n]
    assert max(shape.deviation.mean) == pytest.approx(peak, rel=1e-4)
    assert shape.turning_point == pytest.approx(at, rel=1e-3)
    assert shape.endpoint == pytest.approx(end, rel=1e-7)
    assert shape.straightness == pytest.approx(ratio, rel=2e-4)
    assert max(shape.denoised_deviation.mean) == pytest.approx(r_peak, rel=1e-4)
    assert shape.denoised_turning_point == pytest.approx(r_at, rel=1e-3)
    assert shape.denoised_endpoint == pytest.approx(r_end, rel=1e-6)
    assert shape.denoised_straightness == pytest.approx(r_ratio, rel=1e-4)
    assert shape.lowest_cosine == pytest.approx(cosine, rel=1e-5)
    assert shape.monotone
    assert shape.denoised_monotone
    assert shape.denoised_ahead
    assert all(b <= a for a, b in zip(shape.magnitude.mean, shape.magnitude.mean[1:], strict=False))
    assert shape.tightness <= 1  # fact 28: no violation of the deviation bound


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_deviation_bound_fact_28(solver):
    data, start = t5()
    shape = trajectory_shape(Sampler(solver, karras(40)).run(points(data), start, trajectory=True).trajectory)
    assert 0.9 < shape.tightness <= 1


def test_batches_change_nothing():
    data, _ = t5()
    a = shape_statistics(Empirical(data), n=10, seed=3, dtype=torch.float64)
    b = shape_statistics(Empirical(data), n=10, seed=3, batch_size=4, dtype=torch.float64)
    assert a.deviation.mean == pytest.approx(b.deviation.mean, rel=1e-9, abs=1e-12)
    assert a.distance.std == pytest.approx(b.distance.std, rel=1e-9, abs=1e-12)
    assert a.samples == b.samples == 10
    assert a.nfe == 35


def test_intervals_of_means_and_ratios():
    """Student's t, and the delta method beside a bootstrap of the same samples."""
    data, start = t5()
    run = Sampler("heun", karras(18)).run(points(data), start, trajectory=True).trajectory
    shape = trajectory_shape(run, confidence=0.9)
    k = 6
    rows = rows_of(run).curves
    values = rows["deviation"][k].numpy()
    low, high = stats.t.interval(0.9, 31, loc=values.mean(), scale=stats.sem(values))
    assert (shape.deviation.low[k], shape.deviation.high[k]) == pytest.approx((low, high), rel=1e-12)
    assert shape.deviation.std[k] == pytest.approx(values.std(ddof=1), rel=1e-12)
    peak = rows["deviation"][shape.sigmas.index(shape.turning_point)].numpy()
    ends = rows["distance"][0].numpy()
    place = np.random.default_rng(0).integers(0, 32, (20_000, 32))
    spread = (peak[place].mean(1) / ends[place].mean(1)).std()
    low, high = shape.straightness_interval
    assert low < shape.straightness < high
    assert (high - low) / 2 / stats.t.ppf(0.95, 31) == pytest.approx(spread, rel=0.06)


@pytest.mark.parametrize("coordinates", ["ve", "vp"])
def test_streams_as_one_batch_does(coordinates):
    data, start = t5()
    sampler, law = Sampler("heun", karras(12)), points(data)
    whole = trajectory_shape(sampler.run(law, start, trajectory=True).trajectory, coordinates=coordinates)
    sums = ShapeSums(coordinates)
    for part in start.split([1, 20, 3, 8]):
        sums.update(sampler.run(law, part, trajectory=True).trajectory)
    record, expected = sums.result().to_dict(), whole.to_dict()
    for name, value in expected.items():
        if isinstance(value, dict):
            for key in value:
                assert record[name][key] == pytest.approx(value[key], rel=1e-9, abs=1e-9), (name, key)
        elif name != "coordinates":
            assert record[name] == pytest.approx(value, rel=1e-9), name


def test_variance_preserving_view():
    """Isotropic Gaussian data of unit variance stand still in VP coordinates; an arc of an ellipse otherwise."""
    x = 80 * torch.randn(6, 5, dtype=torch.float64)
    run = exact_run(Gaussian(torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)), x)
    still = trajectory_shape(run, coordinates="vp")
    assert max(still.distance.mean) < 1e-12
    assert still.bound_violations == 0
    law = Gaussian(torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([4.0, 0.25], dtype=torch.float64)))
    start = torch.tensor([[50.0, -70.0]], dtype=torch.float64)
    run = exact_run(law, start)
    shape = trajectory_shape(run, coordinates="vp")
    y = torch.cat([x / math.hypot(1, s) for x, s in zip(run.states, run.sigmas, strict=True)])
    assert shape.magnitude.mean == pytest.approx(y.norm(dim=1).tolist(), rel=1e-12)
    # The direction by a central difference of the states in σ.
    sigma, h = 2.0, 1e-4
    near = [law.flow(start, 80.0, s) / math.hypot(1, s) for s in (sigma + h, sigma - h)]
    k = run.sigmas.index(sigma)
    cosine = torch.cosine_similarity(near[1] - near[0], y[-1:] - y[k : k + 1])
    assert shape.cosine.mean[k] == pytest.approx(float(cosine), rel=1e-7)
    assert shape.tightness == pytest.approx(trajectory_shape(run).tightness)


def test_the_analysis_of_one_model_and_of_two():
    data = torch.randn(400, 6)
    law, other = Gaussian.fit(data), Gaussian.isotropic(torch.zeros(6), 1.0)
    subject = Subject(law, data, "fitted", other=other)
    found = analyze("shape", subject, {"n": 600, "levels": 40, "batch_size": 250})
    assert list(found.shapes) == ["fitted", "other"]
    assert found.shapes["other"].straightness < 1e-5
    assert "bend less" in found.summary()
    assert found.magnitude_gap < 0.05
    assert found.forward.sigmas == found.shape.sigmas[:-1]
    assert all(len(row) == len(table.columns) for table in found.tables() for row in table.rows)
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(found.plot().axes) == 3
    single = analyze("shape", Subject(law, data), {"n": 8, "levels": 6, "coordinates": "vp", "solver": "euler"})
    assert single.forward is None
    assert single.magnitude_gap is None
    assert "variance-preserving" in single.summary()
    assert "0.36 %" in single.summary()
    assert "27 %" in single.summary()


def test_plain_values_and_plot():
    shape = shape_statistics(Gaussian(torch.zeros(2), torch.eye(2)), Sampler("euler", karras(4)), n=1)
    record = json.loads(json.dumps(shape.to_dict(), allow_nan=False))
    assert len(record["deviation"]["mean"]) == 5
    assert len(record["cosine"]["mean"]) == 4
    assert shape.deviation.std == (0.0,) * 5
    assert shape.deviation.low == shape.deviation.mean
    assert len(shape.plot().axes) == 2
    assert [len(t.columns) for t in shape.tables()] == [3, 13]


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="no step"):
        trajectory_shape(Trajectory((1.0,), torch.zeros(1, 2, 2), torch.zeros(0, 2, 2), (0,)))
    run = Sampler("euler", karras(3))(Gaussian(torch.zeros(2), torch.eye(2)), 2, trajectory=True).trajectory
    with pytest.raises(ArgumentError, match="coordinates = 'v'"):
        trajectory_shape(run, coordinates="v")
    with pytest.raises(ArgumentError, match="n = 0"):
        shape_statistics(Gaussian(torch.zeros(2), torch.eye(2)), n=0)
