"""Score deviation along both paths: the facts on 64 points, the curves' readings, and the analysis by name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from farfield.analysis import Subject, analyze
from farfield.analysis.diagnosis import score_deviation
from farfield.analysis.diagnosis_curves import drops, outliers, reached, regions
from farfield.analysis.diagnosis_findings import DeviationFindings
from farfield.analysis.diagnosis_follow import optimal_law, takes_classes
from farfield.analysis.diagnosis_paths import AT_POINT
from farfield.analysis.diagnosis_result import ScoreDeviation
from farfield.data import DataSet, load
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian
from farfield.distributions.jittered import Jittered
from farfield.errors import ArgumentError
from farfield.interop import load as load_model
from farfield.report.context import ReportContext
from farfield.report.sections.deviation import against_training_set
from farfield.sampling import AtLastLevel, Churn, Sampler, Teleport, karras
from tests.test_empirical import StudentT
from tests.test_shape import t5

WIDE = torch.float64
HEUN = Sampler("heun", karras(40))


@pytest.fixture(scope="module")
def toy() -> dict[float, ScoreDeviation]:
    """Geometry section 5: T5 with Jit(δ), Heun, N = 40, the 32 starts of fact 47."""
    data, start = t5()
    return {
        delta: score_deviation(Jittered(data, delta), data, n=32, starts=start, sampler=HEUN)
        for delta in (0.1, 0.2, 0.3)
    }


def test_toy_is_the_one_of_the_facts():
    """Geometry fact 47; x_N[32,16] in 30-digit arithmetic."""
    data, start = t5()
    assert float(data[0, 0]) == pytest.approx(0.6477957943, abs=1e-10)
    assert float(data[63, 15]) == pytest.approx(0.1906493628, abs=1e-10)
    assert float(start[0, 0]) == pytest.approx(110.6703126412, abs=1e-9)
    assert float(start[31, 15]) == pytest.approx(-110.5589570376, abs=1e-9)
    assert float(data.square().sum(1).mean().sqrt()) == pytest.approx(1.297576696, abs=1e-9)
    assert float(data.mean(0).norm()) == pytest.approx(0.0686721014, abs=1e-10)
    assert float(torch.pdist(data).min()) == pytest.approx(0.2220719143, abs=1e-10)


@pytest.mark.parametrize(
    ("delta", "peak", "n", "t"), [(0.1, 0.19633, 9, 0.0916), (0.2, 0.38916, 11, 0.1846), (0.3, 0.58612, 12, 0.2556)]
)
def test_along_the_optimal_path(toy, delta, peak, n, t):
    """Geometry fact 49: small, a peak at t ≈ δ, falling; three regions."""
    found = toy[delta]
    curve = found.along_optimal.mean
    at = max(range(40), key=curve.__getitem__)
    assert curve[at] == pytest.approx(peak, abs=1e-5)
    assert 40 - at == n
    assert found.sigmas[at] == pytest.approx(t, abs=1e-4)
    assert found.regions.three
    assert found.regions.falling == found.sigmas[at]
    assert found.regions.falling < found.regions.rising < 10
    if delta == 0.1:
        assert curve[0] == pytest.approx(0.00050, abs=5e-6)
        assert curve[-1] == pytest.approx(0.00795, abs=5e-6)


@pytest.mark.parametrize(
    ("delta", "first", "last"), [(0.1, 0.00050, 0.40117), (0.2, 0.00199, 0.79240), (0.3, 0.00447, 1.17476)]
)
def test_along_its_own_path(toy, delta, first, last):
    """Geometry fact 50: only growing, to about δ √d; the score's error is that over t²."""
    found = toy[delta]
    curve = found.along_own.mean
    assert curve[0] == pytest.approx(first, abs=5e-6)
    assert curve[-1] == pytest.approx(last, abs=5e-6)
    assert all(b > a for a, b in pairwise(curve))
    assert found.grows
    assert found.grows_from == 80
    assert last == pytest.approx(delta * 4, rel=0.05)
    assert found.score_error(own=True).mean[-1] == pytest.approx(last / 0.002**2, rel=1e-4)
    assert found.score_error().mean[0] == pytest.approx(found.along_optimal.mean[0] / 6400, rel=1e-9)
    assert all(a <= b for a, b in zip(found.along_own.low, found.along_own.high, strict=True))


