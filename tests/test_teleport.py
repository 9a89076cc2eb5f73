"""Teleports: published counts and levels, exactness and composition with every solver, errors on an exact mixture."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import norm

from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.experiments.teleport_published import PUBLISHED
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import PLANNED, AtLastLevel, LateStart, Sampler, Teleport, karras, log_snr
from farfield.sampling.solvers import Whitened
from tests.laws import smooth_mixture

F64 = torch.float64
LAW = Gaussian(
    torch.tensor([1.0, -1.0, 0.5], dtype=F64), Spectrum.diagonal(torch.tensor([100.0, 4.0, 0.25], dtype=F64))
)


# -- grids, counts, published tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [18, 40])
def test_a_rebuilt_grid_is_the_tail(n):
    """Gaussian_score F2: karras(n − i, σ_max = σ_i) = karras(n)[i:], to 1e-14."""
    grid = karras(n)
    for i in range(n - 1):
        rebuilt = karras(n - i, 0.002, grid[i])
        assert rebuilt.levels == pytest.approx(grid.levels[i:], rel=1e-14, abs=0)


@pytest.mark.parametrize("table", PUBLISHED, ids=lambda t: t.data)
def test_published_evaluations_and_levels(table):
    """Gaussian_score F3, F4, A12; erratum E12: 79 is the number of evaluations, of 40 steps."""
    grid = karras(table.levels)
    for skip, nfe, sigma in zip(table.skipped, table.nfe, table.sigma, strict=True):
        start = Teleport(LAW, grid[skip], "truncate")
        assert Sampler("heun", grid, start).nfe == 2 * (table.levels - skip) - 1 == nfe
        assert round(grid[skip], 1) == sigma
    assert table.nfe[0] == (35 if table.data == "CIFAR-10" else 79)


def test_levels_of_the_text():
    """Gaussian_score F1, F4; erratum E13: the last positive node is σ_min, and the grid then closes with 0."""
    assert karras(18)[9] == pytest.approx(1.9233, abs=5e-5)
    assert karras(40)[17] == pytest.approx(4.3656, abs=5e-5)
    for n in (18, 40):
        assert karras(n).levels[n - 1] == 0.002
        assert karras(n).values[n] == 0.0


def test_what_the_published_tables_say():
    """Errata E14, E15: under 3 % loss 34 % of the evaluations on CIFAR-10, 30 % on AFHQv2, but 10 % on FFHQ."""
    cifar, afhq, ffhq = PUBLISHED
    assert cifar.most_saved(0.03) == pytest.approx(0.34, abs=0.005)
    assert afhq.most_saved(0.03) == pytest.approx(0.304, abs=0.005)
    assert ffhq.most_saved(0.03) == pytest.approx(0.101, abs=0.005)
    assert ffhq.change[ffhq.skipped.index(6)] == pytest.approx(0.039, abs=5e-4)
    assert cifar.change[cifar.skipped.index(6)] == pytest.approx(0.0026, abs=5e-5)
    assert min(cifar.frechet) == cifar.frechet[cifar.skipped.index(4)] == 1.932
    assert cifar.frechet[cifar.skipped.index(5)] == 1.934


# -- composition with every solver -------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", sorted(PLANNED))
@pytest.mark.parametrize("policy", ["truncate", "regrid"])
@pytest.mark.parametrize("grid", [karras(12), log_snr(9)], ids=["karras", "log_snr"])
def test_every_solver_from_a_teleport(solver, policy, grid):
    """The run from σ_skip is the solver's own from the exact state there: no memory, first order, and the planned count."""
    sigma = grid[3]
    sampler = Sampler(solver, grid, Teleport(LAW, sigma, policy))
    z = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    exact = LAW.flow(80 * z, 80.0, sigma)
    below = grid.starting_at(sigma) if policy == "regrid" else [sigma, *grid.levels[4:]]
    alone = Sampler(solver, below).run(LAW, exact)
    out = sampler.run(LAW, sampler.start.state(z, 80.0, LAW.process))
    assert torch.equal(out.x, alone.x)
    rule, legs = sampler.rule, sampler.route.legs
    assert out.nfe == sampler.nfe == sum(map(len, rule.visits(legs)))
    # A rule with a start-up of more evaluations pays for it again; all others save what the dropped steps cost.
    saved = len(grid.levels) - len(legs)
    assert saved == (3 if policy == "truncate" else 0)
    whole = rule.visits(Sampler(solver, grid).route.legs)
    if all(len(visit) == rule.evaluations_per_step for visit in whole[:-1]):
        assert Sampler(solver, grid).nfe - sampler.nfe == saved * rule.evaluations_per_step
    # The first step from σ_skip is the one of a run that begins there, whatever came before.
    first = Sampler(solver, [sigma, sampler.levels[1]], finish=AtLastLevel()).run(LAW, exact).x
    states = sampler.run(LAW, exact, trajectory=True).trajectory.states
    torch.testing.assert_close(states[1], first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm2", "dpmpp_2s", "dpmpp_2m", "taylor2", "whitened"])
@pytest.mark.parametrize("policy", ["truncate", "regrid"])
def test_teleports_do_not_add_error_on_a_gaussian(solver, policy):
    """Gaussian_score section 2.18: on an exact Gaussian a long skip takes error away; with whitened steps there is none."""
    covariance = {"covariance": LAW} if PLANNED[solver].uses_covariance else {}
    grid = karras(18)
    x, errors = torch.tensor([[100.0, -50.0, 60.0], [-20.0, 90.0, 10.0]], dtype=F64), []
    end = LAW.flow(x, 80.0, 0.0)
    for sigma in (80.0, grid[3], grid[6]):
        sampler = Sampler(solver, grid, Teleport(LAW, sigma, policy), **covariance)
        errors.append(float((sampler.run(LAW, LAW.flow(x, 80.0, sigma)).x - end).norm()))
    if covariance:
        assert max(errors) < 1e-11
    else:
        assert errors[2] < 0.8 * errors[0]
        assert errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("solver", ["deis", "dpmpp_3m", "ipndm", "ipndm_v", "lms", "spndm"])
def test_long_memories_are_seeded_across_a_teleport(solver):
    """Rules that remember several outputs lose them at a skip; with the law's own outputs a skip takes error away again."""
    grid = karras(18)
    x, errors = torch.tensor([[100.0, -50.0, 60.0], [-20.0, 90.0, 10.0]], dtype=F64), []
    end = LAW.flow(x, 80.0, 0.0)
    for sigma in (80.0, grid[6]):
        sampler = Sampler(solver, grid, Teleport(LAW, sigma, "regrid", seed_history=True))
        errors.append(float((sampler.run(LAW, LAW.flow(x, 80.0, sigma)).x - end).norm()))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("lam", [1.0, 100.0])
def test_heun_after_a_teleport(lam):
    """Gaussian_score F33, A12: relative end-point error of one mode by nodes skipped, through the sampler itself."""
    law = Gaussian(torch.zeros(1, dtype=F64), torch.tensor([[lam]], dtype=F64))
    grid, exact, found = karras(18), 80 * math.sqrt(lam / (6400 + lam)), []
    for skip in range(11):
        sampler = Sampler("heun", grid, Teleport(law, grid[skip], "truncate"))
        found.append(
            float(sampler.run(law, law.flow(torch.tensor([[80.0]], dtype=F64), 80.0, grid[skip])).x) / exact - 1
        )
    if lam == 100:
        wanted = {0: 2.2e-2, 2: 2.1e-2, 4: 1.5e-2, 5: 9.8e-3, 6: 4.4e-3, 8: 2.6e-4, 10: 4.9e-6}
        assert [found[k] for k in wanted] == pytest.approx(list(wanted.values()), rel=0.05)
    else:
        assert found[:7] == pytest.approx([4.4e-2] * 7, rel=0.05)
    assert all(a >= b for a, b in pairwise(found))


def test_bias_of_the_finite_top():
    """Gaussian_score F25, erratum E28: pure noise at σ = 80 is not the law there; a warm start is."""
    for lam, ratio, offset in (
        (1, 0.99992, 0.0125), (10, 0.99922, 0.0395), (100, 0.99228, 0.1240), (200, 0.98473, 0.1741), (400, 0.97014, 0.2425),
    ):  # fmt: skip
        law = Gaussian(torch.ones(1, dtype=F64), torch.tensor([[float(lam)]], dtype=F64))
        z = torch.tensor([[0.0], [1.0]], dtype=F64)
        for start in (Teleport(law, 5.0), LateStart(law, 5.0)):
            x = law.flow(start.state(z, 80.0, law.process), 5.0, 0.0)
            std, mean = float(x[1] - x[0]), float(x[0])
            if isinstance(start, Teleport):
                assert std / math.sqrt(lam) == pytest.approx(ratio, abs=5e-6)
                assert 1 - mean == pytest.approx(offset, abs=5e-5)
            else:
                assert std == pytest.approx(math.sqrt(lam), rel=1e-12)
                assert mean == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("start", [Teleport, LateStart])
def test_a_model_trained_below_the_skip_alone(start):
    """Gaussian_score section 2.20a: levels above σ_skip need no training, for no run asks there."""
    model = Gaussian(LAW.mean, LAW.spectrum)
    model.sigma_max = 10.0
    sampler = Sampler("heun", karras(18), start(LAW, 9.0, "truncate"))
    assert max(sampler.visits()) == 9.0
    assert sampler(model, 4, dtype=F64).nfe == sampler.nfe
    with pytest.raises(ArgumentError, match="level 80 of the grid lies outside"):
        Sampler("heun", karras(18))(model, 4, dtype=F64)


# -- an exact mixture --------------------------------------------------------------------------------------------------

T2 = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-2.0], [1.0]], dtype=F64), torch.tensor([[[0.09]], [[0.25]]], dtype=F64)
)
T2_GAUSSIAN = Gaussian(torch.tensor([0.1], dtype=F64), torch.tensor([[2.092]], dtype=F64))


