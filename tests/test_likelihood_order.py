"""The likelihood ordering of sampling with the corrected bandwidth, on facts of the geometry paper and in the analysis."""

import json

import pytest
import torch

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.likelihood_order import LikelihoodOrder, likelihood_order, measure_order
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.experiments.base import EXPERIMENTS, Settings, to_dict
from farfield.experiments.likelihood_ordering import counterexamples, measured, random_cases
from farfield.sampling import Sampler, Trajectory, karras

from .laws import T1
from .test_empirical import StudentT

F64 = torch.float64
X = torch.tensor([[0.5, 0.5]], dtype=F64)
#: The run of facts 38 and 39.
START = torch.tensor([[40.0, -25.0]], dtype=F64)


def path(law=None, start=START, solver="euler", n=18):
    law = law if law is not None else Empirical(T1)
    return Sampler(solver, karras(n)).run(law, start, trajectory=True).trajectory


def random_pairs(count, rows, seed=0):
    """Random laws with states (rows, d), bandwidths and generators."""
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return low + (high - low) * float(torch.rand((), generator=generator))

    for _ in range(count):
        d, points = 1 + int(number(0, 5)), 1 + int(number(0, 29))
        law = Empirical(torch.randn(points, d, generator=generator, dtype=F64))
        x = 3 * torch.randn(rows, d, generator=generator, dtype=F64)
        yield law, x, 10 ** number(-1, 1), 10 ** number(-1, 1), generator


def test_whatever_is_in_the_ball_is_as_likely():
    """Geometry fact 36: no violation at the mean's own bandwidth in 8000 random cases, hundreds at an unrelated one."""
    own = other = total = 0
    for law, x, h, unrelated, generator in random_pairs(80, 100):
        mean = law(x, h)
        v = torch.randn(x.shape, generator=generator, dtype=F64)
        share = torch.rand(len(x), 1, generator=generator, dtype=F64)
        y = mean + share * (mean - x).norm(dim=1, keepdim=True) * v / v.norm(dim=1, keepdim=True)
        euler = share * x + (1 - share) * y  # a step with a model's output y, whatever its length
        for state in (y, euler):
            own += int((law.log_prob(state, h) < law.log_prob(x, h) - 1e-12).sum())
        other += int((law.log_prob(y, unrelated) < law.log_prob(x, unrelated) - 1e-12).sum())
        total += len(x)
    assert total == 8000
    assert own == 0
    assert other > 100
    assert random_cases(0, 100)[0] == 0


def test_any_bandwidth_is_refuted():
    """Geometry fact 37 (erratum E1): on T2 the density at another bandwidth falls while that of the own one rises."""
    rows = counterexamples().rows
    before, after = [row[2] for row in rows[:4]], [row[3] for row in rows[:4]]
    assert before == pytest.approx([0.69049938, -5.30112141, -0.91860313, -1.83115591], abs=6e-9)
    assert after == pytest.approx([-48.6162326, -5.30104329, -1.19715968, -1.77345823], abs=6e-8)
    assert [row[4] > 0 for row in rows] == [False, True, False, True, *[False] * 5]


def test_a_fixed_bandwidth_falls_along_the_optimal_path():
    """Geometry fact 38: log p_1 on the Euler path of T1; the report with that bandwidth says so and claims nothing there."""
    expected = (-2.768929, -2.777079, -2.781518, -2.783490, -2.784216, -2.784481)
    run = path()
    assert Empirical(T1).log_prob(run.states[-6:, 0], 1.0).tolist() == pytest.approx(list(expected), abs=6e-7)
    found = likelihood_order(run, Empirical(T1), bandwidth=1.0)
    assert not found.own_bandwidth
    assert not found.premise
    assert found.following.losses[-5:] == (1.0,) * 5
    assert found.violations == 0  # where density is lost the state lies outside the ball
    assert "lose density" in found.summary()


def test_likelihood_rank_of_the_optimal_denoiser():
    """Geometry fact 39 (errata E16, E26, E29): p(D*) ≥ p(x_{n−1}) ≥ p(x_n) at all 18 steps, each at its own bandwidth."""
    found = likelihood_order(path(), Empirical(T1))
    assert found.own_bandwidth
    assert found.premise
    assert found.ordered
    assert max(found.denoised.ratio.mean) < 1e-12
    gains, steps = found.denoised.gain.mean, found.following.gain.mean
    assert all(a >= b - 1e-12 and b >= 0 for a, b in zip(gains, steps, strict=True))
    assert "never less likely" in found.summary()
    # The whole segment to the mean rises, and not only its neighbourhood.
    for law, x, h, _, generator in random_pairs(40, 100, seed=1):
        first, second = torch.rand(2, len(x), 1, generator=generator, dtype=F64).sort(0).values
        mean = law(x, h)
        gain = law.log_prob(x + second * (mean - x), h) - law.log_prob(x + first * (mean - x), h)
        assert float(gain.min()) > -1e-11


