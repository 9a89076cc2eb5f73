"""The experiments: their theory by number, and small runs of each from claim to file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farfield.cli.main import main
from farfield.errors import ArgumentError
from farfield.experiments import EXPERIMENTS, Settings, run_experiment, stf_training
from farfield.experiments.stf_training import RUNS, configuration
from farfield.experiments.stf_variance import two_point_variance


@pytest.mark.parametrize(
    ("sigma", "n", "value"),
    [(0.25, 4, 0.0049172111), (0.5, 64, 0.010153499), (1, 2, 0.22479975), (1, 16, 0.020569183), (2, 64, 6.6422014e-4),
     (4, 4, 9.0005554e-4)],
)  # fmt: skip
def test_two_points_exactly(sigma: float, n: int, value: float) -> None:
    """Holds stable_target_field fact 8."""
    # At σ = 0.25 the integrand is a narrow step, which Gauss-Hermite quadrature resolves less finely.
    assert two_point_variance(sigma, n) == pytest.approx(value, rel=1e-6 if sigma > 0.3 else 2e-3)


def test_variance_experiments_from_claim_to_file(tmp_path: Path) -> None:
    for name, figure in (("stf-variance", "variance-digits"), ("stf-reference-size", "reference-size-digits")):
        out = tmp_path / name
        outcome = run_experiment(name, Settings(out=out, data=("digits",)))
        assert outcome.verdict in ("holds", "holds in part")
        record = json.loads((out / "result.json").read_text())
        assert record["claim"] == EXPERIMENTS[name].claim
        assert record["verdict"] == outcome.verdict
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        for table in outcome.tables:
            assert all(len(row) == len(table.columns) for row in table.rows)


def test_training_experiment_compares_runs_that_differ_in_the_target_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stf_training, "SAMPLES", 16)
    small = {**RUNS["digits"], "network": {"kind": "mlp", "width": 32, "depth": 1}}
    monkeypatch.setitem(RUNS, "digits", small)
    settings = Settings(out=tmp_path, data=("digits",), seeds=2, steps=8)
    outcome = run_experiment("stf-training", settings)
    (table,) = outcome.tables
    assert [row[0] for row in table.rows] == [2, 4, 6, 8]
    assert (tmp_path / "digits-stf-1" / "model.safetensors").exists()
    a, b = (configuration("digits", kind, 0, 8) for kind in ("dsm", "stf"))
    assert (a.target.kind, b.target.kind) == ("dsm", "stf")
    assert (a.optimizer, a.seed, a.steps, a.objective) == (b.optimizer, b.seed, b.steps, b.objective)
    again = run_experiment("stf-training", settings)  # a finished run is read, not repeated
    assert again.tables[0].rows == outcome.tables[0].rows


def test_names_are_checked() -> None:
    with pytest.raises(ArgumentError, match="Did you mean 'stf-variance'"):
        run_experiment("stf-varianc")
    with pytest.raises(ArgumentError, match="data set of this experiment 'toy:ring'; known: cifar10, digits"):
        run_experiment("stf-training", Settings(data=("toy:ring",)))
    with pytest.raises(ArgumentError, match="seeds = 0"):
        Settings(seeds=0)


def test_the_command_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in EXPERIMENTS)
    assert main(["experiment", "--json"]) == 0
    assert {e["name"] for e in json.loads(capsys.readouterr().out)} == set(EXPERIMENTS)
    assert main(["experiment", "stf"]) == 2
