"""Networks: preconditioning identities, derivatives, labels, layers; the objective and its minimiser."""

from __future__ import annotations

import pytest
import torch

from farfield.denoiser import FunctionDenoiser
from farfield.errors import ArgumentError
from farfield.networks import MLP, MLPConfig, Preconditioned, SongUNet, SongUNetConfig, build_network, edm_coefficients
from farfield.networks.layers import ResampleConv, attend, positional_embedding
from farfield.objectives import EDMObjective

SMALL = SongUNetConfig(model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), dropout=0.1)
SIGMA_DATA = 0.75


def small_unet(**changes: object) -> Preconditioned:
    """A small random network all of whose layers matter (a fresh one starts almost linear)."""
    torch.manual_seed(0)
    config = SongUNetConfig(**{**SMALL.__dict__, **changes})
    model = Preconditioned(SongUNet(config, (1, 8, 8)), (1, 8, 8), SIGMA_DATA, label_dim=config.label_dim).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.xavier_uniform_(parameter)
    return model


def test_coefficients_keep_unit_variance() -> None:
    sigma = torch.logspace(-3, 2, 11, dtype=torch.float64)
    c = edm_coefficients(sigma, SIGMA_DATA)
    torch.testing.assert_close(c.inp**2 * (sigma**2 + SIGMA_DATA**2), torch.ones_like(sigma))
    # The variance of the raw network's target, (y − c_skip (y + n))/c_out, and the weight that undoes c_out.
    target = ((1 - c.skip) ** 2 * SIGMA_DATA**2 + c.skip**2 * sigma**2) / c.out**2
    torch.testing.assert_close(target, torch.ones_like(sigma))
    torch.testing.assert_close(EDMObjective().weight(sigma, SIGMA_DATA) * c.out**2, torch.ones_like(sigma))
    torch.testing.assert_close(c.noise, sigma.log() / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_preconditioned_is_its_formula(dtype: torch.dtype) -> None:
    model = small_unet()
    x, sigma = torch.randn(3, 1, 8, 8, dtype=dtype), 0.3
    c = edm_coefficients(torch.tensor(sigma), SIGMA_DATA)
    raw = model.model((c.inp * x).float(), c.noise.reshape(1))
    d = model(x, sigma)
    assert d.dtype == dtype
    torch.testing.assert_close(d, c.skip * x + c.out * raw.to(dtype))
    torch.testing.assert_close(model(x, torch.tensor(sigma)), d, rtol=0, atol=0)
    torch.testing.assert_close(model(x, torch.full((3,), sigma)), d, rtol=1e-5, atol=1e-6)


def test_float64_states_keep_their_digits() -> None:
    """At small σ, D is almost x: a state that was rounded to float32 on the way would lose nine digits of it."""
    model = small_unet()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    shift = 1e-9 * torch.ones_like(x)
    torch.testing.assert_close(model(x + shift, 1e-6) - model(x, 1e-6), shift, rtol=0.05, atol=0)


@pytest.mark.parametrize("model", ["unet", "mlp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jvp_and_second_derivatives(model: str, dtype: torch.dtype) -> None:
    if model == "unet":
        net = small_unet().to(dtype)
    else:
        torch.manual_seed(0)
        net = Preconditioned(MLP(MLPConfig(width=32, depth=2), (1, 8, 8)), (1, 8, 8), SIGMA_DATA).to(dtype).eval()
        torch.nn.init.xavier_uniform_(net.model.last.weight)
    x, v = torch.randn(2, 1, 8, 8, dtype=dtype), torch.randn(2, 1, 8, 8, dtype=dtype)
    value, tangent = net.jvp(x, 0.5, v)
    torch.testing.assert_close(value, net(x, 0.5))
    # h balances truncation against the rounding of each type.
    h, tolerance = (1e-5, 1e-7) if dtype == torch.float64 else (1e-2, 2e-2)
    difference = (net(x + h * v, 0.5) - net(x - h * v, 0.5)) / (2 * h)
    assert (tangent - difference).norm() <= tolerance * tangent.norm()
    _, product = net.vjp(x, 0.5, v)
    torch.testing.assert_close((product * v).sum(), (tangent * v).sum(), rtol=1e-4, atol=1e-4)
    state = x.requires_grad_(True)
    (gradient,) = torch.autograd.grad((net(state, 0.5) ** 2).sum(), state, create_graph=True)
    (second,) = torch.autograd.grad((gradient * v).sum(), state)
    assert torch.isfinite(second).all()
    assert second.abs().max() > 0
    if dtype == torch.float64:

        def slope(at: torch.Tensor) -> torch.Tensor:
            at = at.detach().requires_grad_(True)
            return torch.autograd.grad((net(at, 0.5) ** 2).sum(), at)[0]

        numeric = (slope(state + h * v) - slope(state - h * v)) / (2 * h)
        assert (second - numeric).norm() <= 1e-6 * second.norm()


def test_labels() -> None:
    model = small_unet(label_dim=3)
    x = torch.randn(2, 1, 8, 8)
    by_number = model(x, 1.0, labels=torch.tensor([2, -1]))
    rows = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(by_number, model(x, 1.0, labels=rows), rtol=0, atol=0)
    torch.testing.assert_close(by_number[1:], model(x[1:], 1.0))
    assert (by_number[0] - model(x, 1.0)[0]).abs().max() > 1e-4
    with pytest.raises(ArgumentError, match="reach from 0 to 3"):
        model(x, 1.0, labels=torch.tensor([0, 3]))
    with pytest.raises(ArgumentError, match="shape"):
        model(x, 1.0, labels=torch.zeros(2, 4))
    with pytest.raises(ArgumentError, match="unconditional"):
        small_unet()(x, 1.0, labels=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("change", "event_shape", "message"),
    [
        ({"num_blocks": 10**9}, (1, 8, 8), "num_blocks = 1000000000"),
        ({"model_channels": 18}, (1, 8, 8), "multiple of 4"),
        ({"channel_mult": (1, 2)}, (1, 7, 7), "divisible by 2"),
        ({"channel_mult": (1, 2)}, (64,), "divisible by 2"),
        ({"model_channels": 48, "channel_mult": (1, 2)}, (1, 8, 8), "144 channels"),
        ({"dropout": 1.0}, (1, 8, 8), "dropout = 1.0"),
    ],
)
def test_impossible_networks(change: dict[str, object], event_shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_network(SongUNetConfig(**{"channel_mult": (1,), **change}), event_shape)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_box_filter_is_the_general_filter(direction: str) -> None:
    layer = ResampleConv(4, 4, 0, direction)
    x = torch.randn(2, 4, 6, 6)
    fast = layer(x)
    layer.box = False
    torch.testing.assert_close(layer(x), fast)


def test_attention_reads_interleaved_channels() -> None:
    qkv = torch.randn(2, 3 * 4, 2, 3)
    channels = qkv.reshape(2, 2, 2, 3, 6)  # head, c, (query, key, value), pixel
    q, k, v = channels.unbind(3)
    want = torch.nn.functional.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT.reshape(2, 4, 2, 3)
    torch.testing.assert_close(attend(qkv, heads=2), want)


def test_positional_embedding_endpoints() -> None:
    e = positional_embedding(torch.tensor([2.0]), 8)[0]
    torch.testing.assert_close(e[0], torch.tensor(2.0).cos())
    torch.testing.assert_close(e[7], torch.tensor(2e-4).sin())


def test_loss_of_the_exact_denoiser_is_the_closed_form_minimum() -> None:
    """Gaussian data with eigenvalues (4, 0.25): the least loss is Σ λσ²/(λ + σ²), and any other denoiser has more."""
    objective, spectrum = EDMObjective(), torch.tensor([4.0, 0.25], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 200_000, 2, generator=generator, dtype=torch.float64)
    images = draw[0] * spectrum.sqrt()
    for level, minimum in ((0.1, 0.0195904), (1.0, 1.0), (10.0, 4.0955304)):
        sigma = torch.full((len(images),), level, dtype=torch.float64)

        def loss(scale: float, sigma: torch.Tensor = sigma) -> float:
            def exact(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
                return scale * x * spectrum / (spectrum + s[:, None] ** 2)

            value = objective(FunctionDenoiser(exact, (2,)), images, sigma, draw[1], SIGMA_DATA)
            return float((value / objective.weight(sigma, SIGMA_DATA)).mean()) * 2

        assert loss(1.0) == pytest.approx(minimum, rel=0.01)
        assert loss(1.0) < min(loss(0.97), loss(1.03))


def test_objective_noise_levels() -> None:
    objective = EDMObjective(p_mean=-0.5, p_std=1.5)
    torch.testing.assert_close(objective.sigma(torch.tensor([0.0, 1.0])).log(), torch.tensor([-0.5, 1.0]))
    with pytest.raises(ArgumentError, match=r"p_std = 0"):
        EDMObjective(p_std=0.0)
