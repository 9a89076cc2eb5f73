"""Modes, basins and their tree by bandwidth, and the analysis that compares a model's with the data's."""

import json
import math

import pytest
import torch

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.mean_shift_modes import merged, modes
from farfield.analysis.mean_shift_plot import picture_rows
from farfield.analysis.mean_shift_tree import mode_tree
from farfield.analysis.modes import ModeStructure, bandwidth_grid, mode_structure
from farfield.data import DataSet
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.report.context import ReportContext
from farfield.report.sections.modes import modes as section

from .test_empirical import StudentT

F64 = torch.float64
T2 = torch.tensor([[-1.0], [1.0]], dtype=F64)


def clusters(count=12, spread=0.05, dim=3):
    """Three groups of points, 4 apart."""
    centres = 4 * torch.eye(3, dim, dtype=F64)
    return (centres[:, None] + spread * torch.randn(3, count, dim, dtype=F64)).flatten(0, 1)


@pytest.mark.parametrize(("h", "count"), [(1.25, 1), (1.01, 1), (0.99, 2), (0.5, 2)])
def test_the_number_of_modes_changes_at_one(h, count):
    """Geometry fact 42: T2 has one mode for h > 1 and two below; a start between them is a saddle and leaves it."""
    found = modes(Empirical(T2), h, torch.tensor([[0.0], [0.4], [-3.0]], dtype=F64), tolerance=1e-9)
    assert found.count == count
    assert int(found.sizes.sum()) == 3
    assert found.unfinished == 0
    assert bool((found.rates < 1).all())
    expected = 0.0 if count == 1 else float(found.states.abs().max())
    assert expected == pytest.approx(math.tanh(expected / h**2), abs=1e-6)
    # Without rates saddles are found out all the same, where the trace does not rule them out.
    assert modes(Empirical(T2), h, torch.zeros(1, 1, dtype=F64), rates=False).states.abs() == pytest.approx(
        expected, abs=1e-4
    )


def test_clusters_of_a_data_set():
    """The basins of the points are the groups they were drawn from; sizes, order and assignment of new states agree."""
    data = torch.cat((clusters(), clusters()[:5]))
    law = Empirical(data)
    found = modes(law, 0.8)
    groups = torch.arange(3).repeat_interleave(12)
    truth = torch.cat((groups, groups[:5]))
    assert found.count == 3
    assert found.sizes.tolist() == [17, 12, 12]  # the most likely mode is that of the largest group
    for k in range(3):
        assert len(set(found.assignment[truth == k].tolist())) == 1
    assert found.largest_share == pytest.approx(17 / 41)
    assert bool((found.log_prob[:-1] >= found.log_prob[1:]).all())
    torch.testing.assert_close(found.log_prob, law.log_prob(found.states, 0.8))
    new = data + 0.3 * torch.randn_like(data)
    assert torch.equal(found.assign(law, new), found.assignment)
    assert found.assign(law, new, steps=1, within=1e-6).tolist() == [-1] * 41
    index, distance = found.nearest(found.states)
    assert index.tolist() == [0, 1, 2]
    assert float(distance.max()) < 1e-6


def test_merging_keeps_what_lies_apart():
    """Groups within a distance of their first member, over more states than one block, numbered as they first occur."""
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]], dtype=F64)
    order = torch.randint(0, 3, (1300,))
    order[:3] = torch.tensor([2, 0, 1])
    first, group = merged(centres[order] + 1e-3 * torch.rand(1300, 2, dtype=F64), 0.1)
    assert first.tolist() == [0, 1, 2]
    names = torch.tensor([1, 2, 0])  # of the groups, by their centre
    assert torch.equal(group, names[order])
    many = torch.arange(1500, dtype=F64)[:, None]
    assert len(merged(many, 0.5)[0]) == 1500
    assert merged(many[:0], 0.5)[0].shape == (0,)


def test_iterating_a_network():
    """A function with known resting points is followed as a data set would be, the largest basin first."""
    net = FunctionDenoiser(lambda x, s: torch.tanh(2 * x), (1,))
    found = modes(net, 1.0, torch.tensor([[0.3], [-0.1], [2.0], [0.0]], dtype=F64))
    assert found.log_prob is None
    assert found.states[:, 0].tolist() == pytest.approx([0.95750402, -0.95750402], abs=1e-6)
    assert sorted(found.sizes.tolist()) == [1, 3] or sorted(found.sizes.tolist()) == [2, 2]
    slope = 2 * (1 - 0.95750402**2)
    assert found.rates.tolist() == pytest.approx([slope, slope], abs=1e-5)
    with pytest.raises(ArgumentError, match="starts is missing"):
        modes(net, 1.0)
    plain = modes(net, 1.0, torch.tensor([[0.3]], dtype=F64), rates=False)
    assert bool(plain.rates.isnan().all())


def test_the_tree_of_three_groups():
    """From one leaf a point over three groups to one root; sizes add up, parents agree, the root's split is located."""
    data = clusters(6)
    law = Empirical(data)
    grid = (4.0, 3.0, 1.0, 0.4, 0.01)
    tree = mode_tree(law, grid)
    assert tree.counts == (1, 1, 3, 3, 18)
    assert [size.tolist() for size in tree.sizes[:3]] == [[18], [18], [6, 6, 6]]
    for k in range(4):
        parents = tree.parents(k)
        assert len(parents) == tree.counts[k + 1]
        added = torch.zeros(tree.counts[k], dtype=torch.int64).index_add_(0, parents, tree.sizes[k + 1])
        assert torch.equal(added, tree.sizes[k])
    assert 1 < tree.single < 3
    assert modes(law, 1.02 * tree.single).count == 1
    assert modes(law, 0.98 * tree.single).count > 1
    assert mode_tree(law, grid[:2]).single is None
    assert mode_tree(law, grid[2:]).single is None


