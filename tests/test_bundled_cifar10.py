"""The bundled CIFAR-10 model: its card, what the card says of its quality, and its field where theory knows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from farfield import Empirical, Gaussian, Sampler, karras, load
from farfield.data import load as load_data
from farfield.training import from_dict, load_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "src/farfield/interop/bundled/cifar10"
DATA = Path(os.environ.get("FARFIELD_CIFAR10", ROOT.parent / "shared/data/cifar10_train.parquet"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason="CIFAR-10 is not there; set FARFIELD_CIFAR10")


@pytest.fixture(scope="module")
def model():
    return load("cifar10")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return load_data(DATA, size=16, split="train", limit=4000, labels=False).images


def test_card_names_configuration_data_and_quality(model) -> None:
    training = model.card["training"]
    assert from_dict(training["config"]) == load_config(ROOT / "configs/cifar10-16.yaml")
    assert training["data"]["count"] == 45_000
    figures = {(f["metric"], f["features"]): f for f in training["metrics"]["evaluation"]["figures"]}
    for features in ("classifier:cifar10", "pca:40"):
        frechet = figures["frechet", features]
        assert len(frechet["values"]) == len(frechet["seeds"]) == 3
        assert frechet["heldout"] > 0
        assert frechet["n"] == 2000
    assert figures["copies", "pixels"]["mean"] <= 0.01
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12 << 20


def test_samples_are_images_of_its_size(model) -> None:
    x = Sampler("heun", karras(8))(model, 4, seed=3).x
    assert x.shape == (4, 3, 16, 16)
    assert 0.2 < float(x.std()) < 0.8
    assert float((x.abs() > 1.2).double().mean()) < 0.02


@needs_data
def test_score_is_gaussian_at_high_noise(model, images: torch.Tensor) -> None:
    """At high noise the network's denoiser is that of the Gaussian of its data; at low noise it is better than that."""
    gaussian = Gaussian.fit(images)
    noise = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    clean = load_data(DATA, size=16, split="validation", limit=32, labels=False).images

    def left(sigma: float) -> float:
        """The share of the Gaussian's correction (D − mean) that the network does not share."""
        x = clean + sigma * noise
        want = gaussian(x, sigma)
        return float((model(x, sigma) - want).square().sum() / (want - images.mean(0)).square().sum())

    assert left(5.0) < 0.1
    assert left(1.0) > left(5.0)
    x = clean + 0.2 * noise
    error = [float((d(x, 0.2) - clean).square().mean()) for d in (model, gaussian)]
    assert error[0] < 0.9 * error[1]


@needs_data
def test_it_generalises_where_the_training_set_itself_does_not(model, images: torch.Tensor) -> None:
    """On held-out images at a low level the optimum of its training loss returns the wrong picture; the network does not."""
    clean = load_data(DATA, size=16, split="validation", limit=32, labels=False).images
    x = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    network, exact = ((d(x, 0.3) - clean).square().mean() for d in (model, Empirical(images)))
    assert network < 0.2 * exact
