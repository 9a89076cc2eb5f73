"""The published U-Nets: names and shapes, agreement with a second reading of their description, initial values."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.networks import (
    PRECONDITIONINGS,
    DhariwalUNetConfig,
    NetworkConfig,
    Preconditioned,
    Preconditioning,
    SongUNetConfig,
    build_network,
)
from farfield.networks.layers import FourierEmbedding, ResampleConv
from farfield.networks.model_file import ModelSpec, build_model
from tests import edm_reference

SPEC = Path(__file__).parents[2] / "shared" / "spec" / "edm_networks"
CONFIGS = {"SongUNet": SongUNetConfig, "DhariwalUNet": DhariwalUNetConfig}
NCSN = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}
PUBLISHED = {
    "cifar10-32x32-uncond-vp": 55_733_891,
    "cifar10-32x32-cond-vp": 55_735_299,
    "cifar10-32x32-uncond-ve": 56_397_827,
    "imagenet-64x64-cond-adm": 295_899_267,
}


def published_model(arguments: dict[str, Any]) -> Preconditioned:
    """The network of published constructor arguments, laid out without memory."""
    cls = CONFIGS[arguments["model_type"]]
    names = cls.__dataclass_fields__.keys() & arguments.keys()
    config = cls(**{n: tuple(v) if isinstance(v := arguments[n], list) else v for n in names})
    shape = (arguments["img_channels"], arguments["img_resolution"], arguments["img_resolution"])
    with torch.device("meta"):
        return build_model(ModelSpec(config, shape, Preconditioning(sigma_data=0.5)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_and_shapes(name: str) -> None:
    """Name, shape, kind and order of every tensor, and the number of parameters, are the published ones."""
    path = SPEC / f"{name}.json"
    if not path.exists():
        pytest.skip("the list of published tensors is not here")
    published = json.loads(path.read_text())
    model = published_model(published["init_kwargs"])
    parameters = dict(model.named_parameters())
    ours = {
        key: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "kind": "parameter" if key in parameters else "buffer",
        }
        for key, tensor in model.state_dict().items()
    }
    assert list(ours.items()) == list(published["tensors"].items())
    assert sum(p.numel() for p in parameters.values()) == published["parameters"] == PUBLISHED[name]


@pytest.mark.parametrize(
    ("config", "channels", "size", "count"),
    [
        (SongUNetConfig(channel_mult=(2, 2, 2), augment_dim=9), 3, 32, PUBLISHED["cifar10-32x32-uncond-vp"]),
        (SongUNetConfig(channel_mult=(2, 2, 2), augment_dim=9, **NCSN), 3, 32, PUBLISHED["cifar10-32x32-uncond-ve"]),
        (DhariwalUNetConfig(label_dim=1000), 3, 64, PUBLISHED["imagenet-64x64-cond-adm"]),
    ],
)
def test_number_of_parameters(config: NetworkConfig, channels: int, size: int, count: int) -> None:
    with torch.device("meta"):
        model = build_network(config, (channels, size, size))
    assert sum(p.numel() for p in model.parameters()) == count


def test_attention_sits_where_the_paper_has_it() -> None:
    """CIFAR-10: 33 residual blocks, six with attention. ADM: every decoder block of a chosen resolution, and in0."""
    with torch.device("meta"):
        song = build_network(SongUNetConfig(channel_mult=(2, 2, 2)), (3, 32, 32))
        adm = build_network(
            DhariwalUNetConfig(model_channels=64, channel_mult=(1, 2), attn_resolutions=(8,)), (3, 16, 16)
        )
        narrow = build_network(DhariwalUNetConfig(model_channels=32, channel_mult=(1, 1)), (3, 16, 16))
    names = [name for name, _ in song.named_modules() if name.endswith(".conv1")]
    assert len(names) == song.blocks == 33
    attend = [name.removesuffix(".qkv") for name, _ in song.named_modules() if name.endswith(".qkv")]
    assert attend == [*(f"enc.16x16_block{k}" for k in range(4)), "dec.8x8_in0", "dec.16x16_block4"]
    attend = [name.removesuffix(".qkv") for name, _ in adm.named_modules() if name.endswith(".qkv")]
    assert attend == [f"enc.8x8_block{k}" for k in range(3)] + ["dec.8x8_in0"] + [f"dec.8x8_block{k}" for k in range(4)]
    assert not [name for name, _ in narrow.named_modules() if name.endswith(".qkv")]


SONG = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,)}
ADM = {"model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (8, 4)}
#: name → (preconditioning, network, arguments other than the small sizes)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddpmpp": ("edm", "song_unet", {}),
    "ddpmpp labels": ("edm", "song_unet", {"label_dim": 4, "augment_dim": 3, "num_blocks": 2}),
    "ddpmpp vp": ("vp", "song_unet", {"attn_resolutions": (8, 4)}),
    "ncsnpp": ("edm", "song_unet", {**NCSN, "augment_dim": 3}),
    "ncsnpp ve, three levels": ("ve", "song_unet", {**NCSN, "channel_mult": (2, 1, 2), "label_dim": 3}),
    "residual encoder, box filter": ("edm", "song_unet", {"encoder_type": "residual", "channel_mult": (1, 2, 2)}),
    "skip encoder": ("vp", "song_unet", {"encoder_type": "skip", "resample_filter": (1, 3, 3, 1)}),
    "skip decoder": (
        "ve",
        "song_unet",
        {"decoder_type": "skip", "embedding_type": "fourier", "channel_mult": (1, 2, 2)},
    ),
    "skip both": (
        "edm",
        "song_unet",
        {"encoder_type": "skip", "decoder_type": "skip", "resample_filter": (1, 3, 3, 1), "channel_mult": (1, 2, 2)},
    ),
    "song iddpm": ("iddpm", "song_unet", {"decoder_type": "skip", "resample_filter": (1, 2, 2, 3)}),
    "adm": ("edm", "dhariwal_unet", {}),
    "adm labels": ("edm", "dhariwal_unet", {"label_dim": 4, "augment_dim": 2, "channel_mult": (2, 4)}),
    "adm iddpm, three levels": ("iddpm", "dhariwal_unet", {"channel_mult": (1, 1, 4), "label_dim": 2}),
    "adm vp": ("vp", "dhariwal_unet", {"attn_resolutions": (), "channel_mult": (2, 1)}),
}


def small(case: str) -> tuple[Preconditioned, str, str, dict[str, Any]]:
    """A small network none of whose tensors is trivial, and what it was made of."""
    kind, network, changes = CASES[case]
    arguments = {**(SONG if network == "song_unet" else ADM), **changes}
    config = (SongUNetConfig if network == "song_unet" else DhariwalUNetConfig)(**arguments)
    model = build_model(ModelSpec(config, (3, 8, 8), Preconditioning(kind, sigma_data=0.5))).eval()  # type: ignore[arg-type]
    for name, p in model.named_parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, 0, p[0].numel() ** -0.5)
        else:
            torch.nn.init.normal_(p, float("norm" in name and name.endswith("weight")), 0.3)
    return model.requires_grad_(False), kind, network, {**arguments, "img_resolution": 8}


def inputs(arguments: dict[str, Any], sigma: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """States, label rows (one of them "no class") and augmentation labels."""
    x = torch.randn(4, 3, 8, 8, dtype=dtype) * (0.25 + sigma.to(dtype)[:, None, None, None] ** 2).sqrt()
    labels, augment = None, None
    if arguments.get("label_dim"):
        labels = torch.eye(arguments["label_dim"], dtype=dtype)[[1, 0, 1, 0]]
        labels[3] = 0
    if arguments.get("augment_dim"):
        augment = torch.randn(4, arguments["augment_dim"], dtype=dtype)
    return x, labels, augment


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_follows_the_description(case: str, dtype: torch.dtype) -> None:
    """D equals that of a second, literal implementation: to 1e-5 in float32, and to rounding in float64."""
    model, kind, network, arguments = small(case)
    model = model.to(dtype)
    sigma = torch.tensor([0.02, 0.4, 3.0, 60.0])
    x, labels, augment = inputs(arguments, sigma, dtype)
    ours = model(x, sigma, labels=labels, augment=augment)
    theirs = edm_reference.denoise(kind, network, model.state_dict(), arguments, x, sigma, labels, augment)
    # Of each sample's own size: D spans three decades over these levels.
    error = (ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
    assert error.max() < (1e-5 if dtype == torch.float32 else 1e-12)
    raw = (x - ours).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
    assert raw.min() > 1e-3  # the network is seen at every level


@pytest.mark.parametrize("case", ["ddpmpp labels", "ncsnpp ve, three levels", "adm iddpm, three levels", "skip both"])
def test_one_noise_level_for_the_whole_batch(case: str) -> None:
    model, _, _, arguments = small(case)
    sigma = torch.full((4,), 0.7)
    x, labels, augment = inputs(arguments, sigma, torch.float32)
    each = model(x, sigma, labels=labels, augment=augment)
    for level in (0.7, torch.tensor(0.7), torch.tensor([0.7])):
        torch.testing.assert_close(model(x, level, labels=labels, augment=augment), each, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["ncsnpp", "adm labels", "skip both", "song iddpm"])
def test_jacobian_products(case: str) -> None:
    """Forward mode, reverse mode and a difference quotient agree through every kind of layer."""
    model, _, _, arguments = small(case)
    model = model.double()
    x, labels, augment = inputs(arguments, torch.full((4,), 0.5), torch.float64)
    v, w, h = torch.randn_like(x), torch.randn_like(x), 1e-5
    condition = {"labels": labels, "augment": augment}
    _, tangent = model.jvp(x, 0.5, v, **condition)
    quotient = (model(x + h * v, 0.5, **condition) - model(x - h * v, 0.5, **condition)) / (2 * h)
    assert (tangent - quotient).norm() < 1e-6 * tangent.norm()
    torch.testing.assert_close((model.vjp(x, 0.5, w, **condition)[1] * v).sum(), (tangent * w).sum())


@pytest.mark.parametrize("case", ["ddpmpp", "ncsnpp", "adm labels", "skip both"])
def test_memory_format_does_not_matter(case: str) -> None:
    model, _, _, arguments = small(case)
    x, labels, augment = inputs(arguments, torch.full((4,), 0.5), torch.float32)
    expected = model(x, 0.5, labels=labels, augment=augment)
    model = model.to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(last, 0.5, labels=labels, augment=augment), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["ddpmpp labels", "ncsnpp", "adm labels", "song iddpm"])
def test_bfloat16(case: str) -> None:
    """Under autocast, and with weights in bfloat16, the numbers are those of float32 to bfloat16's digits."""
    model, _, _, arguments = small(case)
    x, labels, augment = inputs(arguments, torch.full((4,), 0.5), torch.float32)
    expected = model(x, 0.5, labels=labels, augment=augment)
    model.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        value = model(x, 0.5, labels=labels, augment=augment)
    assert value.dtype == torch.float32
    assert 0 < (value - expected).norm() < 0.05 * expected.norm()
    value.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in model.parameters())
    half = model.requires_grad_(False).bfloat16()
    if case != "ncsnpp":  # frequencies of N(0, 16²) in eight bits are other frequencies
        low = half(x, 0.5, labels=labels, augment=None if augment is None else augment.bfloat16())
        assert low.dtype == torch.float32
        assert (low - expected).norm() < 0.1 * expected.norm()


