"""Choosing how far to teleport: the measurement on exact laws, the choices, the refusals, and what is predicted of samples."""

import json
import math

import pytest
import torch

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.teleport import far_field_norm, plan_teleport
from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import ClassifierFree, LateStart, Sampler, Teleport, karras
from farfield.sampling.reference_ode import monotone_map

F64 = torch.float64
MIX = {"weights": [0.3, 0.7], "means": [-2.0, 1.0], "variances": [0.09, 0.25]}
T2 = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-2.0], [1.0]], dtype=F64), torch.tensor([[[0.09]], [[0.25]]], dtype=F64)
)
T2_GAUSSIAN = Gaussian(torch.tensor([0.1], dtype=F64), torch.tensor([[2.092]], dtype=F64))
HEUN = Sampler("heun", karras(18))


def plan(denoiser=T2, gaussian=T2_GAUSSIAN, sampler=HEUN, **options):
    return plan_teleport(denoiser, gaussian, sampler, **{"states": 256, "dtype": F64, **options})


# -- what the data say -------------------------------------------------------------------------------------------------


def test_third_cumulant_of_some_of_the_data():
    """Gaussian_score section 2.10, F43: points 0 (0.8) and 1 (0.2) have κ₃ = 0.096, also where only some are looked at."""
    cloud = (torch.arange(20_000) % 5 == 0).double()[:, None]
    assert far_field_norm(cloud) == pytest.approx(0.096**2, rel=0.1)
    assert far_field_norm(cloud, points=2000) != far_field_norm(cloud, seed=1, points=2000)
    gauss = torch.randn(3000, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    assert 0 <= far_field_norm(gauss) < 0.05


# -- the measurement ---------------------------------------------------------------------------------------------------


def test_measured_fractions_of_the_mixture():
    """Gaussian_score F50, on the Gaussian's own path: 1.86e-6 at σ = 10, 1.09e-4 at σ = 5, 1.8e-2 at σ = 2."""
    for sigma, fuv in ((10.0, 1.8610e-6), (5.0, 1.0894e-4), (2.0, 1.8142e-2)):
        found = plan(sigma=sigma, states=8000, strict=False)
        k = found.at(sigma)
        assert found.sigmas[k] == sigma
        assert found.fuv[k] == pytest.approx(fuv, rel=0.12)
        assert abs(found.fuv[k] - fuv) < 4 * found.standard_error[k] + 0.05 * fuv


def test_predicted_error_of_the_state_is_the_true_one():
    """δ(σ) against the exact map of the mixture, from the plan's own noise."""
    z = streams.normal(0, range(256), (1,), purpose="teleport plan", dtype=F64)
    found = plan(sampler=Sampler("heun", karras(60)), tolerance=1e-3)
    for k in (8, 16, 20):
        exact = monotone_map(80 * z, 80.0, found.sigmas[k], **MIX)
        rms = float((T2_GAUSSIAN.flow(80 * z, 80.0, found.sigmas[k]) - exact).square().mean().sqrt())
        assert found.state_error[k] == pytest.approx(rms, rel=0.05)
    assert found.state_error[0] == found.end_error[0] == 0
    # Gaussian_score F48, in brackets: what the teleport to σ₅ = 12.9 does to the samples.
    coarse = plan()
    assert coarse.end_error[4] == pytest.approx(2.3e-4, rel=0.6)
    assert coarse.end_error[5] == pytest.approx(7.3e-4, rel=0.6)


@pytest.mark.parametrize("spectrum", ["dense", "low rank", "cosine"])
def test_a_gaussian_can_be_skipped_to_the_end(spectrum):
    spectra = {
        "dense": Spectrum.from_covariance(torch.diag(torch.tensor([9.0, 1.0, 0.2, 0.1], dtype=F64))),
        "low rank": Spectrum.low_rank(torch.eye(4, dtype=F64)[:, :2], [9.0, 1.0], tail=0.2),
        "cosine": Spectrum.dct((1, 2, 2), [9.0, 1.0, 0.2, 0.1]),
    }
    law = Gaussian(torch.zeros(1, 2, 2, dtype=F64), spectra[spectrum])
    found = plan(law, law)
    assert found.skip == 17
    assert found.nfe_left == found.sampler.nfe == 1
    assert max(found.fuv) < 1e-25
    assert max(found.end_error) < 1e-13
    assert found.verdict == "safe"
    x = found.sampler(law, 4, dtype=F64).x
    start = 80 * streams.normal(0, range(4), (1, 2, 2), purpose="start", dtype=F64)
    torch.testing.assert_close(x, law.flow(start, 80.0, 0.0), rtol=1e-4, atol=1e-4)


def test_checks_on_other_noise():
    """Prediction and measurement agree, for the chosen skip, the one before and the one after."""
    found = plan(check=400, states=400)
    assert [c.skip for c in found.checks] == [found.skip - 1, found.skip, found.skip + 1]
    for c in found.checks:
        assert c.state == pytest.approx(c.predicted_state, rel=0.2)
        assert 0.4 * c.predicted_end < c.end < 2.5 * c.predicted_end
        assert c.median <= c.end
    assert f"changed by {found.checks[1].end:.2g}" in found.summary()


# -- the choices -------------------------------------------------------------------------------------------------------


def test_the_lowest_node_within_the_tolerance():
    """The evaluations fall as planned: 2(n − i) − 1."""
    grid = karras(18)
    for tolerance in (1e-6, 1e-4, 1e-2):
        found = plan(tolerance=tolerance)
        k = found.skip
        assert found.fuv[k] <= tolerance < found.fuv[k + 1]
        assert found.sigma == grid[k]
        assert grid[k] >= found.breakdown >= grid[k + 1]
        assert found.policy == "truncate"
        assert found.nfe_left == found.sampler.nfe == 2 * (18 - k) - 1
        assert found.sampler(T2, 3, dtype=F64).nfe == found.nfe_left
        assert found.saved == pytest.approx(1 - found.nfe_left / 35)


def test_by_skip_and_by_noise():
    by_skip = plan(skip=4)
    assert (by_skip.sigma, by_skip.chosen_by, by_skip.nfe_left) == (karras(18)[4], "skip", 27)
    by_noise = plan(sigma=30.0)
    assert (by_noise.sigma, by_noise.skip, by_noise.chosen_by) == (30.0, 3, "noise")
    assert by_noise.sampler.levels[:2] == (30.0, karras(18)[3])
    assert plan(skip=0).sampler == HEUN
    assert "what was asked for skips nothing; all 35" in plan(skip=0).summary()


def test_by_budget():
    """As few nodes as the budget needs; beyond the tolerance fewer steps below its level."""
    found = plan(nfe=29)
    assert (found.nfe_left, found.skip, found.policy, found.verdict) == (29, 3, "truncate", "safe")
    tight = plan(nfe=15)
    assert tight.nfe_left == 15
    assert tight.policy == "regrid"
    assert tight.sigma == plan().sigma
    regrid = plan(nfe=29, policy="regrid")
    assert (regrid.policy, regrid.nfe_left, regrid.sigma) == ("regrid", 29, plan().sigma)


def test_few_evaluations_are_better_spent_below():
    few = plan(sampler=Sampler("dpmpp_2m", karras(10)))
    assert (few.policy, few.nfe_left, few.saved) == ("regrid", 10, 0.0)
    assert "all of them below it" in few.summary()
    assert plan(sampler=Sampler("dpmpp_2m", karras(10)), policy="truncate").nfe_left < 10


def test_by_data_alone():
    """No evaluation at all; the level is where the far field's leading term reaches the tolerance."""
    draws = T2.sample(20000, torch.Generator().manual_seed(0))

    class Mute(Denoiser):
        def forward(self, x, sigma, **condition):
            raise AssertionError("evaluated")

    found = plan(Mute((1,)), by="data", data=draws)
    assert found.measured is False
    assert found.far_field == pytest.approx((1.9656**2 / 2e-4) ** (1 / 6), rel=0.05)
    assert found.sigma == min(s for s in karras(18).levels if s >= found.far_field)
    assert abs(found.skip - plan().skip) <= 1
    assert found.chosen_by == "data"
    assert "third cumulant" in found.summary()
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(found.plot().axes) == 1
    assert plan(data=draws).far_field == found.far_field


def test_guidance_and_conditions_are_part_of_the_model():
    """What is measured is the field that the sampler integrates."""

    class Conditional(Denoiser):
        def forward(self, x, sigma, labels=None, **condition):
            return (T2 if labels is None else T2_GAUSSIAN)(x, sigma)

    model, label = Conditional((1,)), torch.tensor(0)
    assert plan(model, labels=label).skip == 17
    guided = Sampler("heun", karras(18), guidance=ClassifierFree(0.0))
    found = plan(model, sampler=guided, labels=label)
    assert found.fuv == pytest.approx(plan(T2).fuv, rel=1e-9)
    assert found.nfe_left == sum(2 for _ in found.sampler.visits())


# -- refusals and views ------------------------------------------------------------------------------------------------


def test_a_harmful_level_is_refused():
    with pytest.raises(ArgumentError, match=r"sigma = 1 would do harm: .* it is safe down to 5\.\d"):
        plan(sigma=1.0)
    with pytest.raises(ArgumentError, match=r"over .* unexplained"):
        plan(skip=14)
    assert plan(skip=14, strict=False).verdict == "harmful"
    doubtful = plan(sigma=3.5)
    assert doubtful.verdict == "doubtful"
    assert "(doubtful)" in doubtful.summary()


def test_nothing_to_skip():
    """A model that is not the Gaussian even at the top: no teleport, and the sampler stays as it was."""
    other = Gaussian(torch.tensor([900.0], dtype=F64), torch.tensor([[1.0]], dtype=F64))
    found = plan(other)
    assert (found.skip, found.sampler, found.saved, found.breakdown) == (0, HEUN, 0, None)
    assert found.summary().startswith("No teleport")
    json.dumps(found.to_dict(), allow_nan=False)
    found.plot()


def test_views():
    found = plan(check=8)
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored["skip"] == found.skip
    assert stored["checks"][1]["skip"] == found.skip
    assert stored["sampler"]["start"]["name"] == "teleport"
    levels, checks = found.tables()
    assert len(levels.rows) == len(found.sigmas)
    assert len(checks.rows) == 3
    assert f"{found.nfe_left} of 35 evaluations" in found.summary()
    assert len(found.plot().axes) == 2


def test_registered_analysis():
    model, images = T2.float(), T2.sample(500, torch.Generator().manual_seed(1)).float()
    found = analyze("teleport", Subject(model, images), {"states": 64, "check": 0, "sigma": 1.0})
    assert found.verdict == "harmful"  # reported, not refused
    assert found.far_field is not None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"skip": 3, "sigma": 9.0}, "exclude each other"),
        ({"skip": 18}, "0 to 17 can be skipped"),
        ({"sigma": 90.0}, "outside the grid"),
        ({"by": "data"}, "needs the data"),
        ({"by": "guess"}, "by = 'guess'"),
        ({"policy": "cut"}, "policy = 'cut'"),
        ({"tolerance": 0.0}, "tolerance = 0"),
        ({"states": 1}, "states = 1"),
        ({"sampler": Sampler(start=LateStart(T2_GAUSSIAN, 9.0))}, "starts from 'late_start' already"),
        ({"gaussian": Gaussian(torch.zeros(3), torch.eye(3))}, "expected a Gaussian of the model's shape"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(ArgumentError, match=match):
        plan(**options)


def test_default_sampler():
    found = plan_teleport(T2, T2_GAUSSIAN, dtype=F64)
    assert isinstance(found.sampler.start, Teleport)
    assert found.nfe == 35
    assert math.isclose(found.scale, math.sqrt(2.092))
