"""Objectives: their laws of noise levels, weights, common minimiser, and the learned weighting."""

import dataclasses
import math

import pytest
import torch

from farfield.denoiser import FunctionDenoiser
from farfield.errors import ArgumentError
from farfield.networks.structure import plain, structure
from farfield.objectives import (
    EDMObjective,
    IDDPMObjective,
    ObjectiveConfig,
    TargetConfig,
    Uncertainty,
    VEObjective,
    VPObjective,
)

F64 = torch.float64
ALL = (EDMObjective(), VPObjective(), VEObjective(), IDDPMObjective())


@dataclasses.dataclass(frozen=True)
class Run:
    objective: ObjectiveConfig = dataclasses.field(default_factory=EDMObjective)
    target: TargetConfig = dataclasses.field(default_factory=TargetConfig)


def quantile(objective, u):
    """The noise level that belongs to a uniform number u."""
    return objective.sigma(torch.special.ndtri(torch.tensor(u, dtype=F64)))


def test_vp_noise_levels():
    """Table 1 of EDM, and stable_target_field fact 22: σ(1) = 152.16697, α(0.5) = 0.2811828808."""
    objective = VPObjective()
    u = [1e-9, 0.25, 0.5, 1 - 1e-12]
    t = 1e-5 + (1 - 1e-5) * torch.tensor(u, dtype=F64)
    expected = (torch.exp(19.9 / 2 * t**2 + 0.1 * t) - 1).sqrt()
    torch.testing.assert_close(quantile(objective, u), expected, rtol=1e-7, atol=0)
    assert float(quantile(objective, 1 - 1e-14)) == pytest.approx(152.16697, rel=1e-7)
    middle = float(quantile(VPObjective(epsilon=1e-12), 0.5))
    assert 1 / math.sqrt(1 + middle**2) == pytest.approx(0.2811828808, abs=1e-9)
    # The smallest level, where e^B − 1 in float32 would have lost all its digits but two.
    assert float(objective.sigma(torch.tensor([-40.0]))) == pytest.approx(math.sqrt(1e-6 + 9.95e-10), rel=1e-5)


def test_ve_noise_levels():
    """ln σ uniform on [0.02, 100]; stable_target_field fact 22: σ(0.5) = 0.7071067812 from 0.01 to 50."""
    torch.testing.assert_close(
        quantile(VEObjective(), [1e-15, 0.25, 0.5, 1 - 1e-15]),
        torch.tensor([0.02, 0.02 * 5000**0.25, math.sqrt(2), 100], dtype=F64),
    )
    assert float(quantile(VEObjective(sigma_min=0.01, sigma_max=50.0), 0.5)) == pytest.approx(0.7071067812, abs=1e-10)


def test_iddpm_noise_levels():
    """Where C₁ does not bind the recursion telescopes to ``u_j² + 1 = ᾱ_M/ᾱ_j``; each level is equally likely."""
    objective = IDDPMObjective()
    j = torch.arange(1, 1001, dtype=F64)
    bar = torch.sin(math.pi / 2 * j / (1000 * 1.008)) ** 2
    torch.testing.assert_close(objective.table[1:], (bar[-1] / bar[:-1] - 1).sqrt(), rtol=1e-9, atol=0)
    assert float(objective.table[0]) == pytest.approx(math.sqrt((float(objective.table[1]) ** 2 + 1) / 0.001 - 1))
    middles = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    torch.testing.assert_close(objective.sigma(torch.special.ndtri(middles)), objective.table, rtol=0, atol=0)
    for z, end in ((-40.0, 0), (40.0, -1)):
        assert float(objective.sigma(torch.tensor([z]))) == pytest.approx(float(objective.table[end]))


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.kind)
def test_noise_levels_keep_type_and_order(objective):
    z = torch.randn(1000)
    levels = objective.sigma(z)
    assert levels.dtype == torch.float32
    assert bool((levels > 0).all())
    torch.testing.assert_close(levels, objective.sigma(z.double()).float(), rtol=1e-5, atol=0)
    assert torch.equal(levels[300:302], objective.sigma(z[300:302]))


@pytest.mark.parametrize("objective", ALL[1:], ids=lambda o: o.kind)
def test_weight_makes_the_loss_that_of_the_noise(objective):
    images, noise, sigma = torch.randn(5, 2, 3), torch.randn(5, 2, 3), objective.sigma(torch.randn(5))
    model = FunctionDenoiser(lambda x, s: x / (1 + s[:, None, None] ** 2), (2, 3))
    noisy = images + sigma[:, None, None] * noise
    guess = model.noise(noisy, sigma)
    expected = (guess - noise).square().flatten(1).mean(1)
    torch.testing.assert_close(objective(model, images, sigma, noise, 0.5), expected, rtol=1e-3, atol=1e-5)