@pytest.mark.parametrize(
    ("delta", "premise", "near", "same"),
    [(0.1, 0.99968, 0.4012, 1.0), (0.2, 0.99992, 0.7924, 1.0), (0.3, 0.99996, 1.1748, 0.969)],
)
def test_samples_and_basins(toy, delta, premise, near, same):
    """Geometry fact 51: the premise of theorem 1, distances to the data, basins and locks."""
    found = toy[delta]
    assert float(found.premise.max()) == pytest.approx(premise, abs=6e-6)
    assert float(found.optimal_neighbours.distance[:, 0].max()) == 0
    assert float(found.neighbours.distance[:, 0].mean()) == pytest.approx(near, abs=5e-5)
    assert found.basin_rate == pytest.approx(same, abs=1e-3)
    assert found.lock_share[-1] > 0.95
    assert found.neighbours.number.shape == (32, 5)
    if delta == 0.1:
        locked = dict(zip(range(40, 0, -1), found.lock_share, strict=True))
        assert all(locked[n] >= 0.9 for n in range(1, 9))
        assert locked[9] < 0.9
        assert found.lock_level() == pytest.approx(0.063, abs=1e-3)
    assert all(a >= b for a, b in zip(found.lead_share, found.lock_share, strict=True))  # what is equal is nearest
    assert found.lead_share[-1] == 1
    data, start = t5()
    x1 = HEUN.run(Jittered(data, delta), start, trajectory=True).trajectory.states[-2]
    last = Empirical(data)(x1, 0.002)
    assert float((last - data[found.neighbours.number[:, 0]]).norm(dim=1).median()) < AT_POINT
    assert torch.equal(Empirical(data).nearest(last)[1][:, 0], found.neighbours.number[:, 0])


def test_replay_of_the_optimal_denoiser():
    """Geometry fact 52: 25 distinct points at N = 18; Euler picks the same point for 87.5 % of the starts."""
    data, start = t5()
    ends = {}
    for solver in ("heun", "euler"):
        found = score_deviation(Empirical(data), data, n=32, starts=start, sampler=Sampler(solver, karras(18)))
        ends[solver] = found.optimal_neighbours.number[:, 0]
        assert float(found.optimal_neighbours.distance[:, 0].max()) == 0
        assert found.regions is None
        assert found.basin_rate == 1
        assert "data points" in found.summary()
        assert found.distinct == len(set(ends[solver].tolist()))
        found.plot()
    assert len(set(ends["heun"].tolist())) == 25
    assert float((ends["heun"] == ends["euler"]).double().mean()) == 0.875


def test_evaluations_are_counted():
    """Geometry section 7: Heun costs 3N − 1 evaluations of either denoiser, one call a level and batch for the cross terms."""
    data, start = t5()
    calls: list[float] = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return Empirical(data)(x, float(sigma))

    found = score_deviation(
        FunctionDenoiser(counted, (16,)), data, n=32, starts=start, sampler=Sampler("heun", karras(18))
    )
    assert found.nfe == len(calls) == 53
    assert Sampler("euler", karras(18)).nfe + 18 == score_deviation(
        Empirical(data), data, n=2, sampler=Sampler("euler", karras(18)), dtype=WIDE
    ).nfe  # fmt: skip


def test_batches_and_starts():
    """Start i is the sampler's sample i, whatever the batch; noised starts are y + T z of the same z."""
    data, _ = t5()
    model = Jittered(data, 0.2)
    a = score_deviation(model, data, n=9, seed=3, dtype=WIDE)
    b = score_deviation(model, data, n=9, seed=3, dtype=WIDE, batch_size=4)
    assert torch.allclose(a.own_gap, b.own_gap, rtol=1e-7, atol=1e-9)
    assert torch.equal(a.neighbours.number, b.neighbours.number)
    ends = Sampler("heun", karras(18))(model, 9, 3, dtype=WIDE).x
    assert torch.allclose(Empirical(data).nearest(ends)[0].sqrt()[:, 0], a.neighbours.distance[:, 0], atol=1e-9)
    noised = score_deviation(model, data, n=9, seed=3, dtype=WIDE, starts="noised")
    assert noised.origins is not None
    assert len(set(noised.origins.tolist())) == 9
    assert a.returns is None
    assert noised.returns < 0.5  # the noise drowns where a start came from
    encoded = score_deviation(model, data, n=9, seed=3, dtype=WIDE, starts="encoded", sampler=HEUN)
    assert encoded.returns > 0.85  # the model's own ODE does not
    assert float(encoded.neighbours.distance[:, 0].median()) < 0.1


