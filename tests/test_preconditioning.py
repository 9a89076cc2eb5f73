"""VP, VE and improved DDPM as denoisers: their published numbers, their ranges, and their configuration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from farfield.errors import ArgumentError
from farfield.networks import (
    IDDPMPreconditioned,
    MLPConfig,
    Preconditioned,
    Preconditioning,
    SongUNetConfig,
    VEPreconditioned,
    VPPreconditioned,
    iddpm_levels,
    vp_sigma,
    vp_time,
)
from farfield.networks.model_file import ModelSpec, build_model
from farfield.networks.structure import plain, structure
from farfield.processes.time_maps import DDPM, VP
from tests.edm_reference import levels_of_iddpm

KINDS = ("edm", "vp", "ve", "iddpm")


class Probe(nn.Module):
    """Remembers what it is given and answers with fixed numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.seen: tuple[Tensor, Tensor] | None = None

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        self.seen = x, c_noise
        return self.scale * torch.arange(1.0, len(self.scale) + 1).expand(len(x), -1)


def noise_of(model: Preconditioned, sigma: float) -> float:
    """c_noise as the network sees it."""
    return float(model.coefficients(torch.tensor(sigma)).noise)


def test_vp_numbers() -> None:
    """σ(1) = 152.167, σ(1e-5) = 2⁻¹⁰ in float32 and 0.0010005 truly; t inverts σ; c_noise is 999 at t = 1."""
    t = torch.linspace(0.001, 1, 200, dtype=torch.float64)
    torch.testing.assert_close(vp_time(vp_sigma(t)), t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(vp_sigma(t), VP(t_min=1e-5).sigma(t), rtol=1e-9, atol=0)
    torch.testing.assert_close(vp_time(vp_sigma(t.float())), t.float(), rtol=0, atol=1e-4)
    assert float(vp_sigma(torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(152.167, abs=5e-4)
    assert float(vp_sigma(torch.tensor(1e-5, dtype=torch.float32))) == 0.0009765625
    assert float(vp_sigma(torch.tensor(1e-5, dtype=torch.float64))) == pytest.approx(0.0010005, abs=5e-8)
    p = Preconditioning("vp")
    assert p.sigma_min == 0.0009765625
    assert p.sigma_max == pytest.approx(152.167, abs=5e-4)
    model = VPPreconditioned(nn.Identity(), (2,))
    assert noise_of(model, p.noise_range[1]) == pytest.approx(999, abs=2e-4)
    # float32, in the published order of operations: one rounding of c_noise would be seen in D.
    sigma = torch.tensor([0.02, 1.0, 40.0])
    by_hand = ((0.01 + 39.8 * (1 + sigma * sigma).log()).sqrt() - 0.1) / 19.9 * 999
    assert torch.equal(model.coefficients(sigma).noise, by_hand)


def test_ve_numbers() -> None:
    model = VEPreconditioned(nn.Identity(), (2,))
    assert Preconditioning("ve").noise_range == (0.02, 100.0)
    assert noise_of(model, 2.0) == 0
    assert noise_of(model, 100.0) == pytest.approx(math.log(50), rel=1e-6)


def test_iddpm_levels() -> None:
    """u₀ = 20291.17, u₉₉₉ = 0.0064223, u₁₀₀₀ = 0; a float64 recursion is within 5e-4; j = 0 … 1000 are found again."""
    u = iddpm_levels()
    assert u.dtype == torch.float32
    assert u.shape == (1001,)
    assert float(u[0]) == pytest.approx(20291.17, rel=1e-5)
    assert float(u[999]) == pytest.approx(0.0064223, abs=5e-8)
    assert float(u[1000]) == 0
    assert (u.diff() < 0).all()
    exact = levels_of_iddpm()
    assert ((u.double() - exact)[:-1] / exact[:-1]).abs().max() < 6e-4
    # The cosine schedule of the time maps clamps β at 0.999, here C₁ = 0.001: the same levels, counted from the other end.
    torch.testing.assert_close(exact[:-1].flip(0), DDPM(1000, "cosine").log_sigmas.exp(), rtol=1e-5, atol=0)
    p = Preconditioning("iddpm")
    assert p.noise_range == (float(u[999]), float(u[0]))
    model = IDDPMPreconditioned(nn.Identity(), (2,))
    assert torch.equal(model.index(u), torch.arange(1001))
    assert noise_of(model, float(u[0])) == 999
    assert noise_of(model, float(u[999])) == 0
    assert noise_of(model, 0.49 * float(u[999])) == -1
    assert noise_of(model, 0.51 * float(u[999])) == 0


def test_round_sigma() -> None:
    model, u = IDDPMPreconditioned(nn.Identity(), (2,)), iddpm_levels()
    assert float(model.round_sigma(1e9)) == float(u[0])
    between = (u[:-1] + u[1:]) / 2
    step = (u[:-1] - u[1:]) / 4
    assert torch.equal(model.round_sigma(between + step), u[:-1])
    assert torch.equal(model.round_sigma((between - step).view(10, 100)), u[1:].view(10, 100))
    for cls in (Preconditioned, VPPreconditioned, VEPreconditioned):
        assert float(cls(nn.Identity(), (2,)).round_sigma(0.3)) == pytest.approx(0.3, rel=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_denoiser_is_its_formula(kind: Any) -> None:
    """``D = c_skip x + c_out F(c_in x, c_noise)`` with the given σ, also where the network sees another one."""
    factor = 2 if kind == "iddpm" else 1
    model = Preconditioning(kind, sigma_data=0.7).build(Probe(3 * factor), (3,), 0)
    x, sigma = torch.randn(2, 3), torch.tensor([0.31, 12.34])
    value = model(x, sigma)
    s = sigma[:, None]
    c_in = {"edm": 1 / (s**2 + 0.49).sqrt(), "ve": torch.ones_like(s)}.get(kind, 1 / (s**2 + 1).sqrt())
    c_skip = 0.49 / (s**2 + 0.49) if kind == "edm" else 1.0
    c_out = {"edm": 0.7 * s / (s**2 + 0.49).sqrt(), "ve": s}.get(kind, -s)
    torch.testing.assert_close(value, c_skip * x + c_out * torch.tensor([1.0, 2.0, 3.0]))
    seen, c_noise = model.model.seen
    torch.testing.assert_close(seen, c_in * x)
    assert c_noise.shape == (2,)
    assert model.sigma_data == 0.7
    model(x, 0.31)
    assert model.model.seen[1].shape == (1,)
    torch.testing.assert_close(model.model.seen[1], c_noise[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_has_no_more_than_the_network(kind: Any) -> None:
    """Only improved DDPM has a tensor of its own, ``u``; its network has twice the channels, also the MLP."""
    unet = SongUNetConfig(model_channels=16, channel_mult=(1,), num_blocks=1)
    for network, shape in ((MLPConfig(width=8, depth=1), (2, 3)), (unet, (3, 8, 8))):
        model = build_model(ModelSpec(network, shape, Preconditioning(kind, sigma_data=0.5)))
        own = [name for name in model.state_dict() if not name.startswith("model.")]
        assert own == (["u"] if kind == "iddpm" else [])
        x = torch.randn(4, *shape)
        raw = model.model(x, torch.zeros(1))
        assert raw.shape == (4, shape[0] * (2 if kind == "iddpm" else 1), *shape[1:])
        assert model(x, 1.0).shape == x.shape
        with torch.device("meta"):
            layout = build_model(ModelSpec(network, shape, Preconditioning(kind, sigma_data=0.5)))
        assert all(tensor.is_meta for tensor in layout.state_dict().values())


def test_half_precision_keeps_the_levels() -> None:
    """A network in bfloat16 still gets c_noise in float32, and improved DDPM its table."""
    for kind in ("vp", "iddpm"):
        model = Preconditioning(kind, sigma_data=0.5).build(Probe(4 if kind == "iddpm" else 2), (2,), 0).bfloat16()
        reference = Preconditioning(kind, sigma_data=0.5).build(Probe(4 if kind == "iddpm" else 2), (2,), 0)
        x = torch.randn(1, 2)
        assert model(x, 3.21).dtype == torch.float32
        reference(x, 3.21)
        assert model.model.seen[0].dtype == torch.bfloat16
        assert torch.equal(model.model.seen[1], reference.model.seen[1])


def test_configuration() -> None:
    """None is the kind's published number; explicit numbers, and cards without a kind, load as they are."""
    old = structure(Preconditioning, {"sigma_data": 0.75, "sigma_min": 0.002, "sigma_max": 80.0})
    assert old == Preconditioning(sigma_data=0.75)
    assert (old.kind, old.sigma_min, old.sigma_max) == ("edm", 0.002, 80.0)
    assert old.beta_d is old.M is old.C_1 is None
    vp = structure(Preconditioning, {"kind": "vp", "sigma_max": 100, "beta_d": 10})
    assert (vp.beta_d, vp.beta_min, vp.M, vp.C_2, vp.sigma_max) == (10, 0.1, 1000, None, 100)
    for kind in KINDS:
        p = Preconditioning(kind, sigma_data=0.5)
        assert structure(Preconditioning, plain(p)) == p
        model = p.build(nn.Identity(), (2,), 0)
        assert (model.kind, model.sigma_min, model.sigma_max) == (kind, *p.noise_range)
    short = Preconditioning("iddpm", sigma_data=0.5, M=10, C_1=0.01, C_2=0.02).build(nn.Identity(), (2,), 0)
    assert isinstance(short, IDDPMPreconditioned)
    assert len(short.u) == 11
    assert short.sigma_max == float(short.u[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "vpp"}, "Did you mean 'vp'"),
        ({"beta_d": 19.9}, "preconditioning.beta_d = 19.9; expected none, 'edm' does not have it"),
        ({"kind": "ve", "M": 1000}, "'ve' does not have it"),
        ({"kind": "vp", "beta_d": 1e9}, "preconditioning.beta_d = 1000000000.0; expected a value from 0.001 to 100"),
        ({"kind": "iddpm", "M": 10**9}, "preconditioning.M = 1000000000"),
        ({"kind": "iddpm", "C_1": 0}, "preconditioning.C_1 = 0"),
        ({"sigma_data": -1}, "sigma_data = -1"),
        ({"sigma_data": math.nan}, "sigma_data = nan"),
        ({"sigma_min": 100}, "sigma_min = 100, sigma_max = 80.0"),
        ({"kind": "ve", "sigma_max": 0.01}, "sigma_min = 0.02, sigma_max = 0.01"),
    ],
)
def test_wrong_configurations(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Preconditioning(**arguments)
    assert message in str(caught.value)


def test_sigma_data_has_to_be_known() -> None:
    with pytest.raises(ArgumentError, match=r"sigma_data is missing"):
        build_model(ModelSpec(MLPConfig(), (2,), Preconditioning("vp")))
