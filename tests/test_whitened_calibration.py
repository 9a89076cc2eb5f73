"""Gains measured on the model: what they are on exact laws, what they make exact, and that they keep out of the way."""

import json
import math

import numpy as np
import pytest
import torch

from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import AtLastLevel, Sampler, karras, log_snr
from farfield.sampling.calibration import calibrate
from farfield.sampling.solvers import Whitened, make_solver
from farfield.sampling.solvers.exponential import level_number
from farfield.sampling.solvers.gains import GainTable
from tests.laws import smooth_mixture

F64 = torch.float64
MEAN = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=F64)
#: What the solver is given, and a law with other variances along the same directions.
GIVEN = {
    "whole": Spectrum.diagonal(torch.tensor([4.0, 0.25, 0.04, 0.04], dtype=F64)),
    "low-rank": Spectrum.low_rank(torch.eye(4, dtype=F64)[:, :2], [4.0, 0.25], tail=0.04),
}
LAW = Gaussian(MEAN, Spectrum.diagonal(torch.tensor([6.0, 0.1, 0.09, 0.09], dtype=F64)))
X = torch.tensor([[40.0, -80.0, 120.0, 10.0], [0.3, 0.2, -0.1, 7.0]], dtype=F64)
LEVELS = log_snr(241).levels
#: Far from the covariance of the mixture.
WIDE = Gaussian(torch.tensor([0.2, 0.1], dtype=F64), torch.diag(torch.tensor([3.0, 0.3], dtype=F64)))


def deviations(given, scale=1.0):
    """δ of LAW, its denoiser times a scale, against a given covariance, a column for each of its modes."""
    actual, levels = [6.0, 0.1, 0.09, 0.09], torch.tensor(LEVELS, dtype=F64)[:, None] ** 2
    columns = given.rank + 1
    known = torch.cat((given.values, torch.full((1,), given.tail, dtype=F64)))
    actual = torch.tensor([*actual[: columns - 1], 0.09], dtype=F64)
    return scale * actual / (actual + levels) - known / (known + levels)


@pytest.mark.parametrize("kind", GIVEN)
def test_measured_gains_are_those_of_the_law(kind):
    """``λ/(λ + σ²)`` with the law's own λ, though the solver was given another covariance."""
    given = Gaussian(MEAN, GIVEN[kind])
    table = calibrate(LAW, given, 48, seed=3, levels=13, caution=0.0)
    assert table.evaluations == 48 * 13
    assert table.sigmas == pytest.approx(log_snr(13).levels)
    for sigma, row in zip(table.sigmas, table.deviations, strict=True):
        s2, columns = sigma * sigma, given.spectrum.rank
        wanted = [6 / (6 + s2) - 4 / (4 + s2), 0.1 / (0.1 + s2) - 0.25 / (0.25 + s2)]
        wanted += [0.09 / (0.09 + s2) - 0.04 / (0.04 + s2)] * (columns - 2)
        assert row[:columns].tolist() == pytest.approx(wanted, abs=2e-5)
        if given.spectrum.tail_dim:
            assert float(row[-1]) == pytest.approx(0.09 / (0.09 + s2) - 0.04 / (0.04 + s2), abs=2e-5)


def test_gains_of_the_right_gaussian_are_nothing():
    assert calibrate(LAW, LAW, 16, levels=9).largest < 1e-5


def test_what_is_left_is_uncorrelated_with_the_state():
    """On other runs than those of the calibration: the slope of the residual on the state is gone in both modes."""
    law, spectrum = smooth_mixture(), WIDE.spectrum
    table = calibrate(law, WIDE, 256, levels=9)
    clear = []

    def look(step):
        z, p = (spectrum.project(v - WIDE.mean) for v in (step.x, step.denoised))
        before = p - spectrum.values / (spectrum.values + step.sigma**2) * z
        after = before - table.at(step.sigma)[:2] * z
        slopes = [float(((z - z.mean(0)) * r).mean(0).div(z.var(0)).abs().max()) for r in (before, after)]
        if slopes[0] > 0.05:
            clear.append(slopes[1] / slopes[0])

    Sampler(Whitened(3), log_snr(9), covariance=WIDE)(law, 512, 5, callback=look, dtype=F64)
    assert len(clear) >= 2
    assert max(clear) < 0.3


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize(("a", "b"), [(80.0, 0.5), (3.0, 0.01), (80.0, 0.0), (0.7, 0.0)])
def test_one_step_is_exact_with_the_gains_of_the_law(kind, a, b):
    """The covariance is wrong, the gains make up for it: whitened_solver fact 1 for a law of other variances."""
    gaussian = Gaussian(MEAN, GIVEN[kind])
    table = GainTable(LEVELS, deviations(gaussian.spectrum))
    finish = {} if b == 0 else {"finish": AtLastLevel()}
    end = LAW.flow(X, a, b)
    plain = Sampler("whitened", [a, b], covariance=gaussian, **finish).run(LAW, X).x
    out = Sampler(Whitened(gains=table), [a, b], covariance=gaussian, **finish).run(LAW, X).x
    torch.testing.assert_close(out, end, rtol=2e-4, atol=2e-4)
    assert float((plain - end).abs().max()) > 20 * float((out - end).abs().max())


