"""Norms of noise, of noised data and of states: closed forms, and the measurement on exact laws."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.analysis.magnitude import (
    magnitude_statistics,
    noised_norms,
    shell,
    shell_bound,
    shell_probability,
    shrink_probability,
)
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.sampling import Sampler, Teleport, karras
from farfield.sampling.solvers import Whitened

F64 = torch.float64


def test_shell():
    """Geometry fact 44."""
    mean, spread = shell(3072)
    assert mean == pytest.approx(55.421115477, abs=1e-9)
    assert spread == pytest.approx(0.707078, abs=1e-6)
    assert shell(3072, 80.0)[0] == pytest.approx(4433.6892, abs=1e-4)
    for distance, inside in ((1, 0.842704551), (2, 0.995326002), (3, 0.999977853)):
        assert shell_probability(3072, distance) == pytest.approx(inside, abs=1e-9)
    for dim, radius in ((3072, 4434.0500674), (12288, 8868.1001), (196608, 35472.4004)):
        assert shell(dim, 80.0)[0] == pytest.approx(radius - 80 / (4 * math.sqrt(dim)), abs=1e-3)


@pytest.mark.parametrize("dim", [1, 2, 3, 100, 101, 5000])
def test_moments_of_the_shell(dim):
    """Mean² + variance = d, and both sides of the series' start agree; d = 1 is the half-normal law."""
    mean, spread = shell(dim)
    assert mean**2 + spread**2 == pytest.approx(dim, rel=1e-9)
    if dim == 1:
        assert (mean, spread) == pytest.approx((math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi)))


def test_tail():
    """Geometry fact 45, erratum E7: c = 1/2 holds throughout, c = 1 fails somewhere."""
    worst, broken = 0.0, False
    for dim in (*range(1, 60), 100, 1000, 3072):
        for s in torch.linspace(0.05, 8, 60).tolist():
            for sigma in (0.5, 3.0):
                outside = 1 - shell_probability(dim, s * sigma, sigma)
                if outside > 1e-9:  # below, the difference from one has lost its digits
                    worst = max(worst, outside / (2 * math.exp(-s * s / 2)))
                    broken |= outside > shell_bound(s * sigma, sigma, c=1.0)
                assert outside <= shell_bound(s * sigma, sigma) + 1e-12
    assert worst == pytest.approx(0.4952, abs=0.02)
    assert broken


def test_noise_seldom_shrinks():
    """Geometry fact 46, erratum E8."""
    for dim, chance in ((1, 0.477249868), (4, 0.0592097809), (16, 3.87792575e-8)):
        assert shrink_probability(1.0, 1.0, dim) == pytest.approx(chance, rel=1e-8)
    found = [shrink_probability(math.sqrt(0.25 * d), 0.1, d) for d in (16, 64, 256, 1024, 3072)]
    expected = [0.353774098, 0.215474330, 0.0554943233, 6.94703510e-4, 1.50651304e-8]
    assert found == pytest.approx(expected, rel=1e-8)
    chances = [shrink_probability(math.sqrt(0.25 * d), 0.1, d) for d in range(4, 200)]
    assert all(b < a for a, b in pairwise(chances))
    assert shrink_probability(0.0, 1.0, 3) == 0


def test_shrink_probability_by_counting():
    x = torch.tensor([0.9, -0.2, 0.4], dtype=F64)
    z = 0.5 * torch.randn(200_000, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    counted = float(((x + z).norm(dim=1) <= x.norm()).double().mean())
    assert counted == pytest.approx(shrink_probability(float(x.norm()), 0.5, 3), abs=0.005)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 5), scale=st.floats(0.1, 100.0))
def test_noised_norms_are_norms(n, seed, scale):
    """Three numbers a point give the same curve as noising it at every level, and E‖x + σz‖² = ‖x‖² + σ² d."""
    data = scale * torch.randn(n, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
    mean, spread = noised_norms(data, [0.0, 0.3, 80.0], seed)
    torch.testing.assert_close(mean[0], data.flatten(1).norm(dim=1).mean(), rtol=1e-12, atol=1e-12)
    more = noised_norms(data.float().double(), [0.0], seed)[0]
    assert float(more[0]) == pytest.approx(float(mean[0]), rel=1e-6)
    assert bool((spread >= 0).all())


def test_noised_norms_have_the_right_mean_square():
    data = torch.tensor([[3.0, -4.0]], dtype=F64).expand(20_000, 2)
    mean, spread = noised_norms(data, [0.0, 2.0])
    assert float(mean[0]) == 5
    assert float(mean[1] ** 2 + spread[1] ** 2) == pytest.approx(25 + 2 * 4, rel=0.01)


def test_forward_and_backward_agree_on_an_exact_law():
    """The flow keeps the marginal laws: with the data's own Gaussian the curves part by less than their errors."""
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(4000, 12, dtype=F64, generator=generator) * torch.linspace(0.2, 2, 12, dtype=F64)
    law = Gaussian.fit(data)
    plan = Sampler(Whitened(1), karras(12), covariance=law, start=Teleport(law, 60.0))
    found = magnitude_statistics(law, data, plan, n=2000, levels=40, dtype=F64)
    assert all(abs(gap) < 4 * error for gap, error in zip(found.gaps, found.errors, strict=True))
    assert found.shrinks
    assert len(found.curve_sigmas) == 40
    assert found.curve_sigmas[-1] == pytest.approx(found.sigmas[0])
    # A sampler that starts too short is found out where it starts.
    short = Sampler(Whitened(1), karras(12, 0.002, 20.0), covariance=Gaussian(law.mean, torch.eye(12, dtype=F64) * 9))
    off = magnitude_statistics(Gaussian.isotropic(torch.zeros(12, dtype=F64), 0.01), data, short, n=500, dtype=F64)
    sigma, gap = off.largest_gap
    assert sigma < 1
    assert gap < -0.5


def test_what_it_prints(tmp_path):
    data = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = magnitude_statistics(Empirical(data), data, n=8, levels=10)
    json.dumps(found.to_dict(), allow_nan=False)
    (table,) = found.tables()
    assert len(table.rows) == len(found.sigmas) == 19
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "differ most" in found.summary()
    found.plot().savefig(tmp_path / "x.png")


def test_refusals():
    data = torch.zeros(5, 3)
    law = Empirical(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)))
    for make in (
        lambda: shell(0),
        lambda: shell(3, 0.0),
        lambda: shrink_probability(-1.0, 1.0, 3),
        lambda: shell_bound(1.0, -1.0),
        lambda: noised_norms(data, [-1.0]),
        lambda: noised_norms(data[:0], [1.0]),
        lambda: magnitude_statistics(law, data[:, :2]),
        lambda: magnitude_statistics(law, data, n=1),
    ):
        with pytest.raises(ArgumentError):
            make()
