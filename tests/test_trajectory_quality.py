"""Fréchet distances along both curves of a run, and the experiment on jumps."""

import json

import pytest
import torch

from farfield.analysis.catalogue import Subject
from farfield.analysis.trajectory_quality import (
    QualityBench,
    QualityOptions,
    analyze_quality,
    features_for,
    gaussian_quality,
    trajectory_quality,
)
from farfield.analysis.trajectory_quality_result import MARGIN
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.experiments.base import Settings
from farfield.experiments.jump_quality import PUBLISHED, Curve, PublishedRow, _kept, _published
from farfield.experiments.jump_quality import measure as measure_jumps
from farfield.metrics import frechet_distance, pca_features
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import Churn, Jump, Sampler, Teleport, karras
from farfield.sampling.solvers import Whitened

F64 = torch.float64
VARIANCES = torch.tensor([4.0, 1.0, 0.01], dtype=F64)
LAW = Gaussian(torch.tensor([1.0, -2.0, 0.5], dtype=F64), torch.diag(VARIANCES))


def sampled(n=4000, seed=0):
    return LAW.sample(n, torch.Generator().manual_seed(seed))


def test_closed_form():
    """Geometry fact 22."""
    expected = {
        0.1: (0.00174684673, 0.00088872049),
        1.0: (1.04630345, 0.138477845),
        10.0: (247.127993, 3.40561163),
        80.0: (18713.9075, 4.78769410),
    }
    for t, found in zip(expected, gaussian_quality(LAW, list(expected)), strict=True):
        assert found == pytest.approx(expected[t], rel=1e-8)
    (x, d), zero = gaussian_quality(Gaussian.isotropic(torch.zeros(5), 4.0), [6.0, 0.0])
    assert d / x == pytest.approx(0.1)
    assert zero == (0.0, 0.0)
    flat = Gaussian(torch.zeros(4), Spectrum.low_rank(torch.eye(4)[:, :1], torch.tensor([1.0]), tail=0.25))
    same = Gaussian(torch.zeros(4), torch.diag(torch.tensor([1.0, 0.25, 0.25, 0.25])))
    assert gaussian_quality(flat, [2.0])[0] == pytest.approx(gaussian_quality(same, [2.0])[0])
    point = Gaussian.isotropic(torch.zeros(2), 0.0)
    assert gaussian_quality(point, [3.0, 0.0]) == [(18.0, 0.0), (0.0, 0.0)]


def test_measured_curves_are_the_closed_form():
    """On Gaussian data with the exact flow both curves follow geometry section 2.6, up to the finite sample."""
    data = sampled()
    bench = QualityBench.of(data, pca_features(data, 3))
    plan = Sampler(Whitened(1), karras(10), covariance=LAW, start=Teleport(LAW, 40.0))
    found = trajectory_quality(LAW, bench, plan, 4000, dtype=F64)
    exact = gaussian_quality(LAW, [row.sigma for row in found.rows])
    for row, (x, d) in zip(found.rows, exact, strict=True):
        assert row.state == pytest.approx(x, rel=0.08, abs=0.02)
        assert row.denoised == pytest.approx(d, rel=0.08, abs=0.02)
    assert found.final < 4 * found.floor
    assert not found.behind


def test_rows_are_the_distances_of_kept_trajectories():
    """Streaming over batches gives what the stored states and outputs give, and the evaluations of each."""
    data = sampled(500)
    bench = QualityBench.of(data, pca_features(data, 3), heldout=sampled(40, 1))
    for plan in (
        Sampler("heun", karras(6)),
        Sampler("dpmpp_2m", karras(6)),
        Sampler("heun", karras(6), noise=Churn(3.0)),
    ):
        path = plan(LAW, 70, seed=4, trajectory=True, dtype=F64).trajectory
        found = trajectory_quality(LAW, bench, plan, 70, 4, batch_size=32, dtype=F64)
        whole = trajectory_quality(LAW, bench, plan, 70, 4, batch_size=70, dtype=F64)
        assert found == whole
        assert [row.n for row in found.rows] == list(range(len(path.denoised), 0, -1))
        for k, row in enumerate(found.rows):
            assert row.sigma == path.sigmas[k]
            assert row.nfe == path.nfe[k] == row.jump_nfe - 1
            assert row.state == pytest.approx(frechet_distance(path.states[k], data), rel=1e-9)
            assert row.denoised == pytest.approx(frechet_distance(path.denoised[k], data), rel=1e-9)
        assert found.final == pytest.approx(frechet_distance(path.states[-1], data), rel=1e-9)
        assert found.final_nfe == plan.nfe
        if plan.rule.name == "heun":  # erratum E24: the last step is Euler's
            assert found.final == pytest.approx(found.rows[-1].denoised, rel=1e-6)


def test_a_row_is_a_jump():
    data = sampled(300)
    bench = QualityBench.of(data, pca_features(data, 3))
    plan = Sampler("dpmpp_2m", karras(7))
    found = trajectory_quality(LAW, bench, plan, 50, dtype=F64)
    row = found.rows[4]
    jump = Sampler("dpmpp_2m", karras(7), finish=Jump(row.sigma))
    assert jump.nfe == row.jump_nfe
    assert frechet_distance(jump(LAW, 50, dtype=F64).x, data) == pytest.approx(row.denoised, rel=1e-9)


