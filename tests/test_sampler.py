"""The sampler as a value and as a run: evaluations, starts, finishes, streams, JSON, refusals."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError, NonFiniteError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import (
    PLANNED,
    AtLastLevel,
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
from farfield.sampling.solvers import Whitened
from tests.laws import T1, points

F64 = torch.float64


class Counted(Denoiser):
    """A Gaussian denoiser that counts its calls and notes its largest batch."""

    def __init__(self):
        super().__init__((2,))
        self.calls, self.largest = 0, 0

    def forward(self, x, sigma, **condition):
        self.calls += 1
        self.largest = max(self.largest, len(x))
        return x / (1 + sigma * sigma) + condition.get("shift", 0)


def gaussian(dtype=torch.float32):
    return Gaussian(torch.tensor([0.4, -0.3], dtype=dtype), torch.tensor([[1.5, 0.2], [0.2, 0.4]], dtype=dtype))


@settings(max_examples=60, deadline=None)
@given(
    solver=st.sampled_from(sorted(PLANNED)),
    grid=st.sampled_from([karras, log_snr, vp_time, ddpm]),
    n=st.integers(2, 12),
    start=st.sampled_from(["prior", "teleport", "late"]),
    policy=st.sampled_from(["regrid", "truncate"]),
    finish=st.sampled_from([ToZero(), AtLastLevel(), Jump(0.3)]),
)
def test_nfe_is_known_and_counted(solver, grid, n, start, policy, finish):
    """Every solver, grid, start and finish: the plan, the report and the counted calls agree (geometry fact 5)."""
    starts = {
        "prior": Prior(),
        "teleport": Teleport(gaussian(), 4.0, policy),
        "late": LateStart(gaussian(), 4.0, policy),
    }
    sampler, model = Sampler(solver, grid(n), starts[start], finish), Counted()
    out = sampler(model, n=3, seed=1, trajectory=True)
    assert out.nfe == sampler.nfe == model.calls == out.trajectory.nfe[-1]
    assert len(out.trajectory.states) == len(out.trajectory.sigmas) == len(out.trajectory.denoised) + 1
    assert out.trajectory.sigmas[0] == pytest.approx(grid(n)[0] if start == "prior" else 4.0)


def test_published_counts():
    """Geometry fact 5, gaussian_score F3: Heun 2n − 1, multistep n; a teleport by i nodes saves 2i."""
    for n, nfe in ((18, 35), (40, 79)):
        assert Sampler("heun", karras(n)).nfe == nfe
        assert Sampler("euler", karras(n)).nfe == Sampler("dpmpp_2m", karras(n)).nfe == n
    grid = karras(18)
    for i in (2, 5, 8):
        start = Teleport(gaussian(), grid[i], "truncate")
        assert Sampler("heun", grid, start).nfe == 2 * (18 - i) - 1
        assert Sampler("heun", grid, start).levels[:-1] == pytest.approx(grid.levels[i:])


def test_budget():
    assert Sampler("heun").with_nfe(10).nfe == 9
    assert Sampler("dpmpp_2m").with_nfe(10).nfe == 10
    for budget in (5, 8, 10, 20):
        for start in (Teleport(gaussian(), 2.0, "truncate"), LateStart(gaussian(), 2.0)):
            assert Sampler("euler", karras(4), start).with_nfe(budget).nfe == budget
            assert budget - 1 <= Sampler("heun", karras(4), start).with_nfe(budget).nfe <= budget
        assert Sampler("euler", karras(4), finish=Jump(0.5)).with_nfe(budget).nfe == budget
    with pytest.raises(ArgumentError, match="explicit"):
        Sampler("heun", [3.0, 1.0]).with_nfe(5)
    with pytest.raises(ArgumentError, match="at most 0"):
        Sampler("heun").with_nfe(0)


#: PNDM goes down to zero noise with the outputs it remembers; the others take the denoiser's output there.
JUMPING = sorted(set(PLANNED) - {"pndm"})


@pytest.mark.parametrize("solver", JUMPING)
@pytest.mark.parametrize("n_stop", [1, 3, 8, 12])
def test_jump_is_the_truncated_grid(solver, n_stop):
    """Geometry fact 6: a jump at level n equals the grid cut off there with an Euler step to 0, to the bit."""
    grid, x = karras(18), torch.tensor([[40.0, -25.0]], dtype=F64)
    level = grid.levels[18 - n_stop]
    jumped = Sampler(solver, grid, finish=Jump(level)).run(points(T1), x, trajectory=True)
    cut = Sampler(solver, grid.levels[: 18 - n_stop + 1]).run(points(T1), x)
    assert torch.equal(jumped.x, cut.x)
    assert jumped.nfe == cut.nfe
    if solver == "heun":
        expected = {8: (0.6327140273, 0.0058656963), 12: (0.0321227156, 0.293728755), 1: (1.0, 0.0)}
        if n_stop in expected:
            assert jumped.x[0].tolist() == pytest.approx(expected[n_stop], abs=1e-9)
        assert jumped.nfe == 2 * (18 - n_stop) + 1


def test_trajectory_of_euler_obeys_its_identities():
    """Geometry section 2.3: x_{n−1} = (t'/t) x + (1 − t'/t) r, and x_0 = r_1."""
    x = torch.tensor([[40.0, -25.0]], dtype=F64)
    curve = Sampler("euler", karras(18)).run(points(T1), x, trajectory=True).trajectory
    for k, (a, b) in enumerate(pairwise(curve.sigmas)):
        expected = b / a * curve.states[k] + (1 - b / a) * curve.denoised[k]
        torch.testing.assert_close(curve.states[k + 1], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(curve.states[-1], curve.denoised[-1])


@pytest.mark.parametrize("solver", sorted(PLANNED))
def test_samples_do_not_depend_on_the_batch(solver):
    model = gaussian()
    sampler = Sampler(solver, karras(6))
    whole = sampler(model, n=23, seed=7).x
    for size in (1, 5, 23, 64):
        torch.testing.assert_close(sampler(model, n=23, seed=7, batch_size=size).x, whole, rtol=0, atol=1e-6)
    resumed = torch.cat([sampler(model, n=9, seed=7).x, sampler(model, n=14, seed=7, first=9).x])
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-6)
    assert not torch.allclose(sampler(model, n=23, seed=8).x, whole)


def test_small_batches_are_filled_up_unseen():
    """16 rows reach the model; callbacks, trajectories and samples show the ones that were asked for."""
    model, seen = Counted(), []
    out = Sampler("heun", karras(4))(model, 3, shift=torch.ones(3, 2), trajectory=True, callback=seen.append)
    assert model.largest == 16
    assert out.x.shape == (3, 2)
    assert out.trajectory.states.shape[1] == out.trajectory.denoised.shape[1] == 3
    assert {s.x.shape[0] for s in seen} == {s.denoised.shape[0] for s in seen} == {3}
    big = Counted()
    big.event_shape = (5000,)
    Sampler("euler", [1.0])(big, 2)
    assert big.largest == 2


def test_batches_cut_the_conditions_too():
    model = Counted()
    shift = torch.arange(7.0)[:, None].expand(7, 2)
    whole = Sampler("euler", karras(4))(model, n=7, shift=shift).x
    parts = Sampler("euler", karras(4))(model, n=7, shift=shift, batch_size=3).x
    torch.testing.assert_close(parts, whole)
    assert model.largest == 16


def test_teleport_keeps_the_map_and_late_start_the_law():
    """Gaussian_score A6 and section 2.18: on Gaussian data both are exact, whatever solver follows."""
    law = gaussian(F64)
    direct = law.flow(80 * Sampler("whitened", [80.0], finish=AtLastLevel())(law, 4000, dtype=F64).x / 80, 80.0, 0.0)
    teleported = Sampler("whitened", [80.0, 3.0], Teleport(law, 3.0), covariance=law)(law, 4000, dtype=F64).x
    torch.testing.assert_close(teleported, direct, rtol=1e-10, atol=1e-10)
    late = Sampler("whitened", [80.0, 3.0], LateStart(law, 3.0), covariance=law)(law, 20000, dtype=F64).x
    torch.testing.assert_close(late.mean(0), law.mean, rtol=0, atol=0.04)
    torch.testing.assert_close(late.T.cov(), law.spectrum.dense().to(F64), rtol=0, atol=0.06)


def test_teleport_takes_the_solver_error_out_of_the_large_modes():
    """Gaussian_score F33: relative end-point error of Heun (n = 18) on a mode of variance 100 by nodes skipped."""
    law = Gaussian(torch.zeros(1, dtype=F64), torch.tensor([[100.0]], dtype=F64))
    grid, exact = karras(18), 80 * (100 / (6400 + 100)) ** 0.5
    for skip, error in ((0, 2.2e-2), (4, 1.5e-2), (6, 4.4e-3), (8, 2.6e-4), (10, 4.9e-6)):
        x = law.flow(torch.tensor([[80.0]], dtype=F64), 80.0, grid[skip])
        out = Sampler("heun", grid.levels[skip:]).run(law, x).x
        assert float(out) / exact - 1 == pytest.approx(error, rel=0.05)


def test_given_states():
    x = torch.tensor([[40.0, -25.0], [3.0, 9.0]], dtype=F64)
    out = Sampler("heun", karras(10), Given(x))(points(T1), batch_size=1, dtype=F64)
    torch.testing.assert_close(out.x, Sampler("heun", karras(10)).run(points(T1), x).x)
    with pytest.raises(ArgumentError, match="holds 2 states"):
        Sampler("heun", karras(10), Given(x))(points(T1), n=3)


def test_callback_sees_every_step():
    seen = []
    out = Sampler("heun", karras(5), finish=Jump(karras(5)[3]))(Counted(), n=4, batch_size=2, callback=seen.append)
    assert [s.index for s in seen] == [0, 1, 2, 3] * 2
    assert [s.first for s in seen] == [0] * 4 + [2] * 4
    assert [s.nfe for s in seen[:4]] == [1, 3, 5, 7]
    assert seen[3].sigma_next == 0
    assert torch.equal(torch.cat([seen[3].denoised, seen[7].denoised]), out.x)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(),
        Sampler("whitened", log_snr(8), Teleport(gaussian(), 20.0), covariance=gaussian()),
        Sampler("dpmpp_2m", [9.0, 4.0, 1.0], LateStart(gaussian(), 5.0, "truncate"), Jump(2.0)),
        Sampler("whitened", ddpm(5), covariance=Gaussian(torch.zeros(2), Spectrum.isotropic(2, 0.5))),
    ],
)
def test_json_round_trip(sampler):
    again = Sampler.from_json(sampler.to_json())
    assert again.to_json() == sampler.to_json()
    assert again.levels == sampler.levels
    assert torch.equal(again(Counted(), 3).x, sampler(Counted(), 3).x)


def test_json_writes_a_shared_gaussian_once():
    law = gaussian()
    text = Sampler("whitened", karras(4), Teleport(law, 9.0), covariance=law).to_json()
    assert text.count('"type": "Gaussian"') == 1


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "invalid JSON at line 1"),
        ("[]", "not a sampler"),
        ('{"format": "farfield sampler 1"}', "missing"),
        (Sampler().to_json().replace('"heun"', '"hein"'), "known: .*dpmpp_2m"),
        (Sampler().to_json().replace('"prior"', '"posterior"'), "known: class_teleport.*prior"),
        (Sampler().to_json().replace('"rho"', '"roh"'), "roh"),
        (Sampler().to_json().replace('"covariance": null', '"covariance": {"gaussian": 3}'), "missing"),
        (Sampler().to_json().replace('"covariance": null', '"covariance": {"a": 1}'), "missing"),
        (Sampler().to_json().replace('"covariance": null', '"covariance": "abc"'), "expected a Gaussian"),
        (Sampler().to_json().replace('"name": "prior"', '"name": "given", "x": [1.0]'), "unknown start 'given'"),
        (
            Sampler().to_json().replace('"name": "prior"', '"name": "teleport", "gaussian": "a", "sigma": 3'),
            "expected a Gau",
        ),
        (Sampler().to_json().replace('"n": 18', '"n": 18.5'), "n = 18.5"),
        (Sampler().to_json().replace('"n": 18', '"n": 1000000000'), "1 to 100,000"),
        (Sampler(sigmas=[3.0, 1.0]).to_json().replace("3.0", '"abc"'), "wrong type"),
        (Sampler(Whitened(2)).to_json().replace('"order": 2', '"order": 2.0'), "order = 2.0"),
    ],
)
def test_json_refusals(text, match):
    with pytest.raises((ArgumentError, DataError), match=match):
        Sampler.from_json(text)


def test_refusals():
    model = Counted()
    with pytest.raises(ArgumentError, match="n is missing"):
        Sampler()(model)
    with pytest.raises(ArgumentError, match="batch_size = 0"):
        Sampler()(model, 3, batch_size=0)
    with pytest.raises(ArgumentError, match=r"x holds torch\.int64; expected floating-point numbers"):
        Sampler().run(model, torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(ArgumentError, match=r"dtype = torch\.int32; expected a floating-point type"):
        Sampler()(model, n=1, dtype=torch.int32)
    with pytest.raises(ArgumentError, match=r"states have shape \(1, 3\); this model takes \(B, 2,\)"):
        Sampler().run(model, torch.zeros(1, 3))
    model.sigma_min, model.sigma_max = 0.01, 50.0
    with pytest.raises(ArgumentError, match=r"level 80 of the grid lies outside the model's range \[0.01, 50\]"):
        Sampler()(model, 1)
    with pytest.raises(ArgumentError, match="outside the grid"):
        Sampler(start=Teleport(gaussian(), 90.0))
    with pytest.raises(ArgumentError, match="outside the grid"):
        Sampler(finish=Jump(100.0))
    with pytest.raises(ArgumentError, match="'regrid' or 'truncate'"):
        Sampler(start=Teleport(gaussian(), 9.0, "cut"))  # type: ignore[arg-type]
    for sampler in (Sampler("whitened", covariance=gaussian()), Sampler(start=Teleport(gaussian(), 9.0))):
        with pytest.raises(ArgumentError, match=r"Gaussian of shape \(2,\); the model's samples have \(3,\)"):
            sampler(Gaussian(torch.zeros(3), torch.eye(3)), 2)
    with pytest.raises(ArgumentError, match="cannot be written"):
        Sampler(start=Given(torch.zeros(1, 2))).to_json()


def test_non_finite_output_is_reported():
    class Broken(Counted):
        def forward(self, x, sigma, **condition):
            return torch.where(x[:, :1] > 0, x, torch.nan)

    with pytest.raises(NonFiniteError, match="of 8 samples are not finite"):
        Sampler("euler", karras(3))(Broken(), 8)
