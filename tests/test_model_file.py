"""Models on the disk: every network and preconditioning comes back, in half the bytes or in several files, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from farfield.errors import ArgumentError, ModelFileError
from farfield.networks import DhariwalUNetConfig, MLPConfig, Preconditioning, SongUNetConfig
from farfield.networks.files import read_tensors, sha256, write_tensors
from farfield.networks.model_file import CARD, WEIGHTS, ModelSpec, build_model, load_model, read_card, save_model

NCSN = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}
SPECS = {
    "ncsnpp ve": ModelSpec(
        SongUNetConfig(model_channels=16, channel_mult=(1, 1), num_blocks=1, augment_dim=2, **NCSN),
        (3, 8, 8),
        Preconditioning("ve", sigma_data=0.5),
    ),
    "skip iddpm": ModelSpec(
        SongUNetConfig(
            model_channels=16,
            channel_mult=(1, 1),
            num_blocks=1,
            encoder_type="skip",
            decoder_type="skip",
            label_dropout=0.1,
        ),
        (3, 8, 8),
        Preconditioning("iddpm", sigma_data=0.5, M=100),
    ),
    "adm vp": ModelSpec(
        DhariwalUNetConfig(model_channels=16, channel_mult=(1, 1), num_blocks=1, label_dim=3),
        (3, 8, 8),
        Preconditioning("vp", sigma_data=0.5, sigma_max=100.0),
    ),
    "mlp edm": ModelSpec(MLPConfig(width=64, depth=2), (4,), Preconditioning(sigma_data=0.5)),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("max_bytes", [None, 24_000])
def test_round_trip(tmp_path: Path, name: str, dtype: Any, max_bytes: int | None) -> None:
    """Weights come back bit for bit, or rounded to bfloat16 (buffers whole); no file passes the limit."""
    spec = SPECS[name]
    model = build_model(spec)
    card = save_model(tmp_path, model, spec, {"steps": 1}, dtype, max_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 1 + len(card["weights"].get("more", []))
    assert (len(files) > 1) == (max_bytes is not None)
    assert max_bytes is None or max(f.stat().st_size for f in files) <= max_bytes
    loaded = load_model(tmp_path / WEIGHTS, tmp_path / CARD)
    parameters = dict(model.named_parameters())
    for key, tensor in model.state_dict().items():
        rounded = tensor.bfloat16().float() if dtype == "bf16" and key in parameters else tensor
        assert torch.equal(loaded.state_dict()[key], rounded)
        assert loaded.state_dict()[key].dtype == torch.float32
    assert read_card(tmp_path / CARD)[1] == spec
    assert loaded.kind == spec.preconditioning.kind
    assert (loaded.sigma_min, loaded.sigma_max) == spec.preconditioning.noise_range
    assert None not in card["preconditioning"].values()


def test_bfloat16_halves_the_file(tmp_path: Path) -> None:
    spec = ModelSpec(MLPConfig(width=128, depth=2), (4,), Preconditioning(sigma_data=0.5))
    sizes = {}
    for dtype in ("fp32", "bf16"):
        save_model(tmp_path, build_model(spec), spec, {}, dtype)  # type: ignore[arg-type]
        sizes[dtype] = (tmp_path / WEIGHTS).stat().st_size
    assert sizes["bf16"] < 0.52 * sizes["fp32"]


def test_parts_of_an_earlier_model_go(tmp_path: Path) -> None:
    spec = SPECS["mlp edm"]
    (tmp_path / "model-x.safetensors").touch()
    for limit in (17_000, 40_000, None):
        card = save_model(tmp_path, build_model(spec), spec, {}, max_bytes=limit)
        names = {p.name for p in tmp_path.glob("*.safetensors")} - {"model-x.safetensors"}
        assert names == {WEIGHTS, *(part["file"] for part in card["weights"].get("more", []))}
        load_model(tmp_path / WEIGHTS, tmp_path / CARD)
    assert (tmp_path / "model-x.safetensors").exists()


def test_cards_of_the_first_version_load(tmp_path: Path) -> None:
    """No kind of preconditioning, no type of weights, none of the newer sizes."""
    spec = ModelSpec(
        SongUNetConfig(model_channels=16, channel_mult=(1,), num_blocks=1), (1, 8, 8), Preconditioning(sigma_data=0.75)
    )
    model = build_model(spec)
    digest = write_tensors(tmp_path / WEIGHTS, model.state_dict())
    network = {"kind": "song_unet", "model_channels": 16, "channel_mult": [1], "channel_mult_emb": 4, "num_blocks": 1}
    network |= {"attn_resolutions": [16], "dropout": 0.1, "label_dim": 0, "augment_dim": 0}
    card = {
        "format": "farfield-model",
        "schema": 1,
        "farfield": "0.1.0",
        "network": network,
        "event_shape": [1, 8, 8],
        "preconditioning": {"sigma_data": 0.75, "sigma_min": 0.002, "sigma_max": 80.0},
        "weights": {"file": WEIGHTS, "sha256": digest, "parameters": 1},
        "training": {},
    }
    (tmp_path / CARD).write_text(json.dumps(card))
    assert read_card(tmp_path / CARD)[1] == spec
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_model(tmp_path / WEIGHTS, tmp_path / CARD)(x, 0.3), model.eval()(x, 0.3))


def change_card(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        card = json.loads((folder / CARD).read_text())
        change(card)
        (folder / CARD).write_text(json.dumps(card))

    return apply


def change_part(
    name: str, change: Callable[[dict[str, torch.Tensor]], object], vouch: bool = True
) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = read_tensors(folder / name)
        change(tensors)
        write_tensors(folder / name, tensors)
        if vouch:
            card = json.loads((folder / CARD).read_text())
            for part in (card["weights"], *card["weights"]["more"]):
                part["sha256"] = sha256(folder / part["file"])
            (folder / CARD).write_text(json.dumps(card))

    return apply


PART = "model-2.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "part missing": (lambda f: (f / PART).unlink(), f"{PART} cannot be read"),
    "part truncated": (lambda f: (f / PART).write_bytes((f / PART).read_bytes()[:-5]) and None, "safetensors"),
    "part a pickle": (lambda f: (f / PART).write_bytes(b"\x80\x04.") and None, "never executed"),
    "part changed": (change_part(PART, lambda t: next(iter(t.values())).add_(1), vouch=False), "SHA-256"),
    "part NaN": (change_part(PART, lambda t: next(iter(t.values())).fill_(float("nan"))), "NaN"),
    "part repeats": (
        change_part(PART, lambda t: t.update({"model.map_noise.weight": torch.ones(1)})),
        "repeats tensor",
    ),
    "part lacks": (change_part(PART, lambda t: t.pop(next(iter(t)))), "lacks tensor"),
    "part foreign": (change_part(PART, lambda t: t.update(extra=torch.ones(1))), f"{PART} has foreign tensor 'extra'"),
    "part dropped": (change_card(lambda c: c["weights"]["more"].pop()), "lacks tensor"),
    "outside": (change_card(lambda c: c["weights"]["more"][0].update(file="../model-2.safetensors")), "does not name"),
    "absolute": (change_card(lambda c: c["weights"]["more"][0].update(file="/etc/passwd")), "does not name the file"),
    "no digest": (change_card(lambda c: c["weights"]["more"][0].pop("sha256")), "does not name the digest"),
    "parts no list": (change_card(lambda c: c["weights"].update(more={"a": 1})), "not a list"),
    "parts many": (change_card(lambda c: c["weights"].update(more=[{}] * 100_000)), "not a list of at most"),
    "other type": (change_card(lambda c: c["weights"].update(dtype="fp32")), "the card's network has torch.float32"),
    "unknown type": (change_card(lambda c: c["weights"].update(dtype="int8")), "weights.dtype = 'int8'"),
    "hostile levels": (change_card(lambda c: c["preconditioning"].update(kind="iddpm", M=10**12)), "preconditioning.M"),
    "unknown kind": (change_card(lambda c: c["preconditioning"].update(kind="edn")), "Did you mean"),
    "foreign argument": (change_card(lambda c: c["preconditioning"].update(C_1=0.1)), "'edm' does not have it"),
    "other network": (
        change_card(lambda c: c.update(network={"kind": "dhariwal_unet"})),
        "dhariwal_unet of 4 resolutions",
    ),
    "hostile network": (
        change_card(lambda c: c.update(network={"kind": "song_unet", "channel_mult_noise": 10**9})),
        "channel_mult_noise = 1000000000",
    ),
    "other preconditioning": (change_card(lambda c: c["preconditioning"].update(kind="iddpm")), "lacks tensor 'u'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models_are_refused(tmp_path: Path, damage: str) -> None:
    spec = SPECS["mlp edm"]
    card = save_model(tmp_path, build_model(spec), spec, {}, "bf16", max_bytes=9_000)
    assert len(card["weights"]["more"]) > 1
    apply, message = DAMAGE[damage]
    apply(tmp_path)
    with pytest.raises(ModelFileError) as caught:
        load_model(tmp_path / WEIGHTS, tmp_path / CARD)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_length_may_look_like_a_pickle(tmp_path: Path, length: int) -> None:
    """The length 640 starts a safetensors file with the bytes 80 02, as protocol 2 starts a pickle."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length).encode()
    path = tmp_path / WEIGHTS
    path.write_bytes(length.to_bytes(8, "little") + header + b"\0\0\x80?")
    assert read_tensors(path)["x"].tolist() == [1.0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelFileError):
        read_tensors(path)


def test_wrong_arguments(tmp_path: Path) -> None:
    spec = SPECS["mlp edm"]
    with pytest.raises(ArgumentError, match=r"dtype = 'fp16'; expected 'fp32' or 'bf16'"):
        save_model(tmp_path, build_model(spec), spec, {}, "fp16")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"max_bytes = 600; expected at least \d+, for tensor 'model\.map_noise"):
        save_model(tmp_path, build_model(spec), spec, {}, max_bytes=600)
    assert not list(tmp_path.iterdir())
