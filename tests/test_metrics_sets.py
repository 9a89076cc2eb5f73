"""Kernel distance, precision, recall, density, coverage and class statistics against closed forms and brute force."""

from __future__ import annotations

import json
import math
import sys

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.errors import ArgumentError
from farfield.metrics import class_histogram, expected_coverage, kernel_distance, label_statistics, neighbourhoods
from farfield.metrics.kernel import polynomial_mmd2
from farfield.metrics.neighbourhoods import Balls


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(dim: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


# Kernel distance


def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x @ y / len(x) + 1) ** 3)


def test_unbiased_estimate_is_the_double_sum():
    a, b = normal(7, 3, seed=1), normal(5, 3, seed=2) + 0.3
    within_a = sum(kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / (7 * 6)
    within_b = sum(kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / (5 * 4)
    between = sum(kernel(x, y) for x in a for y in b) / 35
    assert polynomial_mmd2(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-12)


def third_moments(mean: float, std: float) -> tuple[float, float, float]:
    return mean, mean**2 + std**2, mean**3 + 3 * mean * std**2


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 1.2), (-0.2, 0.7)])
def test_gaussians_on_a_line_have_the_closed_form(mean, std):
    """Three times the squared differences of the first and second moments, and that of the third, once."""
    first, second, third = (
        (p - q) ** 2 for p, q in zip(third_moments(0, 1), third_moments(mean, std), strict=True)
    )  # fmt: skip
    truth = 3 * first + 3 * second + third
    a, b = normal(20_000, 1, seed=1), mean + std * normal(20_000, 1, seed=2)
    found = kernel_distance(a, b, seed=3, block=400, blocks=50)
    assert found.value == pytest.approx(truth, abs=4 * found.standard_error)
    assert found.standard_error < 0.15 * max(truth, 1)
    assert (found.n_a, found.block, found.blocks) == (20_000, 400, 50)


