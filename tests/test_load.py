"""``load``: bundled models, folders and files; whatever is not a model is refused in one line, never executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from farfield.errors import ArgumentError, ModelFileError
from farfield.interop import bundled_models, load
from farfield.networks import MLPConfig
from farfield.networks.files import read_tensors, sha256, write_tensors
from farfield.networks.model_file import CARD, WEIGHTS, ModelSpec, Preconditioning, build_model, save_model

SPEC = ModelSpec(MLPConfig(width=8, depth=1), (2,), Preconditioning(sigma_data=0.6, sigma_min=0.01, sigma_max=20.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_model(tmp_path, build_model(SPEC), SPEC, {"steps": 3})
    return tmp_path


def test_round_trip(folder: Path) -> None:
    torch.manual_seed(1)
    original = build_model(SPEC)
    state = torch.get_rng_state()
    for path in (folder, str(folder), folder / WEIGHTS, folder / CARD):
        model = load(path)
        assert not model.training
        assert model.event_shape == (2,)
        assert (model.sigma_data, model.sigma_min, model.sigma_max) == (0.6, 0.01, 20.0)
        assert model.card["training"] == {"steps": 3}
        for name, tensor in original.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)
    assert torch.equal(torch.get_rng_state(), state)
    assert (folder / WEIGHTS).stat().st_mode & 0o777 == (folder / CARD).stat().st_mode & 0o777


def change_card(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        card = json.loads((folder / CARD).read_text())
        change(card)
        (folder / CARD).write_text(json.dumps(card))

    return apply


def change_weights(change: Callable[[dict[str, torch.Tensor]], object], vouch: bool = True) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = read_tensors(folder / WEIGHTS)
        change(tensors)
        digest = write_tensors(folder / WEIGHTS, tensors)
        if vouch:
            change_card(lambda card: card["weights"].update(sha256=digest))(folder)

    return apply


def rewrite(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no card": (lambda f: (f / CARD).unlink(), "has no card.json"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no model.safetensors"),
    "card truncated": (lambda f: (f / CARD).write_text((f / CARD).read_text()[:-20]) and None, "not valid JSON"),
    "card a list": (rewrite(CARD, b"[1]"), "expected an object"),
    "card nested": (rewrite(CARD, b"[" * 100_000), "not valid JSON"),
    "card foreign": (rewrite(CARD, b"{}"), "not a farfield model card"),
    "card huge": (rewrite(CARD, b" " * (5 << 20)), "at most"),
    "card of the future": (change_card(lambda c: c.update(schema=2)), "schema 2"),
    "no digest": (change_card(lambda c: c.pop("weights")), "digest"),
    "unknown kind": (change_card(lambda c: c["network"].update(kind="mlq")), "Did you mean 'mlp'"),
    "kind a list": (change_card(lambda c: c["network"].update(kind=["mlp"])), "unknown network.kind ['mlp']"),
    "unknown key": (change_card(lambda c: c["network"].update(widht=3)), "Did you mean 'network.width'"),
    "hostile size": (change_card(lambda c: c["network"].update(width=10**12)), "width = 1000000000000"),
    "hostile shape": (change_card(lambda c: c.update(event_shape=[10**9])), "event_shape"),
    "shape not numbers": (change_card(lambda c: c.update(event_shape="2")), "event_shape"),
    "no sigma_data": (change_card(lambda c: c["preconditioning"].pop("sigma_data")), "sigma_data is missing"),
    "sigma range": (change_card(lambda c: c["preconditioning"].update(sigma_max=0)), "sigma_max = 0"),
    "other width": (change_card(lambda c: c["network"].update(width=4096)), "the card's network has"),
    "weights truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]) and None, "safetensors"),
    "weights empty": (rewrite(WEIGHTS, b""), "safetensors"),
    "weights foreign": (rewrite(WEIGHTS, b"\x89PNG not tensors at all"), "safetensors"),
    "weights a pickle": (rewrite(WEIGHTS, pickle.dumps(Bomb())), "never executed"),
    "weights torch.save": (lambda f: torch.save(Bomb(), f / WEIGHTS), "never executed"),
    "tensor missing": (change_weights(lambda t: t.pop("model.last.bias")), "lacks tensor 'model.last.bias'"),
    "tensor extra": (change_weights(lambda t: t.update(extra=torch.ones(1))), "foreign tensor 'extra'"),
    "tensor type": (change_weights(lambda t: t.update({"model.last.bias": torch.ones(2).half()})), "float16"),
    "tensor NaN": (change_weights(lambda t: t["model.last.bias"].fill_(float("nan"))), "NaN"),
    "digest": (change_weights(lambda t: t["model.last.bias"].add_(1), vouch=False), "SHA-256"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models_are_refused(folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    apply, message = DAMAGE[damage]
    apply(folder)
    with pytest.raises(ModelFileError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("name", ["network.pkl", "model.pt", "weights.pth", "last.ckpt"])
def test_pickles_are_never_executed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelFileError, match="never executed"):
        load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_what_is_not_there(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ArgumentError, match="unknown model 'digit'"):
        load("digit")
    with pytest.raises(ModelFileError, match="does not exist"):
        load(folder / "absent.safetensors")
    with pytest.raises(ArgumentError, match="model = ''"):
        load("")
    other = tmp_path_factory.mktemp("alone") / "model.safetensors"
    write_tensors(other, {"a": torch.ones(1)})
    with pytest.raises(ModelFileError, match=r"no card\.json beside it"):
        load(other)
    text = folder / "notes.txt"
    text.write_text("hello")
    with pytest.raises(ModelFileError, match=r"expected a \.safetensors file"):
        load(text)


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models(name: str) -> None:
    model = load(name)
    weights = Path(load.__code__.co_filename).parent / "bundled" / name / WEIGHTS
    assert weights.stat().st_size <= 8 << 20
    assert sha256(weights) == model.card["weights"]["sha256"]
    x = torch.randn(2, *model.event_shape)
    assert model(x, 80.0).shape == x.shape
    # Far from the data the posterior mean is the mean of the data; near them it is the state.
    assert model(80.0 * x, 80.0).abs().max() < 2
    assert (model(x.clamp(-1, 1), 0.002) - x.clamp(-1, 1)).abs().max() < 0.05
