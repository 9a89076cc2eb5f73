"""Fresh noise during a run: exact laws on Gaussians, the deterministic limit, streams, counts, refusals."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum
from farfield.processes import DDPM, Diffusion
from farfield.sampling import (
    SOLVERS,
    Ancestral,
    AtLastLevel,
    Churn,
    Jump,
    LateStart,
    Sampler,
    Teleport,
    ddpm,
    karras,
    sampler_json,
)
from farfield.sampling.legs import Leg, Route
from farfield.sampling.solvers import Whitened
from farfield.sampling.solvers.euler import Euler
from tests.laws import T1, points, smooth_mixture

F64 = torch.float64
NOISY = sorted(name for name, solver in SOLVERS.items() if solver.takes_noise)
NOISES = [Churn(30.0), Churn(4.0, 0.0, 60.0), Ancestral(1.0), Ancestral(0.4)]
VARIANCES = torch.tensor([100.0, 4.0, 1.0, 0.09, 0.0], dtype=F64)


def law(variances=VARIANCES):
    return Gaussian(torch.linspace(-1, 1, len(variances), dtype=F64), Spectrum.diagonal(variances))


def named(value):
    return str(value.to_dict().values())[13:-2] if hasattr(value, "to_dict") else str(value)


def end_variance(sampler, denoiser, start_variance, monkeypatch):
    """The exact variance at the end of a run that is linear in its noise: the sum of squared responses to each draw."""
    dim = denoiser.dim
    draws = {"step": None}

    def impulse(seed, index, shape, *, purpose, step, dtype):
        return torch.full((len(index), *shape), 1.0 if step == draws["step"] else 0.0, dtype=dtype)

    monkeypatch.setattr(streams, "normal", impulse)
    zero = torch.zeros(1, dim, dtype=F64)
    base = sampler.run(denoiser, zero).x
    total = (sampler.run(denoiser, zero + 1).x - base).square() * start_variance
    for step in range(len(sampler.route.legs) + 1):
        draws["step"] = step
        total = total + (sampler.run(denoiser, zero).x - base).square()
    return total[0]


# -- the law is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES, ids=named)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_whitened_steps_keep_a_gaussian_whatever_the_noise(noise, order, monkeypatch):
    """Exact steps and exact noise: from N(μ, Σ + σ²) the run ends in N(μ, Σ + σ'²), to rounding, for any number of steps."""
    gaussian = law()
    for finish, last in ((AtLastLevel(), 0.05), (Jump(0.05), None)):
        sampler = Sampler(Whitened(order), karras(5, 0.05, 40.0), covariance=gaussian, noise=noise, finish=finish)
        found = end_variance(sampler, gaussian, VARIANCES + 1600, monkeypatch)
        expected = VARIANCES + 0.0025 if last else (VARIANCES / (VARIANCES + 0.0025)) ** 2 * (VARIANCES + 0.0025)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def one_step_gain(solver, a, b, variances):
    """x' − μ over x − μ for one deterministic step of a one-step rule, written out for a mode of each variance."""
    shrink = variances / (variances + a * a)
    euler = b / a + (1 - b / a) * shrink
    if solver == "euler" or not b:
        return euler
    slope = ((1 - shrink) / a + euler * (1 - variances / (variances + b * b)) / b) / 2
    return 1 - (a - b) * slope


@pytest.mark.parametrize("noise", NOISES, ids=named)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_variance_by_the_recursion(solver, noise, monkeypatch):
    """v' = m² v + lift: the variance of every mode at the end of the run, exactly."""
    grid = karras(9, 0.02, 40.0)
    sampler = Sampler(solver, grid, noise=noise)
    v, at = VARIANCES + 1600, 40.0
    for a, b in noise.steps(list(grid), 9):
        v = v + (a * a - at * at) if a > at else v
        v, at = one_step_gain(solver, a, b, VARIANCES) ** 2 * v, b
    found = end_variance(sampler, law(), VARIANCES + 1600, monkeypatch)
    torch.testing.assert_close(found, v, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("noise", NOISES, ids=named)
def test_variance_of_the_multistep_rule_by_the_recursion(noise, monkeypatch):
    """State and remembered output together: a 2×2 covariance for each mode, extrapolated over the fall of the noise level."""
    grid = karras(9, 0.02, 40.0)
    sampler = Sampler("dpmpp_2m", grid, noise=noise)
    c, at, before = torch.zeros(5, 2, 2, dtype=F64), 40.0, None
    c[:, 0, 0] = VARIANCES + 1600
    steps = noise.steps(list(grid), 9)
    for k, (a, b) in enumerate(steps):
        c[:, 0, 0] += max(a * a - at * at, 0.0)
        if before is not None and a >= before:  # lifted to or above the last start: a new pass without a memory
            before = None
        following = steps[k + 1][0] if k + 1 < len(steps) else 0.0
        level = following if following < a else b
        w = 0.0 if before is None or not b else math.log(a / level) / (2 * math.log(before / a))
        shrink = VARIANCES / (VARIANCES + a * a)
        m = torch.zeros(5, 2, 2, dtype=F64)
        m[:, 0, 0] = b / a + (1 - b / a) * (1 + w) * shrink
        m[:, 0, 1] = -(1 - b / a) * w
        m[:, 1, 0] = shrink
        c, at, before = m @ c @ m.mT, b, a
    found = end_variance(sampler, law(), VARIANCES + 1600, monkeypatch)
    torch.testing.assert_close(found, c[:, 0, 0], rtol=1e-10, atol=1e-14)


def test_samples_have_that_variance():
    """The streams' own noise: 4000 samples of the whitened rule have the law's variance within their error."""
    gaussian = law()
    sampler = Sampler(
        "whitened", karras(5, 0.05, 40.0), LateStart(gaussian, 40.0), covariance=gaussian, noise=Ancestral()
    )
    x = sampler(gaussian, 4000, seed=3, dtype=F64).x
    torch.testing.assert_close(x.var(0)[:4], VARIANCES[:4], rtol=0.08, atol=0)
    torch.testing.assert_close(x.mean(0), gaussian.mean, rtol=0, atol=0.5)
    # Fresh noise in every step: the end does not follow from the start as it does without.
    plain = replace(sampler, noise=None)(gaussian, 4000, seed=3, dtype=F64).x
    assert abs(float(torch.corrcoef(torch.stack((x[:, 2], plain[:, 2])))[0, 1])) < 0.9


# -- published rules ---------------------------------------------------------------------------------------------------


def test_ancestral_euler_is_ddpm():
    """Ancestral(1) with Euler is DDPM's posterior mean and variance, in variance-preserving coordinates."""
    grid, model, table = ddpm(12), smooth_mixture(), DDPM()
    x0 = torch.tensor([[40.0, -25.0], [3.0, 90.0]], dtype=F64)
    out = Sampler("euler", grid, noise=Ancestral(1.0)).run(model, x0, seed=5, trajectory=True)
    kept = [1 / (1 + table.sigma(i) ** 2) for i in grid.indices] + [1.0]  # ᾱ
    y = x0 * math.sqrt(kept[0])
    for k, (now, after) in enumerate(pairwise(kept)):
        denoised = model(y / math.sqrt(now), math.sqrt(1 / now - 1))
        alpha = now / after
        mean = (math.sqrt(after) * (1 - alpha) * denoised + math.sqrt(alpha) * (1 - after) * y) / (1 - now)
        z = streams.normal(5, [0, 1], (2,), purpose="noise", step=k + 1, dtype=F64)
        y = mean + math.sqrt((1 - alpha) * (1 - after) / (1 - now)) * z
        if after < 1:
            torch.testing.assert_close(out.trajectory.states[k + 1], y / math.sqrt(after), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.x, y, rtol=1e-10, atol=1e-10)


def test_ancestral_2m_is_the_sde_rule():
    """At η = 1, SDE-DPM-Solver++(2M): (σ'/σ)² x + (1 − e^{−2h})(D + (h/2h₋)(D − D₋)) + σ' sqrt(1 − e^{−2h}) z."""
    grid, model = karras(7, 0.1, 20.0), smooth_mixture()
    x = torch.tensor([[20.0, -9.0]], dtype=F64)
    out = Sampler("dpmpp_2m", grid, noise=Ancestral(), finish=AtLastLevel()).run(model, x, seed=2, first=7)
    old, before = None, 0.0
    for k, (a, b) in enumerate(pairwise(grid.levels)):
        d, h = model(x, torch.tensor(a, dtype=F64)), math.log(a / b)
        middle = d if old is None else d + h / (2 * before) * (d - old)
        z = streams.normal(2, [7], (2,), purpose="noise", step=k + 1, dtype=F64)
        share = 1 - math.exp(-2 * h)
        x, old, before = (b / a) ** 2 * x + share * middle + b * math.sqrt(share) * z, d, h
    torch.testing.assert_close(out.x, x, rtol=1e-11, atol=1e-11)


def test_churned_heun_is_the_published_loop():
    """Karras et al. 2022, Alg. 2, line by line."""
    grid, model, noise = karras(10), points(T1), Churn(3.0, 0.05, 50.0, 1.003)
    x = torch.tensor([[70.0, -90.0]], dtype=F64)
    out = Sampler("heun", grid, noise=noise).run(model, x, seed=4)
    for k, (a, b) in enumerate(pairwise(grid)):
        gamma = min(3.0 / 10, math.sqrt(2) - 1) if 0.05 <= a <= 50 else 0.0
        hat = a + gamma * a
        z = streams.normal(4, [0], (2,), purpose="noise", step=k, dtype=F64)
        xh = x + math.sqrt(hat**2 - a**2) * 1.003 * z
        d = (xh - model(xh, torch.tensor(hat, dtype=F64))) / hat
        x = xh + (b - hat) * d
        if b:
            x = xh + (b - hat) * (d + (x - model(x, torch.tensor(b, dtype=F64))) / b) / 2
    torch.testing.assert_close(out.x, x, rtol=1e-10, atol=1e-10)
    assert out.nfe == 19


def test_a_remembered_output_makes_the_multistep_rule_better():
    """With noise too: on a mixture the second-order rule ends nearer to the law than Euler's with the same noise."""
    model, reference = smooth_mixture(), torch.sort(_draw(20000), 0).values
    apart = {}
    for solver in ("euler", "dpmpp_2m"):
        x = Sampler(solver, karras(24, 0.02, 20.0), noise=Ancestral())(model, 6000, seed=1, dtype=F64).x
        quantiles = torch.linspace(0.01, 0.99, 99, dtype=F64)
        gap = torch.quantile(x, quantiles, 0) - torch.quantile(reference, quantiles, 0)
        apart[solver] = float(gap.square().mean().sqrt())
    assert apart["dpmpp_2m"] < 0.5 * apart["euler"]


def _draw(n):
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[1.0, 0.0], [-0.5, 1.2], [-0.8, -1.0]], dtype=F64)
    spread = torch.tensor([0.3, 0.5, 0.2], dtype=F64).sqrt()
    k = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, replacement=True, generator=generator)
    return means[k] + spread[k, None] * torch.randn(n, 2, generator=generator, dtype=F64)


