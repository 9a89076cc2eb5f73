"""Sliced Wasserstein distances and the search for copied training data."""

from __future__ import annotations

import json
import math

import pytest
import scipy.stats
import torch

from farfield.data import load
from farfield.errors import ArgumentError
from farfield.metrics import distinct_rows, memorisation, nearest_distances, sliced_wasserstein
from farfield.metrics.sliced import directions, wasserstein_1d


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_dimension_is_exact():
    x = normal(100, 1)
    assert sliced_wasserstein(x, x + 2.5).value == pytest.approx(2.5, rel=1e-6)
    scaled = sliced_wasserstein(x, 3 * x)
    assert scaled.value == pytest.approx(2 * float(x.double().square().mean().sqrt()), rel=1e-6)
    assert (scaled.projections, scaled.standard_error) == (1, 0.0)
    # Unequal counts by hand: F_a⁻¹ = 0, 1 on halves and F_b⁻¹ = 0, 1, 2 on thirds.
    a, b = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.0], [1.0]])
    truth = (1 / 6) * 1 + (1 / 3) * 1
    assert float(wasserstein_1d(a, b)) == pytest.approx(truth, rel=1e-14)
    assert float(wasserstein_1d(b, a)) == pytest.approx(truth, rel=1e-14)


@pytest.mark.parametrize(("n", "m"), [(7, 12), (60, 45), (1, 9), (10, 10)])
def test_unequal_counts_are_those_of_repeated_samples(n, m):
    a, b = normal(n, 2, seed=1), normal(m, 2, seed=2)
    common = math.lcm(n, m)
    repeated = wasserstein_1d(a.repeat_interleave(common // n, 0), b.repeat_interleave(common // m, 0))
    assert torch.allclose(wasserstein_1d(a, b), repeated, rtol=1e-12)
    # The distance of order 1 from SciPy never exceeds that of order 2.
    assert scipy.stats.wasserstein_distance(a[:, 0], b[:, 0]) <= float(wasserstein_1d(a, b)[0].sqrt()) + 1e-7


def test_shift_and_scaling_in_many_dimensions():
    dim = 6
    x, v = normal(500, dim), normal(dim, seed=1)
    theta = directions(dim, 4000, 0)
    shifted = sliced_wasserstein(x, x + v, projections=4000)
    assert shifted.value == pytest.approx(float((v.double() @ theta).square().mean().sqrt()), rel=1e-5)
    expected = float(v.norm()) / math.sqrt(dim)
    assert shifted.value == pytest.approx(expected, abs=4 * shifted.standard_error)
    spread = float((x.double() @ theta).square().mean().sqrt())
    assert sliced_wasserstein(x, 1.5 * x, projections=4000).value == pytest.approx(0.5 * spread, rel=1e-5)


def test_invariances_and_seeds():
    a, b = normal(80, 2, 3, seed=1), 2 * normal(50, 2, 3, seed=2)
    one = sliced_wasserstein(a, b, 64, seed=5)
    assert sliced_wasserstein(b, a, 64, seed=5).value == pytest.approx(one.value, rel=1e-12)
    assert sliced_wasserstein(a.flip(0), b, 64, seed=5).value == pytest.approx(one.value, rel=1e-12)
    assert sliced_wasserstein(a.flatten(1), b.flatten(1), 64, seed=5).value == one.value
    assert sliced_wasserstein(a + 7, b + 7, 64, seed=5).value == pytest.approx(one.value, rel=1e-5)
    assert sliced_wasserstein(3 * a, 3 * b, 64, seed=5).value == pytest.approx(3 * one.value, rel=1e-6)
    assert sliced_wasserstein(a, a, 64).value == 0
    assert sliced_wasserstein(a, b, 64, seed=6).value != one.value
    rotation = torch.linalg.qr(normal(6, 6, seed=3)).Q
    many = [
        sliced_wasserstein(x.flatten(1) @ r, y.flatten(1) @ r, 4000)
        for x, y, r in ((a, b, torch.eye(6)), (a, b, rotation))
    ]
    assert many[0].value == pytest.approx(many[1].value, abs=4 * (many[0].standard_error + many[1].standard_error))
    assert torch.equal(directions(6, 10, 5), directions(6, 64, 5)[:, :10])
    record = json.loads(json.dumps(one.to_dict()))
    assert (record["n_a"], record["n_b"], record["seed"], record["projections"]) == (80, 50, 5, 64)


def test_projections_in_chunks_change_nothing(monkeypatch):
    a, b = normal(40, 5, seed=1), normal(30, 5, seed=2)
    whole = sliced_wasserstein(a, b, 50)
    monkeypatch.setattr("farfield.metrics.sliced._CHUNK", 500)
    assert sliced_wasserstein(a, b, 50).value == pytest.approx(whole.value, rel=1e-12)


@pytest.mark.parametrize("shapes", [((3, 2), (3, 4)), ((0, 2), (3, 2)), ((3,), (3,))])
def test_sliced_wasserstein_refuses(shapes):
    with pytest.raises(ArgumentError, match="expected"):
        sliced_wasserstein(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize(("dim", "offset"), [(3, 0.0), (3, 1e3), (200, 0.0), (200, 30.0)])
def test_nearest_distances_are_exact(dim, offset):
    data, x = normal(5000, dim) + offset, normal(300, dim, seed=1) + offset
    distances, numbers = nearest_distances(x, data, 3)
    exact = torch.cat([(part.unsqueeze(1).double() - data.double()).norm(dim=2) for part in x.split(20)])
    truth, places = exact.topk(3, largest=False)
    assert torch.allclose(distances, truth, rtol=1e-12)
    assert torch.equal(numbers, places)
    assert nearest_distances(data[:5], data, 1)[0].tolist() == [[0.0]] * 5


def test_nearest_distances_refuses():
    with pytest.raises(ArgumentError, match="k = 4"):
        nearest_distances(torch.zeros(2, 3), torch.zeros(3, 3), 4)
    with pytest.raises(ArgumentError, match="expected"):
        nearest_distances(torch.zeros(2, 3), torch.zeros(3, 4))


def test_distinct_rows():
    data = torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [-0.0, 1.0], [2.0, 1.0]])
    assert distinct_rows(data).tolist() == [0, 1, 4]


def test_independent_samples_pass_and_copies_are_found():
    data = load("digits")
    train, rest = data.train.images, data.validation.images
    honest, heldout = rest[:150], rest[150:]
    clean = memorisation(honest, train, heldout)
    assert clean.copies <= 0.02
    assert 0.85 < clean.median_ratio < 1.15
    assert clean.close <= 0.06
    assert 0.38 < clean.closer < 0.62
    copied = honest.clone()
    copied[:50] = train[100:150] + 0.01 * normal(50, 1, 8, 8)
    found = memorisation(copied, train, heldout)
    assert found.copies == pytest.approx(1 / 3, abs=0.02)
    assert torch.equal(found.nearest[:50], torch.arange(100, 150))
    assert found.close > 0.3
    assert found.heldout_copies <= 0.02
    assert found.closer > 0.6
    exact = memorisation(train[:20], train)
    assert exact.copies == 1
    assert exact.median_ratio is exact.close is exact.closer is exact.heldout_copies is None
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (record["n_samples"], record["n_heldout"], record["n_train"]) == (150, 147, 1500)


def test_everything_a_little_too_close_is_seen_by_the_calibration():
    train, heldout, fresh = normal(2000, 20), normal(300, 20, seed=1), normal(300, 20, seed=2)
    near = nearest_distances(fresh, train, 1)[1][:, 0]
    result = memorisation(0.5 * fresh + 0.5 * train[near], train, heldout)
    assert result.copies < 0.2
    assert result.median_ratio == pytest.approx(0.5, abs=0.05)
    assert result.closer > 0.98


def test_copies_of_repeated_training_images_are_found():
    train = normal(100, 10).repeat(2, 1)
    result = memorisation(train[150:160] + 1e-3, train)
    assert (result.n_train, result.n_distinct) == (200, 100)
    assert result.copies == 1
    assert result.nearest.tolist() == list(range(50, 60))


def test_ties_count_half():
    train = torch.tensor([[0.0], [10.0]])
    result = memorisation(torch.tensor([[1.0], [2.0]]), train, torch.tensor([[1.0], [-2.0]]))
    assert result.closer == pytest.approx((0.75 + 0.25) / 2)


def test_memorisation_refuses():
    with pytest.raises(ArgumentError, match="samples is empty"):
        memorisation(torch.zeros(0, 2), torch.zeros(3, 2))
    with pytest.raises(ArgumentError, match="1 distinct"):
        memorisation(torch.zeros(1, 2), torch.zeros(3, 2))
