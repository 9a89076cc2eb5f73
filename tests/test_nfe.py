"""The evaluations of a run are known before it: every solver, grid, start, finish, noise and guidance."""

from dataclasses import fields
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.sampling import (
    SOLVERS,
    Ancestral,
    AtLastLevel,
    Churn,
    ClassifierFree,
    Given,
    Jump,
    LateStart,
    Prior,
    Sampler,
    Teleport,
    ToZero,
    ddpm,
    karras,
    log_snr,
    vp_time,
)
from farfield.sampling.solvers import make_solver
from farfield.sampling.stop_rules import AtIndex, Budget, SmallChange

F64 = torch.float64
LAW = Gaussian(torch.tensor([0.4, -0.3], dtype=F64), torch.tensor([[1.5, 0.2], [0.2, 0.4]], dtype=F64))
ADAPTIVE = sorted(name for name in SOLVERS if getattr(SOLVERS[name], "adaptive", False))
FIXED = sorted(set(SOLVERS) - set(ADAPTIVE))


class Counted(Denoiser):
    """A Gaussian denoiser of two classes that counts its calls."""

    label_dim = 2

    def __init__(self):
        super().__init__((2,))
        self.calls = 0

    def forward(self, x, sigma, labels=None, **condition):
        self.calls += 1
        return x / (1 + sigma * sigma) + (0.0 if labels is None else 0.1 * labels.clamp(min=-1)[:, None])


#: Of every option that decides which values a step knows or asks for, all choices; of the others some.
CHOICES = {
    "order": (1, 2, 3),
    "points": (1, 2, 3, 4),
    "midpoint": (0.5, 0.3, 1.0),
    "form": ("native", "finite_difference"),
    "final": ("full", "reduce", "ddim", "clamp"),
    "derivative": ("exact", "difference"),
    "corrector": ("always", "never", "longer", "start"),
    "start": ("rising", "corrected"),
    "variant": ("tab", "rhoab", "logrho", "bh1"),
}


def options_of(name):
    """Every combination that the solver accepts, its defaults among them."""
    keys = [f.name for f in fields(SOLVERS[name]) if f.name in CHOICES]
    found = [{}]
    for values in product(*(CHOICES[key] for key in keys)) if keys else ():
        options = dict(zip(keys, values, strict=True))
        try:
            make_solver(name, **options)
        except ArgumentError:
            continue
        found.append(options)
    return found


VARIANTS = [(name, options) for name in FIXED for options in options_of(name)]


def test_every_solver_takes_part():
    assert {name for name, _ in VARIANTS} == set(FIXED)
    assert {"euler", "heun", "dpmpp_2m", "whitened"} <= set(FIXED)
    for name, count in (("unipc", 7), ("deis", 27), ("ipndm", 5), ("dpm2", 7), ("plms", 1), ("pndm", 3)):
        assert sum(n == name for n, _ in VARIANTS) == count


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_option_is_counted_and_stored(variant):
    """Evaluations as planned from few levels to many; the sampler from its JSON is the same and gives the same samples."""
    name, options = variant
    for levels in ([2.0], [3.0, 1.0], [3.0, 1.0, 0.9], [9.0, 8.99, 2.0, 1.9, 0.3, 0.02]):
        for finish in (ToZero(), AtLastLevel(), Jump(AtIndex(1))):
            model, plan = Counted(), Sampler(make_solver(name, **options), levels, finish=finish)
            out = plan(model, n=3, dtype=F64)
            assert plan.nfe == out.nfe == model.calls
            again = Sampler.from_json(plan.to_json())
            assert again == plan
            assert torch.equal(again(model, n=3, dtype=F64).x, out.x)


@settings(max_examples=250, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    grid=st.one_of(
        st.builds(lambda make, n: make(n), st.sampled_from([karras, log_snr, vp_time, ddpm]), st.integers(2, 12)),
        st.lists(st.floats(0.01, 60.0), min_size=1, max_size=8, unique=True).map(
            lambda levels: [s for k, s in enumerate(sorted(levels)) if k == 0 or s > sorted(levels)[k - 1] * 1.01][::-1]
        ),
    ),
    start=st.sampled_from(["prior", "given", "teleport", "late"]),
    policy=st.sampled_from(["regrid", "truncate"]),
    finish=st.sampled_from(
        [ToZero(), AtLastLevel(), Jump(0.3), Jump(AtIndex(1)), Jump(AtIndex(3)), Jump(Budget(3)), Jump(Budget(11))]
    ),
    noise=st.sampled_from([None, Churn(6.0, s_max=30.0), Ancestral(0.8)]),
    scale=st.sampled_from([None, 2.0]),
)
def test_planned_is_counted(variant, grid, start, policy, finish, noise, scale):
    """Geometry fact 5: the plan's NFE, the report's and the denoiser's own count agree."""
    name, options = variant
    noise = noise if SOLVERS[name].takes_noise else None
    solver, model = make_solver(name, **options), Counted()
    starts = {
        "prior": Prior(),
        "given": Given(torch.ones(3, 2, dtype=F64)),
        "teleport": Teleport(LAW, 4.0, policy),
        "late": LateStart(LAW, 4.0, policy),
    }
    guidance = () if scale is None else (ClassifierFree(scale),)
    condition = {} if scale is None else {"labels": torch.tensor([0, 1, 1])}
    try:
        plan = Sampler(solver, grid, starts[start], finish, noise=noise, guidance=guidance)
        planned = plan.nfe
        out = plan(model, n=3, seed=1, trajectory=True, dtype=F64, **condition)
    except ArgumentError:
        # Parts that do not fit together are refused before anything is evaluated.
        assert model.calls == 0
        return
    assert planned == out.nfe == model.calls == out.trajectory.nfe[-1]
    assert len(out.trajectory.states) == len(out.trajectory.denoised) + 1


@pytest.mark.parametrize("finish", [ToZero(), AtLastLevel(), Jump(0.3), Jump(AtIndex(3)), Jump(Budget(20))])
@pytest.mark.parametrize("name", FIXED)
def test_the_usual_plans_are_not_refused(name, finish):
    model, plan = Counted(), Sampler(name, karras(10), finish=finish)
    assert plan(model, n=3).nfe == plan.nfe == model.calls > 0


@pytest.mark.parametrize("name", FIXED)
def test_a_rule_that_looks_never_spends_more_than_planned(name):
    for rule in (SmallChange(0.2), lambda step: False, lambda step: step.sigma < 5):
        model, plan = Counted(), Sampler(name, karras(10), finish=Jump(rule))
        out = plan(model, n=3)
        assert out.nfe == model.calls <= plan.nfe
        assert out.nfe == int(out.stops.nfe.max())


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_solver_has_no_plan(name):
    """What it spends depends on the samples; it refuses to promise a number."""
    with pytest.raises(ArgumentError):
        _ = Sampler(name, karras(10)).nfe


def test_points_and_steps():
    """Erratum E18: DPM-Solver counts grid points, so N of them are N − 1 steps with no step to zero: 34, 48 and 12."""
    points = {"finish": AtLastLevel()}
    assert Sampler("dpm2", karras(18), **points).nfe == 34
    assert Sampler(make_solver("dpm3", final="reduce"), karras(18), **points).nfe == 48
    assert Sampler("dpm2", karras(7), **points).nfe == 12
    for name in ("heun", "dpm2"):  # counted in steps, the last one Euler's
        assert [Sampler(name, karras(n)).nfe for n in (18, 40)] == [35, 79]
    for name in ("euler", "spndm", "deis", "dpmpp_2m"):
        assert [Sampler(name, karras(n)).nfe for n in (18, 40)] == [18, 40]