# -- the deterministic limit, counts, streams ---------------------------------------------------------------------------


@pytest.mark.parametrize("solver", NOISY)
@pytest.mark.parametrize("noise", [Churn(0.0), Ancestral(0.0), Churn(5.0, 100.0, 200.0)], ids=named)
def test_no_noise_is_the_deterministic_run_to_the_bit(solver, noise):
    for finish in (AtLastLevel(), Jump(0.3)):
        plain = Sampler(solver, karras(7), finish=finish)
        a = plain(smooth_mixture(), 5, seed=1, dtype=F64, trajectory=True)
        b = replace(plain, noise=noise)(smooth_mixture(), 5, seed=1, dtype=F64, trajectory=True)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.trajectory.states, b.trajectory.states)
        assert a.trajectory.sigmas == b.trajectory.sigmas


@pytest.mark.parametrize("solver", NOISY)
@pytest.mark.parametrize("noise", [Churn(9.0), Ancestral(0.7)], ids=named)
def test_counts_and_streams(solver, noise):
    """The evaluations are as planned, and a sample is the same in any batch and after any interruption."""
    gaussian = law().float()
    sampler = Sampler(solver, karras(6), noise=noise)
    calls = []
    model = FunctionDenoiser(lambda x, s: (calls.append(float(s)), gaussian(x, s))[1], (5,))
    whole = sampler(model, 21, seed=7)
    assert whole.nfe == sampler.nfe == len(calls) == Sampler(solver, karras(6)).nfe
    assert calls == pytest.approx(sampler.visits(), rel=1e-6)
    for size in (1, 6, 64):
        torch.testing.assert_close(sampler(model, 21, seed=7, batch_size=size).x, whole.x, rtol=0, atol=2e-5)
    rest = sampler(model, 9, seed=7, first=12).x
    torch.testing.assert_close(rest, whole.x[12:], rtol=0, atol=2e-5)
    assert not torch.allclose(sampler(model, 21, seed=8).x, whole.x)


