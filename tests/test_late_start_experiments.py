"""The late-start experiments at sizes that a test can afford, and their verdicts from the measurement."""

import json

import pytest

from farfield.errors import ArgumentError
from farfield.experiments import gaussian_late_start, late_start, minority_coverage
from farfield.experiments.base import EXPERIMENTS, Settings, run_experiment


def test_registered():
    """The three experiments are found by name and refuse data without a model."""
    assert {"late-start", "gaussian-late-start", "minority-coverage"} <= set(EXPERIMENTS)
    with pytest.raises(ArgumentError, match="mnist"):
        run_experiment("minority-coverage", Settings(data=("mnist",)))


def test_gains(tmp_path, monkeypatch):
    """Holds symmetry_breaking E25 on the digits model: DDIM at 3 steps gains beyond its interval, at equal evaluations."""
    monkeypatch.setattr(gaussian_late_start, "QUERIES", 4)
    settings = Settings(out=tmp_path, data=("digits",))
    small = {"samplers": ("ddim",), "steps": (3,), "candidates": {"plain": (400,), "gls": (300,)}}
    found = gaussian_late_start.gains(settings, {"digits": 24}, **small)
    assert found.verdict == "holds"
    table = found.tables[0]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["NFE"] == 3
    assert row["gain"] > 2
    assert float(row["95 % interval"].split()[0]) > 1
    assert len(found.tables[-1].rows) == 45
    cells = json.loads((tmp_path / "digits-measured" / "late-start-cells.json").read_text())["cells"]
    assert len(cells) == 3 * 3
    assert {c["seed"] for c in cells} == {0, 1, 2}
    again = gaussian_late_start.gains(settings, {"digits": 24}, **small)
    assert again.because == found.because


def test_curves(monkeypatch):
    """The late-start experiment ends with a table of features beside the critical time."""
    monkeypatch.setattr(late_start, "SAMPLERS", (("pndm", 4),))
    monkeypatch.setattr(late_start, "QUERIES", 4)
    found = late_start.curves(Settings(data=("digits",)), {"digits": 12}, (100, 400, 700))
    features = next(t for t in found.tables if "features" in t.title)
    assert features.rows[0][1] == 4
    assert features.rows[0][7] == pytest.approx(401.7, abs=1)
    assert "late-start-digits" in found.figures


def test_coverage():
    """Holds symmetry_breaking F29 as an experiment: the toy's table, and the digits' label entropy."""
    found = minority_coverage.coverage(Settings(data=("digits",), seeds=1), {"digits": 24})
    toy = found.tables[0]
    assert toy.rows[1][1:3] == pytest.approx((0.0628, 0.0891), abs=1e-3)
    assert toy.rows[3][1] == pytest.approx(0.1, abs=0.006)  # an exact solver has nothing to repair at index 900
    assert len(found.tables[1].rows) == 6
    assert set(found.figures) == {"minority", "entropy-digits"}