def test_edm_is_unchanged():
    """Bit for bit the formulas of the source, with and without the images named as target."""
    objective, images, noise = EDMObjective(), torch.randn(6, 3), torch.randn(6, 3)
    sigma = objective.sigma(torch.randn(6))
    model = FunctionDenoiser(lambda x, s: x / (1 + s[:, None] ** 2), (3,))
    error = model(images + sigma[:, None] * noise, sigma) - images
    expected = (sigma * sigma + 0.5**2) / (sigma * 0.5) ** 2 * (error * error).flatten(1).mean(1)
    assert torch.equal(objective(model, images, sigma, noise, 0.5), expected)
    assert torch.equal(objective(model, images, sigma, noise, 0.5, target=images), expected)
    moved = objective(model, images, sigma, noise, 0.5, target=images + 1)
    assert not torch.equal(moved, expected)


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.kind)
def test_minimiser_is_the_posterior_mean(objective):
    """For N(0, 4) data the best slope of a linear denoiser is 4/(4 + σ²) at every level, whichever the objective."""
    z = torch.special.ndtri((torch.arange(7, dtype=F64) + 0.5) / 7)
    for sigma in objective.sigma(z).tolist():
        if not 1e-2 < sigma < 1e2:
            continue
        images, noise = 2 * torch.randn(4000, 1, dtype=F64), torch.randn(4000, 1, dtype=F64)
        # Draws of which the second moments are those of the law exactly.
        pair = torch.cat((images, noise), 1)
        pair = pair @ torch.linalg.inv(torch.linalg.cholesky(pair.T @ pair / 4000)).T
        images, noise = 2 * pair[:, :1], pair[:, 1:]
        slope = torch.tensor(4 / (4 + sigma**2), dtype=F64, requires_grad=True)
        model = FunctionDenoiser(lambda x, s, a=slope: a * x, (1,))
        level = torch.full((4000,), sigma, dtype=F64)
        loss = objective(model, images, level, noise, 0.5).mean()
        (gradient,) = torch.autograd.grad(loss, slope)
        assert abs(float(gradient)) < 1e-9 * float(objective.weight(level[:1], 0.5)) * (4 + sigma**2)
        assert float(loss.detach()) == pytest.approx(
            float(objective.weight(level[:1], 0.5)) * 4 * sigma**2 / (4 + sigma**2)
        )


def test_configuration_names_objectives_by_kind():
    for objective in ALL:
        assert structure(Run, {"objective": plain(objective)}) == Run(objective)
    assert structure(Run, {"objective": {"kind": "iddpm", "levels": 4000}}).objective.levels == 4000
    assert structure(Run, {"target": {"kind": "stf", "reference": 512}}).target == TargetConfig("stf", 512)
    with pytest.raises(ArgumentError, match="kind"):
        structure(Run, {"objective": {"kind": "vpp"}})
    with pytest.raises(ArgumentError, match="kind"):
        structure(Run, {"target": {"kind": "sft"}})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: EDMObjective(p_std=0.0), "p_std"),
        (lambda: VPObjective(beta_d=0.0), "beta_d"),
        (lambda: VPObjective(beta_min=-1.0), "beta_min"),
        (lambda: VPObjective(epsilon=1.0), "epsilon"),
        (lambda: VEObjective(sigma_min=2.0, sigma_max=1.0), "sigma_min"),
        (lambda: IDDPMObjective(levels=1), "levels"),
        (lambda: IDDPMObjective(c1=0.0), "c1"),
        (lambda: IDDPMObjective(c2=0.0), "c2"),
        (lambda: TargetConfig(kind="x"), "kind"),  # type: ignore[arg-type]
        (lambda: TargetConfig(reference=0), "reference"),
        (lambda: Uncertainty(0), "channels"),
    ],
)
def test_bad_values_are_named(make, name):
    with pytest.raises(ArgumentError, match=name):
        make()


# -- the learned weighting --------------------------------------------------------------------------------------------


def test_uncertainty_starts_at_zero_and_takes_no_random_numbers():
    state = torch.get_rng_state()
    u = Uncertainty()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(u(torch.logspace(-3, 3, 50)), torch.zeros(50))
    assert set(u.state_dict()) == {"weight", "bias"}
    with torch.no_grad():
        u.weight += 1
        with torch.autocast("cpu", torch.bfloat16):
            mixed = u(torch.logspace(-3, 3, 50))
        assert torch.equal(mixed, u(torch.logspace(-3, 3, 50)))
        assert float(mixed.std()) > 0.1


def test_uncertainty_learns_the_mean_loss():
    """At the optimum exp(u) = E[L | σ]: for N(0, 4 I) data and the exact denoiser E L = λ(σ) 4σ²/(4 + σ²)."""
    objective, model = VEObjective(), FunctionDenoiser(lambda x, s: x * (4 / (4 + s[:, None] ** 2)), (64,))
    u = Uncertainty()
    optimiser = torch.optim.Adam(u.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, 600)
    for _ in range(600):
        images, noise = 2 * torch.randn(256, 64), torch.randn(256, 64)
        sigma = objective.sigma(torch.randn(256))
        loss, level = objective(model, images, sigma, noise, 0.5), u(sigma)
        optimiser.zero_grad()
        (loss / level.exp() + level).mean().backward()
        optimiser.step()
        schedule.step()
    sigma = torch.logspace(math.log10(0.03), math.log10(70), 40)
    expected = 4 / (4 + sigma**2)
    assert float(expected.max() / expected.min()) > 1000
    torch.testing.assert_close(u(sigma).exp(), expected, rtol=0.1, atol=0)
