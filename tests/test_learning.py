"""Learning dynamics: the probe on laws with closed forms, the oracle of linear denoisers, and a small network."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from farfield.analysis.fidelity import score_fidelity
from farfield.analysis.learning import LearningProbe, named_laws
from farfield.analysis.learning_record import learning_curves
from farfield.analysis.linear_learning import LinearLearning
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError, NonFiniteError
from farfield.networks.preconditioning import Preconditioned
from farfield.numerics.spectrum import Spectrum

F64 = torch.float64


def linear(mean: torch.Tensor, basis: torch.Tensor, gains: torch.Tensor) -> FunctionDenoiser:
    """``μ + U diag(W) Uᵀ (x − μ)``."""
    return FunctionDenoiser(lambda x, s: mean + ((x - mean) @ basis * gains) @ basis.T, tuple(mean.shape))


# -- the oracle -----------------------------------------------------------------------------------------------------------


def test_linear_learning_is_gradient_descent_on_the_loss():
    """Holds gaussian_score F53: descent on the denoising loss itself, against the law of gradient flow."""
    values, sigma, rate = torch.tensor([9.0, 1.0, 0.04], dtype=F64), 0.5, 1e-4
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=F64))[0]
    covariance = rotation @ values.diag() @ rotation.T
    w = (0.2 * torch.eye(3, dtype=F64)).requires_grad_(True)
    for _ in range(3000):
        # E‖W(y + n) − y‖² over data and noise.
        gap = w - torch.eye(3, dtype=F64)
        loss = (gap @ covariance @ gap.T).trace() + sigma**2 * w.square().sum()
        (slope,) = torch.autograd.grad(loss, w)
        w = (w.detach() - rate * slope).requires_grad_(True)
    found = (rotation.T @ w.detach() @ rotation).diagonal()
    law = LinearLearning(values, sigma, 0.2, rate)
    assert found.tolist() == pytest.approx([0.96998, 0.51661, 0.19009], abs=6e-6)
    assert law.gains(3000).tolist() == pytest.approx([0.96997, 0.51658, 0.19009], abs=6e-6)
    torch.testing.assert_close(law.descend(3000), found, atol=1e-12, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 50), min_size=1, max_size=6), st.floats(0.05, 20), st.floats(-1, 2), st.floats(1e-5, 1)
)  # fmt: skip
def test_linear_learning_times(values, sigma, start, rate):
    """Half of the way at the half time, 63 % at the learning time, all of it in the end; large variances first."""
    law = LinearLearning(torch.tensor(values, dtype=F64), sigma, start, rate)
    way = law.goal - start
    for times, left in ((law.half_times, 0.5), (law.learning_times, math.exp(-1))):
        torch.testing.assert_close(law.gains(times).diagonal(), law.goal - left * way, atol=1e-12, rtol=0)
    torch.testing.assert_close(law.gains(0.0), law.start, atol=1e-12, rtol=0)
    torch.testing.assert_close(law.gains(1e9 * float(law.learning_times.max())), law.goal, atol=1e-12, rtol=0)
    order = law.variances.argsort(descending=True)
    assert bool((law.half_times[order].diff() >= 0).all())


def test_wrong_oracles_are_refused():
    for arguments, message in (
        ((torch.tensor([1.0, -1.0]), 1.0), "variances"),
        ((torch.tensor([1.0]), 0.0), "sigma = 0.0"),
        ((torch.tensor([1.0]), 1.0, torch.zeros(2)), r"start has shape \(2,\)"),
        ((torch.tensor([1.0]), 1.0, 0.0, -1.0), "rate = -1.0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            LinearLearning(*arguments)
    with pytest.raises(ArgumentError, match="steps = -1"):
        LinearLearning(torch.ones(1), 1.0).descend(-1)


# -- the probe ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud():
    """20,000 points of a Gaussian in six dimensions."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=F64, generator=generator))[0]
    values = torch.tensor([9.0, 4.0, 1.0, 0.5, 0.1, 0.02], dtype=F64)
    return torch.randn(20_000, 6, dtype=F64, generator=generator) * values.sqrt() @ basis.T + 0.3


def test_a_probe_reads_gains_and_fractions_of_a_linear_denoiser(cloud):
    """Rows along gradient flow: the gains are W(τ), the fractions those of the oracle, the times its learning times."""
    gaussian, sigma = Gaussian.fit(cloud), 0.5
    values, basis = gaussian.spectrum.values, gaussian.spectrum.basis
    law = LinearLearning(values, sigma, 0.2, 1e-3)
    probe = LearningProbe(cloud, named_laws(cloud, ("isotropic", "gaussian")), (sigma,), queries=4000, components=6)
    rows = []
    for step in (*range(0, 500, 10), *range(500, 6001, 100)):
        row = probe(linear(gaussian.mean, basis, law.gains(step)))
        assert row["gains"][0] == pytest.approx(law.gains(step).tolist(), abs=1e-9)
        share = row["laws"]["gaussian"]["score"][0]
        assert share == pytest.approx(float(law.unexplained(step)), rel=0.05, abs=1e-12)
        assert row["laws"]["isotropic"]["score"][0] == pytest.approx(float(law.unexplained_by_mean(step)), rel=0.05)
        rows.append({"step": step, **row})
    found = learning_curves(rows)
    assert found.rank_correlation(sigma) == pytest.approx(-1)
    assert found.course("gaussian", sigma).kind == "monotone"
    for step, time in zip(found.learning_steps(sigma)[:4], law.learning_times[:4].tolist(), strict=True):
        assert step == pytest.approx(time, rel=0.06)
    assert "-1.00" in found.summary()


