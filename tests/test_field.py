"""Score fields on planes: geometry, known fields, the choice of planes."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.analysis import Subject, analyze
from farfield.analysis.field import default_levels, score_field
from farfield.analysis.plane import choose_images, plane_through
from farfield.data import DataSet, load
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.interop import load as load_model
from farfield.numerics.spectrum import Spectrum
from farfield.report.context import ReportContext
from farfield.report.sections.field import field as field_section

WIDE = torch.float64
#: A triangle with sides along the first two of four axes.
CORNERS = torch.tensor([[1.0, 1, 0, 2], [5, 1, 0, 2], [2, 4, 0, 2]], dtype=WIDE)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_a_plane_has_its_own_coordinates(seed, dim):
    """Axes orthonormal; the corners lie where they should; distances in the plane are those in space."""
    corners = torch.randn(3, dim, dtype=WIDE, generator=torch.Generator().manual_seed(seed))
    plane = plane_through(corners)
    assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2, dtype=WIDE), atol=1e-12)
    points = torch.tensor(plane.points, dtype=WIDE)
    assert torch.allclose(plane.at(points), corners, atol=1e-9)
    assert points[2, 1] > 0
    assert torch.allclose(plane.along(corners - corners[0]), points, atol=1e-9)
    weights = torch.rand(50, 3, dtype=WIDE) - 0.2
    weights = weights / weights.sum(1, keepdim=True)
    kept = weights.abs().amin(1) > 1e-6
    assert torch.equal(plane.inside(weights @ points)[kept], (weights > 0).all(1)[kept])


def test_the_grid_covers_the_triangle_and_a_quarter_more():
    plane = plane_through(CORNERS)
    assert plane.points == ((0, 0), (4, 0), (1, 3))
    u, v = plane.grid(25)
    assert (float(u[0]), float(u[-1])) == (-1, 5)
    assert (float(v[0]), float(v[-1])) == (-0.75, 3.75)
    obtuse = plane_through(torch.tensor([[0.0, 0], [1, 0], [3, 1]], dtype=WIDE))
    assert [float(x) for x in obtuse.grid(3)[0]] == [-0.75, 1.5, 3.75]
    for bad in (CORNERS[:2], torch.zeros(3, 1), torch.tensor([[0.0, 0], [1, 1], [2, 2]]), torch.ones(3, 4)):
        with pytest.raises(ArgumentError, match=r"corners has shape|on one line"):
            plane_through(bad)


def test_the_field_of_a_gaussian():
    """In closed form; in-plane and off-plane parts add up to the norm."""
    plane = plane_through(CORNERS)
    mean, variances = torch.tensor([2.0, 2, 1, 0], dtype=WIDE), torch.tensor([4.0, 1, 0.5, 2], dtype=WIDE)
    law = Gaussian(mean, Spectrum.diagonal(variances))
    found = score_field(law, {"gaussian": law, "isotropic": Gaussian(mean, Spectrum.isotropic(4, 0.0))}, plane,
                        sigmas=[0.5, 2], grid=5)  # fmt: skip
    assert found.sigmas == (2.0, 0.5)
    for k, sigma in enumerate(found.sigmas):
        one = found.slices["gaussian"][k]
        for j, v in enumerate(found.v.tolist()):
            for i, u in enumerate(found.u.tolist()):
                x = torch.tensor([1 + u, 1 + v, 0, 2], dtype=WIDE)
                score = (mean - x) / (variances + sigma**2)
                assert torch.allclose(one.along[j, i], score[:2], atol=1e-12)
                assert float(one.norm[j, i]) == pytest.approx(float(score.norm()), rel=1e-12)
                assert float(one.off_plane[j, i]) == pytest.approx(float(score[2:].norm()), rel=1e-9)
        assert torch.allclose(one.in_plane.square() + one.off_plane.square(), one.norm.square())
        assert one.unexplained == found.slices["model"][k].unexplained == 0
        iso, own = found.slices["isotropic"][k], found.slices["model"][k]
        assert iso.unexplained > 0.1
        assert torch.allclose(iso.norm * sigma**2, found.slices["isotropic"][0].norm * 4)
        assert own.mixing is None


def test_the_field_of_three_points():
    """At low noise each pulls to itself with ‖x − y‖/σ²; weights are shared halfway and alone elsewhere."""
    plane = plane_through(CORNERS)
    law = Empirical(CORNERS)
    found = score_field(law, {"empirical": law}, plane, sigmas=[0.1], grid=25)
    one, places = found.slices["empirical"][0], torch.cartesian_prod(found.v, found.u).flip(1)
    distance, nearest = torch.cdist(places, torch.tensor(plane.points, dtype=WIDE)).sort(dim=1)
    clear = distance[:, 1] - distance[:, 0] > 0.2
    expected = (torch.tensor(plane.points, dtype=WIDE)[nearest[:, 0]] - places) / 0.01
    assert torch.allclose(one.along.view(-1, 2)[clear], expected[clear], atol=1e-5)
    assert float(one.off_plane.max()) < 1e-4
    assert one.mixing is not None
    assert torch.allclose(one.mixing.flatten()[clear], torch.ones(int(clear.sum()), dtype=WIDE), atol=1e-6)
    halfway = score_field(law, {"empirical": law}, plane_through(CORNERS), sigmas=[0.1], grid=3, margin=0.0)
    # The grid's lower middle is the middle of ab, (2, 0).
    assert float(halfway.slices["empirical"][0].mixing[0, 1]) == pytest.approx(2, abs=1e-3)
    assert float(halfway.slices["empirical"][0].norm[0, 1]) == pytest.approx(0, abs=1e-9)


def test_stillness_tells_points_from_what_lies_between_them():
    """A field that knows the whole triangle is still inside; that of the three corners is as strong inside as outside."""
    plane = plane_through(CORNERS)
    u, v = torch.linspace(0, 4, 60, dtype=WIDE), torch.linspace(0, 3, 60, dtype=WIDE)
    places = torch.cartesian_prod(u, v)
    filled = Empirical(torch.cat([plane.at(places[plane.inside(places)]), CORNERS]))
    found = score_field(filled, {"empirical": Empirical(CORNERS)}, plane, sigmas=[0.2], grid=25)
    assert found.stillness("model", 0) < 0.1
    assert found.stillness("empirical", 0) > 0.6
    assert found.slices["empirical"][0].unexplained > 1
    assert "times as large as the training set's own" in found.summary()
    (table,) = found.tables()
    assert [row[1] for row in table.rows] == ["model", "empirical"]
    inside, outside = found.mean_norm("model", 0)
    assert table.rows[0][2:5] == (inside, outside, inside / outside)
    with pytest.raises(ArgumentError, match="unknown law 'gaussian'"):
        found.stillness("gaussian", 0)


def test_batches_change_nothing():
    data = torch.randn(20, 6, dtype=WIDE)
    law, plane = Empirical(data), plane_through(data[:3])
    a = score_field(law, {"mixture": GaussianMixture.fit(data, 3)}, plane, grid=7)
    b = score_field(law, {"mixture": GaussianMixture.fit(data, 3)}, plane, grid=7, batch_size=5)
    for k in range(len(a.sigmas)):
        assert torch.allclose(a.slices["mixture"][k].along, b.slices["mixture"][k].along)
        assert torch.allclose(a.slices["model"][k].norm, b.slices["model"][k].norm)
    assert a.sigmas == default_levels(law, plane)
    assert len(a.sigmas) == 4
    law.sigma_min, law.sigma_max = 1e-9, 1e-8
    assert default_levels(law, plane) == (1e-8,)


def test_choice_of_images():
    data = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 4
    for choice, kinds in (("classes", 3), ("same", 1)):
        images = choose_images(data, labels, choice, seed=5)
        assert len(set(images)) == 3
        assert len({int(labels[i]) for i in images}) == kinds
        assert images == choose_images(data, labels, choice, seed=5)
        a, b, c = data[list(images)]
        assert (a - b).norm() >= max((b - c).norm(), (c - a).norm())
    assert sorted(int(labels[i]) for i in choose_images(data, labels, classes=(3, 0, 3))) == [0, 3, 3]
    assert len({int(labels[i]) for i in choose_images(data, labels)}) == 3
    assert len(set(choose_images(data))) == 3
    assert choose_images(data, seed=1) != choose_images(data, seed=2)
    two = labels % 2
    assert len(set(choose_images(data, two))) == 3  # two classes are too few, so any three
    for arguments, message in (
        ((data[:2],), "hold 2 samples"),
        ((data, None, "same"), "no classes"),
        ((data, two, "classes"), "too few classes"),
        ((data, torch.arange(40), "same"), "too few classes or samples"),
        ((data, labels, None, (0, 9, 1)), "too few samples of class 9"),
        ((data, labels, "other"), "plane = 'other'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            choose_images(*arguments)


@pytest.fixture(scope="module")
def digits():
    data = load("digits").train
    return Subject(load_model("digits"), data.images, labels=data.labels)


def test_the_bundled_network_by_name(digits):
    """At high noise the network's field on the plane is the Gaussian's; panels run in falling complexity."""
    options = {
        "sigmas": [10, 0.1],
        "grid": 9,
        "laws": ["gaussian", "mixture:3", "mixture:9", "empirical"],
        "plane": "same",
    }
    found = analyze("field", digits, options)
    assert list(found.slices) == ["model", "empirical", "mixture:9", "mixture:3", "gaussian"]
    assert found.slices["gaussian"][0].unexplained < 0.01 < found.slices["gaussian"][1].unexplained
    own, _ = found.mean_norm("model", 1)
    points, _ = found.mean_norm("empirical", 1)
    assert own < 0.6 * points
    labels = {int(digits.labels[i]) for i in found.plane.images}
    assert len(labels) == 1
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(record["panels"]) == 10
    assert len(record["panels"][0]["along"]) == 9
    assert "norm" not in found.to_dict(maps=False)["panels"][0]
    figure = found.plot()
    # Panels, a scale for each row, and the three samples.
    assert len(figure.axes) == 10 + 2 + 3
    assert found.plot(figure.axes[:10]) is figure
    assert len(found.plot(quantity="mixing").axes) == 6 + 2 + 3
    with pytest.raises(ArgumentError, match="expected 10"):
        found.plot(figure.axes[:4])
    with pytest.raises(ArgumentError, match="unknown quantity 'colour'"):
        found.plot(quantity="colour")
    for bad, message in (
        ({"images": [1, 2]}, "images ="),
        ({"images": [0, 1, 10**6]}, "images ="),
        ({"plane": "round"}, "plane"),
        ({"grid": 2}, "grid = 2"),
        ({"sigmas": [1.0, 0.0]}, "sigmas ="),
    ):
        with pytest.raises(ArgumentError, match=message):
            analyze("field", digits, bad)
    explicit = analyze("field", digits, {"images": [4, 2, 7], "sigmas": [1], "grid": 3, "laws": ["gaussian"]})
    assert explicit.plane.images == (4, 2, 7)


def test_fields_of_vectors_and_laws_that_do_not_fit():
    law = Gaussian(torch.zeros(2), torch.eye(2))
    plane = plane_through(torch.tensor([[0.0, 0], [1, 0], [0, 1]]))
    found = score_field(law, {}, plane, grid=5)
    assert float(found.slices["model"][0].off_plane.max()) < 1e-6
    assert found.summary().endswith("as around it.")
    assert len(found.plot().axes) == 4 + 4
    assert len(found.plot(quantity="off_plane").axes) == 8
    with pytest.raises(ArgumentError, match="none of the laws has it"):
        found.plot(quantity="mixing")
    with pytest.raises(ArgumentError, match="g takes events"):
        score_field(law, {"g": Gaussian(torch.zeros(3), torch.eye(3))}, plane)
    with pytest.raises(ArgumentError, match="may not be called 'model'"):
        score_field(law, {"model": law}, plane)
    with pytest.raises(ArgumentError, match="margin = -1"):
        score_field(law, {}, plane, margin=-1)


def test_report_section(digits):
    made = field_section(ReportContext(digits.model, load("digits"), "digits", quick=True))
    text = "".join(made.blocks)
    assert text.count("<svg") == text.count("<img") == 1
    assert "data:image" not in text[: text.index("</svg>")]  # nothing but vectors, which take the page's colours
    assert [p["law"] for p in made.data["panels"]] == [
        "model",
        "model",
        "empirical",
        "empirical",
        "gaussian",
        "gaussian",
    ]
    json.dumps(made.data, allow_nan=False)
    line = ReportContext(Gaussian(torch.zeros(1), torch.eye(1)), DataSet(torch.randn(60, 1)), "line", quick=True)
    assert "There is no plane" in "".join(field_section(line).blocks)
    ring = ReportContext(Gaussian(torch.zeros(2), torch.eye(2)), DataSet(torch.randn(60, 2)), "ring", quick=True)
    assert "<img" not in "".join(field_section(ring).blocks)
