"""The report: what is written, that it stands alone, and what happens when something goes wrong."""

from __future__ import annotations

import json
import re
import time

import pytest
import torch

from farfield.data import DataSet, load
from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.report import SECTIONS, Section, blocks, build_report, registry, section
from farfield.report.images import grid_png
from farfield.report.output import check_folder, plain, write_files
from farfield.sampling import Sampler


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def strict(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A quick report on an exact law of the digits."""
    data = load("digits")
    model = GaussianMixture.fit(data.train.images, 10, rank=12, floor=1e-3)
    out = tmp_path_factory.mktemp("report") / "nested" / "digits"
    start = time.process_time()
    result = build_report(model, data, out, name="mixture <b>&", quick=True, progress=False)
    return model, result, time.process_time() - start


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    data = load("toy:ring:400")
    model = GaussianMixture.fit(data.train.images, 8)
    return build_report(model, data, tmp_path_factory.mktemp("toy") / "out", name="toy", quick=True, progress=False)


def test_all_sections_work_and_in_time(digits):
    _, result, seconds = digits
    assert dict(result.failed) == {}
    assert list(result.seconds) != []
    assert seconds < 15
    assert sorted(p.name for p in result.folder.iterdir()) == ["index.html", "report.json", "sampler.json"]
    assert [p.name for p in result.folder.parent.iterdir()] == ["digits"]  # no temporary folder left


def test_page_stands_alone(digits, toy):
    for result in (digits[1], toy):
        page = result.page.read_text(encoding="utf-8")
        assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//""", page)
        assert "http:" not in page
        assert "https:" not in page
        for forbidden in ("<script", "@import", "<link", "<iframe", "<object", "javascript:", "<base"):
            assert forbidden not in page.lower()
        for address in re.findall(r"url\(([^)]*)\)", page) + re.findall(r'href="([^"]*)"', page):
            assert address.startswith("#")
        for source in re.findall(r'src="([^"]{0,30})', page):
            assert source.startswith("data:image/png;base64,")
        identifiers = re.findall(r'\bid="([^"]*)"', page)
        assert len(identifiers) == len(set(identifiers))


def test_page_can_be_read_by_all(digits):
    page = digits[1].page.read_text(encoding="utf-8")
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", page))
    assert all('role="img" aria-label="' in tag for tag in re.findall(r"<svg[^>]*>", page))
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert '<html lang="en">' in page
    assert page.count("<h1>") == 1


def test_foreign_text_is_escaped(digits):
    page = digits[1].page.read_text(encoding="utf-8")
    assert "<b>&<" not in page
    assert "mixture &lt;b&gt;&amp;" in page


def test_machine_readable_part(digits):
    _, result, _ = digits
    record = strict(result.data)
    assert record["format"] == "farfield report 1"
    assert set(record["sections"]) >= {"summary", "samples", "card", "fidelity", "trajectories", "solvers", "quality"}
    assert record["failed"] == {}
    assert record["data"]["digest"] == load("digits").digest
    quality = record["sections"]["quality"]
    assert quality["features"]["components"] == 40
    assert quality["seeds"] == [0]
    assert quality["n"] == 300
    assert record["sections"]["solvers"]["recommended"]["nfe"] == result.sampler.nfe
    assert record["headline"] in result.page.read_text(encoding="utf-8").replace("&#x27;", "'")


def test_sampler_round_trip(digits):
    model, result, _ = digits
    again = Sampler.from_json(result.sampler_file.read_text(encoding="utf-8"))
    assert again.nfe == result.sampler.nfe
    assert torch.equal(again(model, 3, 5).x, result.sampler(model, 3, 5).x)


def test_same_seed_same_page_but_for_the_time(toy, tmp_path):
    data = load("toy:ring:400")
    model = GaussianMixture.fit(data.train.images, 8)
    again = build_report(model, data, tmp_path / "again", name="toy", quick=True, progress=False)

    def timeless(result):
        record = strict(result.data)
        record.pop("seconds")
        return record, re.sub(r"Made in \d+ s", "", result.page.read_text(encoding="utf-8"))

    assert timeless(toy) == timeless(again)


def test_vectors_are_shown_as_points(toy):
    page = toy.page.read_text(encoding="utf-8")
    assert dict(toy.failed) == {}
    assert "Scatter plot" in page
    assert "<img" not in page


def test_a_former_report_is_replaced(toy, tmp_path):
    law = Gaussian(torch.zeros(2), torch.eye(2))
    data = DataSet(torch.randn(60, 2), name="blob")
    out = tmp_path / "report"
    out.mkdir()
    build_report(law, data, out, name="first", quick=True, progress=False)
    result = build_report(law, data, out, name="second", quick=True, progress=False)
    assert strict(result.data)["model"] == "second"


def test_foreign_folders_are_left_alone(tmp_path):
    law, data = Gaussian(torch.zeros(2), torch.eye(2)), DataSet(torch.zeros(20, 2))
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.txt").write_text("sun")
    other = tmp_path / "other"
    other.mkdir()
    (other / "report.json").write_text('{"format": "someone else 3"}')
    with pytest.raises(ArgumentError, match=r"photos.*holiday\.txt"):
        build_report(law, data, photos, name="x", progress=False)
    with pytest.raises(ArgumentError, match="other"):
        build_report(law, data, other, name="x", progress=False)
    with pytest.raises(ArgumentError, match="not a folder"):
        build_report(law, data, photos / "holiday.txt", name="x", progress=False)
    assert [p.name for p in photos.iterdir()] == ["holiday.txt"]
    assert (photos / "holiday.txt").read_text() == "sun"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "photos"]


