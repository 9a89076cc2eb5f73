"""Likelihood along the sampling ODE, against laws whose density is known and against facts of the Gaussian score paper."""

import json
import math

import pytest
import torch
from torch import nn

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.likelihood import LikelihoodReport
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.metrics.dequantisation import dequantise
from farfield.metrics.likelihood import encode, log_likelihood
from farfield.metrics.likelihood_flow import ascend, estimated, exact, signs
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import Sampler, karras

F64 = torch.float64


def t1():
    basis = torch.eye(3, dtype=F64)[:, :2]
    return Gaussian(torch.tensor([1.0, -1.0, 0.5], dtype=F64), Spectrum.low_rank(basis, [4.0, 0.25]))


def t2():
    return GaussianMixture(
        [0.3, 0.7], torch.tensor([[-2.0], [1.0]], dtype=F64), torch.tensor([[[0.09]], [[0.25]]], dtype=F64)
    )


def network(d=5):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(d, 16), nn.SiLU(), nn.Linear(16, d)).double()
    return FunctionDenoiser(lambda x, s: x / (1 + s * s) + 0.3 * net(x) * s / (1 + s * s), (d,), 0.01, 20.0)


def test_volume_of_t1():
    """Holds gaussian_score F24: −Σ ln ψ from 80 to 5 is 8.2389129320, here by integration."""
    law = t1()
    x = law.flow(torch.tensor([[40.0, -80.0, 120.0]], dtype=F64), 80.0, 5.0)
    found = ascend(exact(law, {}), x, 5.0, 80.0, 64)
    assert float(found.volume) == pytest.approx(8.2389129320, abs=1e-7)
    torch.testing.assert_close(found.x, torch.tensor([[40.0, -80.0, 120.0]], dtype=F64), rtol=1e-7, atol=1e-6)
    whole = log_likelihood(law, x, sigma_min=5.0, sigma_max=80.0, prior=law, tolerance=1e-8)
    assert float(whole.log_prob) == pytest.approx(-9.3862720197, abs=1e-7)
    errors = [abs(float(ascend(exact(law, {}), x, 5.0, 80.0, n).volume) - 8.2389129320) for n in (4, 8)]
    assert errors[0] / errors[1] > 12  # order four


@pytest.mark.parametrize("prior", [True, False])
def test_density_of_t2(prior):
    """The mixture's own density, by its own ODE: exact with its own law at σ_max, else biased by the start (E28)."""
    law = t2()
    x = torch.tensor([[-2.4], [-1.0], [0.2], [1.1], [3.0]], dtype=F64)
    found = log_likelihood(law, x, sigma_min=0.02, sigma_max=80.0, prior=law if prior else None, tolerance=1e-4)
    gap = (found.log_prob - law.log_prob(x, 0.02)).abs().max()
    assert float(found.error.max()) < 1e-4
    assert gap < (1e-4 if prior else 1e-2)
    if not prior:
        assert gap > 1e-4


def test_hybrid_likelihood():
    """Holds gaussian_score 8.14: above σ_skip the Gaussian's determinant stands for the model's, exactly on its own law."""
    root = torch.randn(5, 5, dtype=F64)
    law = Gaussian(torch.randn(5, dtype=F64), root @ root.T)
    x = law.sample(4, torch.Generator().manual_seed(0)).double()
    given = {"sigma_min": 0.05, "sigma_max": 60.0, "tolerance": 1e-6}
    whole = log_likelihood(law, x, **given)
    part = log_likelihood(law, x, gaussian=law, sigma_skip=3.0, **given)
    torch.testing.assert_close(part.log_prob, whole.log_prob, rtol=0, atol=1e-6)
    torch.testing.assert_close(part.latent, whole.latent, rtol=1e-6, atol=1e-6)
    noise = -0.5 * ((law.flow(x, 0.05, 60.0) / 60).square().sum(1) + 5 * math.log(2 * math.pi * 3600))
    torch.testing.assert_close(whole.log_prob, noise - law.flow_log_det(60.0, 0.05), rtol=0, atol=1e-6)
    # On another law the two differ by what the Gaussian does not know, less the higher the level.
    mixture = t2()
    single = Gaussian(torch.full((1,), 0.1, dtype=F64), torch.full((1, 1), 2.092, dtype=F64))
    y = torch.tensor([[0.2]], dtype=F64)
    given = {"prior": mixture, "gaussian": single, "sigma_max": 80.0, "tolerance": 1e-3}
    gaps = [
        abs(float(log_likelihood(mixture, y, sigma_skip=s, **given).log_prob - mixture.log_prob(y, 0.002)))
        for s in (1.0, 4.0, 16.0)
    ]
    assert gaps[0] > 5 * gaps[1]
    assert gaps[1] > 5 * gaps[2]


