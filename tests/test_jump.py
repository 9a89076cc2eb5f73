"""ODE-Jump: stop rules, their identities, samples that stop one by one, and the way to JSON."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.denoiser import FunctionDenoiser
from farfield.errors import ArgumentError, DataError
from farfield.sampling import SOLVERS, Ancestral, Churn, Jump, Sampler, karras
from farfield.sampling.solvers import Whitened
from farfield.sampling.stop_rules import AtIndex, Budget, SmallChange, StopFunction
from tests.laws import T1, points, smooth_mixture

F64 = torch.float64
START = torch.tensor([[40.0, -25.0]], dtype=F64)
FIXED = sorted(name for name in SOLVERS if not getattr(SOLVERS[name], "adaptive", False))
#: Rules that end at σ = 0 with an Euler step; PNDM goes there with the outputs that it remembers.
JUMPING = [name for name in FIXED if name != "pndm"]


def draw(rule, n=6, batch_size=None, solver="heun", grid=None, **options):
    plan = Sampler(solver, grid if grid is not None else karras(10, 0.05, 40.0), finish=Jump(rule))
    return plan(smooth_mixture(), n, seed=5, dtype=F64, batch_size=batch_size, **options)


@pytest.mark.parametrize("n", [1, 3, 8, 12])
def test_published_jump_by_index(n):
    """Geometry fact 6: NFE 35, 31, 21, 13 for n = 1, 3, 8, 12 with Heun on N = 18, and where it lands."""
    grid = karras(18)
    plan = Sampler("heun", grid, finish=Jump(AtIndex(n)))
    out = plan.run(points(T1), START, trajectory=True)
    assert out.nfe == plan.nfe == {1: 35, 3: 31, 8: 21, 12: 13}[n] == 2 * (18 - n) + 1
    same = Sampler("heun", grid, finish=Jump(grid.levels[18 - n])).run(points(T1), START)
    assert torch.equal(out.x, same.x)
    states = {8: (0.8451846084, -0.2064091318), 12: (4.217329727, -2.3484499767)}
    jumps = {1: (1.0, 0.0), 8: (0.6327140273, 0.0058656963), 12: (0.0321227156, 0.293728755)}
    if n in states:
        assert out.trajectory.states[-2][0].tolist() == pytest.approx(states[n], abs=1e-9)
    if n in jumps:
        assert out.x[0].tolist() == pytest.approx(jumps[n], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    solver=st.sampled_from(FIXED),
    levels=st.integers(2, 14),
    budget=st.integers(1, 40),
    noise=st.sampled_from([None, Churn(4.0, s_max=20.0)]),
)
def test_a_budget_is_kept_and_used(solver, levels, budget, noise):
    """The jump costs at most the budget, and one level further would cost more."""
    noise = noise if SOLVERS[solver].takes_noise else None
    grid = karras(levels, 0.1, 40.0)
    plan = Sampler(solver, grid, finish=Jump(Budget(budget)), noise=noise)
    calls = []

    def counted(x, sigma):
        calls.append(sigma)
        return x / (1 + sigma * sigma)

    out = plan.run(FunctionDenoiser(counted, (2,)), START)
    assert out.nfe == plan.nfe == len(calls) <= budget
    reached = len(plan.levels)
    if reached < levels:
        further = Sampler(solver, grid, finish=Jump(AtIndex(levels - reached)), noise=noise)
        assert further.nfe > budget


def test_change_is_the_relative_change_of_the_output():
    """``‖r_n − r_{n+1}‖ < tol ‖r_{n+1}‖``, sample by sample, at levels up to ``below``."""
    path = Sampler("heun", karras(10, 0.05, 40.0))(smooth_mixture(), 6, seed=5, dtype=F64, trajectory=True).trajectory
    change = torch.stack([(b - a).norm(dim=1) / a.norm(dim=1) for a, b in pairwise(path.denoised)])
    for tol, below in ((0.3, 1.0), (0.1, 1.0), (0.3, None), (0.02, 10.0)):
        out = draw(SmallChange(tol, below))
        for i in range(6):
            levels = path.sigmas[1:-1]
            hits = [k for k, s in enumerate(levels) if change[k, i] < tol and (below is None or s <= below)]
            if hits:
                assert float(out.stops.sigma[i]) == levels[hits[0]]
                assert torch.equal(out.x[i], path.denoised[hits[0] + 1, i])
                assert int(out.stops.nfe[i]) == path.nfe[hits[0] + 1] + 1
            else:
                assert float(out.stops.sigma[i]) == 0
                assert torch.equal(out.x[i], path.states[-1, i])
                assert int(out.stops.nfe[i]) == path.nfe[-1]
        assert out.nfe == int(out.stops.nfe.max())


def test_high_noise_is_no_reason_to_stop():
    """Data far from zero: outputs near their mean change little at once, so without ``below`` the rule stops too early."""
    law = points(T1 + 50)
    plan = {b: Sampler("heun", karras(18), finish=Jump(SmallChange(0.01, b))) for b in (1.0, None)}
    early, late = (plan[b](law, 4, dtype=F64).stops.sigma for b in (None, 1.0))
    assert bool((early == karras(18)[1]).all())
    assert bool((late <= 1).all())


@settings(max_examples=25, deadline=None)
@given(solver=st.sampled_from(JUMPING), tol=st.sampled_from([0.03, 0.1, 0.4]), batch=st.integers(1, 6))
def test_samples_stop_on_their_own(solver, tol, batch):
    """Samples, their levels and evaluations do not depend on the batch; the run's evaluations are the last one's."""
    rule = SmallChange(tol, 5.0)
    whole, parts = draw(rule, solver=solver), draw(rule, solver=solver, batch_size=batch)
    assert torch.equal(whole.x, parts.x)
    assert torch.equal(whole.stops.sigma, parts.stops.sigma)
    assert torch.equal(whole.stops.nfe, parts.stops.nfe)
    assert whole.nfe == parts.nfe == int(whole.stops.nfe.max())


@pytest.mark.parametrize("solver", JUMPING)
def test_a_stopped_sample_is_the_fixed_jump(solver):
    """Every solver: stopping at a level is the grid cut off there (ALG 4), to the bit.

    Where the whitened solver chooses its order by the number of levels, a run that stops early has that of the whole plan.
    """
    grid = karras(10, 0.05, 40.0)
    solver = Whitened(short=0) if solver == "whitened" else solver
    stopped = draw(SmallChange(0.2, 5.0), solver=solver)
    assert len(set(stopped.stops.sigma.tolist())) > 1
    for i, level in enumerate(stopped.stops.sigma.tolist()):
        fixed = draw(level, solver=solver) if level else Sampler(solver, grid)(smooth_mixture(), 6, seed=5, dtype=F64)
        assert torch.equal(stopped.x[i], fixed.x[i])
        assert int(stopped.stops.nfe[i]) == fixed.nfe


def test_the_run_ends_with_its_last_sample():
    """No evaluation is spent once all have stopped; the plan's NFE is the most that can be."""
    calls = []

    def counted(x, sigma):
        calls.append(sigma)
        return x / (1 + sigma * sigma)

    plan = Sampler("heun", karras(12), finish=Jump(lambda step: step.index == 3))
    out = plan.run(FunctionDenoiser(counted, (2,)), START.expand(2, 2))
    assert len(calls) == out.nfe == 7 < plan.nfe == 23
    assert out.stops.nfe.tolist() == [7, 7]