def _cdf(x, sigma):
    return 0.3 * norm.cdf(x, -2, math.hypot(0.3, sigma)) + 0.7 * norm.cdf(x, 1, math.hypot(0.5, sigma))


def rearranged(x, sigma):
    """Where the exact flow takes states at a level, for it keeps the order of points on a line: F₀⁻¹(F_σ(x))."""
    target, low, high = _cdf(x[:, 0].numpy(), sigma), np.full(len(x), -9.0), np.full(len(x), 9.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = _cdf(middle, 0) < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return torch.from_numpy((low + high) / 2)[:, None]


@pytest.fixture(scope="module")
def quantiles():
    """4096 equal-probability quantiles of N(0, 80²), and where the exact flow takes them."""
    x = torch.from_numpy(80 * norm.ppf((np.arange(4096) + 0.5) / 4096))[:, None]
    return x, rearranged(x, 80.0)


def rms(sampler, quantiles):
    x, exact = quantiles
    sigma = sampler.levels[0]
    return float((sampler.run(T2, T2_GAUSSIAN.flow(x, 80.0, sigma)).x - exact).square().mean().sqrt())


def test_the_exact_flow_of_the_mixture(quantiles):
    """Gaussian_score F48, the reference: monotone rearrangement."""
    at = torch.tensor([-160.0, -80.0, -40.0, 0.0, 40.0, 80.0, 160.0], dtype=F64)
    ends = [-2.430448192, -1.978945796, -0.134915432, 0.715976667, 1.073662112, 1.374150660, 1.921792418]
    assert rearranged(at[:, None], 80.0)[:, 0].tolist() == pytest.approx(ends, abs=2e-9)
    x, exact = quantiles
    fine = Sampler(Whitened(3), karras(400), covariance=T2_GAUSSIAN).run(T2, x[::64]).x
    torch.testing.assert_close(fine, exact[::64], rtol=0, atol=1e-3)


def test_heun_from_a_teleport_on_the_mixture(quantiles):
    """Gaussian_score F48: the error falls down to skip 8 and rises from there, the shape of the published Table 6."""
    wanted = {
        0: 3.608e-2, 2: 3.604e-2, 4: 3.584e-2, 5: 3.552e-2, 6: 3.476e-2, 7: 3.302e-2, 8: 2.980e-2, 9: 3.769e-2,
        10: 1.100e-1, 12: 4.547e-1, 14: 5.813e-1,
    }  # fmt: skip
    grid = karras(18)
    found = {
        skip: rms(Sampler("heun", grid, Teleport(T2_GAUSSIAN, grid[skip], "truncate")), quantiles) for skip in wanted
    }
    for skip, error in wanted.items():
        assert found[skip] == pytest.approx(error, rel=1e-3)
    assert min(found, key=found.get) == 8


def test_the_teleport_alone_on_the_mixture(quantiles):
    """Gaussian_score F48, in brackets there: what the skip itself costs, with the exact flow below it."""
    x, exact = quantiles
    for skip, error in {
        2: 2.4e-5,
        4: 2.3e-4,
        5: 7.3e-4,
        6: 2.3e-3,
        7: 8.0e-3,
        8: 2.4e-2,
        9: 5.7e-2,
        10: 1.15e-1,
    }.items():
        sigma = karras(18)[skip]
        end = rearranged(T2_GAUSSIAN.flow(x, 80.0, sigma), sigma)
        # The published numbers carry a reference error of 3e-6 and two digits.
        assert float((end - exact).square().mean().sqrt()) == pytest.approx(error, rel=0.05, abs=3e-6)


@pytest.mark.parametrize(
    ("nfe", "errors"),
    [
        (10, (0.2659, 0.2091, 0.1573, 0.1172, 0.0874, 0.0628, 0.1239)),
        (20, (0.0573, 0.0453, 0.0359, 0.0282, 0.0196, 0.0217, 0.1234)),
    ],
)
def test_multistep_after_a_teleport(nfe, errors, quantiles):
    """Gaussian_score F49: DPM-Solver++(2M), all steps below the skip."""
    for sigma, error in zip((80.0, 40.0, 20.0, 10.0, 5.0, 2.5, 1.0), errors, strict=True):
        sampler = Sampler("dpmpp_2m", karras(nfe), Teleport(T2_GAUSSIAN, sigma))
        assert sampler.nfe == nfe
        assert rms(sampler, quantiles) == pytest.approx(error, abs=6e-5)


@pytest.mark.parametrize(("sigma", "error"), [(5.0, 0.0826), (2.5, 0.0523)])
def test_seeded_history(sigma, error, quantiles):
    """Gaussian_score F49: outputs of the closed form above the skip take the first step to second order, at no cost."""
    sampler = Sampler("dpmpp_2m", karras(10), Teleport(T2_GAUSSIAN, sigma, seed_history=True))
    assert sampler.nfe == 10
    assert rms(sampler, quantiles) == pytest.approx(error, abs=6e-5)


@pytest.mark.parametrize("solver", sorted(PLANNED))
def test_seeding_where_it_means_nothing_or_changes_nothing(solver):
    """One-step rules have no memory to fill. Seeded or not the count is as planned, and streams and JSON hold."""
    plain = Sampler(solver, karras(7), Teleport(T2_GAUSSIAN, 9.0))
    seeded = Sampler(solver, karras(7), Teleport(T2_GAUSSIAN, 9.0, seed_history=True))
    a, b = plain(T2, 5, dtype=F64), seeded(T2, 5, dtype=F64, batch_size=2)
    assert b.nfe == seeded.nfe <= plain.nfe == a.nfe
    assert torch.equal(a.x, b.x) == (plain.rule.history == 0)
    again = Sampler.from_json(seeded.to_json())
    assert again.start.seed_history
    torch.testing.assert_close(again(T2, 5, dtype=F64).x, b.x, rtol=0, atol=1e-12)
    assert "seed_history" not in plain.to_json()


@pytest.mark.parametrize("covariance", [None, LAW])
def test_seeded_whitened_steps(covariance):
    """At third order and short steps the memory is worth much; with the exact covariance there is nothing to gain or lose."""
    x = torch.tensor([[100.0, -50.0, 60.0]], dtype=F64)
    start, end, errors = LAW.flow(x, 80.0, 12.0), LAW.flow(x, 80.0, 0.002), []
    for seeded in (False, True):
        teleport = Teleport(LAW, 12.0, seed_history=seeded)
        rule = Whitened(3, corrector="never")
        sampler = Sampler(rule, karras(12), teleport, covariance=covariance, finish=AtLastLevel())
        errors.append(float((sampler.run(LAW, start).x - end).norm()))
    assert max(errors) < 1e-11 if covariance is not None else errors[1] < 0.1 * errors[0]


def test_seeds_are_spaced_like_the_first_step():
    sampler = Sampler(Whitened(3), [9.0, 3.0, 1.0], LateStart(LAW, 9.0, "truncate", seed_history=True))
    assert [leg.start for leg in sampler.route.seeds] == pytest.approx([81.0, 27.0])
    assert sampler.route.seeds[-1].end == 9.0
    assert Sampler(Whitened(3), [9.0], LateStart(LAW, 9.0, "truncate", seed_history=True)).route.seeds == ()


# -- covariances of large images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["low_rank", "dct"])
def test_large_images(kind):
    """Low-rank and cosine covariances at 64×64×3: no d×d matrix, and the samples keep their covariance."""
    shape = (3, 64, 64)
    generator = torch.Generator().manual_seed(0)
    fine = torch.randn(40, 3, 64, 64, generator=generator)
    images = torch.nn.functional.avg_pool2d(fine, 9, 1, 4) * 4 + 0.2
    law = Gaussian.fit(images, rank=24) if kind == "low_rank" else Gaussian.fit(images, basis="dct")
    sampler = Sampler("heun", karras(18), Teleport(law, karras(18)[5], "truncate"))
    assert sampler.nfe == 25
    out = sampler(law, 3, seed=1)
    assert out.x.shape == (3, *shape)
    whole = Sampler("heun", karras(18))(law, 3, seed=1).x
    exact = law.flow(80 * Sampler("euler", [80.0], finish=AtLastLevel())(law, 3, seed=1).x / 80, 80.0, 0.0)
    errors = [float((x - exact).norm()) for x in (out.x, whole)]
    assert errors[0] < errors[1] < 0.1 * float(exact.norm())
    again = Sampler.from_json(sampler.to_json())
    assert torch.equal(again(law, 3, seed=1).x, out.x)


def test_refusals():
    with pytest.raises(ArgumentError, match="expected a Gaussian"):
        Teleport(smooth_mixture(), 9.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="sigma = 0"):
        Teleport(LAW, 0.0)