def test_jensens_bound():
    """Geometry fact 40: the gain is at least the bound for every y; both numbers on T1; equality at y = x."""
    for law, x, h, _, generator in random_pairs(40, 100, seed=2):
        y = x + 2 * torch.randn(x.shape, generator=generator, dtype=F64)
        mean = law(x, h)
        bound = ((x - mean).square().sum(1) - (y - mean).square().sum(1)) / (2 * h * h)
        slack = law.log_prob(y, h) - law.log_prob(x, h) - bound
        assert bool((slack >= -1e-12 * (1 + bound.abs())).all())
    law = Empirical(T1)
    run = Trajectory((1.0, 0.0), torch.stack((X, X)), law(X, 1.0)[None], (0, 1))
    found = likelihood_order(run, law)
    assert found.denoised.gain.mean[0] == pytest.approx(0.014432993, abs=2e-9)
    assert found.denoised.bound.mean[0] == pytest.approx(0.007885828, abs=2e-9)
    assert found.following.ratio.mean == (1.0,)  # y = x: on the sphere, and no gain
    assert found.following.gain.mean == (0.0,)
    assert found.following.bound.mean == (0.0,)
    assert found.ordered


def test_outside_the_ball_nothing_is_claimed():
    """Geometry fact 41: at m + (0, 2R) the density falls, and that is a loss but no violation."""
    law = Empirical(T1)
    mean = law(X, 1.0)
    radius = float((mean - X).norm())
    assert radius == pytest.approx(0.1255852576, abs=6e-11)
    run = Trajectory((1.0, 0.0), torch.stack((X, mean)), (mean + torch.tensor([0.0, 2 * radius]))[None], (0, 1))
    found = likelihood_order(run, law)
    assert found.denoised.gain.mean[0] == pytest.approx(-0.013939503, abs=2e-9)
    assert found.denoised.ratio.mean[0] == pytest.approx(2)
    assert found.denoised.inside == (0.0,)
    assert found.denoised.losses == (1.0,)
    assert found.violations == 0
    assert not found.premise


def test_the_flow_climbs():
    """Geometry 2.10: ⟨D* − x, D − x⟩ ≥ ‖D − x‖²/2 under the premise, so log p_t rises along −dx/dt."""
    for law, x, h, _, generator in random_pairs(20, 50, seed=3):
        mean = law(x, h)
        v = torch.randn(x.shape, generator=generator, dtype=F64)
        share = torch.rand(len(x), 1, generator=generator, dtype=F64)
        r = mean + share * (mean - x).norm(dim=1, keepdim=True) * v / v.norm(dim=1, keepdim=True)
        inner = ((mean - x) * (r - x)).sum(1)
        assert bool((inner >= (r - x).square().sum(1) / 2 * (1 - 1e-12) - 1e-12).all())


def test_fixed_points_have_no_ratio():
    """A state that is its own mean: equality in everything, counted and left out of the ratio."""
    law = Empirical(torch.tensor([[-1.0], [1.0]], dtype=F64))
    zero = torch.zeros(1, 1, dtype=F64)
    found = likelihood_order(Trajectory((2.0, 0.0), torch.stack((zero, zero)), zero[None], (0, 1)), law)
    assert found.fixed == (1,)
    assert found.denoised.ratio.mean == (0.0,)
    assert found.ordered
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_imperfect_model():
    """Jittered points stand for a model: the premise holds far from the data, tightens towards them, and no case violates."""
    data = torch.randn(60, 6, dtype=F64)
    law = Empirical(data)

    def jittered(x, s):
        wide = torch.sqrt(s * s + 0.04)
        return x + s**2 / wide**2 * (law(x, wide) - x)

    found = measure_order(FunctionDenoiser(jittered, (6,), 0.002, 80.0), law, n=40, steps=20)
    assert found.violations == 0
    assert found.denoised.highest_ratio < 1
    ratios = found.denoised.ratio.mean
    assert ratios[0] < 0.01 < ratios[-1]
    assert min(found.denoised.gain.mean) > 0
    assert found.sampler == "euler, 20 steps"
    heun = measure_order(
        FunctionDenoiser(jittered, (6,), 0.002, 80.0), law, n=40, steps=20, solver="heun", batch_size=7
    )
    assert heun.violations == 0
    whole = measure_order(FunctionDenoiser(jittered, (6,), 0.002, 80.0), law, n=40, steps=20, solver="heun")
    assert whole.denoised.gain.mean == pytest.approx(heun.denoised.gain.mean, rel=1e-3)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_other_laws(kind):
    """The inequality is one of every law blurred by Gaussian noise, not of point masses alone."""
    law = (
        Gaussian(torch.tensor([1.0, -1.0], dtype=F64), torch.diag(torch.tensor([4.0, 0.25], dtype=F64)))
        if kind == "gaussian"
        else GaussianMixture(
            [0.3, 0.7], torch.tensor([[-2.0, 0], [1.0, 1.0]], dtype=F64), torch.eye(2, dtype=F64).repeat(2, 1, 1)
        )
    )
    off = FunctionDenoiser(lambda x, s: 0.98 * law(x, s), (2,), 0.002, 80.0)
    found = measure_order(off, law, n=30)
    assert found.violations == 0
    assert found.points is None
    assert measure_order(law, law, n=5).ordered