@pytest.mark.parametrize("kind", GIVEN)
def test_a_denoiser_of_the_wrong_scale_is_integrated_exactly(kind):
    """``D = μ + 1.1 λ/(λ + σ²)(x − μ)``: z(b)/z(a) = (b/a) [(b/sqrt(b² + λ))/(a/sqrt(a² + λ))]^−1.1."""
    scaled = FunctionDenoiser(lambda x, s: MEAN + 1.1 * (LAW(x, s) - MEAN), (4,))
    gaussian, a, b = Gaussian(MEAN, GIVEN[kind]), 80.0, 0.5
    lam = torch.tensor([6.0, 0.1, 0.09, 0.09], dtype=F64)
    ratio = b / (b * b + lam).sqrt() / (a / (a * a + lam).sqrt())
    end = MEAN + (X - MEAN) * (b / a) * ratio**-1.1
    for table in (
        GainTable(LEVELS, deviations(gaussian.spectrum, 1.1)),
        calibrate(scaled, gaussian, 32, levels=61, sigma_min=0.5, sigma_max=80.0),
    ):
        out = Sampler(Whitened(gains=table), [a, b], covariance=gaussian, finish=AtLastLevel()).run(scaled, X).x
        torch.testing.assert_close(out, end, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("corrector", ["longer", "always"])
def test_order_with_gains(corrector):
    """Gains change the constant of the error, not its order."""
    law, gaussian = smooth_mixture(), WIDE
    table = calibrate(law, gaussian, 32, levels=9, sigma_min=0.5, sigma_max=5.0)
    assert table.largest > 0.05
    x = torch.tensor([[3.0, -2.0], [0.7, 2.5]], dtype=F64)
    rule = Whitened(2, corrector=corrector, gains=table)
    fine = Sampler(Whitened(3), karras(501, 0.5, 5.0), finish=AtLastLevel()).run(law, x).x
    errors = [
        float((Sampler(rule, karras(n + 1, 0.5, 5.0), finish=AtLastLevel(), covariance=gaussian).run(law, x).x - fine).norm())
        for n in (80, 160)
    ]  # fmt: skip
    assert math.log2(errors[0] / errors[1]) > rule.converges - 0.4


def test_caution_draws_what_is_not_sure_to_nothing():
    bold, usual, timid = (
        calibrate(smooth_mixture(), WIDE, 32, levels=7, caution=c).deviations[:, :2] for c in (0.0, 1.0, 1e3)
    )
    assert bool((usual.abs() <= bold.abs()).all())
    assert float(usual.abs().max()) > 0.05
    assert float(timid.abs().max()) == 0


def test_batches_change_nothing_but_rounding():
    whole, parts = (calibrate(smooth_mixture(), WIDE, 10, levels=5, batch_size=size) for size in (None, 4))
    torch.testing.assert_close(whole.deviations, parts.deviations, rtol=1e-4, atol=1e-5)


def test_a_calibrated_sampler_round_trips():
    table = calibrate(LAW, Gaussian(MEAN, GIVEN["low-rank"]), 8, levels=5)
    sampler = Sampler(Whitened(2, gains=table), karras(5), covariance=Gaussian(MEAN, GIVEN["low-rank"]))
    again = Sampler.from_json(sampler.to_json())
    assert again.solver == sampler.solver
    assert again.solver.gains.evaluations == 40
    assert torch.equal(again(LAW, 3, 1).x, sampler(LAW, 3, 1).x)
    assert hash(again.solver) == hash(sampler.solver)
    assert "5 levels, 3 modes" in str(sampler.rule.describe())


# -- the rule's other options -------------------------------------------------------------------------------------------


def test_stored_rules_keep_their_meaning():
    """As written before there was a longer corrector, with every option of its time."""
    stored = {"name": "whitened", "order": 3, "exponent": 1 / 7, "unit": "posterior", "corrector": "always"}
    rule = make_solver(**stored)
    assert rule == Whitened(3, corrector="always")
    assert json.loads(json.dumps(rule.to_dict())).items() >= stored.items()
    assert "gains" not in rule.to_dict()


def test_short_runs_predict_from_two_residuals():
    x = torch.tensor([[30.0, -70.0]], dtype=F64)

    def end(rule, n):
        return Sampler(rule, karras(n, 0.05, 80.0)).run(smooth_mixture(), x).x

    assert torch.equal(end(Whitened(3, short=6), 6), end(Whitened(2), 6))
    assert torch.equal(end(Whitened(3, short=6), 7), end(Whitened(3, short=0), 7))
    assert not torch.equal(end(Whitened(3, short=6), 6), end(Whitened(3, short=0), 6))
    assert torch.equal(end(Whitened(3, corrector="always"), 6), end(Whitened(3, corrector="always", short=0), 6))


def test_the_longer_corrector_goes_through_one_residual_more():
    """With D = 3 + 2σ, a line in u = σ, order 1 is exact but for its last step, which nothing corrects.

    Without a covariance ``x(σ) = 3 + A σ − 2 σ log σ``, and that step returns ``x' = (σ'/σ) x + (1 − σ'/σ) D(σ)``.
    """
    line = FunctionDenoiser(lambda x, s: 3 + 2 * s + 0 * x, (1,))
    x = torch.tensor([[7.0]], dtype=F64)
    slope = (7.0 - 3 + 2 * 4 * math.log(4)) / 4
    end = 0.5 * (3 + slope) + 0.5 * (3 + 2)
    for corrector, exact in (("longer", True), ("always", False)):
        rule = Whitened(1, 1, corrector=corrector, short=0)
        run = Sampler(rule, [4.0, 2.5, 1.0, 0.5], finish=AtLastLevel()).run(line, x)
        assert run.nfe == 3
        assert (float(run.x) == pytest.approx(end, abs=1e-12)) is exact


def test_description():
    rule = Whitened()
    assert (rule.describe().order, rule.converges, Whitened(1).converges) == (3, 3, 2)
    assert Whitened(3, corrector="never").converges == 2
    assert "UniPC" in str(rule.describe())
    assert rule.describe().options["corrector"] == "longer"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: calibrate(LAW, LAW, 3), "n = 3"),
        (lambda: calibrate(LAW, LAW, 8, levels=1), "levels = 1"),
        (lambda: calibrate(LAW, LAW, 8, caution=-1.0), "caution = -1.0"),
        (lambda: calibrate(LAW, Gaussian(torch.zeros(2), torch.eye(2))), "the model's is"),
        (lambda: Whitened(corrector="often"), "'longer', 'always', 'start' or 'never'"),
        (lambda: Whitened(short=-1), "short = -1"),
        (lambda: Whitened(gains=3), "gains is a int"),
        (lambda: GainTable([1.0, 2.0], torch.zeros(2, 3)), "decrease"),
        (lambda: GainTable([2.0, 1.0], torch.zeros(3, 3)), "shape"),
        (lambda: GainTable([2.0, 1.0], torch.full((2, 1), math.nan)), "finite"),
        (
            lambda: Sampler(
                Whitened(gains=GainTable([2.0, 1.0], torch.zeros(2, 3))),
                [1.0],
                covariance=Gaussian(MEAN, GIVEN["whole"]),
            ).run(LAW, X),
            "gains has 3 modes, the covariance 5",
        ),
    ],
)
def test_refusals(make, match):
    with pytest.raises(ArgumentError, match=match):
        make()


