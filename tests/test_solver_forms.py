"""Native and finite-difference forms of the second-order rules, and the helper they share."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.errors import ArgumentError
from farfield.sampling import Ancestral, AtLastLevel, Sampler, karras
from farfield.sampling.solvers import DPM2, SOLVERS, DPMpp2M, DPMpp2S, Heun, Taylor2, make_solver
from farfield.sampling.solvers.finite_difference import master, master_step, transported
from tests.laws import T1, points

F64 = torch.float64
OWN = [Heun, DPM2, DPMpp2S, DPMpp2M, Taylor2]
LAW = points(T1)


def slope_and_output(x, sigma):
    d = LAW(x, sigma)
    return (x - d) / sigma, d


def in_slopes(name, x, levels, c=0.5):
    """The rules as published in ε or in the denoiser, written out without the library's helpers."""
    before = None
    for k, (t1, t) in enumerate(pairwise(levels)):
        e, d = slope_and_output(x, t1)
        s = t**c * t1 ** (1 - c)
        if name == "heun":
            new = x + (t - t1) / 2 * (e + slope_and_output(x + (t - t1) * e, t)[0])
        elif name == "dpm2":
            new = x + (t - t1) * ((1 - 1 / (2 * c)) * e + slope_and_output(x + (s - t1) * e, s)[0] / (2 * c))
        elif name == "dpmpp_2s":
            later = slope_and_output(x + (s - t1) * e, s)[1]
            new = t / t1 * x + (1 - t / t1) * (d + (later - d) / (2 * c))
        else:
            ahead = 0 if before is None else math.log(t1 / t) / math.log(levels[k - 1] / t1) / 2 * (d - before)
            new = t / t1 * x + (1 - t / t1) * (d + ahead)
        x, before = new, d
    return x


@settings(max_examples=40, deadline=None)
@given(
    rule=st.sampled_from([Heun, DPM2, DPMpp2S, DPMpp2M]),
    midpoint=st.floats(0.1, 1.0),
    ratios=st.lists(st.floats(0.2, 0.95), min_size=1, max_size=6),
    first=st.floats(1.0, 80.0),
)
def test_both_forms_are_the_published_rule(rule, midpoint, ratios, first):
    """Geometry fact 30: an identity to rounding, on any grid and for any midpoint."""
    levels = [first]
    for ratio in ratios:
        levels.append(levels[-1] * ratio)
    options = {"midpoint": midpoint} if rule in (DPM2, DPMpp2S) else {}
    x = torch.tensor([[1.3, -0.8], [-0.2, 0.6]], dtype=F64) * first
    expected = in_slopes(rule.name, x, levels, midpoint)
    for form in ("native", "finite_difference"):
        found = Sampler(rule(form=form, **options), levels, finish=AtLastLevel()).run(LAW, x).x
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * first)


@pytest.mark.parametrize("derivative", ["exact", "difference"])
def test_both_forms_of_taylor2(derivative):
    """Geometry section 2.7, Eqs. 26, 27: the expansion of the output is the expansion of the slope."""
    x = torch.tensor([[30.0, -20.0]], dtype=F64)
    a, b = (Sampler(Taylor2(derivative, form), karras(12)).run(LAW, x).x for form in ("native", "finite_difference"))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_forms_with_noise():
    """Under ancestral noise, where the multistep rule extrapolates over the noise level, the forms agree as well."""
    grid, x = karras(9, 0.05, 20.0), torch.tensor([[15.0, -10.0]], dtype=F64)
    for rule in (Heun, DPM2, DPMpp2S, DPMpp2M):
        ends = [
            Sampler(rule(form=form), grid, noise=Ancestral(0.7)).run(LAW, x, seed=3).x
            for form in ("native", "finite_difference")
        ]
        torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_the_master_update():
    """Eq. 26 with Ṙ = γ Δr / interval; without a difference it is Euler's step."""
    x, r, difference = torch.randn(3, 4, 2, dtype=F64)
    a, b, gamma, interval = 2.5, 0.8, 1.3, -0.4
    found = master_step(x, r, difference, master(a, b, gamma, interval))
    h = b - a
    expected = b / a * x + (a - b) / a * r - 0.5 * h * h / a * (gamma * difference / interval)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(master_step(x, r, None, master(a, b, gamma, interval)), x + h * (x - r) / a)
    slope = torch.randn(4, 2, dtype=F64)
    torch.testing.assert_close((x - transported(x, slope, a)) / a, slope)


@pytest.mark.parametrize("rule", OWN)
def test_plans_without_a_form_are_native(rule):
    """Samplers written before the field existed load as they were."""
    sampler = Sampler(rule(form="finite_difference"), karras(5))
    assert Sampler.from_json(sampler.to_json()) == sampler
    plan = json.loads(sampler.to_json())
    del plan["solver"]["form"]
    assert Sampler.from_json(json.dumps(plan)).solver == rule()


@pytest.mark.parametrize("name", sorted(name for name, rule in SOLVERS.items() if hasattr(rule, "form")))
def test_an_unknown_form(name):
    with pytest.raises(ArgumentError, match=r"form = 'table'; expected"):
        make_solver(name, form="table")