def test_states_stand_at_the_levels_of_their_outputs():
    gaussian = law()
    sampler = Sampler("whitened", karras(6), covariance=gaussian, noise=Churn(20.0))
    seen = []
    out = sampler(gaussian, 4, seed=0, dtype=F64, trajectory=True, callback=seen.append)
    assert out.trajectory.sigmas == (*(leg.start for leg in sampler.route.legs), 0.0)
    for k, sigma in enumerate(out.trajectory.sigmas[:-1]):
        torch.testing.assert_close(out.trajectory.denoised[k], gaussian(out.trajectory.states[k], sigma))
    assert [s.sigma for s in seen] == [leg.start for leg in sampler.route.legs]


def test_churn_keeps_the_grid_that_was_given():
    """Gaussian_score section 2.18: after a teleport that drops i nodes, γ is still min(s_churn/n, sqrt 2 − 1) of all n."""
    gaussian, grid, noise = law(), karras(18), Churn(3.6, 0.0)
    whole = Sampler("heun", grid, noise=replace(noise, s_max=30.0))
    cut = Sampler("heun", grid, Teleport(gaussian, grid[4], "truncate"), noise=replace(noise, s_max=30.0))
    assert cut.nfe == 2 * 14 - 1
    for mine, theirs in zip(cut.route.legs, whole.route.legs[4:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)
    assert cut.route.legs[0].start == pytest.approx(1.2 * grid[4])


def test_a_lift_above_an_earlier_start_begins_a_new_pass():
    """At the upper end of the churned range the level climbs; a memory of outputs would run backwards there."""
    route = Sampler("dpmpp_2m", karras(40), noise=Churn(40.0, 0.0, 30.0)).route
    first, second = route.passes()
    assert [leg.start for leg in first] == list(karras(40))[:7]
    assert second[0].start == pytest.approx(karras(40)[7] * math.sqrt(2))
    assert first[-1].level == first[-1].end
    assert [leg.level for leg in second[:-1]] == [leg.start for leg in second[1:]]
    assert Route.of((3.0, 0.0), [(3.0, 0.0)]).passes() == [(Leg(3.0, 0.0, 0.0),)]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES, ids=named)
