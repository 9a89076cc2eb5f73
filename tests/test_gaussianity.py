"""Normality of noisy marginals: closed forms of the two-point law, the test's own size and power, and data sets."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.gaussianity import (
    directions,
    gaussianity,
    noised_columns,
    shapiro_wilk,
)
from farfield.analysis.gaussianity_distances import density_modes, normal_distance
from farfield.analysis.gaussianity_result import Gaussianity, ReductionCurve
from farfield.data import DataSet
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum
from farfield.processes import VP
from farfield.report.context import ReportContext
from farfield.report.sections.gaussianity import gaussianity as gaussianity_section

WIDE = torch.float64
PROCESS = VP()
CRITICAL = 0.6435942529055827
TWO = Empirical(torch.tensor([[-1.0], [1.0]], dtype=WIDE))


def time_of(theta: float) -> float:
    return PROCESS.time(math.sqrt(1 / theta**2 - 1))


@pytest.mark.parametrize(
    ("theta", "kurtosis", "divergence", "variation"),
    [
        (0.2, -0.0032, 2.146e-7, 0.00019),
        (0.4, -0.0512, 5.917e-5, 0.00358),
        (0.5, -0.1250, 3.892e-4, 0.00976),
        (0.6, -0.2592, 1.973e-3, 0.02345),
        (CRITICAL, -0.343146, 3.818e-3, 0.03355),
        (1 / math.sqrt(2), -0.5, 9.743e-3, 0.05575),
        (0.8, -0.8192, 3.834e-2, 0.11615),
        (0.9, -1.3122, 1.893e-1, 0.26354),
    ],
)
def test_distance_of_the_two_point_marginal(theta, kurtosis, divergence, variation):
    """Holds symmetry_breaking F11."""
    found = normal_distance(TWO, time_of(theta))
    assert found.mean == pytest.approx(0, abs=1e-12)
    assert found.variance == pytest.approx(1, abs=1e-10)
    assert found.kurtosis == pytest.approx(-2 * theta**4, abs=1e-9)
    assert found.kurtosis == pytest.approx(kurtosis, abs=5e-7)
    assert found.divergence == pytest.approx(divergence, rel=5e-4)
    assert found.total_variation == pytest.approx(variation, abs=6e-6)
    matched = normal_distance(TWO, time_of(theta), matched=True)
    assert matched.total_variation == pytest.approx(found.total_variation, rel=1e-6)


def test_the_density_splits_after_the_drift():
    """Holds symmetry_breaking F9: one maximum up to θ² = 1/2, s = 0.2589602624, later in generation than s_c."""
    t = time_of(1 / math.sqrt(2))
    assert t == pytest.approx(0.2589602624, abs=1e-9)
    assert t < time_of(CRITICAL)
    assert density_modes(TWO, t + 0.002) == 1
    assert density_modes(TWO, t - 0.002) == 2
    assert density_modes(TWO, time_of(CRITICAL)) == 1


@pytest.mark.parametrize(("s", "right"), [(0.2, 0.9174607), (0.4, 0.6890001), (0.5, 0.6152406), (0.7, 0.5337319)])
def test_sign_of_a_noisy_point(s, right):
    """Holds symmetry_breaking F10: P(sign x = sign y) = Φ(θ/√v), and θ²/v = 1/√2 at the critical time."""
    normal = torch.distributions.Normal(0.0, 1.0)
    chance = normal.cdf(torch.tensor(1 / PROCESS.sigma(s), dtype=WIDE))
    assert float(chance) == pytest.approx(right, abs=1e-7)
    sigma = PROCESS.sigma(time_of(CRITICAL))
    assert sigma**-2 == pytest.approx(1 / math.sqrt(2), rel=1e-10)
    assert float(normal.cdf(torch.tensor(1 / sigma, dtype=WIDE))) == pytest.approx(0.7997970, abs=1e-7)
    # The same of the library's own noised columns.
    rows = torch.arange(2).repeat(20_000)
    x = noised_columns(TWO.data, rows, torch.ones(1, 1, dtype=WIDE), PROCESS, s, 3, "signs")
    same = (x[:, 0] * TWO.data[rows, 0] > 0).double().mean()
    assert float(same) == pytest.approx(right, abs=4 * math.sqrt(right * (1 - right) / 40_000))


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.15, 0.9))
def test_a_late_start_costs_no_more_than_the_total_variation_at_its_start(weight, theta):
    """Holds symmetry_breaking F20: exact reverse dynamics draw from the posterior, so no law gets farther away."""
    points = torch.tensor([[-1.0], [1.0]], dtype=WIDE)
    copies = torch.tensor([max(1, round(40 * weight)), max(1, 40 - round(40 * weight))])
    law, truth = Empirical(points.repeat_interleave(copies, 0)), float(copies[0] / copies.sum())
    t = time_of(theta)
    bound = normal_distance(law, t).total_variation
    x = torch.linspace(-10, 10, 8001, dtype=WIDE)
    state, sigma = PROCESS.to_ve(x[:, None], t)
    left = (1 - law(state, sigma)[:, 0]) / 2  # the posterior probability of the point at −1
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    reached = float((left * density).sum() * (x[1] - x[0]))
    assert abs(reached - truth) <= bound + 1e-9
    assert normal_distance(TWO, time_of(CRITICAL)).total_variation <= 0.034


@pytest.mark.parametrize(
    ("theta", "rejected", "p"),
    [(0.4, 0.058, 0.50), (0.6, 0.107, 0.28), (CRITICAL, 0.207, 0.17), (0.7, 0.610, 0.034), (0.75, 0.917, 0.0016)],
)
def test_power_of_the_test_on_two_points(theta, rejected, p):
    """Holds symmetry_breaking F31, with 300 repeats: normality is lost to the test only after the critical point."""
    repeats, n = 300, 500
    sign = streams.uniform(5, range(n), (repeats,), purpose="two points", dtype=WIDE).sub(0.5).sign()
    x = theta * sign + math.sqrt(1 - theta**2) * streams.normal(5, range(n), (repeats,), dtype=WIDE)
    found = shapiro_wilk(x)
    assert found.rejected == pytest.approx(rejected, abs=4 * math.sqrt(rejected * (1 - rejected) / repeats) + 0.02)
    assert abs(math.log(float(found.p.median()) / p)) < 0.7
    assert float(found.kurtosis.mean()) == pytest.approx(-2 * theta**4, abs=0.05)


def test_the_test_refuses_what_it_cannot_judge():
    good = torch.randn(50, 3, dtype=WIDE)
    with pytest.raises(ArgumentError, match="5,000"):
        shapiro_wilk(torch.randn(5001, 1))
    with pytest.raises(ArgumentError, match="3 <= n"):
        shapiro_wilk(good[:2])
    with pytest.raises(DataError, match="1 of the values"):
        shapiro_wilk(torch.where(torch.arange(150).view(50, 3) == 7, math.nan, good))
    with pytest.raises(DataError, match="constant"):
        shapiro_wilk(torch.cat((good, torch.ones(50, 1)), 1))
    with pytest.raises(ArgumentError, match="2 coordinates"):
        normal_distance(Gaussian(torch.zeros(2), torch.eye(2)), 0.3)
    with pytest.raises(ArgumentError, match="hold a mass"):
        normal_distance(TWO, 0.3, reach=1.0)


def test_directions_of_each_reduction():
    """Orthonormal where they should be; components in the order of their variance."""
    data = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 2, 1, 0.5, 3])
    for reduction in ("coordinates", "components"):
        found = directions(data, reduction, 4, seed=1)
        torch.testing.assert_close(found @ found.T, torch.eye(4, dtype=WIDE), atol=1e-6, rtol=0)
    assert directions(data, "components", 3).abs().argmax(1).tolist() == [1, 5, 2]
    projections = directions(data, "projections", 9, seed=1)
    torch.testing.assert_close(projections.norm(dim=1), torch.ones(6, dtype=WIDE))  # never more than coordinates
    assert torch.equal(projections, directions(data * 3, "projections", 6, seed=1))
    with pytest.raises(ArgumentError, match="expected one of"):
        directions(data, "wavelets", 3)


def test_normal_data_stay_normal_and_two_points_do_not():
    """A Gaussian is rejected one time in twenty at every time; corners of a cube end the regime near θ = 0.68."""
    gauss = Gaussian(torch.zeros(40), Spectrum.diagonal(torch.linspace(0.2, 3, 40))).sample(
        3000, torch.Generator().manual_seed(0)
    )
    times = [0.9, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05]
    calm = gaussianity(gauss, times=times, columns=40, components=8)
    assert all(max(curve.rejected) < 0.3 for curve in calm.curves.values())
    assert calm.first_end is None
    corners = torch.randint(0, 2, (3000, 40), generator=torch.Generator().manual_seed(1)).float() * 2 - 1
    found = gaussianity(corners, times=[0.9, 0.5, 0.4, 0.35, 0.3, 0.275, 0.25, 0.2], columns=40, critical=0.2926)
    end = found.normal_until("coordinates")
    assert end is not None
    assert PROCESS.alpha(end) == pytest.approx(0.68, abs=0.025)
    assert found.first_end is not None
    # Sums of many coordinates are normal, whatever the law of each.
    assert max(found.curves["projections"].rejected[:6]) < 0.3
    json.dumps(found.to_dict(), allow_nan=False)
    assert "0.293" in found.summary()
    assert len(found.tables()) == 4
    assert len(found.plot().axes) == 2
    again = gaussianity(corners, times=[0.9, 0.5, 0.4, 0.35, 0.3, 0.275, 0.25, 0.2], columns=40, critical=0.2926)
    assert again == found


def test_end_of_the_regime_is_interpolated():
    """Between the times on either side of the threshold; the first time where the regime had ended before."""

    def of(rejected: tuple[float, ...]) -> float | None:
        curve = ReductionCurve(1, (1.0,) * 3, (0.5,) * 3, rejected, (0.0,) * 3)
        times = (0.8, 0.4, 0.2)
        return Gaussianity({"c": curve}, times, times, times, 500, 9, 0.5, None, 0).normal_until("c")

    assert of((0.0, 0.25, 0.75)) == pytest.approx(0.3)
    assert of((0.9, 0.2, 0.9)) == 0.8
    assert of((0.0, 0.0, 0.1)) is None


def test_arguments_of_the_analysis():
    data = torch.randn(60, 2)
    for options, words in (
        ({"n": 6000}, "5,000"),
        ({"times": [0.5]}, "two or more"),
        ({"times": [0.5, 3.0]}, "two or more"),
        ({"threshold": 1.0}, "threshold"),
        ({"reductions": ("components", "components")}, "each once"),
    ):
        with pytest.raises(ArgumentError, match=words):
            gaussianity(data, **options)
    with pytest.raises(DataError, match="NaN"):
        gaussianity(torch.full((60, 2), math.nan))


def test_analysis_and_report_section(tmp_path):
    """`--what gaussianity`, and the section of the report."""
    data = torch.tensor([[1.0, 0.2], [-1.0, -0.2], [0.1, 0.9], [-0.1, -0.9]]).repeat(30, 1)
    subject = Subject(Empirical(data), data)
    found = analyze("gaussianity", subject, {"times": [0.6, 0.3, 0.1], "n": 100, "columns": 2})
    assert found.critical == pytest.approx(PROCESS.time(math.sqrt(math.expm1(math.asinh(0.52)))), abs=0.05)
    found.plot().savefig(tmp_path / "gaussianity.png")
    context = ReportContext(Empirical(data), DataSet(data), "four points", quick=True)
    made = gaussianity_section(context)
    assert any("<svg" in block for block in made.blocks)
    json.dumps(made.data, allow_nan=False)
