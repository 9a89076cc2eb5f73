"""The replay audit: copies of the optimal denoiser, novelty of the rest, basins and locks."""

from __future__ import annotations

import json

import pytest
import torch

from farfield.analysis import Subject, analyze
from farfield.analysis.replay import ReplayAudit, replay_audit
from farfield.data import load
from farfield.distributions import Empirical
from farfield.distributions.jittered import Jittered
from farfield.errors import ArgumentError
from farfield.interop import load as load_model
from farfield.sampling import Sampler, karras
from tests.test_shape import t5

HEUN = Sampler("heun", karras(40))


def audit(delta: float | None, **options) -> ReplayAudit:
    data, start = t5()
    model = Empirical(data) if delta is None else Jittered(data, delta)
    return replay_audit(model, data, n=32, starts=start, sampler=HEUN, **options)


def test_the_optimal_denoiser_replays_everything():
    """Geometry 2.15, item 6: every sample is a training point, and all of them fall into its basin."""
    found = audit(None)
    assert found.replayed == found.model_replayed == found.captured == found.basin_rate == 1
    assert float(found.model.distance.max()) == 0
    assert found.model.copies == 1
    assert found.lock_share[-1] == 1


@pytest.mark.parametrize(("delta", "near", "same"), [(0.1, 0.4012, 1.0), (0.3, 1.1748, 0.969)])
def test_a_score_deviation_makes_novel_samples(delta, near, same):
    """Geometry fact 51 seen from the samples: attracted by the point of the optimum, but not in it."""
    found = audit(delta)
    assert found.replayed == 1
    assert found.model_replayed == 0
    assert float(found.model.distance.mean()) == pytest.approx(near, abs=5e-5)
    assert found.basin_rate == pytest.approx(same, abs=1e-3)
    assert found.captured <= found.model.copies
    assert "100% of the optimal denoiser's samples are training points" in found.summary()


def test_a_small_deviation_is_a_copy_and_no_point():
    """With δ well below the points' distances the samples are copies by d₁/d₂ < 1/3, but not the points themselves."""
    small, large = audit(0.01), audit(0.3)
    assert small.model.copies > 0.9 > large.model.copies
    assert small.captured == small.model.copies
    assert small.model_replayed == 0
    assert small.lock_level >= large.lock_level


def test_points_that_occur_twice_are_one():
    data, start = t5()
    twice = torch.cat((data, data))
    found = replay_audit(Jittered(data, 0.1), twice, n=32, starts=start, sampler=HEUN)
    once = audit(0.1)
    assert found.basin_rate == once.basin_rate == 1
    assert found.distinct == once.distinct
    assert found.replayed == 1
    assert found.model.distance.tolist() == pytest.approx(once.model.distance.tolist(), rel=1e-9)


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    subject = Subject(load_model("digits"), data.train.images, labels=data.train.labels, heldout=data.validation.images)
    return subject, analyze("replay", subject, {"n": 16})


def test_the_bundled_network(digits):
    """The optimum returns 16 training images; the network none, and it comes no closer than held-out images do."""
    _, found = digits
    assert found.replayed == 1
    assert found.model_replayed == found.captured == 0
    assert 0.8 < found.model.median_ratio < 1.4
    assert 0.05 < found.basin_rate < 0.9
    assert found.nfe == 35
    assert 0.01 < found.lock_level < 1
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(record["neighbours"]["number"][0]) == 3
    first, second = found.tables()
    assert [row[0] for row in first.rows] == ["model", "optimal denoiser", "held-out data"]
    assert all(len(row) == len(t.columns) for t in (first, second) for row in t.rows)


def test_the_panel(digits):
    """Rows: samples of both from the same start, then the nearest data; the optimal row consists of training images."""
    subject, found = digits
    assert list(found.pictures) == ["model", "optimal", "nearest 1", "nearest 2", "nearest 3"]
    assert all(p.shape == (10, 1, 8, 8) for p in found.pictures.values())
    gaps = torch.cdist(found.pictures["optimal"].flatten(1), subject.data.flatten(1)).amin(1)
    assert float(gaps.max()) < 1e-3
    panel = torch.stack(
        [(found.pictures["model"] - found.pictures[f"nearest {k}"]).flatten(1).norm(dim=1) for k in (1, 2, 3)]
    )
    assert torch.allclose(panel.double().T, found.neighbours.distance[:10], atol=1e-5)
    figure = found.plot()
    assert len(figure.axes) == 3
    assert len(found.plot(figure.axes[:2]).axes) == 3


def test_options(digits):
    subject, _ = digits
    found = analyze("replay", subject, {"n": 2, "levels": 6, "solver": "euler", "starts": "noised", "shown": 0})
    assert found.pictures == {}
    assert found.starts == "noised"
    assert found.nfe == 6
    with pytest.raises(ArgumentError, match="neighbours = 0"):
        analyze("replay", subject, {"neighbours": 0})
    with pytest.raises(ArgumentError, match="distinct"):
        replay_audit(Jittered(torch.zeros(3, 2), 0.1), torch.zeros(3, 2), n=2, neighbours=1)