def test_table_figure_and_dictionary():
    """One row for each level; two panels; plain values."""
    found = likelihood_order(path(start=START * torch.linspace(0.5, 1.5, 9, dtype=F64)[:, None]), Empirical(T1))
    assert isinstance(found, LikelihoodOrder)
    (table,) = found.tables()
    assert len(table.rows) == 18
    assert all(len(row) == len(table.columns) for row in table.rows)
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored["violations"] == 0
    assert stored["points"] == 3
    figure = found.plot()
    assert len(figure.axes) == 2
    assert figure.axes[0].get_yscale() == "log"
    fixed = likelihood_order(path(), Empirical(T1), bandwidth=1.0).plot()
    assert fixed.axes[0].get_yscale() == "symlog"


def test_within_the_likelihood_analysis():
    """``farfield analyze --what likelihood``: the order beside the bits, and either alone."""
    data = (torch.randn(60, 4, dtype=F64) * 4).round() / 8
    subject = Subject(Gaussian.fit(data), data, heldout=data[:7])
    both = analyze("likelihood", subject, {"n": 2, "trajectories": 6, "steps": 8})
    assert both.order.n == 6
    assert both.order.violations == 0
    assert len(both.tables()) == 2
    assert len(both.plot().axes) == 3
    assert "bits/dim" in both.summary()
    assert "trajectories" in both.summary()
    json.dumps(both.to_dict(), allow_nan=False)
    bits = analyze("likelihood", subject, {"n": 2, "ordering": False})
    assert bits.order is None
    assert len(bits.plot().axes) == 1
    order = analyze("likelihood", subject, {"bits": False, "solver": "heun", "bandwidth": 1.0, "trajectories": 4})
    assert order.sets == {}
    assert order.gap is None
    assert len(order.tables()) == 1
    assert len(order.plot().axes) == 2
    assert order.order.bandwidths == (1.0,) * 18
    with pytest.raises(ArgumentError, match="both false"):
        analyze("likelihood", subject, {"bits": False, "ordering": False})


def test_the_experiment():
    """Claim, tables and verdict on a few trajectories of the bundled digits."""
    outcome = measured(Settings(data=("digits",)), 4, ("euler",), limit=200)
    assert outcome.verdict in ("holds", "holds in part")
    assert "0 violations" in outcome.because
    assert outcome.tables[1].rows[0][:2] == ("digits", "euler")
    assert outcome.tables[1].rows[0][-1] == 0
    assert list(outcome.figures) == ["ordering-euler-digits"]
    json.dumps(to_dict(EXPERIMENTS["likelihood-ordering"], outcome))


def test_mistakes_are_named():
    """Laws, shapes, bandwidths and records that do not fit."""
    run = path()
    with pytest.raises(ArgumentError, match="Gaussian kernels"):
        likelihood_order(run, Empirical(T1, StudentT(3.0)))
    with pytest.raises(ArgumentError, match="the law \\(3,\\)"):
        likelihood_order(run, Empirical(torch.randn(4, 3)))
    with pytest.raises(ArgumentError, match="bandwidth = -1"):
        likelihood_order(run, Empirical(T1), bandwidth=-1.0)
    with pytest.raises(ArgumentError, match="every step of a run"):
        likelihood_order(Trajectory((1.0,), run.states[:1], run.denoised[:1], (0,)), Empirical(T1))
    with pytest.raises(ArgumentError, match="n = 0"):
        measure_order(Empirical(T1), Empirical(T1), n=0)
    with pytest.raises(ArgumentError, match="unknown solver"):
        measure_order(Empirical(T1), Empirical(T1), solver="rungekutta")