def test_initial_values_of_song_unet() -> None:
    """Xavier-uniform weights, gain 1; 1e-5 for the last layer of each branch, √0.2 for qkv; biases 0; f ~ 16 n."""
    config = SongUNetConfig(**{**SONG, **NCSN, "model_channels": 64, "label_dim": 5})
    model = build_network(config, (3, 8, 8))
    gains = {"conv1": 1e-5, "proj": 1e-5, "8x8_aux_conv": 1e-5, "qkv": math.sqrt(0.2)}
    for name, p in model.named_parameters():
        layer, what = name.split(".")[-2:]
        if "norm" in layer:
            assert torch.equal(p, torch.full_like(p, float(what == "weight")))
        elif what == "bias":
            assert torch.equal(p, torch.zeros_like(p))
        else:
            fans = (p.shape[0] + p.shape[1]) * p[0, 0].numel()
            unit = p.detach() / (gains.get(layer, 1.0) * math.sqrt(6 / fans))
            assert unit.abs().max() <= 1 + 1e-6
            assert float(unit.std()) == pytest.approx(math.sqrt(1 / 3), rel=8 / math.sqrt(p.numel()))
    freqs = FourierEmbedding(4096).freqs
    assert float(freqs.std()) == pytest.approx(16, rel=0.1)