def test_nothing_half_written(tmp_path, monkeypatch):
    out = tmp_path / "new"

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("farfield.report.output.os.fsync", full)
    with pytest.raises(ArgumentError, match="No space left"):
        write_files(out, {"index.html": "x", "report.json": "{}"})
    assert list(tmp_path.iterdir()) == []


def test_shapes_must_agree(tmp_path):
    law = Gaussian(torch.zeros(3), torch.eye(3))
    with pytest.raises(ArgumentError, match=r"\(3,\).*\(2,\)"):
        build_report(law, DataSet(torch.zeros(20, 2)), tmp_path / "out", name="x", progress=False)
    with pytest.raises(ArgumentError, match="samples = 2"):
        build_report(law, DataSet(torch.zeros(20, 3)), tmp_path / "out", name="x", samples=2, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def extra():
    """Sections added for one test."""
    before = list(SECTIONS)
    yield section
    SECTIONS[:] = before


def test_a_failing_section_is_shown_in_its_place(extra, tmp_path):
    @extra("broken", "A broken analysis", order=45)
    def broken(context):
        raise ValueError("the moon <is> full")

    @extra("odd", "Odd numbers", order=46)
    def odd(context):
        return Section([blocks.text("fine")], {"nan": float("nan"), "inf": [float("inf")], "tensor": torch.ones(1)})

    law = Gaussian(torch.zeros(2), torch.eye(2))
    result = build_report(law, DataSet(torch.randn(60, 2)), tmp_path / "out", name="x", quick=True, progress=False)
    assert dict(result.failed) == {"broken": "ValueError: the moon <is> full"}
    page = result.page.read_text(encoding="utf-8")
    assert "ValueError: the moon &lt;is&gt; full" in page
    assert page.index('id="trajectories"') < page.index('id="broken"') < page.index('id="solvers"')
    record = strict(result.data)
    assert record["failed"] == {"broken": "ValueError: the moon <is> full"}
    assert record["sections"]["odd"]["nan"] is None
    assert record["sections"]["odd"]["inf"] == [None]


def test_failing_solvers_leave_the_usual_sampler(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no")

    monkeypatch.setattr("farfield.report.context.solver_errors", broken)
    law = Gaussian(torch.zeros(2), torch.eye(2))
    result = build_report(law, DataSet(torch.randn(60, 2)), tmp_path / "out", name="x", quick=True, progress=False)
    assert set(result.failed) == {"solvers"}
    assert Sampler.from_json(result.sampler_file.read_text()).nfe == 35


def test_registry_order(extra):
    import farfield.report.sections  # noqa: F401

    assert [e.order for e in SECTIONS] == sorted(e.order for e in SECTIONS)
    names = [e.name for e in SECTIONS]
    ours = ["summary", "samples", "card", "fidelity", "trajectories", "solvers", "quality"]
    assert [name for name in names if name in ours] == ours
    running = [e.name for e in registry.running_order()]
    assert running[-1] == "summary"
    assert running.index("fidelity") < running.index("solvers") < running.index("samples")
    assert sorted(running) == sorted(e.name for e in SECTIONS)
    with pytest.raises(ArgumentError, match="'card' exists already"):
        extra("card", "Again", order=99)(lambda context: Section([]))


def test_card_of_a_trained_model(tmp_path):
    data = DataSet(torch.randn(80, 2), name="plane")
    law = Gaussian(torch.zeros(2), torch.eye(2))
    for digest, expected, words in ((data.digest, True, "the very data"), ("0" * 64, False, "names other data")):
        law.card = {"training": {"steps": 12, "data": {"digest": digest}, "metrics": {"validation_loss": 0.25}}}
        result = build_report(law, data, tmp_path / digest[:4], name="x", quick=True, progress=False)
        assert strict(result.data)["sections"]["card"]["data_match"] is expected
        page = result.page.read_text(encoding="utf-8")
        assert words in page
        assert "validation loss" in page


def test_numbers():
    shown = {0.0: "0", 3: "3", 12345: "12,345", 0.012345: "0.0123", -2.5: "−2.50", 1234.5: "1,234", 3.2e-9: "3.20 × 10⁻⁹",
             float("inf"): "∞", float("nan"): "–", None: "–", True: "yes"}  # fmt: skip
    for value, text in shown.items():
        if value is not True:
            assert blocks.number(value) == text
    assert blocks.number(True) == "yes"


def test_plain_values_are_strict_json():
    assert plain({1: (float("nan"), float("-inf"), {"a": None})}) == {"1": [None, None, {"a": None}]}
    json.dumps(plain({"x": [1, "b", 2.5, True]}), allow_nan=False)


def test_grid_of_images():
    import io

    from PIL import Image

    data, width = grid_png(
        torch.tensor([-1.0, 1.0, 0.0]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8), columns=2, tile=40, gap=2
    )
    image = Image.open(io.BytesIO(data))
    assert image.size == (width, width) == (82, 82)
    assert image.getpixel((0, 0)) == (0, 0, 0, 255)
    assert image.getpixel((42, 0)) == (255, 255, 255, 255)
    assert image.getpixel((40, 0))[3] == 0


def test_folders(tmp_path):
    check_folder(tmp_path / "missing")
    check_folder(tmp_path)
    (tmp_path / "report.json").write_text('{"format": "farfield report 1"}')
    (tmp_path / "index.html").write_text("old")
    check_folder(tmp_path)
