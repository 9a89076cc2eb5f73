"""Learning curves: what is read from rows, and where it is shown: analysis, report, experiment."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from farfield.analysis import Subject, analyze
from farfield.analysis.learning_curves import Course, LearningCurves
from farfield.analysis.learning_record import RECORD, learning_curves, read_record
from farfield.data import load
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, ModelFileError
from farfield.experiments import Settings, learning_order, run_experiment
from farfield.experiments.learning_order import RUNS, configuration
from farfield.report.context import ReportContext
from farfield.report.sections.learning import learning

STEPS = (0, 1, 2, 5, 10, 20, 50, 100)


def rows(**changes: object) -> list[dict]:
    """Two levels; at the lower one the Gaussian turns at step 10, the mixture at 50, the points are approached."""
    turns = {
        "gaussian": (0.5, 0.4, 0.3, 0.2, 0.1, 0.12, 0.2, 0.3),
        "mixture:4": (0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.1, 0.12),
        "empirical": (0.9, 0.9, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2),
    }
    falls = [0.01 * 0.5**k for k in range(len(STEPS))]
    rates = (1.0, 0.2, 0.05, 0.05)
    found = []
    for k, step in enumerate(STEPS):
        gains = [0.8 * (1 - math.exp(-step * rate)) for rate in rates[:3]] + [0.1 + 1e-3 * k]
        found.append(
            {
                "step": step, "images": 64 * step, "weights": "raw", "sigmas": [10.0, 0.5], "queries": 8, "seed": 0,
                "variances": [4.0, 1.0, 0.3, 0.1], "gains": [gains, gains],
                "laws": {w: {"score": [falls[k], c[k]], "denoiser": [falls[k], c[k] / 2]} for w, c in turns.items()},
                **changes,
            }
        )  # fmt: skip
    return found


def test_courses_orders_and_times() -> None:
    """What turns, when, in which order; a direction is learned when 63 % of its way is behind it."""
    found = learning_curves(rows())
    assert (found.steps, found.images, found.weights) == (STEPS, tuple(64 * s for s in STEPS), "raw")
    first = found.course("gaussian", 0.5)
    assert (first.first, first.least, first.step, first.last, first.kind) == (0.5, 0.1, 10, 0.3, "dip and rise")
    assert first.overshoot == pytest.approx(3)
    assert found.course("mixture:4", 0.5).step == 50
    assert found.course("empirical", 0.5).kind == "monotone"
    assert found.course("gaussian", 0.5, "denoiser").least == pytest.approx(0.05)
    assert {found.course(law, 10).kind for law in found.laws} == {"monotone"}
    assert found.order(0.5) == ("gaussian", "mixture:4", "empirical")
    assert found.passed(0.5) == ("gaussian", "mixture:4")
    assert found.passed(10) == ()
    # Where the last law turns as well, none has been left for another.
    assert learning_curves([*rows(), {**rows()[0], "step": 200}]).passed(0.5) == ()
    times = found.learning_steps(0.5)
    # Between looks the way is interpolated; e⁻¹ of it is left at 1, 5 and 20 steps, a fourth direction hardly moves.
    assert times[0] == pytest.approx(1, rel=0.05)
    assert times[1] == pytest.approx(5, rel=0.05)
    assert times[2] == pytest.approx(20, rel=0.05)
    assert times[3] is None
    assert found.rank_correlation(0.5) == pytest.approx(-1)
    assert found.selective == (0.5,)
    text = found.summary()
    assert (
        "At σ = 0.5 the network is nearest to the Gaussian at step 10 and to the mixture law of 4 parts at step 50"
        in text
    )
    assert "the Gaussian leaves unexplained rises from 0.1 to 0.3. At σ = 10 all curves fall to the end." in text
    with pytest.raises(ArgumentError, match="law = 'points'; this record has gaussian, mixture:4, empirical"):
        found.course("points", 0.5)
    with pytest.raises(ArgumentError, match=r"sigma = 3; this record has 10, 0\.5"):
        found.course("gaussian", 3)


def test_kinds_of_course() -> None:
    assert Course(1.0, 0.5, 7, 0.52).kind == "monotone"
    assert Course(1.0, 0.5, 7, 0.53).kind == "dip and rise"
    assert Course(1.0, 0.97, 7, 2.0).kind == "not yet"
    assert Course(1.0, 0.0, 7, 0.0).kind == "monotone"
    assert Course(1.0, 0.0, 7, 0.1).overshoot == math.inf


def test_nothing_turned_and_nothing_ordered() -> None:
    """A short record without components: a summary without claims, a figure, no table of components."""
    short = rows()[:3]
    found = learning_curves([{**row, "variances": [], "gains": [[], []]} for row in short])
    assert found.summary().startswith("At no level does the network come near to a law and leave it")
    assert "correlation" not in found.summary()
    assert len(found.tables()) == 2
    assert len(found.plot().axes) == 2


def test_views_of_the_curves(tmp_path: Path) -> None:
    """Tables whose rows fit their heads, JSON without NaN, a panel for each level and one for the directions."""
    found = learning_curves(rows())
    for table in found.tables():
        assert all(len(row) == len(table.columns) for row in table.rows)
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored["order"][1] == ["gaussian", "mixture:4", "empirical"]
    assert stored["courses"]["score"]["gaussian"][1]["course"] == "dip and rise"
    assert stored["learning_steps"][0][3] is None
    figure = found.plot()
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["σ = 10", "σ = 0.5"]
    assert len(figure.axes) == 3
    figure.savefig(tmp_path / "learning.png")


def test_records_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    good = rows()
    for bad, message in (
        ([], "holds 0 look"),
        (good[:1], "holds 1 look"),
        ([good[1], good[0]], "not in ascending order"),
        ([good[0], {**good[1], "sigmas": [1.0]}], "row 2 is not a row"),
        ([good[0], {**good[1], "step": "1"}], "row 2 is not a row"),
        ([good[0], {**good[1], "gains": [[1.0], [1.0]]}], "row 2 is not a row"),
        ([good[0], {**good[1], "laws": {"gaussian": {"score": [1.0, -1.0], "denoiser": [1.0, 1.0]}}}], "row 2 is not"),
        ([good[0], {**good[1], "variances": [math.nan] * 4}], "row 2 is not a row"),
        ([good[0], {"step": 3}], "row 2 is not a row"),
        ([3, good[0]], "row 1 is not a row"),
    ):
        with pytest.raises(ModelFileError, match=message):
            learning_curves(bad)
    path = tmp_path / RECORD
    path.write_text("{\n" + json.dumps(good[0]) + "\n")
    with pytest.raises(ModelFileError, match="line 1, is not JSON"):
        read_record(path)
    path.write_text(json.dumps(good[0]) + '\n{"step": 1')
    assert read_record(path) == good[:1]
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_record(tmp_path / "absent.jsonl")


def test_a_new_setting_begins_anew() -> None:
    """A run whose probe was changed on the way has the curves of its last setting."""
    found = learning_curves([*rows(seed=1)[:4], *rows()[4:]])
    assert found.steps == STEPS[4:]


# -- where it is shown ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / RECORD).write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return run


def test_the_analysis_reads_the_record(folder: Path) -> None:
    law = Gaussian(torch.zeros(2), torch.eye(2))
    found = analyze("learning", Subject(law, torch.zeros(4, 2), folder=folder))
    assert isinstance(found, LearningCurves)
    assert found.steps == STEPS


def test_the_report_shows_a_record_and_nothing_without(folder: Path) -> None:
    law, data = Gaussian(torch.zeros(2), torch.eye(2)), load("toy:ring:100")
    shown = learning(ReportContext(law, data, "run", source=str(folder)))
    assert any("<svg" in block for block in shown.blocks)
    assert shown.data["order"][1][0] == "gaussian"
    (folder / "model.safetensors").write_text("")
    assert learning(ReportContext(law, data, "run", source=str(folder / "model.safetensors"))).data == shown.data
    for source in ("digits", str(folder.parent)):
        assert learning(ReportContext(law, data, "run", source=source)).blocks == []


def test_the_claim_is_judged_by_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part holds for curves made so, and where the record ends early those fail that need its end."""
    for name, value in (("LAWS", ("gaussian", "mixture:4", "empirical")), ("LOW", (0.5,)), ("HIGH", (10.0,))):
        monkeypatch.setattr(learning_order, name, value)
    whole, early = learning_curves(rows()), learning_curves(rows()[:5])
    assert [(c.held, c.cases) for c in learning_order._judge([whole])] == [(1, 1)] * 5
    assert [c.held for c in learning_order._judge([whole, early])] == [1, 1, 2, 2, 2]


def test_the_experiment_from_claim_to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short runs: counted cases, tables, a figure; the second call reads what is there."""
    monkeypatch.setitem(RUNS, "digits", {**RUNS["digits"], "network": {"kind": "mlp", "width": 16, "depth": 1}})
    monkeypatch.setattr(learning_order, "LOW", (0.3, 1.0))
    settings = Settings(out=tmp_path, data=("digits",), seeds=2, steps=12)
    outcome = run_experiment("learning-order", settings)
    assert outcome.because.count(" of 4 cases") == 5
    curves, ranks = outcome.tables
    assert all(len(row) == len(curves.columns) for row in curves.rows)
    assert len(curves.rows) == len(learning_order.LAWS) * 4
    assert [row[0] for row in ranks.rows] == [1.0, 0.3]
    assert (tmp_path / "learning-digits.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "result.json").read_text())["verdict"] == outcome.verdict
    assert configuration("digits", 3, None).steps == 700
    assert run_experiment("learning-order", settings).tables == outcome.tables
    with pytest.raises(ArgumentError, match="data set of this experiment 'toy:ring'; known: cifar10, digits"):
        run_experiment("learning-order", Settings(data=("toy:ring",)))