def test_budgets():
    """A jump within a budget beside the same solver planned to it."""
    data = sampled(300)
    bench = QualityBench.of(data, pca_features(data, 3))
    found = trajectory_quality(LAW, bench, Sampler("heun", karras(9)), 50, budgets=(5, 10), dtype=F64)
    assert [(b.budget, b.nfe) for b in found.budgets] == [(5, 5), (10, 9)]
    assert [b.n for b in found.budgets] == [7, 5]
    short = Sampler("heun", karras(3))(LAW, 50, dtype=F64).x
    assert found.budgets[0].shorter == pytest.approx(frechet_distance(short, data), rel=1e-9)
    assert found.budgets[0].jump == next(row.denoised for row in found.rows if row.jump_nfe == 5)
    assert len(found.tables()) == 2
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_analysis(tmp_path):
    data = sampled(400).float()
    law = Gaussian.fit(data)
    found = analyze_quality(Subject(law, data, "toy", heldout=sampled(60, 2).float()), QualityOptions(levels=6, n=60))
    assert len(found.exact) == 6
    assert found.heldout > 0
    assert all(len(row) == len(t.columns) for t in found.tables() for row in t.rows)
    assert "perfect" in found.summary()
    json.dumps(found.to_dict(), allow_nan=False)
    found.plot().savefig(tmp_path / "x.png")
    other = analyze_quality(Subject(Empirical(data[:50]), data, "toy"), QualityOptions(solver="euler", levels=4, n=20))
    assert other.exact is None
    assert other.heldout is None
    assert all(b.denoised <= b.state * (1 + MARGIN) for b in other.rows) == (not other.behind)


def test_features_and_clipping():
    """Networks see images in [−1, 1]; principal components see them as they are."""
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known, other = features_for(images, "digits"), features_for(images, "something else")
    assert known.name == "classifier:digits"
    assert other.name == "pca:40"
    assert QualityBench.of(images, known).clip
    assert not QualityBench.of(images, other).clip
    bench = QualityBench.of(images, known)
    assert torch.equal(bench.seen(5 * images), known((5 * images).clamp(-1, 1)))


def test_refusals():
    data = sampled(50)
    bench = QualityBench.of(data, pca_features(data, 3))
    plan = Sampler("heun", karras(4))
    for make, words in (
        (lambda: trajectory_quality(LAW, bench, plan, 3), "n = 3"),
        (lambda: trajectory_quality(LAW, bench, plan, 8, budgets=(0,)), "budget = 0"),
    ):
        with pytest.raises(ArgumentError, match=words):
            make()


def test_published_table():
    """Geometry section 4.2 and fact 3: levels of the 40-step grid; the jump wins but for LSUN Cat at the very end (E20)."""
    grid = karras(40)
    losses = []
    for row in PUBLISHED:
        assert grid.levels[40 - row.n] == pytest.approx(row.sigma, rel=1e-4)
        assert Sampler("heun", grid, finish=Jump(grid.levels[40 - row.n])).nfe == 2 * (40 - row.n) + 1
        losses += [(row.n, k) for k in range(3) if row.jumps[k] >= row.states[k]]
    assert losses == [(1, 0)]
    assert _published().rows[0][2:4] == (8, 9)


def fake(states, jumps, final=1.0):
    rows = [
        {"n": len(states) - k, "sigma": 2.0**-k, "nfe": 2 * k, "jump_nfe": 2 * k + 1, "state": a, "denoised": b}
        for k, (a, b) in enumerate(zip(states, jumps, strict=True))
    ]
    return {"rows": rows, "final": final, "final_nfe": 9}


def test_where_a_jump_is_behind():
    """Three places, told apart: among noise, on the way, at the very end; differences within the error count for nothing."""
    run = fake([100, 95, 50, 20, 1.5], [120, 90, 60, 2, 1.6])
    assert Curve("d", "heun", "f", (run,)).behind() == {"noise": [1.0], "way": [0.25], "end": [0.0625]}
    wide = Curve("d", "heun", "f", (run, fake([130, 95, 80, 20, 1.9], [100, 90, 60, 2, 1.5])))
    assert wide.behind() == {"noise": [], "way": [], "end": []}
    assert Curve("d", "heun", "f", (fake([9, 5, 1.05], [4, 1.0, 1.0]),)).soon() == (3, 4, 0.5)


def test_the_experiment(tmp_path):
    """Small: verdict, tables and figure, and a second run from its files alone."""
    settings = Settings(out=tmp_path, data=("digits",), seeds=2)
    first = measure_jumps(settings, {"digits": 12}, ("dpmpp_2m",))
    assert first.verdict in {"holds", "holds in part", "does not hold"}
    assert "digits, dpmpp_2m on classifier:digits" in first.because
    assert [len(t.rows) for t in first.tables] == [19, 2, 19, 2, len(PUBLISHED)]
    assert all(len(row) == len(t.columns) for t in first.tables for row in t.rows)
    files = sorted((tmp_path / "cells").iterdir())
    assert [f.name for f in files] == ["digits-dpmpp_2m-0.json", "digits-dpmpp_2m-1.json"]
    before = [f.stat().st_mtime_ns for f in files]
    again = measure_jumps(settings, {"digits": 12}, ("dpmpp_2m",))
    assert again.tables == first.tables
    assert sorted(first.figures) == ["jump-digits-classifier-digits", "jump-digits-pca-40"]
    assert [f.stat().st_mtime_ns for f in files] == before
    assert _kept(files[0], {"n": 13}) is None
    with pytest.raises(ArgumentError, match="data set of this experiment"):
        measure_jumps(Settings(data=("faces",)), {"digits": 12})


def test_published_rows_are_values():
    assert PublishedRow(1, 0.002, (6.63, 3.51, 2.52), (6.72, 3.50, 2.48)) == PUBLISHED[-1]
