"""Feature maps: the classifier, its files and training, and features that do not depend on the batch."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from farfield.cli.main import main
from farfield.data import DataSet, load
from farfield.errors import ArgumentError, ModelFileError
from farfield.metrics import (
    ClassifierConfig,
    ClassifierFeatures,
    ClassifierTraining,
    Features,
    ImageClassifier,
    InceptionFeatures,
    ModuleFeatures,
    bundled_features,
    default_features,
    load_classifier,
    load_features,
    pca_features,
    train_classifier,
)
from farfield.metrics.classifier import CARD, WEIGHTS
from farfield.metrics.classifier_training import CHECKPOINT, accuracy, augment, recipe
from farfield.metrics.features import identify
from farfield.networks.files import read_json, write_json, write_tensors

BUNDLED = Path(sys.modules["farfield.metrics.network_features"].__file__).parent / "bundled"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load("digits")


# The network


def test_folding_keeps_the_function():
    """Batch normalisation folded into the convolutions: the same logits, up to the rounding of float16."""
    model = ImageClassifier(ClassifierConfig(1, (8,), (16, 24)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.3)
            nn.init.uniform_(module.running_var, 0.3, 2)
    model.eval()
    for layer in (model.stem, model.halve[0], model.residual[0][1]):
        x = normal(3, layer.conv.in_channels, 8, 8)
        weight, bias = layer.folded()
        with torch.no_grad():
            plain = nn.functional.conv2d(x, weight, bias, layer.conv.stride, 1).relu()
            assert torch.allclose(plain, layer(x), rtol=1e-4, atol=1e-5)
    x = normal(5, 1, 8, 8).clamp(-1, 1)
    with torch.no_grad():
        before, after = model(x), model.fold()(x)
    assert torch.allclose(before, after, rtol=0.01, atol=0.01 * float(before.abs().max()))
    assert all(bool((p.half().float() == p).all()) for p in model.fold().parameters())


def test_small_images_are_enlarged_by_repetition():
    model = ImageClassifier(ClassifierConfig(3, (16, 8, 4), (8, 8))).fold()
    small = normal(4, 3, 8, 8)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        assert torch.equal(model(small), model(large))
    with pytest.raises(ArgumentError, match=r"takes \(3, 16, 16\) or \(3, 8, 8\) or \(3, 4, 4\)"):
        model(normal(1, 3, 2, 2))


@pytest.mark.parametrize(
    "bad", [{"sizes": (32, 12)}, {"sizes": ()}, {"widths": (0,)}, {"widths": (8,) * 7}, {"classes": 1}, {"channels": 0}]
)
def test_impossible_networks_are_refused(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad)) if "widths" not in bad else "widths|halved"):
        ClassifierConfig(**bad)


# Training


def test_augmentation_is_addressed_by_place():
    x, t = normal(9, 1, 8, 8), ClassifierTraining(translate=2, flip=0.5, seed=3)
    ids = torch.arange(100, 109)
    whole = augment(x, ids, t, (8, 4))
    assert torch.equal(torch.cat([augment(x[k : k + 4], ids[k : k + 4], t, (8, 4)) for k in (0, 4, 8)]), whole)
    still = dataclasses.replace(t, translate=0, flip=0.0)
    assert torch.equal(augment(x, ids, still, (8,)), x)
    assert torch.equal(augment(x, ids, dataclasses.replace(still, flip=1.0), (8,)), x.flip(3))
    coarse = nn.functional.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    mixed = augment(x, ids, still, (8, 4))
    chosen = [(torch.equal(m, a), torch.equal(m, b)) for m, a, b in zip(mixed, x, coarse, strict=True)]
    assert {(True, False), (False, True)} == set(chosen)
    moved = augment(x, ids, dataclasses.replace(still, translate=1), (8,))
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    place = torch.arange(8)
    for before, after in zip(x, moved, strict=True):
        found = [
            torch.equal(after, before[:, (place + dy).clamp(0, 7)][:, :, (place + dx).clamp(0, 7)]) for dy, dx in shifts
        ]
        assert any(found)


def tiny(digits: DataSet) -> tuple[DataSet, ClassifierConfig, ClassifierTraining]:
    data = digits.subset(torch.arange(300))
    return (
        data,
        ClassifierConfig(1, (8, 4), (8, 16)),
        ClassifierTraining(4, 30, translate=1, flip=0.0, precision="fp32"),
    )


def test_interrupted_training_ends_with_the_same_weights(digits, tmp_path):
    data, config, training = tiny(digits)
    losses: list[float] = []
    whole = train_classifier(
        data, tmp_path / "whole", config, training, progress=lambda *a: losses.append(a[2])
    )  # fmt: skip
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]

    def stop(done: int, steps: int, loss: float) -> None:
        if done >= steps // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(data, tmp_path / "cut", config, training, progress=stop)
    assert (tmp_path / "cut" / CHECKPOINT).is_file()
    rest: list[int] = []
    cut = train_classifier(data, tmp_path / "cut", config, training, progress=lambda *a: rest.append(a[0]))
    assert len(rest) == 2
    assert cut == whole
    assert not (tmp_path / "cut" / CHECKPOINT).exists()
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [CARD, WEIGHTS, "run.json"]
    # Once more changes nothing; another training in the same folder is refused.
    assert train_classifier(data, tmp_path / "cut", config, training) == whole
    with pytest.raises(ArgumentError, match="another run"):
        train_classifier(data, tmp_path / "cut", config, dataclasses.replace(training, seed=1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(ArgumentError, match="something else"):
        train_classifier(data, tmp_path / "full", config, training)
    model, card = load_classifier(tmp_path / "cut")
    assert card["training"]["accuracy"] == {str(s): accuracy(model, data.validation, s) for s in (8, 4)}


def test_recipes(digits):
    config, training = recipe(digits)
    assert (config.sizes, config.widths[-1], config.classes, training.flip) == ((8,), 64, 10, 0.0)
    photographs = DataSet(torch.zeros(20, 3, 32, 32), torch.arange(20) % 10, "cifar10", tuple("0123456789"))
    config, training = recipe(photographs)
    assert (config.sizes, training.flip, training.precision) == ((32, 16), 0.5, "bf16")
    for bad in (dataclasses.replace(photographs, labels=None), DataSet(torch.zeros(9, 2), torch.arange(9), "points")):
        with pytest.raises(ArgumentError, match=bad.name):
            recipe(bad)


# Files


def test_damaged_files_are_refused(tmp_path):
    def fresh() -> Path:
        folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(BUNDLED / "digits", folder)
        return folder

    assert load_classifier(fresh())[1]["name"] == "digits"

    folder = fresh()
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(ModelFileError, match="safetensors"):
        load_classifier(folder)

    folder = fresh()
    (folder / WEIGHTS).write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelFileError, match="pickle"):
        load_classifier(folder)

    model, _ = load_classifier(BUNDLED / "digits")
    state = {k: v.half() for k, v in model.state_dict().items()}
    for change, message in (
        ({"head.bias": state["head.bias"] + 1}, "SHA-256"),
        ({"head.bias": state["head.bias"] * math.nan}, "NaN"),
        ({"head.bias": state["head.bias"][:-1]}, "expected torch.float16"),
        ({"head.bias": state["head.bias"].float()}, "expected torch.float16"),
        ({"more": state["head.bias"].clone()}, "on one side only"),
    ):
        folder = fresh()
        write_tensors(folder / WEIGHTS, state | change)
        with pytest.raises(ModelFileError, match=message):
            load_classifier(folder)

    for key, value in (
        ("format", "farfield-model"),
        ("schema", 2),
        ("weights", {}),
        ("name", ""),
        ("classes", ["one"]),
        ("network", {"widths": [1 << 30]}),
        ("network", {"depth": 3}),
    ):
        folder = fresh()
        write_json(folder / CARD, {**read_json(folder / CARD), key: value})
        with pytest.raises(ModelFileError, match=r"card\.json"):
            load_classifier(folder)


# Feature maps


@pytest.mark.parametrize("name", bundled_features())
def test_bundled_classifiers(name):
    """At most 2 MB; accuracy in the card; features to the bit the same in any batch."""
    features = load_features(name)
    assert sum(p.stat().st_size for p in (BUNDLED / name).iterdir()) <= 2 << 20
    network, scores = features.card["network"], features.card["training"]["accuracy"]
    assert set(scores) == {str(s) for s in network["sizes"]}
    assert min(scores.values()) > {"digits": 0.97, "cifar10": 0.7}[name]
    assert isinstance(features, Features)
    assert 64 <= features.dim <= 128
    for size in network["sizes"]:
        x = normal(140, network["channels"], size, size).clamp(-1, 1)
        whole = features(x)
        assert whole.shape == (140, features.dim)
        assert torch.equal(torch.cat([features(x[:1]), features(x[1:3]), features(x[3:])]), whole)
        assert torch.equal(features(x.flip(0)), whole.flip(0))
        p = features.probabilities(whole)
        assert torch.equal(features.probabilities(whole[7:9]), p[7:9])
        with torch.no_grad():
            assert torch.allclose(p, features.model(x).double().softmax(1), atol=1e-5)
    with pytest.raises(ArgumentError, match="takes"):
        features(normal(2, 1, 5, 5))


def test_accuracy_of_the_digits_measured_anew(digits):
    features = load_features("digits")
    held = digits.validation
    score = accuracy(features.model, held, 8)
    assert score == features.card["training"]["accuracy"]["8"] >= 0.97
    predicted = features.probabilities(features(held.images)).argmax(1)
    assert float((predicted == held.labels).double().mean()) == score
    assert features.card["training"]["data"]["digest"] == digits.train.digest


def test_default_features(digits):
    assert default_features(digits).name == "classifier:digits"
    assert default_features(digits.train).name == "classifier:digits"
    small = load("digits", size=4)
    assert default_features(small).name == "pca:16"
    assert default_features(load("toy:heart:100")).name == "pca:2"
    with pytest.raises(ArgumentError, match=r"unknown features 'digit'.*Did you mean 'digits'"):
        load_features("digit")


def test_principal_components_are_features(digits):
    pca = pca_features(digits.images, 10)
    assert isinstance(pca, Features)
    assert identify(pca) == {"name": "pca:10", "dim": 10, "digest": pca.digest}
    assert pca.digest == pca_features(digits.images, 10).digest != pca_features(digits.images[1:], 10).digest


def test_any_module():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5)).train()
    features = ModuleFeatures(module, (3, 2, 2), batch=16)
    x = normal(37, 3, 2, 2)
    whole = features(x)
    assert module.training
    assert (features.name, features.dim, whole.shape) == ("module:Sequential", 5, (37, 5))
    assert torch.equal(torch.cat([features(x[:5]), features(x[5:])]), whole)
    with torch.no_grad():
        assert torch.allclose(module.eval()(x), whole, atol=1e-6)
    other = ModuleFeatures(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), name="mine")
    assert isinstance(other, Features)
    assert other.digest != features.digest
    assert ModuleFeatures(nn.Identity(), (2, 3, 3)).dim == 18
    with pytest.raises(ArgumentError, match="a row for each"):
        ModuleFeatures(nn.Flatten(0), (2, 3))
    with pytest.raises(ArgumentError, match="x has shape"):
        features(normal(2, 3, 4, 4))


def test_inception_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ArgumentError, match=r"pip install 'farfield\[inception\]'"):
        InceptionFeatures()

    seen: dict[str, object] = {}

    class Extractor(nn.Module):
        """Stands in for the package: takes bytes, gives a tuple, as torch-fidelity's does."""

        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            assert feature_extractor_weights_path is not None  # None would make the package download

        def forward(self, x):
            seen["dtype"], seen["low"], seen["high"] = x.dtype, int(x.min()), int(x.max())
            return (x.float().mean((2, 3)).repeat(1, 683)[:, :2048],)

    fake = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    fake.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", fake)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ArgumentError, match=r"no weights at .*nothing is downloaded here"):
        InceptionFeatures()
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    features = InceptionFeatures(path, batch=4)
    assert isinstance(features, Features)
    x = torch.linspace(-1.2, 1.2, 6 * 64).reshape(6, 1, 8, 8)
    assert features(x).shape == (6, 2048)
    assert seen == {"dtype": torch.uint8, "low": seen["low"], "high": 255}
    with pytest.raises(ArgumentError, match="x has shape"):
        features(normal(2, 2, 8, 8))


# The command


def test_features_command(digits, tmp_path, capsys):
    assert main(["features", "--json"]) == 0
    assert [card["name"] for card in json.loads(capsys.readouterr().out)] == bundled_features()
    assert main(["features"]) == 0
    assert "99.3 % at 8 px" in capsys.readouterr().out
    out = tmp_path / "mine"
    command = [
        "features",
        "train",
        "digits",
        "--out",
        str(out),
        "--epochs",
        "1",
        "--batch-size",
        "300",
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "step 5 of 5" in shown.err
    assert f"--features {out} pca" in shown.out
    assert ClassifierFeatures.load(out).classes == 10
    assert load_features(out).card["training"]["config"]["epochs"] == 1
    assert main(["features", "train"]) == 2
    assert main(["features", "--epochs", "3"]) == 2
    assert "farfield features train" in capsys.readouterr().err
