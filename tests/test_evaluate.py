"""Evaluation of samples: every figure beside held-out data, with all that it depends on; the command and the card."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from farfield.cli.main import main
from farfield.data import load as load_data
from farfield.errors import ArgumentError
from farfield.interop import load
from farfield.metrics import (
    EvaluationReference,
    corrected_frechet,
    evaluate_samples,
    frechet_distance,
    kernel_distance,
    load_features,
    memorisation,
    neighbourhoods,
    pca_features,
)
from farfield.networks import MLPConfig
from farfield.networks.files import read_json
from farfield.networks.model_file import ModelSpec, Preconditioning, build_model, save_model
from farfield.training.evaluate import evaluate_model, evaluation_features

SETS = ("frechet", "kernel", "precision", "recall", "density", "coverage")
CLASSES = ("class_entropy", "class_balance", "class_confidence", "class_score")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits():
    data = load_data("digits")
    return data.train, data.validation


@pytest.fixture(scope="module")
def measured(digits):
    """Noisy training digits as samples of three seeds, on both kinds of features."""
    train, held = digits
    maps = [load_features("digits"), pca_features(train.images, 20)]
    sets = [(train.images[k : k + 120] + 0.2 * normal(120, 1, 8, 8, seed=k)).clamp(-1, 1) for k in (0, 200, 400)]
    reference = EvaluationReference(train.images, held.images, maps)
    return maps, sets, reference.measure(sets, (4, 5, 6), {"made": "by hand"}), reference


def test_every_figure_says_what_it_depends_on(measured, digits):
    maps, _, evaluation, _ = measured
    found = [(f.features, f.metric) for f in evaluation.figures]
    assert found == [
        *(("classifier:digits", m) for m in (*SETS, *CLASSES)),
        *(("pca:20", m) for m in SETS),
        *(("pixels", m) for m in ("copies", "closer", "median_ratio")),
    ]
    record = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    digests = {m.name: m.digest for m in maps} | {"pixels": None}
    assert record["features"] == [{"name": m.name, "dim": m.dim, "digest": m.digest} for m in maps]
    assert (record["n"], record["n_train"], record["n_heldout"], record["made"]) == (120, 1500, 297, "by hand")
    for f in record["figures"]:
        assert f["digest"] == digests[f["features"]]
        assert f["seeds"] == [4, 5, 6]
        assert (len(f["values"]), f["n"], f["n_data"]) == (3, 120, 1500)
        assert f["mean"] == pytest.approx(statistics.fmean(f["values"]))
        assert f["std"] == pytest.approx(statistics.stdev(f["values"]))
        assert f["heldout"] is not None


def test_figures_are_those_of_the_metrics(measured, digits):
    maps, sets, evaluation, _ = measured
    train, held = digits
    for f in maps:
        a, b, c = f(sets[1]), f(train.images), f(held.images)
        assert evaluation.figure("frechet", f.name).values[1] == frechet_distance(a, b)
        assert evaluation.figure("frechet", f.name).heldout == corrected_frechet(c, b, 120).value
        assert evaluation.figure("kernel", f.name).values[1] == kernel_distance(a, b).value
        assert evaluation.figure("kernel", f.name).heldout == kernel_distance(c, b).value
        near, far = neighbourhoods(a, b), neighbourhoods(c[:120], b)
        for metric in SETS[2:]:
            figure = evaluation.figure(metric, f.name)
            assert figure.values[1] == getattr(near, metric)
            assert figure.heldout == getattr(far, metric)
    copying = memorisation(sets[2], train.images, held.images)
    assert evaluation.figure("copies").values[2] == copying.copies
    assert evaluation.figure("closer").values[2] == pytest.approx(copying.closer, abs=1e-12)
    assert evaluation.figure("median_ratio").values[2] == pytest.approx(copying.median_ratio, rel=1e-12)
    with pytest.raises(ArgumentError, match=r"'fid'.*was not measured; there are .*frechet on pca:20"):
        evaluation.figure("fid")


def test_measuring_again_or_one_seed_alone_gives_the_same(measured):
    _, sets, evaluation, reference = measured
    alone = reference.measure(sets[:1], (4,))
    assert [f.values[0] for f in alone.figures] == [f.values[0] for f in evaluation.figures]
    assert [f.heldout for f in alone.figures] == [f.heldout for f in evaluation.figures]
    assert {f.std for f in alone.figures} == {None}


def test_training_data_as_samples_are_found_out(digits):
    """Copies have perfect precision and a Fréchet distance below that of held-out data, and are seen to be copies."""
    train, held = digits
    maps = evaluation_features(train)
    assert [m.name for m in maps] == ["classifier:digits", "pca:40"]
    found = evaluate_samples(train.images[:1200], train.images, held.images, maps)
    for m in maps:
        assert found.figure("precision", m.name).mean == 1
        frechet = found.figure("frechet", m.name)
        assert frechet.mean < frechet.heldout
    assert found.figure("copies").mean > 0.99
    assert found.figure("closer").mean > 0.99
    assert found.figure("class_confidence").mean > found.figure("class_confidence").heldout


def test_noise_is_far_from_the_data(digits):
    train, held = digits
    found = evaluate_samples(normal(200, 1, 8, 8).clamp(-1, 1), train.images, held.images, evaluation_features(train))
    for m in ("classifier:digits", "pca:40"):
        assert found.figure("frechet", m).mean > 10 * found.figure("frechet", m).heldout
        assert found.figure("density", m).mean < 0.2
        assert found.figure("coverage", m).mean < 0.5 * found.figure("coverage", m).heldout
    assert found.figure("class_score").mean < 0.8 * found.figure("class_score").heldout


def test_without_heldout_data_or_enough_of_anything(digits):
    x, train = normal(40, 2, seed=1), normal(60, 2, seed=2)
    maps = [pca_features(train, 2)]
    found = evaluate_samples(x, train, None, maps)
    assert [f.heldout for f in found.figures] == [None] * 6 + [found.figure("copies").heldout]
    assert found.n_heldout == 0
    assert evaluate_samples(x, train, x[:5], maps).n_heldout == 0
    json.dumps(found.to_dict(), allow_nan=False)
    for bad, message in (
        (lambda: evaluate_samples([], train, None, maps), "samples is empty"),
        (lambda: evaluate_samples(x[:7], train, None, maps), "samples have shapes"),
        (lambda: evaluate_samples([x, x[:30]], train, None, maps), "samples have shapes"),
        (lambda: evaluate_samples(normal(40, 3), train, None, maps), "samples have shapes"),
        (lambda: evaluate_samples([x, x], train, None, maps, seeds=(1, 1)), "seeds"),
        (lambda: evaluate_samples(x, train[:5], None, maps), "train has 5"),
        (lambda: evaluate_samples(x, train, None, []), "features"),
        (lambda: evaluate_samples(x, train, None, maps * 2), "features"),
    ):
        with pytest.raises(ArgumentError, match=message):
            bad()


def test_model_is_drawn_from_and_measured(digits):
    train, held = digits
    record = evaluate_model(load("digits"), train, held, n=24, seeds=(0, 3), steps=3, batch_size=10)
    again = evaluate_model(load("digits"), train, held, n=24, seeds=(3,), steps=3)
    assert record["seeds"] == [0, 3]
    assert record["sampler"]["nfe"] == 5
    assert record["data"]["digest"] == train.digest
    assert [f["values"][1] for f in record["figures"]] == pytest.approx([f["values"][0] for f in again["figures"]])
    json.dumps(record, allow_nan=False)


# The command


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two seeds drawn by the command, with the record that it printed."""
    folder = tmp_path_factory.mktemp("evaluate")
    shutil.copytree(Path(__file__).parents[1] / "src/farfield/interop/bundled/digits", folder / "model")
    return folder