def test_where_two_points_part():
    """Geometry fact 42: bisection finds h = 1 on T2."""
    tree = mode_tree(Empirical(T2), (3.0, 2.0, 0.7, 0.3), locate=1e-3)
    assert tree.counts == (1, 1, 2, 2)
    assert tree.single == pytest.approx(1.0, abs=3e-3)


def test_bandwidths_span_the_splits():
    """One mode at the top, nearly one for each point at the bottom; copies of points do not count."""
    data = torch.randn(60, 4, dtype=F64)
    grid, spread, spacing = bandwidth_grid(Empirical(data), 8)
    assert len(grid) == 8
    assert spread == pytest.approx(float(torch.linalg.eigvalsh(torch.cov(data.T, correction=0))[-1].sqrt()))
    near = torch.cdist(data, data).fill_diagonal_(math.inf).amin(1)
    assert spacing == pytest.approx(float(near.quantile(0.5, interpolation="lower")))
    assert modes(Empirical(data), grid[0]).count == 1
    assert modes(Empirical(data), grid[-1]).count >= 58
    doubled = Empirical(torch.cat((data, data)))
    again = bandwidth_grid(doubled, 8)
    assert again[1] == pytest.approx(spread)
    with pytest.raises(ArgumentError, match="single point"):
        bandwidth_grid(Empirical(torch.ones(4, 2)), 8)


def images(count=40):
    """Noisy pictures of two shapes, 4 × 4."""
    base = torch.zeros(2, 1, 4, 4)
    base[0, 0, :, :2] = 1
    base[1, 0, :2] = 1
    return base.repeat_interleave(count // 2, 0) + 0.1 * torch.randn(count, 1, 4, 4)


def test_a_model_that_is_the_data_agrees_with_it():
    """The optimal denoiser ends in the data's mode for every start; one that knows the mean alone does not."""
    data = images()
    exact = mode_structure(Empirical(data), data, levels=8, n=10)
    assert isinstance(exact, ModeStructure)
    assert exact.tree.counts[0] == 1
    for level in exact.levels:
        assert level.model.same == 1
        assert level.model.distance < 0.05 * level.bandwidth  # its iteration is stopped earlier
        assert level.model.unfinished <= 1
        assert level.states.shape == level.nearest.shape == level.model.states.shape
    blind = mode_structure(FunctionDenoiser(lambda x, s: x * 0 + data.mean(0), (1, 4, 4)), data, levels=8, n=10)
    assert blind.levels[-1].model.same < 0.5
    assert blind.levels[-1].model.count == 1
    # At the smallest bandwidths the modes are the points themselves.
    fine = mode_structure(None, data, levels=8, at=(0.01, 3.0))
    assert [level.count for level in fine.levels] == [1, 40]
    assert fine.levels[1].on_points == 1
    assert fine.levels[0].on_points == 0
    assert fine.starts == 0


def test_the_analysis_by_name():
    """``farfield analyze --what modes``: tables, JSON, figure with pictures, and a part of the data that is stated."""
    data = images()
    subject = Subject(Empirical(data), data, seed=3)
    found = analyze("modes", subject, {"points": 30, "levels": 6, "n": 5, "shown": 3})
    assert "30 points (a random part of 40)" in found.summary()
    assert "100% at σ" in found.summary()
    assert [len(table.rows) for table in found.tables()] == [6, len(found.levels)]
    stored = json.loads(json.dumps(found.to_dict()))
    assert stored["counts"] == list(found.tree.counts)
    assert stored["levels"][0]["model"]["same"] == 1
    rows = picture_rows(found)
    assert len(rows) == 3 * len(found.levels)
    assert all(row.shape[0] == rows[0][1].shape[0] <= 3 for _, row in rows)
    figure = found.plot()
    assert len(figure.axes) == 3
    assert "noise level" in figure.axes[0].get_xlabel()
    again = analyze("modes", subject, {"points": 30, "levels": 6, "n": 5, "shown": 3})
    assert again.to_dict() == found.to_dict()
    flat = analyze("modes", Subject(Empirical(clusters()), clusters()), {"n": 0, "levels": 4})
    assert picture_rows(flat) == []
    assert len(flat.plot().axes) == 2
    assert "Iterating" not in flat.summary()


def test_the_section_of_the_report():
    """Text, figure, pictures and table; data that JSON can hold."""
    data = DataSet(images(60) / 2, name="blobs")
    made = section(ReportContext(Empirical(data.images), data, "exact", quick=True))
    page = "".join(made.blocks)
    assert "modes of the data" in page
    assert "<svg" in page
    assert "<img" in page
    json.dumps(made.data)


def test_mistakes_are_named():
    """Sizes, starts and bandwidths."""
    law, data = Empirical(T2), torch.randn(5, 2)
    for given, message in (
        ({"points": 1}, "points = 1"),
        ({"levels": 2}, "levels = 2"),
        ({"n": -1}, "n = -1"),
        ({"at": (0.0,)}, "bandwidth = 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            mode_structure(None, data, **given)
    with pytest.raises(ArgumentError, match="data has 1 points"):
        mode_structure(None, data[:1])
    with pytest.raises(ArgumentError, match="starts is empty"):
        modes(law, 1.0, T2[:0])
    with pytest.raises(ArgumentError, match="merge = 0"):
        modes(law, 1.0, merge=0.0)
    with pytest.raises(ArgumentError, match="expected positive numbers that decrease"):
        mode_tree(law, (1.0, 2.0))
    with pytest.raises(ArgumentError, match="Gaussian kernel"):
        modes(Empirical(T2, StudentT(3.0)), 1.0)