def test_json_round_trip(noise):
    sampler = Sampler("heun", karras(5), noise=noise)
    again = Sampler.from_json(sampler.to_json())
    assert again.noise == noise
    assert torch.equal(again(law().float(), 3).x, sampler(law().float(), 3).x)
    assert '"noise"' not in Sampler("heun", karras(5)).to_json()
    with pytest.raises(ArgumentError, match="unknown noise 'chum'; known: ancestral, churn"):
        Sampler.from_json(Sampler("heun", noise=Churn(1.0)).to_json().replace('"churn"', '"chum"'))


@dataclass(frozen=True)
class Deaf(Euler):
    """A rule that has not been made for noise."""

    name: ClassVar[str] = "deaf"
    takes_noise: ClassVar[bool] = False


class HeavyTailed(Diffusion):
    """A process whose kernel is not Gaussian."""

    gaussian = False

    def __repr__(self):
        return "HeavyTailed()"


def test_refusals():
    with pytest.raises(ArgumentError, match="'deaf' would be wrong with noise"):
        Sampler(Deaf(), noise=Ancestral())
    with pytest.raises(ArgumentError, match="noise is a float"):
        Sampler("heun", noise=1.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="leaves the Gaussian's path"):
        Sampler("dpmpp_2m", start=Teleport(law(), 9.0, seed_history=True), noise=Ancestral())
    with pytest.raises(ArgumentError, match=r"eta = 1.5; expected a number in \[0, 1\]"):
        Ancestral(1.5)
    with pytest.raises(ArgumentError, match=r"s_noise = 0\.0"):
        Churn(3.0, s_noise=0.0)
    with pytest.raises(ArgumentError, match=r"s_max = 0\.01"):
        Churn(3.0, s_max=0.01)
    flow = law()
    flow.process = HeavyTailed()
    with pytest.raises(ArgumentError, match="does not belong to HeavyTailed"):
        Sampler("euler", noise=Ancestral()).run(flow, torch.zeros(1, 5, dtype=F64))
    model = law()
    model.sigma_max = 80.0
    with pytest.raises(ArgumentError, match=r"level 113.\d+ to which the noise lifts lies outside"):
        Sampler("euler", noise=Churn(20.0, s_max=80.0))(model, 2)
    model.sigma_min = 0.002
    with pytest.raises(ArgumentError, match=r"to which 'heun' goes down before .* 'euler', 'dpmpp_2m' and 'whitened'"):
        Sampler("heun", noise=Ancestral())(model, 2)
    assert Sampler("dpmpp_2m", noise=Ancestral())(model, 2).nfe == 18
    with pytest.raises(DataError, match="has a field 'restarts'"):
        sampler_json.parse('{"format": "farfield sampler 1", "restarts": 1}')