def test_exact_and_random_divergence_of_a_network():
    """Products along the axes sum to the trace; random signs are unbiased; a control variate keeps the mean and calms it."""
    model = network()
    x = torch.randn(3, 5, dtype=F64)
    value, trace = exact(model, {})(x, 0.7)
    jacobian = torch.stack([torch.func.jacrev(lambda y: model(y[None], 0.7)[0])(row) for row in x])
    torch.testing.assert_close(trace[:, 0], jacobian.diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(value, model(x, 0.7))
    ids = torch.arange(3)
    vectors = signs(0, ids, (5,), 1000, F64)
    assert set(vectors.unique().tolist()) == {-1.0, 1.0}
    plain = estimated(model, vectors, {})(x, 0.7)[1]
    assert bool(((plain.mean(1) - trace[:, 0]).abs() < 4 * plain.std(1) / math.sqrt(1000)).all())
    # The variance of vᵀJv over signs is that of the symmetric part off the diagonal.
    symmetric = (jacobian + jacobian.mT) / 2
    off = symmetric.square().sum((1, 2)) - symmetric.diagonal(dim1=1, dim2=2).square().sum(1)
    torch.testing.assert_close(plain.var(1), 2 * off, rtol=0.25, atol=0)
    law = Gaussian(torch.zeros(5, dtype=F64), torch.eye(5, dtype=F64) + 0.5)
    calm = estimated(law, vectors[:, :4], {}, control=law)(x, 0.7)[1]
    torch.testing.assert_close(calm, law.trace(x, 0.7).unsqueeze(1).expand(3, 4))


def test_a_network_integrates_to_one():
    """The density of an arbitrary smooth field, on a fine grid in one dimension, has mass 1 (change of variables)."""
    model = FunctionDenoiser(lambda x, s: (x + torch.tanh(2 * x) * s * s) / (1 + 2 * s * s), (1,), 0.05, 20.0)
    grid = torch.linspace(-12, 12, 401, dtype=F64).unsqueeze(1)
    found = log_likelihood(model, grid, tolerance=1e-2, batch_size=2000, max_steps=64)
    assert found.divergence == "exact"
    mass = torch.trapezoid(found.log_prob.exp(), grid[:, 0])
    assert float(mass) == pytest.approx(1, abs=2e-3)
    assert float(found.log_prob.exp().max()) > 0.1


def test_results_do_not_depend_on_the_batch():
    """Probes, dequantisation and steps belong to the sample."""
    model = network()
    x = (torch.randn(5, 5, dtype=F64) * 4).round() / 4
    given = {
        "divergence": "hutchinson",
        "probes": 3,
        "seed": 5,
        "tolerance": 0.05,
        "step": 0.25,
        "steps": 4,
        "max_steps": 16,
    }
    whole = log_likelihood(model, x, **given)
    small = log_likelihood(model, x, batch_size=2, **given)
    torch.testing.assert_close(small.log_prob, whole.log_prob, rtol=0, atol=1e-10)
    later = log_likelihood(model, x[3:], first=3, **given)
    torch.testing.assert_close(later.log_prob, whole.log_prob[3:], rtol=0, atol=1e-10)
    assert later.steps.tolist() == whole.steps[3:].tolist()
    exactly = log_likelihood(model, x, **{**given, "divergence": "exact"})
    assert bool(((whole.log_prob - exactly.log_prob).abs() < 6 * whole.probe_error + 0.05).all())
    more = log_likelihood(model, x, **{**given, "probes": 4})
    assert bool((signs(5, torch.arange(5), (5,), 4, F64)[:, :3] == signs(5, torch.arange(5), (5,), 3, F64)).all())
    assert not torch.equal(more.log_prob, whole.log_prob)
    assert whole.products.tolist() == [4 * 3 * (2 * n - 4) for n in whole.steps.tolist()]


def test_encoders_are_inverses_of_samplers():
    """Holds gaussian_score 8.12: image to noise through the network's ODE, or through the Gaussian's inverse above σ_skip."""
    law = t2()
    x = torch.tensor([[-2.1], [0.4], [1.3]], dtype=F64)
    noise = encode(law, x, sigma_min=0.02, sigma_max=80.0, steps=128)
    back = Sampler("heun", karras(200, 0.02, 80.0)).run(law, noise).x
    torch.testing.assert_close(back, law(x, 0.02), rtol=0, atol=1e-2)
    single = Gaussian(torch.full((1,), 0.1, dtype=F64), torch.full((1, 1), 2.092, dtype=F64))
    hybrid = encode(law, x, sigma_min=0.02, sigma_max=80.0, gaussian=single, sigma_skip=20.0, steps=128)
    torch.testing.assert_close(hybrid, noise, rtol=2e-3, atol=0)
    found = log_likelihood(law, x, sigma_min=0.02, sigma_max=80.0, tolerance=1e-4)
    torch.testing.assert_close(found.latent, noise, rtol=1e-4, atol=1e-4)
    assert encode(law, x.float(), sigma_min=0.02, sigma_max=80.0).dtype == torch.float32


@pytest.mark.parametrize("kind", ["uniform", "noise"])
def test_bits_per_dimension_bound_the_entropy(kind):
    """On a law whose lattice probabilities are known, each bound is above the entropy, and the noise one nearly reaches it."""
    points = torch.tensor([[-0.5], [0.0], [0.5], [1.0]], dtype=F64)
    weights = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=F64)
    entropy = float(-(weights * weights.log2()).sum())
    sigma = 0.1
    law = GaussianMixture(weights, points, torch.zeros(4, 1, 1, dtype=F64))
    if kind == "uniform":  # the law at level σ, whose cells a uniform law would fill
        sigma = 0.5 / math.sqrt(12)
    copies = 4000
    x = points.repeat_interleave(copies, 0)
    y, correction = dequantise(x, 0.5, kind, sigma, seed=1)
    mass = (law.log_prob(y, sigma) + correction).view(4, copies)
    bits = float(-(weights * mass.mean(1)).sum()) / math.log(2)
    error = float((weights.square() * mass.var(1) / copies).sum()) ** 0.5 / math.log(2)
    assert bits > entropy - 4 * error
    assert bits < entropy + (0.12 if kind == "noise" else 0.35)
    if kind == "uniform":
        torch.testing.assert_close(correction, torch.full((4 * copies,), math.log(0.5), dtype=F64))
        assert float((y - x).abs().max()) <= 0.25