def test_a_function_sees_the_preview_and_may_answer_for_each_sample():
    seen, shown = [], []

    def rule(step):
        seen.append(step)
        assert step.index == 0 or torch.equal(step.previous, seen[-2].denoised)
        return step.denoised[:, 0] > 0.5

    out = draw(rule, callback=shown.append)
    assert [s.index for s in shown] == [s.index for s in seen] == list(range(len(seen)))
    assert shown[0].previous is None
    assert torch.equal(shown[2].denoised, seen[2].denoised)
    stopped = out.stops.sigma > 0
    assert 0 < int(stopped.sum()) < 6
    assert bool((out.x[stopped][:, 0] > 0.5).all())
    assert seen[0].x.shape == (6, 2)  # the rows that only fill a small batch are not shown
    for wrong in (lambda step: 1.0, lambda step: torch.ones(3, dtype=torch.bool)):
        with pytest.raises(ArgumentError, match="the stop rule gave"):
            draw(wrong)


def test_a_jump_shows_the_output_before():
    shown = []
    draw(0.4, callback=shown.append)
    assert all(torch.equal(b.previous, a.denoised) for a, b in pairwise(shown))
    assert shown[-1].sigma_next == 0


@pytest.mark.parametrize("noise", [Churn(5.0, s_max=20.0), Ancestral(0.7)])
def test_jumps_on_stochastic_runs(noise):
    """The jump applies to any step of a run with noise; without a stop the samples are those of the whole run."""
    plan = Sampler("heun", karras(10, 0.05, 40.0), noise=noise)
    path = plan(smooth_mixture(), 5, seed=2, dtype=F64, trajectory=True).trajectory
    stop = Sampler("heun", plan.grid, noise=noise, finish=Jump(lambda step: step.index == 4))
    out = stop(smooth_mixture(), 5, seed=2, dtype=F64)
    assert torch.equal(out.x, path.denoised[4])
    assert float(out.stops.sigma[0]) == path.sigmas[4]
    never = Sampler("heun", plan.grid, noise=noise, finish=Jump(lambda step: False))
    assert torch.equal(never(smooth_mixture(), 5, seed=2, dtype=F64).x, path.states[-1])


