"""The skip sweep as an experiment: its verdict from its numbers, and going on where it stopped."""

import json
from dataclasses import replace

import pytest

from farfield.data import load
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.experiments import teleport, teleport_budget, teleport_cells
from farfield.experiments.base import EXPERIMENTS, Settings, to_dict
from farfield.experiments.teleport_cells import SAMPLES, Cell
from farfield.experiments.teleport_published import PUBLISHED_BUDGETS
from farfield.sampling import Sampler, karras


def cell(solver, skip, values, saved=0):
    return Cell(solver, Sampler("euler", karras(20 - saved)), skip, list(values))


def test_savings_count_where_the_loss_is_surely_small():
    """Mean plus standard error below 3 %: seed by seed, so that what the seeds share cancels."""
    base = cell("heun", 0, [1.0, 2.0, 4.0])
    better = cell("heun", 3, [1.01, 2.02, 4.04], saved=4)
    unsure = cell("heun", 5, [1.1, 1.9, 4.1], saved=6)
    worse = cell("heun", 7, [1.05, 2.1, 4.2], saved=8)
    mean, error = better.change(base)
    assert mean == pytest.approx(0.01)
    assert error == pytest.approx(0, abs=1e-12)
    assert worse.change(base)[0] == pytest.approx(0.05)
    assert unsure.change(base)[1] > 0.03
    assert teleport._best([base, better, unsure, worse], "heun") == pytest.approx(0.2)
    assert teleport._best([base, worse], "heun") == 0
    assert cell("heun", 3, [1.0]).change(cell("heun", 0, [2.0])) == (-0.5, 0.0)


@pytest.fixture
def law(monkeypatch):
    """The images' own Gaussian in the network's place, which is as good for these tests and faster."""
    gaussian = Gaussian.fit(load("digits").train.images)
    monkeypatch.setattr(teleport_cells, "load_model", lambda name: gaussian)
    return gaussian


def refuse(*args, **kwargs):
    raise AssertionError("drawn again")


def test_sweep_and_resumption(law, tmp_path, monkeypatch):
    """Every solver at every skip and at equal evaluations; a second run finds its cells and draws nothing."""
    settings = Settings(out=tmp_path, data=("digits",), seeds=2)
    outcome = teleport.sweep(settings, {"digits": 8})
    mine, published = outcome.tables
    assert len(mine.rows) == 3 * (len(teleport.SKIPS) + 1)
    heun = [row for row in mine.rows if row[0] == "heun"]
    assert [row[2] for row in heun] == [35, 29, 25, 21, 25]
    assert [row[2] for row in mine.rows if row[0] == "whitened"] == [18, 15, 13, 11, 13]
    assert len(published.rows) == 31
    assert "digits: saved at under 3% loss" in outcome.because
    assert list(outcome.figures) == ["teleport-digits"]
    json.dumps(to_dict(EXPERIMENTS["teleport-skip"], outcome), allow_nan=False)
    assert len(list((tmp_path / "cells").iterdir())) == 2 * len(mine.rows)

    monkeypatch.setattr(Sampler, "__call__", refuse)
    again = teleport.sweep(settings, {"digits": 8})
    assert again.tables == outcome.tables
    for changed, samples in ((replace(settings, seeds=3), 8), (settings, 9)):
        with pytest.raises(AssertionError, match="drawn again"):
            teleport.sweep(changed, {"digits": samples})


def test_budgets(law, tmp_path, monkeypatch):
    """Counts, figures and resumption; on an exact Gaussian whitened steps end where they do from any start."""
    settings = Settings(out=tmp_path, data=("digits",), seeds=2)
    outcome = teleport_budget.sweep(settings, {"digits": 60})
    mine, published = outcome.tables
    assert [row[1] for row in mine.rows] == [5] * 4 + [9] * 4 + [6] * 4 + [10] * 4 + [6] * 4 + [10] * 4
    assert [row[2] for row in mine.rows[:4]] == ["noise", "σ = 20", "σ = 10", "σ = 5"]
    changes = {(row[0], row[1], row[2]): row[5] for row in mine.rows}
    assert changes["heun", 5, "σ = 20"] < -10
    assert all(abs(v) < 0.1 for (solver, _, _), v in changes.items() if solver == "whitened")
    assert len(published.rows) == 18
    json.dumps(to_dict(EXPERIMENTS["teleport-budget"], outcome), allow_nan=False)
    monkeypatch.setattr(Sampler, "__call__", refuse)
    assert teleport_budget.sweep(settings, {"digits": 60}).tables == outcome.tables


def test_published_budgets():
    """Gaussian_score Annex A.4: up to a factor of two at 5 evaluations for DPM-Solver++, and a teleport to 2.5 harms at 10."""
    for table in PUBLISHED_BUDGETS:
        best = [min(v[k] for v in table.rows.values()) for k in range(len(table.nfe))]
        assert all(b < v for b, v in zip(best, table.rows[80.0], strict=True))
    multistep = PUBLISHED_BUDGETS[0]
    assert multistep.rows[80.0][0] / min(v[0] for v in multistep.rows.values()) > 2
    assert multistep.rows[2.5][-1] > multistep.rows[80.0][-1]


def test_unknown_data():
    with pytest.raises(ArgumentError, match="unknown data set of this experiment 'faces'; known: cifar10, digits"):
        teleport.sweep(Settings(data=("faces",)), SAMPLES)
