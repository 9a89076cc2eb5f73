"""Normalised data: centred, of one length, and back; and how far raw data are from that."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.analysis.critical_times import critical_times
from farfield.analysis.normalisation import departure, geometric_median, normalise
from farfield.analysis.potential import Potential
from farfield.distributions import Empirical
from farfield.errors import ArgumentError, DataError
from farfield.processes import VP

F64 = torch.float64


def cloud(count=40, dim=4, seed=0):
    """Points with a mean, unequal spreads and a skew."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dim, generator=generator, dtype=F64) * torch.tensor([1.5, 1.0, 0.7, 0.5], dtype=F64)[:dim]
    return 0.3 * x.exp() + x + 2.0


def test_normalised_data_facts_f15_f7():
    """Holds symmetry_breaking F15 and F7 (7.11): ∇u(0) = 0 at every s, tr H(0) by Eq. 13, B = asinh λ_max, θ_c ≤ θ*."""
    found = normalise(cloud(), radius=1.4)
    y = found.points
    assert float(y.sum(0).norm()) < 1e-10
    assert torch.allclose(y.norm(dim=1), torch.full((40,), 1.4, dtype=F64), rtol=1e-14)
    law, zero = Empirical(y), torch.zeros(1, 4, dtype=F64)
    potential = Potential(law)
    for s in (0.1, 0.3, 0.7):
        q, beta = VP().alpha(s) ** 2, potential.rate(s)
        assert float(potential.gradient(zero, s).norm()) / beta < 1e-9
        trace = -(2 + ((4 + 1.4**2) * q - 4) / (q - 1) ** 2)
        assert float(potential.laplacian(zero, s)) / beta == pytest.approx(trace, rel=1e-9)
    lam = float(torch.linalg.eigvalsh(y.T @ y / 40)[-1])
    first = critical_times(law, tolerance=1e-8, check=False).first
    assert -2 * math.log(first.theta) == pytest.approx(math.asinh(lam), rel=1e-6)
    away = departure(cloud())
    assert away.theta_normalised <= away.theta_laplacian


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5.0))
def test_it_can_be_undone(seed, radius):
    data = cloud(seed=seed)
    found = normalise(data, radius)
    assert torch.allclose(found.restore(), data, rtol=1e-12, atol=1e-12)
    others = cloud(7, seed=seed + 1)
    moved, distances = found.apply(others)
    assert torch.allclose(moved.norm(dim=1), torch.full((7,), radius, dtype=F64), rtol=1e-12)
    assert torch.allclose(found.restore(moved, distances), others, rtol=1e-12, atol=1e-12)


def test_images_keep_shape_and_type():
    data = cloud(30).view(30, 1, 2, 2).float()
    found = normalise(data)
    assert found.points.shape == data.shape
    assert found.points.dtype == torch.float32
    assert torch.allclose(found.restore(), data, atol=1e-5)
    # By default the total variance about the centre is kept.
    total = (data - found.centre).flatten(1).square().sum(1).mean().sqrt()
    assert found.radius == pytest.approx(float(total), rel=1e-6)


def test_median_is_least_and_knows_data_points():
    x = cloud()
    c = geometric_median(x)
    least = float((x - c).norm(dim=1).mean())
    for step in 1e-3 * torch.eye(4, dtype=F64):
        assert float((x - c - step).norm(dim=1).mean()) > least
    heavy = torch.tensor([[0.0, 0.0]] * 5 + [[1.0, 0.0], [0.0, 1.0], [-3.0, 1.0]], dtype=F64)
    assert float(geometric_median(heavy).norm()) < 1e-6


def test_where_no_centre_serves():
    with pytest.raises(DataError, match="holds it fast"):
        normalise(torch.tensor([[-1.0], [1.0], [1.0], [1.0], [1.0]], dtype=F64))
    pair = normalise(torch.tensor([[-1.0], [1.0]], dtype=F64))
    with pytest.raises(DataError, match="no direction"):
        pair.apply(torch.zeros(1, 1, dtype=F64))
    with pytest.raises(ArgumentError, match="radius"):
        normalise(cloud(), -1.0)
    with pytest.raises(ArgumentError, match="two points"):
        departure(cloud(1))
    with pytest.raises(DataError, match="the same"):
        departure(torch.ones(3, 2))
    with pytest.raises(ArgumentError, match="belong together"):
        normalise(cloud()).restore(cloud())


def test_departure_of_normalised_and_of_raw_data():
    done = departure(normalise(cloud()).points)
    assert max(done.offset, done.spread, done.imbalance, done.shift, done.moved) < 1e-8
    assert done.eigenvalue == pytest.approx(done.normalised, rel=1e-8)
    raw = departure(cloud())
    assert raw.offset > 0.5
    assert raw.spread > 0.1
    assert raw.imbalance > 0.01
    assert raw.eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(cloud().T.cov(correction=0))[-1]), rel=1e-8)
    assert "40 points" in raw.summary()
    assert raw.tables()[0].columns == ("", "raw data", "normalised")
    assert json.loads(json.dumps(raw.to_dict(), allow_nan=False))["dim"] == 4
