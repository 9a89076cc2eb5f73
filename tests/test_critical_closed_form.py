"""Critical times in closed form: the numbers of the facts, and the errata."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.analysis.critical_closed_form import (
    critical_signal,
    critical_time_closed_form,
    nearest_grid_time,
    spread_signal,
)
from farfield.analysis.critical_field import critical_ratio
from farfield.errors import ArgumentError
from farfield.processes import DDPM, VE, VP, SubVP


def test_two_points_facts_f2_and_f3():
    """Holds symmetry_breaking F2 and F3 (E15)."""
    found = critical_time_closed_form(1.0)
    assert found.theta == pytest.approx(math.sqrt(math.sqrt(2) - 1), rel=1e-14)
    assert found.integral == pytest.approx(math.asinh(1), rel=1e-12)
    assert found.time == pytest.approx(0.2926416543, abs=1e-10)
    assert found.generative_time == pytest.approx(0.7073583457, abs=1e-10)
    assert found.index == 292
    theta = DDPM().alpha(torch.arange(1000, dtype=torch.float64))
    assert theta[291:293].tolist() == pytest.approx([0.6449235, 0.6430128], abs=1e-7)
    assert nearest_grid_time(found.theta, DDPM(), torch.arange(1000)) == 292
    generative = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    assert nearest_grid_time(found.theta, VP(), 1 - generative) == 707


@pytest.mark.parametrize(
    ("lam", "theta", "integral", "s", "index"),
    [
        (0.01, 0.995013, 0.010000, 0.027073, 27), (0.1, 0.951308, 0.099834, 0.095269, 95),
        (0.25, 0.883616, 0.247466, 0.152760, 153), (0.5, 0.786151, 0.481212, 0.214948, 215),
        (1, 0.643594, 0.881374, 0.292642, 292), (2, 0.485868, 1.443635, 0.375914, 375),
        (4, 0.350864, 2.094713, 0.453831, 453), (10, 0.223329, 2.998223, 0.543932, 543),
        (100, 0.070710, 5.298342, 0.724716, 723), (1000, 0.022361, 7.600903, 0.869009, 866),
    ],
)  # fmt: skip
def test_spectrum_fact_f7(lam, theta, integral, s, index):
    """Holds symmetry_breaking F7: B = asinh λ."""
    found = critical_time_closed_form(lam)
    assert (found.theta, found.integral, found.time) == pytest.approx((theta, integral, s), abs=6e-7)
    assert found.integral == pytest.approx(math.asinh(lam), rel=1e-9)
    assert found.index == index


@pytest.mark.parametrize(
    ("dim", "radius", "theta"),
    [
        (1, 1, 0.643594), (1, 2, 0.350864), (2, 1, 0.786151), (3, 1, 0.848975), (3, 2, 1 / math.sqrt(3)), (10, 1, 0.951308),
        (10, 2, 0.822820), (100, 10, 0.643594), (7, math.sqrt(7), 0.643594),
    ],
)  # fmt: skip
def test_spheres_fact_f13(dim, radius, theta):
    """Holds symmetry_breaking F13, and errata E2 and E7: sqrt((sqrt(D² + r⁴) − r²)/D), λ = r²/D."""
    assert critical_signal(radius**2 / dim) == pytest.approx(theta, abs=5e-7)
    corrected = math.sqrt((math.sqrt(dim**2 + radius**4) - radius**2) / dim)
    assert critical_signal(radius**2 / dim) == pytest.approx(corrected, rel=1e-12)
    misprint = math.sqrt((math.sqrt(dim**2 + radius**2) - radius) / dim)
    assert (abs(misprint - corrected) < 1e-12) == (radius == 1)


@pytest.mark.parametrize(
    ("m", "width", "theta", "s"),
    [
        (1, 0.1, 0.644536, 0.292147), (1, 0.3, 0.652041, 0.288206), (1, 0.5, 2 / 3, 0.280502), (1, 1, 0.707107, 0.258960),
        (2, 0.5, 0.352023, 0.453108),
    ],
)  # fmt: skip
def test_wide_clusters_fact_f16(m, width, theta, s):
    """Holds symmetry_breaking F16."""
    found = critical_time_closed_form(m * m, width=width)
    assert (found.theta, found.time) == pytest.approx((theta, s), abs=6e-7)
    assert critical_signal(m * m, 1e-9) == pytest.approx(critical_signal(m * m), rel=1e-12)


def test_wide_gaussian_fact_f17():
    """Holds symmetry_breaking F17: λ = 4 at θ = 1/√3, never for λ ≤ 2."""
    theta = spread_signal(4.0)
    assert theta == pytest.approx(1 / math.sqrt(3), rel=1e-15)
    assert VP().time(math.sqrt(1 / theta**2 - 1)) == pytest.approx(0.3272978306, abs=1e-10)
    assert spread_signal(2.0) is None
    assert spread_signal(4.0, "langevin") is None
    assert spread_signal(1.5, "ode") == 0.0


@pytest.mark.parametrize(("lam", "s"), [(0.25, 0.1650867), (0.5, 0.2589603), (0.75, 0.3682728)])
def test_ode_fact_f18(lam, s):
    """Holds symmetry_breaking F18 and E37: the ODE has a criterion of its own."""
    found = critical_time_closed_form(lam, dynamics="ode")
    assert found.theta == pytest.approx(math.sqrt(1 - lam), rel=1e-12)
    assert found.time == pytest.approx(s, abs=5e-8)
    assert critical_time_closed_form(1.0, dynamics="ode") is None
    assert critical_signal(1.5, dynamics="ode") == 0.0


def test_density_splits_later_fact_f9():
    """Holds symmetry_breaking F9: the marginal of two points is unimodal up to θ² = 1/2."""
    density, drift = critical_time_closed_form(1.0, dynamics="langevin"), critical_time_closed_form(1.0)
    assert (density.theta, density.integral) == pytest.approx((math.sqrt(0.5), math.log(2)), rel=1e-12)
    assert density.time == pytest.approx(0.2589602624, abs=1e-10)
    assert density.index == 259
    assert density.time < drift.time
    assert critical_signal(1.0, 1.0, "langevin") is None


def test_signal_to_noise_fact_f10():
    """Holds symmetry_breaking F10: at criticality the ratio is 1/√2, and the sign is right with probability Φ(2^(−1/4))."""
    found = critical_time_closed_form(1.0)
    assert found.sigma**-2 == pytest.approx(1 / math.sqrt(2), rel=1e-12)

    def right(s):
        return float(torch.special.ndtr(torch.tensor(1 / VP().sigma(s), dtype=torch.float64)))

    assert right(found.time) == pytest.approx(0.7997970, abs=1e-7)
    for s, value in ((0.2, 0.9174607), (0.4, 0.6890001), (0.5, 0.6152406), (0.7, 0.5337319)):
        assert right(s) == pytest.approx(value, abs=1e-7)


def test_horizon_e9():
    """E9: a symmetric phase needs λ < sinh B(T) = 11577.9."""
    assert critical_time_closed_form(11577.0) is not None
    assert critical_time_closed_form(11579.0) is None


@settings(max_examples=20, deadline=None)
@given(lam=st.floats(1e-3, 1e3), width=st.floats(0, 0.99))
def test_every_map_solves_the_same_condition(lam, width):
    """Posterior variance over σ² equals κ at the level found, for maps that preserve variance and others; VE: σ² = λ (7.1)."""
    for process in (VP(), DDPM(), SubVP(), VE()):
        for dynamics in ("sde", "ode", "langevin"):
            found = critical_time_closed_form(lam, process, width=width, dynamics=dynamics)
            if found is None:
                continue
            s2 = found.sigma**2
            total = s2 + width**2
            posterior = width**2 / total + lam * s2 / total**2
            assert posterior == pytest.approx(critical_ratio(process, found.sigma, dynamics), rel=1e-6)
    assert critical_time_closed_form(lam, VE(1e-3, 100.0)).sigma == pytest.approx(math.sqrt(lam), rel=1e-9)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="variance = 0"):
        critical_signal(0.0)
    with pytest.raises(ArgumentError, match="dynamics = 'x'"):
        spread_signal(1.0, "x")
    with pytest.raises(ArgumentError, match="variance = -1"):
        critical_time_closed_form(-1.0, VE())