def test_initial_values_of_dhariwal_unet() -> None:
    """Weights and biases uniform on ±1/√fan_in; zero last layers and augmentation; unit normal labels."""
    config = DhariwalUNetConfig(**{**ADM, "model_channels": 64, "label_dim": 5, "augment_dim": 2})
    model = build_network(config, (3, 8, 8))
    fans = {name.removesuffix(".weight"): p[0].numel() for name, p in model.named_parameters() if p.ndim > 1}
    for name, p in model.named_parameters():
        layer, what = name.split(".")[-2:]
        if "norm" in layer:
            assert torch.equal(p, torch.full_like(p, float(what == "weight")))
        elif layer in ("conv1", "proj", "out_conv", "map_augment"):
            assert torch.equal(p, torch.zeros_like(p))
        elif layer == "map_label":
            assert float(p.detach().std()) == pytest.approx(1, rel=8 / math.sqrt(p.numel()))
        else:
            unit = p.detach() * math.sqrt(fans[name.rpartition(".")[0]])
            assert unit.abs().max() <= 1 + 1e-6
            assert float(unit.std()) == pytest.approx(math.sqrt(1 / 3), rel=8 / math.sqrt(p.numel()))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x, torch.zeros(1)), torch.zeros_like(x))


#: SHA-256 over names and numbers of fresh weights after torch.manual_seed(1234), from the first released version.
FRESH = {
    "digits": (
        {"model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,)},
        (1, 8, 8),
        "72e5be2c55e688ea34e442fd9410e0292c73a99b1c8fe0a6f76bd0826d0964bc",
    ),
    "digits, informed": (
        {
            "model_channels": 32,
            "channel_mult": (1, 2),
            "num_blocks": 1,
            "attn_resolutions": (4,),
            "label_dim": 10,
            "augment_dim": 3,
        },
        (1, 8, 8),
        "0a91aa7cc30a3b9901fecda63a8054ab769eeb22ed2275cdd69de11fbbff2ca8",
    ),
    "cifar10-16": (
        {"model_channels": 64, "channel_mult": (1, 1, 1), "num_blocks": 1, "attn_resolutions": (8,), "dropout": 0.0},
        (3, 16, 16),
        "b8b1532bf9f8d2b955ea0c08b3bbc220ed17c7c8b7a679797fb96f755ecc6b46",
    ),
}


@pytest.mark.parametrize("name", FRESH)
def test_fresh_weights_stay_what_they_were(name: str) -> None:
    """A seed gives the weights that it always gave: runs recorded with earlier versions can be repeated."""
    changes, shape, digest = FRESH[name]
    torch.manual_seed(1234)
    model = build_model(ModelSpec(SongUNetConfig(**changes), shape, Preconditioning(sigma_data=0.5)))
    total = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        total.update(key.encode() + str((tensor.dtype, tuple(tensor.shape))).encode())
        total.update(tensor.contiguous().numpy().tobytes())
    assert total.hexdigest() == digest


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            SongUNetConfig,
            {"resample_filter": (1, 2, 1)},
            "network.resample_filter = [1, 2, 1]; expected an even number",
        ),
        (SongUNetConfig, {"resample_filter": (1, -1)}, "whose sum is not 0"),
        (SongUNetConfig, {"resample_filter": (1,) * 18}, "2 to 16"),
        (SongUNetConfig, {"resample_filter": (math.nan, 1)}, "resample_filter"),
        (SongUNetConfig, {"channel_mult_noise": 10**6}, "channel_mult_noise = 1000000"),
        (SongUNetConfig, {"embedding_type": "fourrier"}, "Did you mean 'fourier'"),
        (SongUNetConfig, {"encoder_type": "skips"}, "network.encoder_type"),
        (SongUNetConfig, {"decoder_type": "residual"}, "network.decoder_type"),
        (SongUNetConfig, {"label_dropout": 1.5}, "label_dropout = 1.5"),
        (DhariwalUNetConfig, {"num_blocks": 10**9}, "num_blocks = 1000000000"),
        (DhariwalUNetConfig, {"model_channels": 18}, "multiple of 4"),
        (DhariwalUNetConfig, {"dropout": -0.1}, "dropout = -0.1"),
        (DhariwalUNetConfig, {"model_channels": 200, "channel_mult": (1,)}, "200 channels"),
    ],
)
def test_impossible_networks(config: type[Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        build_network(config(**changes), (3, 32, 32))
    assert message in str(caught.value)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 4, 4, 2, 1)])
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("first", [False, True])
def test_resampling_convolutions(taps: tuple[float, ...], way: Any, first: bool) -> None:
    """Both orders against the tap-by-tap sums: a convolution before the filter is another map than one after it."""
    layer = ResampleConv(3, 5, 3, way, taps, convolve_first=first and way == "down").double()
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    state = {f"layer.{k}": v.detach() for k, v in layer.state_dict().items()}
    torch.testing.assert_close(layer(x), edm_reference.conv(state, "layer", x, way, fused=layer.convolve_first))
    if layer.convolve_first:
        assert (layer(x) - edm_reference.conv(state, "layer", x, way)).abs().min(dim=0).values.max() > 1e-2


def test_preconditionings_by_name() -> None:
    assert {kind: cls.kind for kind, cls in PRECONDITIONINGS.items()} == {k: k for k in ("edm", "vp", "ve", "iddpm")}
