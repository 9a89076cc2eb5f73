"""The experiment on straight trajectories: small runs from claim to file, and its verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from farfield.data import DataSet, load
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.experiments import straightness
from farfield.experiments.base import EXPERIMENTS, Settings, run_experiment
from farfield.report import build_report


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few trajectories."""
    monkeypatch.setattr(straightness, "TRAJECTORIES", {"digits": 12, "cifar10": 2, "replica": 12})


@pytest.mark.usefixtures("small")
def test_from_claim_to_file(tmp_path: Path) -> None:
    outcome = run_experiment("straightness", Settings(out=tmp_path, data=("digits", "replica"), seeds=2))
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["claim"] == EXPERIMENTS["straightness"].claim
    assert record["verdict"] == outcome.verdict
    assert record["settings"]["seeds"] == 2
    for name in ("digits", "replica"):
        assert (tmp_path / f"straightness-{name}.png").read_bytes().startswith(b"\x89PNG")
        assert name in outcome.because
    for table in outcome.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    shapes, parts = outcome.tables
    assert [row[:2] for row in shapes.rows] == [("digits", 0), ("digits", 1), ("replica", 0), ("replica", 1)]
    held = [row[2] == "yes" for row in parts.rows]
    assert outcome.verdict == ("holds" if all(held) else "holds in part" if any(held) else "does not hold")
    assert not outcome.because.endswith(".")
    # Geometry fact 53 is what the replica measures.
    for row in shapes.rows[2:]:
        assert row[2] == pytest.approx(0.00335, rel=0.12)


def test_the_replica_is_as_long_and_as_low_as_it_says() -> None:
    data = straightness.replica(3)
    assert data.shape == (1000, 3072)
    assert float(data.square().sum(1).mean().sqrt()) == pytest.approx(27.7, rel=0.03)
    values = torch.linalg.eigvalsh(data.double() @ data.double().T).flip(0)
    assert float(values[40] / values[39]) < 1e-10
    assert float(values[0] / values[3]) == pytest.approx(4**1.5, rel=0.3)
    assert torch.equal(straightness.replica(3, points=10), data[:10])


def test_parts_of_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """An isotropic Gaussian's paths are too straight for the claim, and their outputs do not turn later."""
    from farfield.analysis.shape import shape_statistics

    shape = shape_statistics(Gaussian(torch.zeros(4), 0.25 * torch.eye(4)), n=8)
    parts = straightness.verdicts([shape])
    assert parts["cosine"]
    assert parts["closer in expectation"]
    assert not parts["ratio of the states"]
    assert not parts["ratio of the outputs"]


def test_unknown_subjects() -> None:
    with pytest.raises(ArgumentError, match="knows digits, cifar10, replica"):
        run_experiment("straightness", Settings(data=("moons",)))


@pytest.mark.parametrize("kind", ["digits", "plane", "line"])
def test_the_section_of_the_report(tmp_path: Path, kind: str) -> None:
    """With a plane of the paths where the data have one."""
    if kind == "digits":
        data = load("digits")
    else:
        data = DataSet(torch.randn(60, 2 if kind == "plane" else 1))
    law = Gaussian.fit(data.images)
    result = build_report(law, data, tmp_path / "out", name="x", quick=True, progress=False, sections=["trajectories"])
    assert dict(result.failed) == {}
    found = json.loads(result.data.read_text())["sections"]["trajectories"]
    assert (found["view"] is None) == (kind == "line")
    page = result.page.read_text(encoding="utf-8")
    assert ("principal components" in page) == (kind != "line")
    assert "95 % interval" in page


def test_the_report_tells_the_farthest_level_from_where_the_path_turns() -> None:
    """A path is farthest from its line where it runs along it: it turns most elsewhere, on the way down from there."""
    from farfield.analysis.shape import shape_statistics
    from farfield.report.sections.trajectories import _turning

    bent = shape_statistics(Gaussian(torch.zeros(2), torch.diag(torch.tensor([4.0, 0.01]))), n=16)
    place = bent.sigmas.index(bent.turning_point)
    assert max(bent.bending.mean[place + 1 :]) > 2 * bent.bending.mean[place]
    text = _turning(bent)
    assert f"farthest from the line at σ = {bent.turning_point:.2g}" in text
    assert text.endswith(f"up to {max(bent.bending.mean[place + 1 :]):.2g}°.")
