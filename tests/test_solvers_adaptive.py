"""The adaptive rule: SciPy's integrator sample by sample, tolerances, batches, evaluations, refusals."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError, NonFiniteError
from farfield.processes.base import expand
from farfield.sampling import AtLastLevel, ClassifierFree, FunctionGuidance, Jump, Sampler, Teleport, karras
from farfield.sampling.noise import Churn
from farfield.sampling.solvers import PLANNED, RK45, SOLVERS, make_solver
from farfield.sampling.stop_rules import SmallChange
from tests.laws import T1, points

F64 = torch.float64
GRID = karras(8, 0.5, 5.0)
LAW = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64))


def states(n, scale=5.0):
    return scale * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def alone(law, x, start, end, tolerance):
    """SciPy's integration of one sample in log σ: the end and the evaluations."""

    def field(u, y):
        state = torch.from_numpy(y).view(1, -1)
        return (state - law(state, math.exp(u)))[0].numpy()

    found = solve_ivp(field, (math.log(start), math.log(end)), x.numpy(), "RK45", rtol=tolerance, atol=tolerance)
    return torch.from_numpy(found.y[:, -1]), found.nfev


@pytest.mark.parametrize("law", [Empirical(T1), LAW], ids=["points", "gaussian"])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_every_sample_takes_the_steps_of_scipy(law, tolerance):
    """The independent counterpart, which sees one sample at a time: the same ends and the same number of evaluations."""
    x = states(6)
    out = Sampler(RK45(tolerance, tolerance), GRID, finish=AtLastLevel()).run(law, x)
    ends, counts = zip(*(alone(law, row, 5.0, 0.5, tolerance) for row in x), strict=True)
    torch.testing.assert_close(out.x, torch.stack(ends), rtol=1e-10, atol=1e-11)
    assert out.nfe == max(counts)
    assert len(set(counts)) > 1


def test_error_follows_the_tolerance():
    x, errors, spent = states(8, 80.0), [], []
    end = LAW.flow(x, 80.0, 0.002)
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10):
        out = Sampler(RK45(tolerance, tolerance), karras(4), finish=AtLastLevel()).run(LAW, x)
        errors.append(float((out.x - end).norm(dim=1).max()))
        spent.append(out.nfe)
        assert errors[-1] < 10 * tolerance
    assert spent == sorted(spent)
    # A method of order five: five times more digits for each factor of ten in the evaluations.
    order = math.log(errors[2] / errors[4]) / math.log(spent[4] / spent[2])
    assert 4 < order < 7


