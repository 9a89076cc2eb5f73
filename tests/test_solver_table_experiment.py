"""The solver table as an experiment: a small run from claim to file, its verdict, and going on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farfield.data import load
from farfield.distributions import GaussianMixture
from farfield.errors import ArgumentError
from farfield.experiments import solver_table
from farfield.experiments.base import EXPERIMENTS, Outcome, Settings, run_experiment
from farfield.experiments.solver_table import JUDGED, Size

SMALL = {"digits": Size(n=4, samples=8, frechet_nfes=(8,), components=2)}
SOLVERS = ("heun", "dpmpp_2m", "lms", "whitened")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table")


@pytest.fixture(scope="module")
def law() -> GaussianMixture:
    """Stands for the network: as much a denoiser, and quick."""
    return GaussianMixture.fit(load("digits").images, 3)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, law: GaussianMixture) -> None:
    """A short reference, a loose tolerance, and the law in the network's place."""
    monkeypatch.setattr(solver_table, "load_model", lambda name: law)
    monkeypatch.setattr(solver_table, "FINE", 24)
    rows = solver_table.adaptive_rows
    monkeypatch.setattr(
        solver_table, "adaptive_rows", lambda model, reference, n, seed: rows(model, reference, n, seed, [0.3])
    )


def small_run(folder: Path | None, seed: int = 0) -> Outcome:
    return solver_table.measure(Settings(out=folder, data=("digits",), seed=seed), SMALL, (8, 10), SOLVERS)


@pytest.fixture
def first(folder: Path) -> Outcome:
    return small_run(folder)


def test_claim_measurement_verdict(first: Outcome) -> None:
    verdicts, *tables = first.tables
    assert [row[:2] for row in verdicts.rows] == [
        (name, budget) for name in ("digits", "digits, mixture of 2") for budget in JUDGED
    ]
    held, plainly = ([row[k] <= row[7] for row in verdicts.rows] for k in (6, 9))
    partly = any(held) or any(plainly)
    assert first.verdict == ("holds" if all(held) else "holds in part" if partly else "does not hold")
    for row in verdicts.rows:
        assert row[6] == pytest.approx(row[3] / row[5])
        assert "whitened" in row[2]
        assert "whitened" not in row[4]
        # Fewer grids for the others can only make the ratio smaller.
        assert row[9] <= row[6]
    # Errors, medians, options, tolerances; and distances of the network alone.
    assert len(tables) == 5 + 4
    assert [t.title.startswith("digits: squared Fréchet") for t in tables].count(True) == 1
    for table in first.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert set(first.figures) == {"solvers-digits", "solvers-digits-mixture-of-2"}


def test_a_killed_run_goes_on(first: Outcome, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is missing, or belongs to other settings, is measured again; the outcome is the same."""
    cells = sorted((folder / "cells").glob("*.json"))
    lost = next(path for path in cells if "DPM-Solver-2M-Karras" in path.name and "mixture" not in path.name)
    other = next(path for path in cells if "LMS-4-points-log-SNR" in path.name)
    lost.unlink()
    record = json.loads(other.read_text())
    record["key"]["seed"] = 7
    other.write_text(json.dumps(record))
    run, again = solver_table.entrant_rows, []

    def counted(*args: object) -> object:
        again.append(args[1].name)  # type: ignore[attr-defined]
        return run(*args)  # type: ignore[arg-type]

    def refuse(*args: object) -> object:
        raise AssertionError("measured already")

    monkeypatch.setattr(solver_table, "entrant_rows", counted)
    for name in ("reference_solution", "baseline_row", "adaptive_rows", "distance_of"):
        monkeypatch.setattr(solver_table, name, refuse)
    second = small_run(folder)
    assert sorted(again) == ["DPM-Solver++(2M), Karras ρ=7", "LMS, 4 points, log-SNR"]
    assert second.because == first.because
    assert second.tables == first.tables


def test_it_is_registered() -> None:
    found = EXPERIMENTS["solver-table"]
    assert not found.repeats
    assert "whitened" in found.claim
    with pytest.raises(ArgumentError, match="known: cifar10, digits"):
        run_experiment("solver-table", Settings(data=("moons",)))