def test_last_step_of_the_whole_run_is_the_jump_at_the_lowest_level():
    """Erratum E24: x_0 = r_1 holds where the last step is Euler's, for all solvers here but PNDM."""
    for solver in JUMPING:
        grid = karras(8, 0.05, 40.0)
        plain = Sampler(solver, grid).run(smooth_mixture(), START, trajectory=True)
        jumped = Sampler(solver, grid, finish=Jump(AtIndex(1))).run(smooth_mixture(), START)
        torch.testing.assert_close(plain.trajectory.denoised[-1], plain.x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(jumped.x, plain.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [0.3, AtIndex(3), Budget(9), SmallChange(0.05), SmallChange(0.05, None)])
def test_json_round_trip(rule):
    plan = Sampler("dpmpp_2m", karras(12), finish=Jump(rule))
    text = plan.to_json()
    again = Sampler.from_json(text)
    assert again.finish == plan.finish
    assert again.to_json() == text
    assert json.loads(text)["nfe"] == plan.nfe


def test_json_refusals():
    with pytest.raises(ArgumentError, match="function as stop rule"):
        Sampler(finish=Jump(lambda step: True)).to_json()
    plan = json.loads(Sampler(finish=Jump(AtIndex(2))).to_json())
    for spec, error, words in (
        ({"name": "later"}, ArgumentError, "unknown stop rule"),
        ({"name": "index", "n": 2, "k": 1}, ArgumentError, "no option 'k'"),
        ({"name": "index"}, ArgumentError, "lacks an option"),
        ({"name": "function", "function": "print"}, ArgumentError, "unknown stop rule"),
        ("0.3", ArgumentError, "positive noise level"),
    ):
        plan["finish"]["at"] = spec
        with pytest.raises(error, match=words):
            Sampler.from_json(json.dumps(plan))
    plan["finish"] = {"name": "jump"}
    with pytest.raises(DataError, match="missing"):
        Sampler.from_json(json.dumps(plan))


def test_refusals():
    for make, words in (
        (lambda: Jump(-1.0), "positive noise level"),
        (lambda: Jump(True), "positive noise level"),
        (lambda: Jump(None), "positive noise level"),
        (lambda: AtIndex(0), "1 for the lowest"),
        (lambda: AtIndex(2.5), "1 for the lowest"),
        (lambda: Budget(0), "at least 1 evaluation"),
        (lambda: SmallChange(0.0), "tol = 0"),
        (lambda: SmallChange(float("inf")), "tol = inf"),
        (lambda: SmallChange(0.1, -1.0), "below = -1"),
        (lambda: Sampler("heun", karras(4), finish=Jump(AtIndex(5))), "4 levels"),
        (lambda: Sampler("heun", karras(4), finish=Jump(Budget(9))).with_nfe(5), "its own evaluations"),
    ):
        with pytest.raises(ArgumentError, match=words):
            make()
    assert isinstance(Jump(lambda step: True).at, StopFunction)
    twice = [lambda x, sigma, d: d]
    assert Sampler("heun", karras(4), finish=Jump(Budget(1)), guidance=twice).nfe == 1
