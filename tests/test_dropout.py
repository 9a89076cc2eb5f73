"""Dropout masks that belong to the sample: their law, their independence, and training that no partition changes."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from farfield.errors import ArgumentError
from farfield.networks import DhariwalUNetConfig, MLPConfig, NetworkConfig, Preconditioning, SongUNetConfig
from farfield.networks.dropout import SampleMasks, dropout, hide_labels
from farfield.networks.model_file import ModelSpec, build_model

SONG = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,), "dropout": 0.3}
NETWORKS: dict[str, tuple[NetworkConfig, tuple[int, ...]]] = {
    "song_unet": (SongUNetConfig(**SONG, label_dim=3, label_dropout=0.5), (1, 8, 8)),
    "ncsnpp": (
        SongUNetConfig(
            **SONG,
            embedding_type="fourier",
            encoder_type="residual",
            channel_mult_noise=2,
            resample_filter=(1, 3, 3, 1),
        ),
        (1, 8, 8),
    ),
    "dhariwal_unet": (DhariwalUNetConfig(**{**SONG, "label_dim": 3, "label_dropout": 0.5}), (1, 8, 8)),
    "mlp": (MLPConfig(width=32, depth=3, dropout=0.3), (5,)),
}


def correlations(masks: Tensor, p: float) -> Tensor:
    """Empirical correlations of all pairs of columns of 0/1 numbers with mean 1 − p, (n, k) to (k(k−1)/2,)."""
    z = (masks.double() - (1 - p)) / math.sqrt(p * (1 - p))
    matrix = z.T @ z / len(z)
    return matrix[torch.triu_indices(len(matrix), len(matrix), 1).unbind()]


@pytest.mark.parametrize("p", [0.02, 0.13, 0.5, 0.9])
def test_mean(p: float) -> None:
    """The share of kept elements is 1 − p, over all of them and over the samples of each, to 5 standard errors."""
    keep = SampleMasks(torch.arange(400), 1).keep(torch.empty(400, 8, 16, 16), 0, p).double()
    error = math.sqrt(p * (1 - p))
    assert abs(keep.mean() - (1 - p)) < 5 * error / math.sqrt(keep.numel())
    assert (keep.flatten(1).mean(1) - (1 - p)).abs().max() < 5 * error / math.sqrt(2048)
    # Each element over the samples, and their spread: neither wider nor narrower than independent draws.
    each = (keep.mean(0) - (1 - p)) / (error / math.sqrt(400))
    assert each.abs().max() < 6
    assert float(each.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / 2048) + 0.05)


def test_probability_is_exact() -> None:
    """Over all elements the words run through a permutation of 32 bits, so a threshold keeps its exact share."""
    tiny, one = SampleMasks(torch.tensor([3]), 1), torch.empty(1, 1 << 18)
    assert tiny.keep(one, 0, 2.0**-40).all()
    assert tiny.keep(one, 0, 1.0).sum() == 0
    counts = torch.stack([tiny.keep(one, 0, k / 16).sum() for k in range(16)])
    shares = -counts.diff() / (1 << 18)  # of sixteen equal intervals of words
    assert (shares - 1 / 16).abs().max() < 5 * math.sqrt(15 / 256 / (1 << 18))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_independence(p: float) -> None:
    """No pair of elements, of samples (also with neighbouring seeds) or of layers is correlated beyond 5.5 σ."""
    n, k = 20_000, 48
    masks = SampleMasks(torch.arange(n), k)
    elements = masks.keep(torch.empty(n, k), 0, p)
    layers = torch.stack([masks.keep(torch.empty(n, 1), layer, p)[:, 0] for layer in range(k)], dim=1)
    seeds = torch.cat((torch.arange(k // 2), torch.arange(k // 2) << 32))
    samples = SampleMasks(seeds[1:], 1).keep(torch.empty(k - 1, n), 0, p).T
    one_sample = SampleMasks(torch.tensor([11]), k)
    within = torch.stack([one_sample.keep(torch.empty(1, n), layer, p)[0] for layer in range(k)], dim=1)
    for columns in (elements, layers, samples, within):
        c = correlations(columns, p) * math.sqrt(n)
        assert c.abs().max() < 5.5
        assert float(c.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / len(c)) + 0.05)


def test_higher_orders() -> None:
    """Products of three neighbouring elements, and of an element in two layers and two samples, average to nothing."""
    n = 100_000
    masks = SampleMasks(torch.arange(n), 2)
    a, b = (masks.keep(torch.empty(n, 8), layer, 0.5).double() * 2 - 1 for layer in range(2))
    products = (
        a[:, :-2] * a[:, 1:-1] * a[:, 2:],
        a[:-1] * b[:-1] * a[1:] * b[1:],
        a[:, 1:] * a[:, :-1] * b[:, 1:] * b[:, :-1],
    )
    for product in products:
        assert (product.mean(0) * math.sqrt(n)).abs().max() < 5
    # Inside single samples: words that are a polynomial of the element's number would satisfy such a relation.
    z = (SampleMasks(torch.arange(8), 1).keep(torch.empty(8, n), 0, 0.3).double() - 0.7) / math.sqrt(0.21)
    for product in (z[:, :-2] * z[:, 1:-1] * z[:, 2:], z[:, :-3] * z[:, 1:-2] * z[:, 2:-1] * z[:, 3:]):
        assert (product.mean(1) * math.sqrt(n)).abs().max() < 5


def test_value_and_derivatives() -> None:
    """Kept elements are divided by 1 − p, the others zero; the gradient is the same mask."""
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    masks = SampleMasks(torch.arange(4), 2)
    y = dropout(x, 0.25, True, masks, 1)
    keep = masks.keep(x, 1, 0.25)
    torch.testing.assert_close(y, torch.where(keep, x / 0.75, 0.0))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, keep.double() / 0.75)


def test_memory_format_does_not_matter() -> None:
    x = torch.randn(3, 4, 5, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    masks = SampleMasks(torch.arange(3), 1)
    y = dropout(last, 0.4, True, masks, 0)
    assert torch.equal(y, dropout(x, 0.4, True, masks, 0))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.3, False)])
def test_costs_nothing_where_nothing_is_dropped(p: float, training: bool) -> None:
    x, masks = torch.randn(2, 3), SampleMasks(torch.arange(2), 1)
    state = torch.get_rng_state()
    assert dropout(x, p, training, masks, 0) is x
    assert dropout(x, p, training, None, 0) is x
    assert hide_labels(x, p, training, 2, masks, 0) is x
    assert torch.equal(torch.get_rng_state(), state)
    model = build_model(ModelSpec(MLPConfig(width=8, depth=1, dropout=p), (2,), Preconditioning(sigma_data=0.5)))
    with patch("farfield.networks.mlp.SampleMasks", side_effect=AssertionError("masks were made")):
        model.train(training)(torch.randn(2, 2), 1.0, dropout_seed=torch.arange(2))


def test_without_seeds_torch_draws() -> None:
    x = torch.randn(5, 7)
    torch.manual_seed(3)
    expected = torch.nn.functional.dropout(x, 0.4, True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.4, True, None, 0), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_any_partition_trains_the_same_model(name: str) -> None:
    """Values of a batch of 6, and its gradient, are those of 4 + 2 and of another order, with dropout active."""
    config, shape = NETWORKS[name]
    model = build_model(ModelSpec(config, shape, Preconditioning(sigma_data=0.5))).train()
    for p in model.parameters():
        torch.nn.init.normal_(p, *((0, p[0].numel() ** -0.5) if p.ndim > 1 else (0.8, 0.3)))
    x, sigma = torch.randn(6, *shape), torch.rand(6) + 0.5
    seeds = torch.tensor([5, -1, 2**62, 7, 8, 9])
    labels = torch.tensor([0, 1, 2, 0, 1, -1]) if config.label_dim else None

    def run(rows: list[int]) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        out = model(x[rows], sigma[rows], labels=None if labels is None else labels[rows], dropout_seed=seeds[rows])
        out.square().sum().backward()
        return out.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    torch.manual_seed(0)
    whole, gradient = run([0, 1, 2, 3, 4, 5])
    torch.manual_seed(1)
    (first, g1), (second, g2) = run([3, 0, 5, 1]), run([4, 2])
    torch.testing.assert_close(torch.cat((first, second))[[1, 3, 5, 0, 4, 2]], whole, rtol=1e-4, atol=1e-5)
    for a, b, c in zip(gradient, g1, g2, strict=True):
        assert (a - b - c).norm() <= 1e-4 * a.norm() + 1e-6
    without = model.eval()(x, sigma, labels=labels, dropout_seed=seeds)
    assert (whole - without).norm() > 0.05 * without.norm()
    other = model.train()(x, sigma, labels=labels, dropout_seed=seeds + 1)
    assert (whole - other).norm() > 0.05 * whole.norm()


def test_blocks_are_numbered() -> None:
    """Every residual block has its own masks, and none of that is in the state dict."""
    for config, shape in NETWORKS.values():
        with torch.device("meta"):
            model = build_model(ModelSpec(config, shape, Preconditioning(sigma_data=0.5)))
        numbers = [m.number for m in model.modules() if hasattr(m, "number")]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= 3
        assert not [key for key in model.state_dict() if "number" in key or "mask" in key]


def test_label_dropout() -> None:
    """Whole rows vanish, with the given probability, by the sample's seed or by torch's generator."""
    labels = torch.eye(4)[torch.arange(40_000) % 4]
    for masks in (SampleMasks(torch.arange(40_000), 2), None):
        hidden = hide_labels(labels, 0.3, True, 40_000, masks, 1)
        kept = hidden.sum(1)
        assert torch.equal(hidden, labels * kept[:, None])
        assert float(kept.mean()) == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / 40_000))
    config, shape = NETWORKS["dhariwal_unet"]
    model = build_model(ModelSpec(config, shape, Preconditioning(sigma_data=0.5))).train()
    assert model(torch.randn(3, *shape), 1.0, dropout_seed=torch.arange(3)).shape == (3, *shape)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (torch.arange(3, dtype=torch.int32), "int32"),
        (torch.zeros(3, 1, dtype=torch.int64), "(3, 1)"),
        (torch.arange(2), "expected 3"),
    ],
)
def test_wrong_seeds(seed: Tensor, message: str) -> None:
    config, shape = NETWORKS["mlp"]
    model = build_model(ModelSpec(config, shape, Preconditioning(sigma_data=0.5))).train()
    with pytest.raises(ArgumentError) as caught:
        model(torch.randn(3, *shape), 1.0, dropout_seed=seed)
    assert message in str(caught.value)