def evaluate(*args: object) -> int:
    return main(["evaluate", *map(str, args), "--device", "cpu"])


def test_command_on_a_model_then_on_its_samples(drawn, capsys):
    command = ("digits", "--n", 30, "--seeds", 0, 1, "--steps", 3, "--work", drawn / "work", "--json", "--quiet")
    assert evaluate(*command, "--out", drawn / "figures.json") == 0
    record = json.loads(capsys.readouterr().out)
    assert json.loads((drawn / "figures.json").read_text(encoding="utf-8")) == record
    assert (record["n"], record["seeds"], record["n_train"], record["n_heldout"]) == (30, [0, 1], 1500, 297)
    assert record["samples"][0]["nfe"] == 5
    folders = [drawn / "work" / f"n30-seed{s}" for s in (0, 1)]
    times = [(f / "samples.npz").stat().st_mtime_ns for f in folders]
    assert evaluate(*command) == 0  # nothing is drawn twice
    assert json.loads(capsys.readouterr().out) == record
    assert [(f / "samples.npz").stat().st_mtime_ns for f in folders] == times
    assert evaluate(*folders, "--data", "digits", "--json") == 0
    assert json.loads(capsys.readouterr().out)["figures"] == record["figures"]
    assert evaluate(folders[0] / "samples.npz", "--data", "digits", "--features", "pca", "--n", 20) == 0
    shown = capsys.readouterr().out
    assert "20 samples × 1 seed, 1,500 training data" in shown
    assert "classifier" not in shown
    assert "held-out" in shown


