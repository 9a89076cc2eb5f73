"""What is kept of a run: policies, statistics, files, replays."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from farfield.analysis.magnitude import shell
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError, ModelFileError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import SOLVERS, AtLastLevel, Churn, Given, Jump, Sampler, Trajectory, karras
from farfield.sampling.recording import KeepAll, KeepEvery, KeepStatistics, RunningMoments
from farfield.sampling.solvers import Whitened
from farfield.sampling.stop_rules import SmallChange
from tests.laws import T1, points, smooth_mixture

F64 = torch.float64
GRID = karras(9, 0.05, 40.0)


def run(recording, solver="heun", n=5, batch_size=None, **parts):
    sampler = Sampler(solver, GRID, **parts)
    return sampler(smooth_mixture(), n, seed=3, trajectory=recording, dtype=F64, batch_size=batch_size)


def test_all_is_what_true_means():
    whole = run(True).trajectory
    for same in (run("all").trajectory, run(KeepAll("cpu")).trajectory, run(KeepEvery(1)).trajectory):
        assert torch.equal(same.states, whole.states)
        assert torch.equal(same.denoised, whole.denoised)
        assert (same.sigmas, same.nfe, same.step_numbers) == (whole.sigmas, whole.nfe, whole.step_numbers)
    assert run(False).trajectory is None
    assert whole.seed == 3
    assert whole.drawn


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 12), batch=st.integers(1, 5), jump=st.sampled_from([None, 0.4, SmallChange(0.2)]))
def test_every_kth_step_is_a_part_of_all(k, batch, jump):
    """Rows 0, k, 2k, …, the last step and the final sample, whatever the batches and wherever samples stop."""
    parts = {} if jump is None else {"finish": Jump(jump)}
    whole, thin = run(True, **parts).trajectory, run(KeepEvery(k), batch_size=batch, **parts).trajectory
    steps = len(whole.denoised)
    kept = sorted({*range(0, steps, k), steps - 1})
    assert thin.step_numbers == (*kept, steps)
    assert torch.equal(thin.states, whole.states[[*kept, steps]])
    assert torch.equal(thin.denoised, whole.denoised[kept])
    assert thin.sigmas == tuple(whole.sigmas[i] for i in (*kept, steps))
    assert thin.nfe == tuple(whole.nfe[i] for i in (*kept, steps))


def test_ends():
    whole, ends = run(True).trajectory, run("ends").trajectory
    assert torch.equal(ends.states, whole.states[[0, -2, -1]])
    assert torch.equal(ends.denoised, whole.denoised[[0, -1]])


def test_epsilon_is_the_slope():
    """``ε = (x − D)/σ``; an Euler step is ``x + (σ' − σ) ε``."""
    path = run(True, "euler").trajectory
    levels = torch.tensor(path.sigmas, dtype=F64)
    step = (levels[1:] - levels[:-1]).view(-1, 1, 1)
    torch.testing.assert_close(path.states[:-1] + step * path.noise, path.states[1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [None, 1, 2])
@pytest.mark.parametrize("finish", [None, Jump(SmallChange(0.2))])
def test_statistics_are_those_of_the_kept_curves(batch, finish):
    parts = {} if finish is None else {"finish": finish}
    path = run(True, **parts).trajectory
    out = run("statistics", batch_size=batch, **parts)
    found = out.statistics
    assert out.trajectory is None
    assert found.sigmas == path.sigmas
    assert found.nfe == path.nfe
    expected = {
        "norm": path.states.norm(dim=2),
        "denoised_norm": path.denoised.norm(dim=2),
        "distance": (path.states - path.states[-1]).norm(dim=2),
        "denoised_distance": (path.denoised - path.denoised[-1]).norm(dim=2),
    }
    for name, values in expected.items():
        curve = getattr(found, name)
        assert curve.count == 5
        torch.testing.assert_close(curve.mean, values.mean(1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(curve.std, values.std(1), rtol=1e-9, atol=1e-10)
    json.dumps(found.to_dict(), allow_nan=False)
    assert float(found.distance.mean[-1]) == 0


def test_statistics_without_distances_run_once():
    calls = []

    def counted(x, sigma, d):
        calls.append(float(sigma))
        return d

    plan = Sampler("heun", GRID, guidance=[counted])
    for recording, times in ((KeepStatistics(distances=False), 1), (KeepStatistics(), 2)):
        calls.clear()
        out = plan(smooth_mixture(), 4, trajectory=recording, dtype=F64)
        assert len(calls) == times * plan.nfe
        assert out.nfe == plan.nfe
    assert plan(smooth_mixture(), 1, trajectory="statistics", dtype=F64).statistics.norm.std.tolist() == [0.0] * 10


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("recording", ["all", "ends", "every", "statistics", KeepStatistics(distances=False)])
def test_a_run_without_a_step(recording, batch):
    """A run that ends at its only level has one state and no output."""
    plan = Sampler("heun", [3.0], finish=AtLastLevel())
    out = plan(smooth_mixture(), 5, trajectory=recording, batch_size=batch, dtype=F64)
    assert out.nfe == 0
    if out.statistics is None:
        assert torch.equal(out.trajectory.states, out.x[None])
        assert out.trajectory.denoised.shape == (0, 5, 2)
    else:
        torch.testing.assert_close(out.statistics.norm.mean, out.x.norm(dim=1).mean()[None])
        assert out.statistics.denoised_norm.count == 5
        assert out.statistics.to_dict()["denoised_norm"]["mean"] == []


def test_noise_between_the_passes_is_the_same():
    plan = Sampler("heun", GRID, noise=Churn(9.0))
    path = plan(smooth_mixture(), 4, trajectory=True, dtype=F64).trajectory
    found = plan(smooth_mixture(), 4, trajectory="statistics", dtype=F64).statistics
    torch.testing.assert_close(found.distance.mean, (path.states - path.states[-1]).norm(dim=2).mean(1))


def test_distance_between_the_ends_of_gaussian_runs():
    """Geometry fact 23: ``E‖x_N − x_0‖ ≈ T E χ_d − Σ s_i/√d`` for T far above the data's scales."""
    dim, scales = 3072, torch.linspace(0.02, 0.18, 3072, dtype=F64)
    law = Gaussian(torch.zeros(dim, dtype=F64), Spectrum.diagonal(scales.square()))
    plan = Sampler(Whitened(1), karras(2, 1.0, 80.0), covariance=law)
    found = plan(law, 200, trajectory="statistics", dtype=F64).statistics
    expected = shell(dim, 80.0)[0] - float(scales.sum()) / dim**0.5
    error = float(found.distance.std[0]) / 200**0.5
    assert abs(float(found.distance.mean[0]) - expected) < 3 * error
    assert expected == pytest.approx(4427.94, abs=0.3)  # of the source's scale of about 0.1


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), max_size=4), shift=st.sampled_from([0.0, 1e8]))
def test_moments_merge(cuts, shift):
    """Merged parts equal the whole, far from zero as well."""
    values = torch.randn(3, sum(cuts) + 2, dtype=F64, generator=torch.Generator().manual_seed(1)) + shift
    parts = [RunningMoments.of(part) for part in values.split([*cuts, 2], dim=1)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    assert total.count == values.shape[1]
    torch.testing.assert_close(total.mean, values.mean(1), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(total.std, values.std(1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("recording", [True, KeepEvery(3), "ends"])
@pytest.mark.parametrize("finish", [None, Jump(0.4), Jump(SmallChange(0.2))])
def test_replay_and_file(tmp_path, recording, finish):
    """A trajectory comes back from its file as it was, and its run gives it again to the bit."""
    parts = {} if finish is None else {"finish": finish}
    path = run(recording, **parts).trajectory
    file = tmp_path / "run.safetensors"
    path.save(file)
    again = Trajectory.load(file)
    assert torch.equal(again.states, path.states)
    assert torch.equal(again.denoised, path.denoised)
    for name in ("sigmas", "nfe", "steps", "seed", "first", "drawn"):
        assert getattr(again, name) == getattr(path, name)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    assert again.replay(Sampler("heun", GRID, **parts), smooth_mixture()).exact
    other = again.replay(Sampler("euler", GRID, **parts), smooth_mixture()) if finish is None else None
    assert other is None or (not other.exact and other.states > 1e-3)


def test_replay_of_parts_of_a_set_and_of_given_starts():
    model, plan = smooth_mixture(), Sampler("dpmpp_2m", GRID, noise=Churn(4.0))
    path = plan(model, 3, seed=8, first=40, trajectory=True, dtype=F64).trajectory
    assert (path.first, path.seed) == (40, 8)
    assert path.replay(plan, model).exact
    x = 40 * torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    given = Sampler("heun", GRID).run(model, x, trajectory=True).trajectory
    assert given.replay(Sampler("heun", GRID), model).exact
    held = Sampler("heun", GRID, Given(x))
    assert held(model, trajectory=True, dtype=F64).trajectory.replay(held, model).exact
    lifted = Sampler("heun", GRID, noise=Churn(4.0, s_max=50.0))
    with pytest.raises(ArgumentError, match="lifted"):
        lifted.run(model, x, trajectory=True).trajectory.replay(lifted, model)
    with pytest.raises(ArgumentError, match="other steps"):
        given.replay(Sampler("heun", karras(5, 0.05, 40.0)), model)
    with pytest.raises(ArgumentError, match="seed is None"):
        Trajectory((1.0, 0.0), torch.zeros(2, 1, 2), torch.zeros(1, 1, 2), (0, 1)).replay(held, model)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_recording_changes_no_sample(solver):
    if getattr(SOLVERS[solver], "adaptive", False):
        pytest.skip("an adaptive solver has steps of its own")
    plan, start = Sampler(solver, GRID), 40 * T1
    plain = plan.run(points(T1), start).x
    for recording in ("all", "ends", "statistics", KeepEvery(2)):
        assert torch.equal(plan.run(points(T1), start, trajectory=recording).x, plain)


def test_refusals():
    for wrong, words in (("most", "unknown recording"), (3, "expected True")):
        with pytest.raises(ArgumentError, match=words):
            run(wrong)
    with pytest.raises(ArgumentError, match="every k-th"):
        KeepEvery(0)


def damaged(tmp_path, change):
    path = run(True).trajectory
    file = tmp_path / "x.safetensors"
    path.save(file)
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["trajectory"])
        tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    change(about, tensors)
    save_file(tensors, file, metadata={"trajectory": json.dumps(about)})
    return file


@pytest.mark.parametrize(
    "change",
    [
        lambda about, tensors: about.update(format="another"),
        lambda about, tensors: about.update(sigmas=about["sigmas"][1:]),
        lambda about, tensors: about.update(sigmas=["1"] * len(about["sigmas"])),
        lambda about, tensors: about.update(sigmas=[10**400, *about["sigmas"][1:]]),
        lambda about, tensors: about.update(sigmas=[0.0, *about["sigmas"][1:]]),
        lambda about, tensors: tensors["states"][1, 2].fill_(float("nan")),
        lambda about, tensors: tensors["denoised"][0, 0].fill_(float("inf")),
        lambda about, tensors: about.update(nfe=3),
        lambda about, tensors: about.update(seed=1.5),
        lambda about, tensors: about.update(drawn="yes"),
        lambda about, tensors: about.update(steps=[0] * len(about["sigmas"])),
        lambda about, tensors: about.pop("first"),
        lambda about, tensors: tensors.update(denoised=tensors["denoised"][1:].contiguous()),
        lambda about, tensors: tensors.update(states=tensors["states"].int()),
        lambda about, tensors: tensors.pop("denoised"),
        lambda about, tensors: tensors.update(more=torch.zeros(1)),
    ],
)
def test_damaged_files_are_refused(tmp_path, change):
    with pytest.raises(DataError, match="holds no trajectory"):
        Trajectory.load(damaged(tmp_path, change))


def test_curves_that_share_memory_are_written(tmp_path):
    states = torch.randn(3, 4, 2)
    Trajectory((3.0, 1.0, 0.0), states, states[1:], (0, 1, 2)).save(tmp_path / "x.safetensors")
    back = Trajectory.load(tmp_path / "x.safetensors")
    assert torch.equal(back.states, states)
    assert torch.equal(back.denoised, states[1:])


def test_foreign_files_are_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    with pytest.raises(ModelFileError, match="cannot be read"):
        Trajectory.load(file)
    file.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(ModelFileError, match="never executed"):
        Trajectory.load(file)
    file.write_bytes(b"text")
    with pytest.raises(DataError, match="not a complete safetensors file"):
        Trajectory.load(file)
    save_file({"states": torch.zeros(1), "denoised": torch.zeros(1)}, file)
    with pytest.raises(DataError, match="holds no trajectory"):
        Trajectory.load(file)
