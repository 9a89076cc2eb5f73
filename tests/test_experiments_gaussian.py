"""The experiments on what simple laws explain: small runs from claim to file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from farfield.analysis.fidelity import score_fidelity
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.experiments import EXPERIMENTS, Settings, gaussian_score, gaussian_score_rank, run_experiment

from .test_fidelity import T3


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few queries and levels."""
    monkeypatch.setattr(gaussian_score, "QUERIES", 16)
    monkeypatch.setattr(gaussian_score, "SIGMAS", (20.0, 2.0, 1.08, 1.0, 0.1))
    monkeypatch.setattr(gaussian_score_rank, "QUERIES", 24)
    monkeypatch.setattr(gaussian_score_rank, "COMPONENTS", (1, 10, 200))
    monkeypatch.setattr(gaussian_score_rank, "RANK_COMPONENTS", (1, 10))


@pytest.mark.parametrize(
    ("name", "figure"),
    [("gaussian-fidelity", "fidelity"), ("mixture-u-shape", "u-shape"), ("minimal-rank", "minimal-rank")],
)
@pytest.mark.usefixtures("small")
def test_from_claim_to_file(tmp_path: Path, name: str, figure: str) -> None:
    outcome = run_experiment(name, Settings(out=tmp_path, data=("digits",)))
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["claim"] == EXPERIMENTS[name].claim
    assert record["verdict"] == outcome.verdict
    assert record["settings"]["seed"] == 0
    assert (tmp_path / f"{figure}-digits.png").read_bytes().startswith(b"\x89PNG")
    for table in outcome.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert "digits" in outcome.because
    assert not outcome.because.endswith(".")


@pytest.mark.usefixtures("small")
def test_more_components_hurt_on_digits() -> None:
    """200 clusters of 1,500 images follow the sample, which the network does not."""
    outcome = run_experiment("mixture-u-shape", Settings(data=("digits",)))
    (table,) = outcome.tables
    last = table.rows[-1]
    assert last[0] == 0.01
    assert last[2] < last[1] < last[3]
    shapes = [row[-1] for row in table.rows if row[0] <= gaussian_score_rank.SMALL]
    verdict = "holds" if set(shapes) == {"yes"} else "holds in part" if "yes" in shapes else "does not hold"
    assert outcome.verdict == verdict


def test_the_verdict_follows_the_measurement() -> None:
    """On two points the Gaussian fails at σ = 1.08, where 1.3 is needed; on its own data it does not."""
    gauss = Gaussian.fit(T3)
    laws = {"gaussian": gauss}
    for model, holds in ((gauss, True), (Empirical(T3), False)):
        found = score_fidelity(model, T3, sigmas=[2.0, 1.08, 0.5], queries=500, laws=laws)
        assert gaussian_score._explained(found) is holds
        # Levels below the claim's do not count.
        assert gaussian_score._explained(replace(found, sigmas=(2.0, 1.0, 0.5)))


def test_ranks_grow_up_to_one_place() -> None:
    ranks = (1, 2, 4, 8)
    assert gaussian_score_rank._grows(ranks, [1, 2, 2, 8])
    assert gaussian_score_rank._grows(ranks, [1, 4, 2, 8])
    assert not gaussian_score_rank._grows(ranks, [1, 8, 2, 8])
    assert not gaussian_score_rank._grows(ranks, [2, 2, 2])


def test_models_are_checked() -> None:
    with pytest.raises(ArgumentError, match="unknown model of this experiment 'digit'"):
        run_experiment("gaussian-fidelity", Settings(data=("digit",)))