def test_card_is_updated_and_nothing_else(drawn, capsys):
    card = drawn / "model" / "card.json"
    before = card.read_text(encoding="utf-8")
    weights = (drawn / "model" / "model.safetensors").read_bytes()
    command = (drawn / "model", "--n", 20, "--seeds", 7, "--steps", 2, "--work", drawn / "own", "--json", "--quiet")
    assert evaluate(*command, "--update-card", drawn / "model") == 0
    record = json.loads(capsys.readouterr().out)
    after = json.loads(card.read_text(encoding="utf-8"))
    assert after["training"]["metrics"].pop("evaluation") == record
    former = json.loads(before)
    former["training"]["metrics"].pop("evaluation", None)
    assert json.dumps(after) == json.dumps(former)  # and in the same order
    assert before.splitlines()[:20] == card.read_text(encoding="utf-8").splitlines()[:20]
    assert (drawn / "model" / "model.safetensors").read_bytes() == weights
    assert load(drawn / "model").card["training"]["metrics"]["evaluation"]["seeds"] == [7]
    # Samples that another model drew, or nobody knows who, stay off the card.
    now = card.read_bytes()
    np.savez(drawn / "loose.npz", images=np.zeros((9, 1, 8, 8), np.float32))
    assert evaluate(drawn / "loose.npz", "--data", "digits", "--update-card", drawn / "model") == 2
    assert "do not say which model drew them" in capsys.readouterr().err
    run = drawn / "own" / "n20-seed7" / "run.json"
    run.write_text(run.read_text(encoding="utf-8").replace('"weights": "', '"weights": "0'), encoding="utf-8")
    assert evaluate(run.parent, "--data", "digits", "--update-card", drawn / "model") == 2
    assert "were drawn by another model" in capsys.readouterr().err
    assert card.read_bytes() == now


def test_command_refuses_in_one_line(drawn, capsys, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 1, 8, 8), np.float32))
    np.savez(tmp_path / "b.npz", images=np.zeros((9, 2), np.float32))
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no")
    cases = [
        ((tmp_path / "a.npz",), 2, "--data is missing"),
        ((tmp_path / "a.npz", "--data", "digits", "--steps", 3), 2, "--steps has no effect"),
        ((tmp_path / "a.npz", "--data", "digits", "--n", 10), 2, "--n 10, but 9 samples"),
        ((tmp_path / "a.npz", tmp_path / "b.npz", "--data", "digits"), 2, "SAMPLES have shapes"),
        ((tmp_path / "a.npz", "digits", "--data", "digits"), 2, "'digits' holds no samples"),
        ((tmp_path / "two.npz", "--data", "digits"), 1, "holds the arrays a, b"),
        ((tmp_path / "broken.npz", "--data", "digits"), 1, "broken.npz"),
        ((tmp_path / "none.npz", "--data", "digits"), 1, "cannot be read"),
        ((tmp_path / "a.npz", "--data", "digits", "--features", "digit"), 2, "Did you mean 'digits'"),
        ((tmp_path / "a.npz", "--data", "digits", "--out", tmp_path), 2, "--out"),
        (("digits", "--seeds", 1, 1), 2, "--seeds 1 1"),
        (("digits", "--n", 3), 2, "--n 3"),
        (("digit",), 2, "unknown model"),
    ]
    for args, code, message in cases:
        assert evaluate(*args) == code, args
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1


def test_model_with_classes_is_asked_for_those_of_the_data(tmp_path, capsys):
    torch.manual_seed(0)
    spec = ModelSpec(MLPConfig(width=8, depth=1, label_dim=10), (1, 8, 8), Preconditioning(sigma_data=0.75))
    save_model(tmp_path, build_model(spec), spec, {})
    assert evaluate(tmp_path, "--n", 12, "--seeds", 0, "--steps", 2, "--work", tmp_path / "work", "--quiet") == 2
    assert "--data is missing" in capsys.readouterr().err
    command = (
        tmp_path,
        "--data",
        "digits",
        "--n",
        12,
        "--seeds",
        0,
        "--steps",
        2,
        "--work",
        tmp_path / "work",
        "--json",
    )
    assert evaluate(*command, "--update-card", tmp_path) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["samples"][0]["labels"] == "those of the data"
    assert read_json(tmp_path / "card.json")["training"] == {"metrics": {"evaluation": record}}


def test_points_of_a_toy_law(tmp_path, capsys):
    np.savez(tmp_path / "points.npz", load_data("toy:heart:50", seed=1).images.numpy())
    assert evaluate(tmp_path / "points.npz", "--data", "toy:heart:400", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert {f["features"] for f in record["figures"]} == {"pca:2", "pixels"}
    assert (record["n_train"], record["n_heldout"]) == (360, 40)