def test_shift_in_many_dimensions_has_the_closed_form():
    """For N(0, 1) and N(v, 1): moments up to the third in full, by their tensors."""
    dim, v = 4, torch.tensor([0.4, -0.3, 0.0, 0.2], dtype=torch.float64)
    eye = torch.eye(dim, dtype=torch.float64)
    second = torch.outer(v, v)
    third = torch.einsum("i,j,k->ijk", v, v, v)
    third += sum(torch.einsum(e, v, eye) for e in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk"))
    truth = 3 * float(v @ v) / dim + 3 * float(second.square().sum()) / dim**2 + float(third.square().sum()) / dim**3
    found = kernel_distance(normal(8000, dim, seed=1), normal(8000, dim, seed=2) + v, block=400, blocks=20)
    assert found.value == pytest.approx(truth, abs=4 * found.standard_error)
    assert found.standard_error < 0.1 * truth


def test_unbiased_and_honest_about_its_error():
    """Over many pairs of sets of one law: mean zero, and a standard error that covers the scatter."""
    found = [
        kernel_distance(normal(60, 3, seed=2 * k), normal(48, 3, seed=2 * k + 1), block=12, blocks=16)
        for k in range(80)
    ]
    values = torch.tensor([f.value for f in found])
    errors = torch.tensor([f.standard_error for f in found])
    assert abs(float(values.mean())) <= 4 * float(values.std()) / math.sqrt(80)
    assert 0.5 * float(values.std()) <= float(errors.mean()) <= 3 * float(values.std())


def test_blocks_of_one_order_share_no_row():
    a = torch.arange(40, dtype=torch.float64)[:, None] / 40
    whole = kernel_distance(a, a + 1, block=10, blocks=4)
    again = kernel_distance(a, a + 1, block=10, blocks=4)
    assert whole == again
    assert kernel_distance(a, a + 1, seed=1, block=10, blocks=4).value != whole.value
    assert json.loads(json.dumps(whole.to_dict()))["block"] == 10
    from farfield.metrics.kernel import _block

    rows = torch.cat([_block(0, "kernel a", k, 43, 10) for k in range(4)])
    assert len(rows.unique()) == 40


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_kernel_distance_is_symmetric_and_turns_with_the_axes(seed, dim):
    a, b, r = normal(12, dim, seed=seed), normal(9, dim, seed=seed + 1) * 2, rotation(dim, seed)
    value = polynomial_mmd2(a, b)
    assert polynomial_mmd2(b, a) == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert polynomial_mmd2(a @ r, b @ r) == pytest.approx(value, rel=1e-8, abs=1e-8)


def test_kernel_distance_refuses():
    a = normal(10, 2)
    assert (kernel_distance(normal(5000, 1), normal(400, 1), blocks=2).block) == 100  # a quarter of the smaller set
    for bad in (lambda: kernel_distance(a, normal(10, 3)), lambda: polynomial_mmd2(a[:1], a)):
        with pytest.raises(ArgumentError, match="shapes"):
            bad()
    with pytest.raises(ArgumentError, match="block = 11; expected 2 to 10"):
        kernel_distance(a, a, block=11)
    with pytest.raises(ArgumentError, match="blocks = 1"):
        kernel_distance(a, a, blocks=1)


# Precision, recall, density, coverage


def test_agrees_with_brute_force():
    x, y = normal(23, 3, seed=1), normal(31, 3, seed=2) + 0.5
    found = neighbourhoods(x, y, k_support=2, k_density=4)

    def radii(points, k):
        return torch.cdist(points, points).sort(1).values[:, k]

    inside = torch.cdist(x, y) <= radii(y, 2)
    dense = torch.cdist(x, y) <= radii(y, 4)
    assert found.precision == pytest.approx(float(inside.any(1).double().mean()))
    assert found.recall == pytest.approx(float((torch.cdist(y, x) <= radii(x, 2)).any(1).double().mean()))
    assert found.density == pytest.approx(float(dense.double().sum()) / (4 * 23))
    assert found.coverage == pytest.approx(float(dense.any(0).double().mean()))
    assert json.loads(json.dumps(found.to_dict()))["n_data"] == 31


def test_a_set_against_itself():
    """Everything is 1, but density: each ball holds its centre and k more, so it is (k + 1)/k."""
    x = normal(80, 5)
    same = neighbourhoods(x, x)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(6 / 5)


def test_far_sets_have_nothing_in_common():
    far = neighbourhoods(normal(40, 3), normal(40, 3, seed=1) + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


@pytest.mark.parametrize(("n", "n_data", "k", "dim"), [(60, 40, 5, 2), (30, 60, 3, 6)])
def test_density_and_coverage_of_one_law_do_not_depend_on_it(n, n_data, k, dim):
    """Density has mean 1 and coverage the combinatorial mean, for Gaussian and for skewed data."""
    density, coverage = [], []
    for seed in range(60):
        x, y = normal(n, dim, seed=2 * seed), normal(n_data, dim, seed=2 * seed + 1)
        if seed % 2:
            x, y = x.exp(), y.exp()
        found = neighbourhoods(x, y, k_density=k)
        density.append(found.density)
        coverage.append(found.coverage)
    for values, truth in ((density, 1.0), (coverage, expected_coverage(n, n_data, k))):
        t = torch.tensor(values)
        assert float(t.mean()) == pytest.approx(truth, abs=4 * float(t.std()) / math.sqrt(60))
        assert float(t.std()) < 0.2


def test_expected_coverage():
    assert expected_coverage(1000, 1000, 5) == pytest.approx(1 - 2**-5, abs=1e-3)
    # One sample, three data, k = 1: the nearest of the two others and the sample is the sample in one case of three.
    assert expected_coverage(1, 3, 1) == pytest.approx(1 / 3)
    assert expected_coverage(5, 3, 3) == 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_neighbourhoods_turn_shift_and_scale_with_the_data(seed, scale):
    x, y, r = normal(20, 3, seed=seed), normal(25, 3, seed=seed + 1), rotation(3, seed)
    assert neighbourhoods(scale * x @ r + 3, scale * y @ r + 3) == neighbourhoods(x, y)


def test_neighbourhoods_in_blocks_and_with_duplicates(monkeypatch):
    x, y = normal(50, 2, seed=1), normal(40, 2, seed=2)
    whole = neighbourhoods(x, y)
    monkeypatch.setattr(sys.modules["farfield.metrics.neighbourhoods"], "_BLOCK", 7)
    assert neighbourhoods(x, y) == whole
    twice = y[:10].repeat(5, 1)  # balls of radius 0 still hold their own centres
    same = neighbourhoods(twice + 1e3, twice + 1e3)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


def test_neighbourhoods_refuse():
    x = normal(6, 2)
    with pytest.raises(ArgumentError, match="k = 6; expected 1 to 5"):
        Balls.of(x, (3, 6))
    with pytest.raises(ArgumentError, match="samples has 3 rows"):
        neighbourhoods(x[:3], x)
    with pytest.raises(ArgumentError, match="points have shape"):
        neighbourhoods(normal(6, 3), x)


# Class statistics


def test_certain_and_uncertain_classifiers():
    """One-hot rows over all classes reach every bound; rows that are all alike have a score of 1."""
    even = torch.full((4,), 0.25, dtype=torch.float64)
    sure = label_statistics(torch.eye(4, dtype=torch.float64).repeat(5, 1), even)
    assert (sure.confidence, sure.balance, sure.n) == (1, 0, 20)
    assert sure.score == pytest.approx(4)
    assert sure.entropy == pytest.approx(math.log(4))
    alike = label_statistics(torch.tensor([[0.7, 0.2, 0.1, 0.0]]).repeat(9, 1), even)
    assert alike.score == pytest.approx(1)
    assert alike.entropy == 0
    assert alike.balance == pytest.approx(math.log(4))
    assert alike.confidence == pytest.approx(0.7)


def test_class_statistics_agree_with_scipy():
    p = normal(200, 5).softmax(1)
    base = torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2], dtype=torch.float64)
    found = label_statistics(p, base)
    histogram = class_histogram(p.argmax(1), 5)
    assert found.histogram == pytest.approx(histogram.tolist())
    assert found.entropy == pytest.approx(scipy.stats.entropy(histogram))
    assert found.balance == pytest.approx(scipy.stats.entropy(histogram, base))
    each = [scipy.stats.entropy(row, p.mean(0)) for row in p]
    assert found.score == pytest.approx(math.exp(sum(each) / 200))


def test_classes_that_the_data_lack_and_bad_arguments():
    p = torch.eye(2, dtype=torch.float64)
    found = label_statistics(p, torch.tensor([1.0, 0.0]))
    assert math.isinf(found.balance)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["balance"] is None
    with pytest.raises(ArgumentError, match="do not sum to 1"):
        label_statistics(p * 2, torch.tensor([0.5, 0.5]))
    with pytest.raises(ArgumentError, match="expected"):
        label_statistics(p, torch.tensor([1.0]))
    with pytest.raises(ArgumentError, match="values below 2"):
        class_histogram(torch.tensor([0, 2]), 2)
