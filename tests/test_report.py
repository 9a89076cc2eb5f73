"""The report: what is written, that it stands alone, and what happens when something goes wrong."""

from __future__ import annotations

import html
import json
import os
import re

import numpy as np
import pytest
import torch

from farfield.analysis.images import grid_png
from farfield.cli.common import card_source, data_of, load_for
from farfield.data import DataSet, load
from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.networks import MLPConfig, Preconditioned
from farfield.networks.model_file import ModelSpec, Preconditioning, build_model
from farfield.numerics.spectrum import Spectrum
from farfield.report import SECTIONS, Section, blocks, build_report, registry, section
from farfield.report.context import BATCH, ReportContext
from farfield.report.output import check_folder, plain, write_files
from farfield.sampling import Sampler, karras
from farfield.training.labels import labels_like


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def strict(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


#: The sections that tests of the frame need: what surrounds them is the same with any.
BRIEF = ("summary", "samples", "card", "fidelity", "quality")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A quick report on an exact law of the digits."""
    data = load("digits")
    model = GaussianMixture.fit(data.train.images, 10, rank=12, floor=1e-3)
    out = tmp_path_factory.mktemp("report") / "nested" / "digits"
    return model, build_report(model, data, out, name="mixture <b>&", quick=True, progress=False)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    data = load("toy:ring:400")
    model = GaussianMixture.fit(data.train.images, 8)
    return build_report(model, data, tmp_path_factory.mktemp("toy") / "out", name="toy", quick=True, progress=False)


def test_all_sections_work(digits):
    _, result = digits
    assert dict(result.failed) == {}
    assert list(result.seconds) != []
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
            assert address.startswith(("#", "data:image/png;base64,"))
        for source in re.findall(r'src="([^"]{0,30})', page):
            assert source.startswith("data:image/png;base64,")
        identifiers = re.findall(r'\bid="([^"]*)"', page)
        assert len(identifiers) == len(set(identifiers))


def test_only_the_sections_asked_for(tmp_path):
    """A part of the report on request; an unknown name is an error before anything is computed."""
    law, data = Gaussian(torch.zeros(2), torch.eye(2)), DataSet(torch.randn(60, 2))
    result = build_report(law, data, tmp_path / "out", name="x", quick=True, progress=False, sections=["card"])
    assert list(strict(result.data)["sections"]) == ["card"]
    with pytest.raises(ArgumentError, match="unknown section 'crad'"):
        build_report(law, data, tmp_path / "new", name="x", sections=["crad"])
    assert not (tmp_path / "new").exists()


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
    _, result = digits
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
    model, result = digits
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
        page = result.page.read_text(encoding="utf-8").replace(str(result.folder), "OUT")
        return record, re.sub(r"Made in \d+ s", "", page)

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
    build_report(law, data, out, name="first", quick=True, progress=False, sections=BRIEF)
    result = build_report(law, data, out, name="second", quick=True, progress=False, sections=BRIEF)
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


@pytest.mark.parametrize("moves", [1, 2])
def test_a_kill_between_the_moves_leaves_a_folder_that_can_be_used(tmp_path, monkeypatch, moves):
    out = tmp_path / "out"
    out.mkdir()
    replace, done = os.replace, []

    def killed(source, target):
        if os.path.dirname(target) == str(out):
            if len(done) == moves:
                raise KeyboardInterrupt
            done.append(os.path.basename(target))
        replace(source, target)

    files = {"index.html": "x", "sampler.json": "{}", "report.json": '{"format": "farfield report 1"}'}
    monkeypatch.setattr("farfield.report.output.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_files(out, files)
    monkeypatch.undo()
    assert done[0] == "report.json"
    write_files(out, files)
    assert {path.name: path.read_text() for path in out.iterdir()} == files
    assert list(tmp_path.iterdir()) == [out]


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
    result = build_report(
        law,
        DataSet(torch.randn(60, 2)),
        tmp_path / "out",
        name="x",
        quick=True,
        progress=False,
        sections=(*BRIEF, "trajectories", "broken", "odd", "solvers"),
    )
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
    result = build_report(
        law,
        DataSet(torch.randn(60, 2)),
        tmp_path / "out",
        name="x",
        quick=True,
        progress=False,
        sections=(*BRIEF, "solvers"),
    )
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
    for digest, expected, words in ((data.train.digest, True, "the very data"), ("0" * 64, False, "names other data")):
        law.card = {"training": {"steps": 12, "data": {"digest": digest}, "metrics": {"validation_loss": 0.25}}}
        result = build_report(law, data, tmp_path / digest[:4], name="x", quick=True, progress=False, sections=BRIEF)
        assert strict(result.data)["sections"]["card"]["data_match"] is expected
        page = result.page.read_text(encoding="utf-8")
        assert words in page
        assert "validation loss" in page


def test_a_model_that_saw_all_data_is_compared_with_none(tmp_path):
    """Its card has the digest of the whole set: there are no held-out data, anywhere on the page."""
    data = DataSet(torch.randn(80, 2), name="plane")
    law = Gaussian(torch.zeros(2), torch.eye(2))
    law.card = {"training": {"data": {"digest": data.digest}}}
    context = ReportContext(law, data, "x")
    assert torch.equal(context.train, data.images)
    assert context.heldout.shape == (0, 2)
    result = build_report(law, data, tmp_path / "out", name="x", quick=True, progress=False, sections=BRIEF)
    assert dict(result.failed) == {}
    record, page = strict(result.data), result.page.read_text(encoding="utf-8")
    assert record["sections"]["card"]["trained_on_all"] is True
    assert record["sections"]["card"]["data_match"] is True
    quality = record["sections"]["quality"]
    assert quality["n"] == 80
    assert quality["frechet"]["mean"] > 0
    assert quality["frechet"]["ratio_to_heldout"] is quality["frechet_heldout"] is None
    assert quality["sliced_wasserstein"]["heldout"] is None
    assert quality["memorisation"][0]["closer"] is None
    assert record["sections"]["summary"]["frechet_ratio"] is None
    assert "held-out data" not in record["headline"]
    assert ">held-out data</th>" not in page
    assert "Fréchet ratio" not in page
    assert "there are no held-out data" in page
    assert "80 / 0" in page


def trained_card(source: str, holdout: object, digest: str) -> dict:
    return {"training": {"config": {"data": {"source": source, "holdout": holdout}}, "data": {"digest": digest}}}


@pytest.mark.parametrize("holdout", [None, 30, 0])
def test_data_are_split_as_the_card_says(holdout):
    law = Gaussian(torch.zeros(2), torch.eye(2))
    trained = load("toy:ring:200", split="all" if holdout == 0 else "train", holdout=holdout)
    law.card = trained_card("toy:ring:200", holdout, trained.digest)
    data = load_for(law, "toy:ring:200")
    context = ReportContext(law, data, "x")
    assert context.train_set.digest == trained.digest
    assert len(context.heldout) == {None: 20, 30: 30, 0: 0}[holdout]
    seen = data_of(law, None)
    assert seen is not None
    assert seen.digest == trained.digest


@pytest.mark.parametrize("holdout", [200, 10**9, -3, "many", True, 2.5])
def test_an_impossible_holdout_of_a_card_is_passed_over(holdout):
    law = Gaussian(torch.zeros(2), torch.eye(2))
    law.card = trained_card("toy:ring", holdout, "0" * 64)
    assert len(load_for(law, "toy:ring:200").validation) == 20


def test_images_are_loaded_at_the_size_of_the_model(tmp_path):
    np.savez(tmp_path / "wide.npz", images=np.random.default_rng(0).integers(0, 256, (20, 1, 8, 12), dtype=np.uint8))
    source, law = str(tmp_path / "wide.npz"), Gaussian(torch.zeros(1, 8, 12), Spectrum.isotropic(96, 1.0))
    assert load_for(law, source).digest == load(source).digest
    small = Gaussian(torch.zeros(1, 4, 4), Spectrum.isotropic(16, 1.0))
    assert load_for(small, source).digest == load(source, size=4).digest


@pytest.mark.parametrize(
    "card",
    [
        None, [], {}, {"training": []}, {"training": None}, {"training": {"config": None}}, {"config": None},
        {"training": {"config": {"data": []}}}, {"training": {"config": {"data": {"source": 3}}}},
    ],
)  # fmt: skip
def test_odd_cards_name_no_source(card):
    law = Gaussian(torch.zeros(2), torch.eye(2))
    law.card = card
    assert card_source(law) is None
    assert data_of(law, None) is None
    assert len(load_for(law, "toy:ring:50")) == 50


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40 + 1])
def test_any_seed_will_do(tmp_path, seed):
    law = Gaussian(torch.zeros(2), torch.eye(2))
    data = DataSet(torch.randn(60, 2))
    result = build_report(law, data, tmp_path / "out", name="x", seed=seed, quick=True, progress=False)
    assert dict(result.failed) == {}


def test_the_printed_command_is_the_one_to_type(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    law, data = Gaussian(torch.zeros(2), torch.eye(2)), DataSet(torch.randn(60, 2))
    options = {"quick": True, "progress": False, "sections": BRIEF}
    page = build_report(law, data, "my report", name="mine", source="runs/my model", **options).page.read_text("utf-8")
    expected = "farfield sample 'runs/my model' --n 64 --sampler 'my report/sampler.json' --out samples"
    assert expected in html.unescape(page)
    page = build_report(law, data, "plain", name="mine", **options).page.read_text("utf-8")
    assert "farfield sample mine --n 64 --sampler plain/sampler.json --out samples" in page


def conditional(labels_dropout: float | None) -> tuple[Preconditioned, DataSet]:
    """A small network with three classes, and data of which three in four have class 2."""
    torch.manual_seed(0)
    spec = ModelSpec(MLPConfig(width=8, depth=1, label_dim=3), (2,), Preconditioning(sigma_data=1.0))
    model = build_model(spec).eval().requires_grad_(False)
    for parameter in model.parameters():  # a fresh network answers 0 whatever the class
        torch.nn.init.normal_(parameter, std=0.3)
    if labels_dropout is not None:
        model.card = {"training": {"config": {"labels": {"use": True, "dropout": labels_dropout}}}}
    labels = torch.tensor([0, 2, 2, 2] * 20)
    return model, DataSet(torch.randn(80, 2), labels, "classes")


def test_conditional_models_are_drawn_with_the_classes_of_the_data():
    model, data = conditional(0.1)
    context = ReportContext(model, data, "x")
    sampler = Sampler("heun", karras(3, model.sigma_min, model.sigma_max))
    labels = labels_like(data.train.labels, 40, 5)
    assert torch.equal(labels[:7], labels_like(data.train.labels, 7, 5))
    whole = labels_like(data.train.labels, len(data.train), 5)
    assert torch.equal(whole.sort().values, data.train.labels.sort().values)
    drawn = context.draw(sampler, 40, 5)
    assert torch.equal(drawn, sampler(model, 40, 5, batch_size=BATCH, labels=labels).x)
    assert not torch.equal(drawn, sampler(model, 40, 5, batch_size=BATCH).x)
    bare = ReportContext(model, DataSet(data.images), "x")
    assert torch.equal(bare.draw(sampler, 40, 5), sampler(model, 40, 5, batch_size=BATCH).x)
    strange = ReportContext(model, DataSet(data.images, data.labels + 1), "x")
    assert strange.labels is None


@pytest.mark.parametrize(
    ("dropout", "words"), [(0.0, "labels.dropout was 0"), (0.1, "the law of all classes together")]
)
def test_a_report_says_what_it_measures_of_a_conditional_model(tmp_path, dropout, words):
    model, data = conditional(dropout)
    result = build_report(model, data, tmp_path / "out", name="x", quick=True, progress=False)
    assert dict(result.failed) == {}
    page = result.page.read_text(encoding="utf-8")
    assert page.count(words) >= 3  # once in each section that measures the model without a class
    assert "The samples have the classes of the training data" in page
    assert "--label K" in page


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
    check_folder(tmp_path)
    (tmp_path / "index.html").write_text("old")
    check_folder(tmp_path)