def test_classes_restrict_the_optimum():
    """Erratum E27: with classes every optimal sample is a point of its start's class."""
    data, _ = t5()
    labels = (torch.arange(64) % 3).long()
    model = Jittered(data, 0.1, labels=labels)
    found = score_deviation(model, data, labels=labels, conditional=True, n=12, dtype=WIDE)
    assert found.conditional
    law = Empirical(data, labels=labels)
    kept = [score_deviation(model, law, conditional=True, n=12, dtype=WIDE, starts=k) for k in ("noised", "encoded")]
    for part in kept:
        own = labels[part.origins]
        for near in (part.neighbours, part.optimal_neighbours):
            assert torch.equal(labels[near.number], own.unsqueeze(1).expand(-1, 5))
        assert float(part.optimal_neighbours.distance[:, 0].max()) == 0
    free = score_deviation(model, data, labels=labels, n=12, dtype=WIDE)
    assert not free.conditional
    assert not torch.equal(free.optimal_neighbours.number, found.optimal_neighbours.number)
    assert not takes_classes(model, labels)
    model.label_dim = 3  # as a conditional network has it
    assert takes_classes(model, labels)
    assert not takes_classes(model, labels + 1)
    named = analyze("deviation", Subject(model, data, labels=labels), {"n": 3, "against": "training set"})
    assert named.conditional
    assert not analyze("deviation", Subject(model, data), {"n": 3, "against": "training set"}).conditional
    with pytest.raises(ArgumentError, match="no labels"):
        score_deviation(model, data, conditional=True)
    with pytest.raises(ArgumentError, match="at most 21"):
        score_deviation(model, data, labels=labels, conditional=True, neighbours=22)


def test_mirror_images_are_training_data():
    images = torch.randn(5, 1, 4, 4, dtype=WIDE)
    law = optimal_law(images, torch.arange(5), mirror=True)
    assert law.count == 10
    assert torch.equal(law.data[5:], images.flip(3))
    assert law.labels.tolist() == [*range(5), *range(5)]
    with pytest.raises(ArgumentError, match="mirror"):
        optimal_law(images.flatten(1), mirror=True)


def test_regions_of_curves():
    """Boundaries by interpolation; a fall from the top is no rise, and a high start is not negligible."""
    sigmas = (81.0, 27.0, 9.0, 3.0, 1.0, 0.3)
    found = regions(sigmas, (0.01, 0.01, 0.05, 1.0, 0.4, 0.02))
    assert found.falling == 3
    assert found.rising == pytest.approx(9 * 3 ** -(math.log(2) / math.log(20)), rel=1e-12)
    assert found.three
    high = regions(sigmas, (0.5, 0.3, 0.1, 1.0, 0.4, 0.6))
    assert not high.negligible
    assert not high.falls
    assert high.before == 0.5
    assert high.rising < 9
    assert regions(sigmas, (0.0,) * 6) is None
    assert regions(sigmas, (1.0, 0.5, 0.2, 0.1, 0.1, 0.1)).rising == 81


def test_levels_that_stand_out():
    """Erratum E25: a bump of up to three levels is named and left out of regions and growth."""
    data, start = t5()
    law, odd = Jittered(data, 0.1), 40.0

    def faulty(x: Tensor, sigma: Tensor) -> Tensor:
        t = float(sigma)
        return law(x, t) + (0.5 if abs(t - odd) < 6 else 0.0) / 4

    model = FunctionDenoiser(faulty, (16,))
    found = score_deviation(model, data, n=32, starts=start, sampler=Sampler("euler", karras(40)))
    assert found.outliers
    assert all(abs(s - odd) < 6 for s in found.outliers)
    assert found.regions.three
    assert found.regions.falling < 0.2
    assert found.grows
    assert "stand out" in found.summary()
    assert outliers((4.0, 3.0, 2.0, 1.0), (1.0, 1.0, 2.0, 9.0)) == ()
    assert outliers((4.0, 3.0, 2.0, 1.0), (9.0, 1.0, 2.0, 1.0)) == (4.0,)