def test_a_probe_is_score_fidelity_at_its_queries(cloud):
    """The same points, the same fractions, whatever the batch; 0 for the law itself, and its gains are λ/(λ + σ²)."""
    model = GaussianMixture.fit(cloud, 3)
    laws = {"gaussian": Gaussian.fit(cloud), "empirical": Empirical(cloud[:500])}
    wide = score_fidelity(model, cloud, sigmas=(0.2, 3.0), queries=64, laws=laws, seed=4)
    for batch in (64, 10):
        row = LearningProbe(cloud, laws, (0.2, 3.0), queries=64, seed=4, batch_size=batch)(model)
        assert row["sigmas"] == [3.0, 0.2]
        for name in laws:
            assert row["laws"][name]["score"] == pytest.approx(wide.laws[name].fuv, rel=1e-9)
            assert row["laws"][name]["denoiser"] == pytest.approx(wide.laws[name].denoiser.fuv, rel=1e-9)
    own = LearningProbe(cloud, laws, (0.2, 3.0), queries=64, components=2)(laws["gaussian"])
    assert own["laws"]["gaussian"] == {"score": [0.0, 0.0], "denoiser": [0.0, 0.0]}
    for sigma, gains in zip(own["sigmas"], own["gains"], strict=True):
        assert gains == pytest.approx([v / (v + sigma**2) for v in own["variances"]], abs=1e-9)


def test_laws_by_name(cloud):
    laws = named_laws(cloud[:300], ("empirical", "mixture:3", "mixture:5", "gaussian"), seed=2)
    assert list(laws) == ["empirical", "mixture:3", "mixture:5", "gaussian"]
    assert [laws[f"mixture:{k}"].components for k in (3, 5)] == [3, 5]
    for name in ("gausian", "mixture", "mixture:0", "mixture:x", "mixture:-2"):
        with pytest.raises(ArgumentError, match="expected isotropic, spherical, gaussian, mixture:K"):
            named_laws(cloud, (name,))


def test_wrong_probes_and_answers_are_refused(cloud):
    laws = {"gaussian": Gaussian.fit(cloud)}
    for changes, message in (
        ({"sigmas": ()}, r"sigmas = \[\]"),
        ({"sigmas": (1.0, 0.0)}, "expected positive noise levels"),
        ({"queries": 1}, "queries = 1"),
        ({"components": -1}, "components = -1"),
        ({"laws": {"point": Gaussian(torch.zeros(2), torch.eye(2))}}, r"law 'point' has events \(2,\)"),
    ):
        with pytest.raises(ArgumentError, match=message):
            LearningProbe(cloud, **{"laws": laws, **changes})
    probe = LearningProbe(cloud, laws, (1.0,), queries=8)
    with pytest.raises(ArgumentError, match=r"takes events \(3,\)"):
        probe(Gaussian(torch.zeros(3), torch.eye(3)))
    with pytest.raises(NonFiniteError, match="sigma = 1 hold NaN"):
        probe(FunctionDenoiser(lambda x, s: x * math.nan, (6,)))


# -- a network ------------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """3-128-128-128-2 with SiLU, the noise level as third input."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 2))

    def forward(self, x, c_noise, labels=None, augment=None):
        return self.layers(torch.cat((x, c_noise.reshape(-1, 1).expand(len(x), 1)), 1))


def test_a_network_learns_the_gaussian_first():
    """Holds gaussian_score F52: the Gaussian's curve dips before step 50 and rises, the true mixture's falls to the end."""
    torch.manual_seed(0)
    angle = torch.tensor([0.0, 120.0, 240.0]).deg2rad()
    means = torch.stack((angle.cos() + 0.3, angle.sin()), 1)
    weights = torch.tensor([0.5, 0.3, 0.2])
    data = means[torch.multinomial(weights, 2000, replacement=True)] + math.sqrt(0.02) * torch.randn(2000, 2)
    laws = {"gaussian": Gaussian.fit(data), "truth": GaussianMixture(weights, means, Spectrum.isotropic(2, 0.02))}
    probe = LearningProbe(data, laws, (0.3, 5.0), queries=1000, batch_size=1000)
    spread = 0.6  # σ_data, about that of a coordinate
    net = Preconditioned(Small(), (2,), sigma_data=spread)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    looks = {*range(0, 50, 2), 100, 200, 600, 1000, 2000}
    rows = []
    for step in range(2001):
        if step in looks:
            rows.append({"step": step, **probe(net)})
        clean = data[torch.randint(2000, (256,))]
        sigma = (1.2 * torch.randn(256) - 0.6).exp()
        weight = (sigma**2 + spread**2) / (sigma * spread) ** 2
        noisy = clean + sigma[:, None] * torch.randn(256, 2)
        loss = ((net(noisy, sigma) - clean).square().sum(1) * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = learning_curves(rows)
    first = found.course("gaussian", 0.3)
    assert first.least < 0.05
    assert first.step < 50
    assert first.last > 0.5
    assert first.kind == "dip and rise"
    truth = found.course("truth", 0.3)
    assert truth.first > 1
    assert truth.last < 0.05
    assert truth.step >= 1000
    assert found.order(0.3) == ("gaussian", "truth")
    assert all(found.course(law, 5.0).last < 1e-3 for law in laws)