def test_a_broken_table_is_refused():
    good = GainTable([2.0, 1.0], torch.zeros(2, 3)).to_dict()
    for bad in ({}, {**good, "sigmas": "x"}, {**good, "evaluations": None}):
        with pytest.raises(DataError, match="gain table"):
            GainTable.from_dict(bad)


def test_plans_are_made_once_and_again_when_the_law_changes():
    """A grid's coefficients are kept with the covariance, and not beyond a change of its numbers."""
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 80
    law = Gaussian(torch.zeros(3, dtype=torch.float64), torch.diag(torch.tensor([4.0, 1.0, 0.1], dtype=torch.float64)))
    sampler = Sampler("whitened", karras(6), covariance=law)
    legs = sampler.route.legs
    first = sampler.rule.plan(legs, x, law)
    assert sampler.rule.plan(legs, x, law)[0] is first[0]
    assert sampler.rule.plan(legs, x.float(), law)[0] is not first[0]
    torch.testing.assert_close(sampler.run(law, x).x, law.flow(x, 80.0, 0.0))
    law.load_state_dict(
        Gaussian(torch.ones(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64) * 2).state_dict()
    )
    torch.testing.assert_close(sampler.run(law, x).x, law.flow(x, 80.0, 0.0))


def test_short_passes_interpolate_in_the_number_of_the_level():
    """On levels uniform in log σ that is log σ itself; on a grid that jumps it is not used, and one level more ends it."""
    x = torch.tensor([[40.0, -30.0]], dtype=torch.float64)
    law, uniform = smooth_mixture(), log_snr(9)

    def run(grid, **options):
        return Sampler(Whitened(**options), grid).run(law, x).x

    in_log = run(uniform, order=2, exponent=0.0, short=0)
    torch.testing.assert_close(run(uniform, short=9), in_log, rtol=1e-10, atol=1e-10)
    assert torch.equal(run(uniform, short=8), run(uniform, short=0))
    curved = karras(9)
    assert float((run(curved, short=9) - run(curved, order=2, short=0)).abs().max()) > 1e-6
    jumping = [80.0, 79.0, 20.0, 5.0, 1.0, 0.1]
    assert torch.equal(run(jumping, short=9), run(jumping, order=2, short=0))
    assert level_number([1.0, 2.0, 4.0])(np.log([1.0, 2.0, 4.0])).tolist() == [0, 1, 2]
    assert level_number([4.0, 2.0]) is None