def test_growth_within_errors():
    values = torch.tensor([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [1.9, 3.1, 4.0], [1.0, 2.0, 3.0]], dtype=WIDE)
    assert drops((4.0, 3.0, 2.0, 1.0), values) == (1.0,)
    assert drops((4.0, 3.0, 2.0, 1.0), values, skip=(1.0,)) == ()
    assert drops((4.0,), values[:1]) == ()
    assert reached((4.0, 2.0, 1.0), (1.0, 0.5, 0.95), 0.9) == 1.0
    assert reached((4.0, 2.0, 1.0), (1.0, 0.5, 0.0), 0.9) is None


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    return Subject(load_model("digits"), data.train.images, labels=data.train.labels, heldout=data.validation.images)


def test_the_bundled_network(digits):
    """Along the optimal path it rises and falls, along its own it ends high; the optimum replays, the network does not."""
    found = score_deviation(digits.model, digits.data, n=12)
    assert found.regions.falls
    assert 0.3 < found.regions.falling < 2
    assert found.along_own.mean[-1] > 10 * found.along_optimal.mean[-1]
    assert found.grows_from > 3
    assert float(found.optimal_neighbours.distance[:, 0].max()) < 1e-3
    assert float(found.neighbours.distance[:, 0].min()) > 1
    assert {k: v.shape[0] for k, v in found.pictures.items()} == {"model": 10, "optimal": 10, "nearest data": 10}
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(found.plot().axes) == 3
    assert len(found.plot(found.plot().axes[:2]).axes) == 3


def test_by_name(digits):
    """Both parts by default; either alone; the old values stay where they were."""
    options = {"n": 3, "steps": 6, "laws": ["gaussian"], "levels": 6}
    both = analyze("deviation", digits, options)
    assert isinstance(both, DeviationFindings)
    record = json.loads(json.dumps(both.to_dict(), allow_nan=False))
    assert list(record["laws"]) == ["gaussian"]
    assert record["training_set"]["nfe"] == 17
    assert len(both.tables()) == 5
    assert len(both.plot().axes) == 6
    laws = analyze("deviation", digits, {**options, "against": "laws"})
    assert laws.to_dict() == both.laws.to_dict()
    alone = analyze("deviation", digits, {**options, "against": "training set", "mirror": True, "starts": "noised"})
    assert isinstance(alone, ScoreDeviation)
    assert alone.n_data == 3000
    with pytest.raises(ArgumentError, match="against"):
        analyze("deviation", digits, {"against": "data"})


def test_report_section(digits):
    """Curves and panel for images, curves alone for other data."""
    blocks, record = against_training_set(ReportContext(digits.model, load("digits"), "digits", quick=True), 4)
    text = "".join(blocks)
    assert (text.count("<svg"), text.count("<img")) == (1, 1)
    assert "optimal denoiser" in text
    assert record["n"] == 4
    json.dumps(record, allow_nan=False)
    ring = ReportContext(Gaussian(torch.zeros(2), torch.eye(2)), DataSet(torch.randn(60, 2)), "x", quick=True)
    assert "<img" not in "".join(against_training_set(ring, 4)[0])


def test_bad_arguments():
    data, start = t5()
    model = Jittered(data, 0.1)
    gauss = Gaussian.fit(data)
    for bad, message in (
        ({"n": 0}, "n = 0"),
        ({"neighbours": 65}, "neighbours = 65"),
        ({"starts": "gauss"}, "starts 'gauss'"),
        ({"starts": start[:3], "n": 4}, "starts have shape"),
        ({"sampler": Sampler("heun", karras(5), Teleport(gauss, 5.0))}, "'teleport'"),
        ({"sampler": Sampler("euler", karras(5), noise=Churn(10))}, "noise or guidance"),
        ({"sampler": Sampler("heun", karras(5), finish=AtLastLevel())}, "zero noise"),
    ):
        with pytest.raises(ArgumentError, match=message):
            score_deviation(model, data, **bad)
    with pytest.raises(ArgumentError, match="data have events"):
        score_deviation(model, data[:, :3])
    with pytest.raises(ArgumentError, match="Gaussian diffusion"):
        score_deviation(Empirical(data, process=StudentT(8)), data)


def test_the_summary_of_a_difference_that_still_falls(toy):
    """Where the own path's deviation falls at the last level, nothing grows from there on."""
    found = toy[0.2]
    assert "only grows" in found.summary()
    gap = found.own_gap.clone()
    gap[-1] = 0.5 * gap[-2]
    fallen = replace(found, own_gap=gap)
    assert fallen.drops == (found.sigmas[-1],)
    assert "still falls at the last level" in fallen.summary()
    assert "only grows" not in fallen.summary()