def test_conventions_are_stated_and_stored():
    """nats, bits and their settings; 8-bit images in [−1, 1] add log2 127.5 bits to the density's."""
    law = Gaussian(torch.zeros(4, dtype=F64), torch.eye(4, dtype=F64))
    x = torch.randint(0, 256, (3, 4)).double() / 127.5 - 1
    found = log_likelihood(law, x, step=2 / 255, sigma_min=0.01, sigma_max=50.0)
    expected = -found.log_prob / (4 * math.log(2)) + math.log2(127.5)
    torch.testing.assert_close(found.bits_per_dim, expected)
    stored = json.loads(json.dumps(found.to_dict()))
    assert stored["dequantisation"] == "uniform"
    assert stored["divergence"] == "exact"
    assert "bits/dim" in found.summary()
    assert "0.007843" in found.summary()
    noisy = log_likelihood(law, x, step=2 / 255, dequantisation="noise")
    assert noisy.sigma_min == pytest.approx(2 / 255 / 4)
    one = log_likelihood(law, x, divergence="hutchinson", probes=1)
    assert one.to_dict()["probe_error"] == [None] * 3
    assert one.log_mass is None


def test_the_analysis_by_name():
    """``farfield analyze --what likelihood``: both sets, the Gaussian beside them, table, figure and JSON."""
    data = (torch.randn(60, 4, dtype=F64) * 4).round() / 8
    law = Gaussian.fit(data)
    found = analyze("likelihood", Subject(law, data, heldout=data[:7]), {"n": 5})
    assert isinstance(found, LikelihoodReport)
    assert list(found.sets) == ["training", "held out"]
    assert found.sets["training"].step == pytest.approx(0.125)
    # The Gaussian's ODE gives the Gaussian's density, up to the start.
    for name, part in found.sets.items():
        assert part.bits_per_dim.tolist() == pytest.approx(list(found.gaussian[name]), abs=0.02)
    assert "bits/dim" in found.summary()
    json.dumps(found.to_dict())
    assert found.plot().axes[0].get_xlabel().startswith("bits/dim")
    assert len(found.tables()[0].rows) == 2
    alone = analyze("likelihood", Subject(law, data), {"n": 2, "step": 0, "skip": 10.0})
    assert alone.gap is None
    assert alone.sets["training"].sigma_skip == 10


def test_mistakes_are_named():
    """Levels, shapes, processes and options."""
    law, x = t1(), torch.zeros(1, 3, dtype=F64)
    for given, message in (
        ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        ({"gaussian": law}, "belong together"),
        ({"gaussian": law, "sigma_skip": 100.0}, "sigma_skip = 100"),
        ({"divergence": "both"}, "divergence = 'both'"),
        ({"probes": 0}, "probes = 0"),
        ({"max_steps": 16}, "room for one doubling"),
        ({"step": -1.0}, "step = -1"),
        ({"step": 1.0, "dequantisation": "none"}, "dequantisation = 'none'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            log_likelihood(law, x, **given)
    with pytest.raises(ArgumentError, match="shape"):
        log_likelihood(law, torch.zeros(1, 4))
    with pytest.raises(ArgumentError, match="no samples"):
        encode(law, torch.zeros(0, 3))
    with pytest.raises(ArgumentError, match="within the model's range"):
        encode(network(), torch.zeros(1, 5, dtype=F64), sigma_min=1e-3)
    with pytest.raises(ArgumentError, match="n = 0"):
        analyze("likelihood", Subject(law, torch.randn(5, 3)), {"n": 0})