@pytest.mark.parametrize("law", [LAW, Empirical(T1)], ids=["gaussian", "points"])
def test_order(law):
    """With a tolerance that every step meets and stops on a grid there is one step between two stops."""
    x = torch.tensor([[3.0, -2.0]], dtype=F64)
    end = Sampler(RK45(1e-13, 1e-13), GRID, finish=AtLastLevel()).run(law, x).x
    errors = []
    for n in (24, 48):
        grid = [5.0 * 10 ** (-k / n) for k in range(n + 1)]
        out = Sampler(RK45(1e6, 1e6, "grid"), grid, finish=AtLastLevel()).run(law, x)
        assert out.nfe == 7 * n + 1
        errors.append(float((out.x - end).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(RK45().order, abs=0.3)


# -- batches and runs -------------------------------------------------------------------------------------------------


def test_samples_do_not_depend_on_the_batch():
    """Error, steps and level are each sample's own; a share in one step size would move samples by about the tolerance."""
    law, sampler = Empirical(T1), Sampler(RK45(1e-3, 1e-3), karras(6))
    whole = sampler(law, n=23, seed=7)
    for size in (1, 5, 16, 64):
        part = sampler(law, n=23, seed=7, batch_size=size)
        torch.testing.assert_close(part.x, whole.x, rtol=0, atol=1e-6)
        assert part.nfe == whole.nfe
    one = sampler(law, n=1, seed=7, first=11)
    torch.testing.assert_close(one.x[0], whole.x[11], rtol=0, atol=1e-6)
    assert one.nfe <= whole.nfe


def test_the_denoiser_is_asked_at_a_level_for_each_sample():
    seen = []

    def law(x, sigma):
        seen.append(sigma.clone())
        return x / (1 + expand(sigma, x) ** 2)

    out = Sampler(RK45(), karras(5)).run(FunctionDenoiser(law, (2,)), states(4, 80.0))
    assert out.nfe == len(seen)
    levels = torch.stack([s.expand(4) for s in seen])
    assert (levels.amax(1) > levels.amin(1)).any()
    assert levels.min() >= 0.002 * (1 - 1e-12)
    assert levels.max() <= 80.0


def test_ends_and_stops():
    """The levels between the ends are passed over, or kept where that is asked for; the last step is Euler's."""
    x = states(3, 80.0)
    short = Sampler("rk45", karras(6)).run(LAW, x, trajectory=True)
    assert short.trajectory.sigmas == pytest.approx((80.0, 0.002, 0.0))
    assert torch.equal(short.x, short.trajectory.denoised[-1])
    long = Sampler(RK45(stops_at="grid"), karras(6)).run(LAW, x, trajectory=True)
    assert long.trajectory.sigmas == pytest.approx(tuple(karras(6)))
    assert long.nfe > short.nfe
    for sigma, state in zip(long.trajectory.sigmas, long.trajectory.states, strict=True):
        if sigma:
            torch.testing.assert_close(state, LAW.flow(x, 80.0, sigma), rtol=2e-3, atol=2e-3)
    assert Sampler("rk45", [3.0]).run(LAW, x).nfe == 1
    jumped = Sampler("rk45", karras(9), finish=Jump(karras(9)[5])).run(LAW, x)
    torch.testing.assert_close(jumped.x, LAW(LAW.flow(x, 80.0, karras(9)[5]), karras(9)[5]), rtol=1e-3, atol=1e-3)


def test_other_parts_of_a_sampler():
    """Late starts, options as data, and guidance, whose functions see levels that broadcast against the states."""
    x = LAW.flow(states(3, 80.0), 80.0, 4.0)
    sampler = Sampler("rk45", karras(6), Teleport(LAW, 4.0))
    assert sampler.levels[0] == pytest.approx(4.0)
    torch.testing.assert_close(sampler.run(LAW, x).x, LAW.flow(x, 4.0, 0.0), rtol=1e-2, atol=1e-2)
    rule = RK45(1e-3, 1e-5, "grid", 50)
    assert make_solver(**rule.to_dict()) == rule
    pull = FunctionGuidance(lambda x, s, d: d + 0.5 * s**2 / (1 + s**2) * (1 - d))
    guided = Sampler(RK45(1e-8, 1e-8), GRID, guidance=pull, finish=AtLastLevel()).run(LAW, states(4))
    fine = Sampler("dpm3", karras(600, 0.5, 5.0), guidance=pull, finish=AtLastLevel()).run(LAW, states(4))
    torch.testing.assert_close(guided.x, fine.x, rtol=1e-6, atol=1e-6)
    double = Sampler(RK45(), karras(6), guidance=ClassifierFree(2.0))
    data = Empirical(T1, labels=torch.tensor([0, 1, 1]))
    out = double.run(data, states(3, 80.0), labels=torch.tensor([0, 1, 1]))
    assert out.nfe % 2 == 0
    assert out.x[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-3)


def test_a_stop_rule_looks_at_the_stops():
    """Between the ends there is nothing to look at, which would leave the rule without effect; on the grid there is."""
    rule = Jump(SmallChange(0.2, 5.0))
    with pytest.raises(ArgumentError, match=r"'rk45' passes over the levels .* stops_at='grid'"):
        Sampler("rk45", karras(9), finish=rule)
    plan = Sampler(RK45(stops_at="grid"), karras(9), finish=rule)
    whole, parts = (plan(Empirical(T1), n=11, seed=2, batch_size=size) for size in (None, 3))
    assert torch.equal(whole.stops.sigma, parts.stops.sigma)
    torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-6)
    assert set(whole.stops.sigma.tolist()) <= set(plan.levels)
    assert len(set(whole.stops.sigma.tolist())) > 1


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_evaluations_are_not_known_before_a_run():
    assert SOLVERS["rk45"].adaptive
    assert set(SOLVERS) - set(PLANNED) == {"rk45"}
    sampler = Sampler("rk45")
    with pytest.raises(ArgumentError, match=r"'rk45' chooses its own steps: .* Samples\.nfe"):
        _ = sampler.nfe
    with pytest.raises(ArgumentError, match="chooses its own steps"):
        sampler.with_nfe(20)
    assert "6 for each step tried" in str(sampler.rule.describe())


def test_parts_that_do_not_fit():
    with pytest.raises(ArgumentError, match="noise between its steps"):
        Sampler("rk45", noise=Churn(10.0))
    with pytest.raises(ArgumentError, match="level of its own for each sample"):
        Sampler("rk45", guidance=ClassifierFree(2.0, (0.1, 1.0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, r"rtol = 0\.0; expected a positive number"),
        ({"atol": math.inf}, "atol = inf"),
        ({"rtol": True}, "rtol = True"),
        ({"stops_at": "levels"}, "expected 'ends' or 'grid'"),
        ({"max_steps": 0}, "max_steps = 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ArgumentError, match=message):
        RK45(**options)


def test_what_cannot_be_integrated():
    with pytest.raises(ArgumentError, match=r"3 steps from sigma = 80 to 0\.002 were not enough; choose larger"):
        Sampler(RK45(max_steps=3)).run(LAW, states(2, 80.0))
    holed = FunctionDenoiser(lambda x, s: torch.where(expand(s, x) < 1, torch.nan, x / 2), (2,))
    with pytest.raises(NonFiniteError, match="2 of 2 samples"):
        Sampler("rk45").run(holed, states(2, 80.0))


def test_in_float32():
    """The state's type is kept; error control is in float64."""
    x = states(4, 80.0)
    out = Sampler(RK45(1e-5, 1e-5), karras(4), finish=AtLastLevel()).run(LAW, x.float()).x
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), LAW.flow(x, 80.0, 0.002), rtol=1e-4, atol=1e-4)


def test_a_point_is_reached_exactly():
    """Where nothing moves, the first step's length has no slope to go by."""
    law = points(torch.zeros(1, 2, dtype=F64))
    flat = FunctionDenoiser(lambda x, sigma: law(x, torch.ones(())), (2,))
    out = Sampler("rk45", karras(4)).run(flat, torch.zeros(2, 2, dtype=F64))
    assert torch.equal(out.x, torch.zeros(2, 2, dtype=F64))
