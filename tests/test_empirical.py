"""The training set as a law, against the facts of the geometry and Gaussian score papers and against plain formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from farfield.denoiser import Denoiser
from farfield.distributions import Empirical
from farfield.distributions import posterior as module
from farfield.distributions.base import unit_roundoff
from farfield.errors import ArgumentError, DataError
from farfield.processes import Diffusion, Process

from .laws import T1

F64 = torch.float64


class StudentT(Process):
    """The kernel of a Poisson flow with D extra dimensions: (1 + ‖x − y‖²/σ²D)^(−(d + D)/2)."""

    gaussian = False

    def __init__(self, extra: float) -> None:
        self.extra = extra

    def perturb(self, x0: Tensor, sigma: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
        z = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        chi = torch._standard_gamma(torch.full((x0.shape[0],), self.extra / 2, dtype=F64)) * 2
        return x0 + sigma * z * (self.extra / chi).sqrt().to(x0.dtype).reshape(-1, *(1,) * (x0.ndim - 1))

    def log_kernel(self, squared_distance: Tensor, sigma: float | Tensor, dim: int) -> Tensor:
        return -0.5 * (dim + self.extra) * torch.log1p(squared_distance / (sigma * sigma * self.extra))

    def log_normalizer(self, sigma: float | Tensor, dim: int) -> Tensor | float:
        wide = torch.as_tensor(sigma, dtype=F64)
        lead = math.lgamma((dim + self.extra) / 2) - math.lgamma(self.extra / 2)
        return lead - dim / 2 * (math.log(math.pi * self.extra) + 2 * wide.log())

    def prior(self, shape, sigma, generator=None):
        return sigma * torch.randn(*shape, generator=generator)

    def renoise(self, x, sigma_from, sigma_to, generator=None):
        return x


def plain(data, x, sigma, process=None):
    """Weights, posterior mean and log-density by the textbook formula in float64."""
    process = process or Diffusion()
    data, x = data.double().flatten(1), x.double().flatten(1)
    squared = torch.stack([(x - y).square().sum(1) for y in data], 1)
    logits = process.log_kernel(squared, sigma, data.shape[1])
    level = process.log_normalizer(torch.as_tensor(sigma, dtype=F64), data.shape[1])
    return logits.softmax(1), logits.softmax(1) @ data, logits.logsumexp(1) - math.log(len(data)) + level


X = torch.tensor([[0.5, 0.5]], dtype=F64)


def test_values_on_three_points():
    """geometry fact 7."""
    law = Empirical(T1)
    table = {
        0.5: ((0.981361072387, 0.035631253032), -2.531715691363),
        1.0: ((0.5752103826044414, 0.3994263689392148), -2.778883390633),
        2.0: ((0.164953739019, 0.398716459009), -3.515945631792),
        10.0: ((0.006666555558, 0.336638834029), -6.455513919342),
        80.0: ((1.041666662429e-4, 0.3333854098848), -10.602125640119),
    }
    for t, (mean, density) in table.items():
        torch.testing.assert_close(law(X, t), torch.tensor([mean], dtype=F64), atol=2e-12, rtol=0)
        assert float(law.log_prob(X, t)) == pytest.approx(density, abs=2e-12)
    weights = torch.tensor([[0.665240955775, 0.244728471055, 0.090030573170]], dtype=F64)
    torch.testing.assert_close(law.weights(X, 1.0), weights, atol=1e-11, rtol=0)


def test_two_points_are_a_hyperbolic_tangent():
    """geometry fact 8; gaussian_score F11."""
    law = Empirical(torch.tensor([[-1.0], [1.0]], dtype=F64))
    for sigma, value in ((0.8, 0.437188785142), (1, 0.291312612452), (2, 0.074859690687), (0.5, 0.83365461)):
        assert float(law(torch.tensor([[0.3]], dtype=F64), sigma)) == pytest.approx(value, abs=6e-9)


@pytest.mark.parametrize("process", [Diffusion(), StudentT(3.0), StudentT(64.0)])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_derivatives_by_finite_differences(process, sigma):
    """geometry facts 9, 10: Tweedie, and ∂D/∂x = Cov_u/σ², for every kernel the right Jacobian and its transpose."""
    law = Empirical(T1, process)
    x = torch.randn(4, 2, dtype=F64)
    eye, h = torch.eye(2, dtype=F64), 1e-5
    jacobian = torch.stack([(law(x + h * e, sigma) - law(x - h * e, sigma)) / (2 * h) for e in eye], 2)
    gradient = torch.stack(
        [(law.log_prob(x + h * e, sigma) - law.log_prob(x - h * e, sigma)) / (2 * h) for e in eye], 1
    )
    v = torch.randn(4, 2, dtype=F64)
    value, product = law.jvp(x, sigma, v)
    torch.testing.assert_close(value, law(x, sigma))
    torch.testing.assert_close(product, torch.einsum("bij,bj->bi", jacobian, v), atol=1e-8, rtol=1e-7)
    torch.testing.assert_close(law.vjp(x, sigma, v)[1], torch.einsum("bij,bi->bj", jacobian, v), atol=1e-8, rtol=1e-7)
    torch.testing.assert_close(law.trace(x, sigma), jacobian.diagonal(dim1=1, dim2=2).sum(1), atol=1e-8, rtol=1e-7)
    state = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(law.log_prob(state, sigma).sum(), state)
    torch.testing.assert_close(score, gradient, atol=1e-8, rtol=1e-7)
    (pulled,) = torch.autograd.grad(law(state, sigma), state, v)
    torch.testing.assert_close(pulled, law.vjp(x, sigma, v)[1])
    torch.testing.assert_close(torch.func.jvp(lambda z: law(z, sigma), (x,), (v,))[1], product)
    torch.testing.assert_close(Denoiser.divergence(law, x, sigma), law.trace(x, sigma))
    if process.gaussian:
        torch.testing.assert_close(law.score(x, sigma), score)
        weights, mean, _ = plain(T1, x, sigma)
        covariance = torch.einsum("bn,nd,ne->bde", weights, T1, T1) - mean[:, :, None] * mean[:, None, :]
        torch.testing.assert_close(jacobian, covariance / sigma**2, atol=1e-8, rtol=1e-7)
        assert float(torch.linalg.eigvalsh(covariance).min()) > -1e-12


def test_large_level_expansion():
    """geometry fact 13: t²(D − μ) → C(x − μ) − κ₃/2."""
    law = Empirical(T1)
    ours = 1000.0**2 * (law(X, 1000.0) - T1.mean(0))
    expected = torch.tensor([[0.6666666667, 0.3333330556]], dtype=F64)
    torch.testing.assert_close(ours, expected, atol=1e-7, rtol=0)


def test_small_level_bound_and_hull():
    """geometry facts 14, 15: ‖D − x_nn‖ ≤ (N − 1) exp(−Δ/2t²) max‖y − x_nn‖; Lipschitz constant diam²/4t²."""
    data = torch.randn(50, 3, dtype=F64)
    law, x = Empirical(data), torch.randn(40, 3, dtype=F64)
    squared, index = law.nearest(x, 2)
    reach = torch.cdist(data[index[:, 0]], data).amax(1)
    for t in (0.5, 0.3, 0.1):
        bound = 49 * torch.exp(-(squared[:, 1] - squared[:, 0]) / (2 * t * t)) * reach
        assert bool(((law(x, t) - data[index[:, 0]]).norm(dim=1) <= bound + 1e-12).all())
    law = Empirical(T1)
    a, b = torch.randn(2, 2000, 2, dtype=F64)
    for t in (0.7, 2.0):
        slope = (law(a, t) - law(b, t)).norm(dim=1) / (a - b).norm(dim=1)
        assert float(slope.max()) <= 10 / (4 * t * t)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 20), st.floats(0.1, 30))
def test_invariances(seed, sigma, scale):
    """geometry fact 17: duplicating, translating and scaling the data."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(9, 4, generator=generator, dtype=F64)
    x, shift = torch.randn(2, 4, generator=generator, dtype=F64), torch.randn(4, generator=generator, dtype=F64)
    law = Empirical(data)
    mean, density = law(x, sigma), law.log_prob(x, sigma)
    twice = Empirical(torch.cat((data, data)))
    torch.testing.assert_close(twice(x, sigma), mean)
    torch.testing.assert_close(twice.log_prob(x, sigma), density)
    moved = Empirical(data + shift)
    torch.testing.assert_close(moved(x + shift, sigma), mean + shift, atol=1e-9, rtol=1e-9)
    scaled = Empirical(scale * data)
    torch.testing.assert_close(scaled(scale * x, scale * sigma), scale * mean, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(scaled.log_prob(scale * x, scale * sigma), density - 4 * math.log(scale))


def test_jensen_bound():
    """geometry fact 40: one step of mean shift gains at least ‖m − x‖²/2h² in log-density."""
    law = Empirical(T1)
    mean = law(X, 1.0)
    gain = float(law.log_prob(mean, 1.0) - law.log_prob(X, 1.0))
    assert gain == pytest.approx(0.014432993, abs=2e-9)
    assert float((mean - X).square().sum() / 2) == pytest.approx(0.007885828, abs=1e-9)


def sines():
    """T5 of the geometry facts: 64 points in 16 dimensions."""
    i = torch.arange(1, 65, dtype=F64)[:, None]
    j = torch.arange(1, 17, dtype=F64)
    return torch.sin(0.7 * i * j + 0.3 * i**2 / 64) / j.sqrt()


def test_sine_points():
    """geometry fact 47, seen through the law."""
    data = sines()
    law = Empirical(data)
    assert float(data[0, 0]) == pytest.approx(0.6477957943, abs=1e-10)
    assert float(law(torch.zeros(1, 16, dtype=F64), 1e5).norm()) == pytest.approx(0.0686721014, abs=1e-8)
    squared, index = law.nearest(data, 2)
    assert torch.equal(index[:, 0], torch.arange(64))
    assert float(squared[:, 1].min().sqrt()) == pytest.approx(0.2220719143, abs=1e-9)


def test_flow_ends_on_the_points():
    """gaussian_score F51: the sampling ODE of two points always ends on one of them."""
    law = Empirical(torch.tensor([[-1.0], [1.0]], dtype=F64))
    x = torch.tensor([-100.0, -1e-3, 1e-3, 5, 200], dtype=F64)[:, None]
    levels = torch.logspace(math.log10(80), -3, 2000, dtype=F64)
    for a, b in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        x = law(x, a) + b / a * (x - law(x, a))
    torch.testing.assert_close(x.squeeze(1), torch.tensor([-1.0, -1, 1, 1, 1], dtype=F64), atol=1e-2, rtol=0)


def test_limits():
    """gaussian_score F8: σ → ∞ gives the mean, σ → 0 the nearest point."""
    data = torch.randn(30, 5, dtype=F64)
    law, x = Empirical(data), torch.randn(6, 5, dtype=F64)
    torch.testing.assert_close(law(x, 1e6), data.mean(0).expand(6, 5), atol=1e-10, rtol=0)
    nearest = torch.cdist(x, data).argmin(1)
    torch.testing.assert_close(law(x, 1e-6), data[nearest], atol=1e-11, rtol=0)


# -- precision --------------------------------------------------------------------------------------------------------

LEVELS = (1e-3, 1e-2, 0.1, 0.3, 1.0, 2.0, 3.0, 10.0, 80.0, 1e3)


def images(count=600, dim=3072):
    """Correlated float32 data with near ties: an exact duplicate, a pair 0.006 apart and one 0.5 apart."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(40, dim, generator=generator) * 0.4
    data = (torch.randn(count, 40, generator=generator) @ basis) / 6 + 0.3
    data = (data + 0.05 * torch.randn(count, dim, generator=generator)).clamp(-1, 1)
    data[1] = data[0] + 1e-4 * torch.randn(dim, generator=generator)
    data[2] = data[0]
    data[5] = data[4] + 0.01 * torch.randn(dim, generator=generator)
    return data


@pytest.fixture(scope="module")
def pair():
    data = images()
    return data, Empirical(data), Empirical(data.double())


@pytest.mark.parametrize("sigma", LEVELS)
def test_float32_in_3072_dimensions(pair, sigma):
    """The geometry table's precision row: right from σ = 1e-3 to 1e3, for states near points, between ties and far."""
    data, law, exact = pair
    generator = torch.Generator().manual_seed(1)
    x = data[:12] + sigma * torch.randn(12, 3072, generator=generator)
    x[3] = (data[4] + data[5]) / 2 + 0.01 * sigma * x[3].sign()
    x[6] = (data[0] + data[1]) / 2
    x[7] = 3 * x[7]
    v = torch.randn(12, 3072, generator=generator)
    weights, mean, density = plain(data, x, sigma)
    torch.testing.assert_close(exact(x.double(), sigma), mean, atol=1e-9, rtol=0)
    torch.testing.assert_close(law(x, sigma).double(), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(law.log_prob(x, sigma), density, atol=1e-4, rtol=1e-12)
    torch.testing.assert_close(law.weights(x, sigma), weights, atol=1e-6, rtol=0)
    product, reference = law.jvp(x, sigma, v)[1].double(), exact.jvp(x.double(), sigma, v.double())[1]
    assert float((product - reference).norm()) <= 1e-3 * float(reference.norm()) + 1e-6
    trace = exact.trace(x.double(), sigma)
    torch.testing.assert_close(law.trace(x, sigma), trace, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("extra", [2.0, 128.0, 1e5])
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 2.0, 10.0, 1e3])
def test_other_kernels_in_float32(extra, sigma):
    data, process = images(300, 512), StudentT(extra)
    law = Empirical(data, process)
    x = process.perturb(data[:8], sigma)
    _, mean, density = plain(data, x, sigma, process)
    torch.testing.assert_close(law(x, sigma).double(), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(law.log_prob(x, sigma), density, atol=2e-4, rtol=1e-12)
    exact = Empirical(data.double(), process)
    for name in ("jvp", "vjp"):
        ours = getattr(law, name)(x, sigma, x.flip(0))[1].double()
        reference = getattr(exact, name)(x.double(), sigma, x.flip(0).double())[1]
        assert float((ours - reference).norm()) <= 1e-3 * float(reference.norm()) + 1e-6


def test_far_from_the_origin():
    """Data far from zero: the shifted queries keep float32 right, or send rows to the shortlist."""
    data = images(300, 256) + 50
    law, x = Empirical(data), images(8, 256) + 50
    for sigma in (0.01, 0.5, 20.0):
        torch.testing.assert_close(law(x, sigma).double(), plain(data, x, sigma)[1], atol=3e-5, rtol=0)


@pytest.mark.parametrize("process", [Diffusion(), StudentT(64.0)])
def test_every_way_gives_the_same(pair, process, monkeypatch):
    """Direct, shortlist and full float64 passes; also rows of one batch on different ways."""
    data = pair[0][:200, :300].contiguous()
    law = Empirical(data, process, block=37)
    x = data[:9] + 2.0 * torch.randn(9, 300)
    expected, density = law(x.double(), 2.0), law.log_prob(x.double(), 2.0)
    for tolerance in (1e9, 0.0):
        monkeypatch.setattr(module, "TOLERANCE", tolerance)
        torch.testing.assert_close(law(x, 2.0).double(), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(law.log_prob(x, 2.0), density, atol=1e-4, rtol=0)
    monkeypatch.undo()
    levels = torch.logspace(-3, 3, 9)
    rows = torch.cat([law(x[i : i + 1].double(), levels[i].double()) for i in range(9)])
    torch.testing.assert_close(law(x, levels).double(), rows, atol=1e-5, rtol=0)


def test_lower_matrix_precision_is_noticed(monkeypatch):
    assert unit_roundoff() == 2.0**-24
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert unit_roundoff() == 2.0**-11


# -- use --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 64, 4096])
def test_blocks_do_not_matter(block):
    data = torch.randn(100, 2, 3)
    law, x = Empirical(data, block=block), torch.randn(5, 2, 3)
    torch.testing.assert_close(law(x, 0.7), plain(data, x, 0.7)[1].float().view(5, 2, 3))
    assert law(x, 0.7).dtype == torch.float32


@pytest.mark.parametrize("dim", [3, 100])
def test_classes(dim):
    data, labels = torch.randn(90, dim), torch.arange(90) % 3
    law = Empirical(data, labels=labels, block=20)
    x, wanted = torch.randn(6, dim), torch.tensor([0, 1, 2, 2, 1, 0])
    for sigma in (0.05, 1.0, 30.0):
        for k in range(3):
            alone, rows = Empirical(data[labels == k]), wanted == k
            torch.testing.assert_close(law(x, sigma, labels=wanted)[rows], alone(x[rows], sigma), atol=1e-5, rtol=1e-5)
            density = law.log_prob(x, sigma, labels=wanted)[rows]
            torch.testing.assert_close(density, alone.log_prob(x[rows], sigma), atol=1e-4, rtol=1e-6)
        weights = law.weights(x, sigma, labels=wanted)
        assert float(weights[labels.expand(6, 90) != wanted[:, None]].sum()) == 0
    assert bool((labels[law.nearest(x, 2, labels=wanted)[1]] == wanted[:, None]).all())
    assert torch.equal(law(x, 1.0, labels=torch.tensor(1)), law(x, 1.0, labels=torch.ones(6, dtype=torch.int64)))
    with pytest.raises(ArgumentError, match="label 7"):
        law(x, 1.0, labels=torch.full((6,), 7))
    with pytest.raises(ArgumentError, match="without labels"):
        Empirical(data)(x, 1.0, labels=wanted)


def test_memory_maps_are_read_in_place(tmp_path):
    data = torch.randn(80, 40)
    np.save(tmp_path / "x.npy", data.numpy())
    mapped = Empirical(np.load(tmp_path / "x.npy", mmap_mode="r"))
    x = torch.randn(3, 40)
    torch.testing.assert_close(mapped(x, 0.5), Empirical(data)(x, 0.5))
    held = Empirical(data)
    assert held.data.data_ptr() == data.data_ptr()
    assert held.points.data.data_ptr() == data.data_ptr()


def test_nearest_agrees_with_brute_force():
    data, x = torch.randn(500, 64), torch.randn(20, 64)
    squared, index = Empirical(data, block=90).nearest(x, 5)
    distance, place = torch.cdist(x.double(), data.double()).topk(5, largest=False)
    assert torch.equal(index, place)
    torch.testing.assert_close(squared, distance**2)


def test_samples_and_types():
    data = torch.randn(50, 3)
    law = Empirical(data)
    x = law.sample(200, torch.Generator().manual_seed(0))
    assert float(law.nearest(x)[0].max()) == 0
    noisy = law.sample(20_000, torch.Generator().manual_seed(0), sigma=2.0)
    expected = torch.cov(data.T, correction=0) + 4 * torch.eye(3)
    torch.testing.assert_close(torch.cov(noisy.T), expected, atol=0.2, rtol=0)
    assert law.double()(x.double(), 1.0).dtype == F64
    big = torch.randn(2100, 3)
    torch.testing.assert_close(law(big, 1.0)[2050:], law(big[2050:], 1.0))


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match="data"):
        Empirical(torch.zeros(3))
    with pytest.raises(ArgumentError, match="float"):
        Empirical(torch.zeros(3, 2, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match="labels"):
        Empirical(torch.zeros(3, 2), labels=torch.zeros(2))
    with pytest.raises(ArgumentError, match="block"):
        Empirical(torch.zeros(3, 2), block=0)
    with pytest.raises(DataError, match="finite"):
        Empirical(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ArgumentError, match="shape"):
        Empirical(torch.zeros(3, 2)).nearest(torch.zeros(1, 3))
    with pytest.raises(ArgumentError, match="shape"):
        Empirical(torch.zeros(3, 2)).weights(torch.zeros(1, 3), 1.0)
    law = Empirical(torch.zeros(3, 2))
    for call in (lambda: law(torch.zeros(1, 2), 0.0), lambda: law.log_prob(torch.zeros(1, 2))):
        with pytest.raises(ArgumentError, match="sigma"):
            call()
    with pytest.raises(ArgumentError, match="shape"):
        law(torch.zeros(1, 3), 1.0)
    with pytest.raises(ArgumentError, match="sigma"):
        law(torch.zeros(3, 2), torch.ones(2))
    with pytest.raises(ArgumentError, match="k ="):
        law.nearest(torch.zeros(1, 2), 4)
