"""The Gaussian law against the facts of the Gaussian score paper and against textbook formulas."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.numerics.spectrum import Spectrum

F64 = torch.float64


def t1():
    """T1 of the facts: D = 3, μ = (1, −1, 0.5), λ = (4, 0.25) on the first two axes."""
    basis = torch.eye(3, dtype=F64)[:, :2]
    return Gaussian(torch.tensor([1.0, -1.0, 0.5], dtype=F64), Spectrum.low_rank(basis, [4.0, 0.25]))


X_T = torch.tensor([[40.0, -80.0, 120.0]], dtype=F64)


def random_gaussian(kind="dense", d=6):
    root = torch.randn(d, d, dtype=F64)
    spectrum = {
        "dense": lambda: Spectrum.from_covariance(root @ root.T),
        "tail": lambda: Spectrum.low_rank(torch.linalg.qr(root)[0][:, :2], [3.0, 0.5], 0.1),
        "zero tail": lambda: Spectrum.low_rank(torch.linalg.qr(root)[0][:, :2], [3.0, 0.5]),
        "isotropic": lambda: Spectrum.isotropic(d, 0.4),
        "diagonal": lambda: Spectrum.diagonal(torch.rand(d)),
        "dct": lambda: Spectrum.dct((2, 3), torch.rand(d)),
    }[kind]()
    return Gaussian(torch.randn(d, dtype=F64), spectrum).double()


KINDS = ("dense", "tail", "zero tail", "isotropic", "diagonal", "dct")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [0.01, 0.5, 5.0])
def test_density_and_score_agree_with_the_dense_formula(kind, sigma):
    """gaussian_score F5, F6: Woodbury = dense inverse; score = (D − x)/σ² = autograd of log_prob."""
    law = random_gaussian(kind)
    x = law.sample(5, sigma=sigma).requires_grad_()
    total = law.spectrum.dense() + sigma**2 * torch.eye(6, dtype=F64)
    reference = MultivariateNormal(law.mean, total).log_prob(x)
    ours = law.log_prob(x, sigma)
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-6)
    (score,) = torch.autograd.grad(ours.sum(), x)
    torch.testing.assert_close(law.score(x, sigma).detach(), score, rtol=1e-6, atol=1e-6 * float(score.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_jacobian_is_symmetric_closed_and_traced(kind):
    """gaussian_score F9: ∂D/∂x = Cov[y | x]/σ²."""
    law, sigma = random_gaussian(kind), 0.7
    x, v = torch.randn(3, 6, dtype=F64), torch.randn(3, 6, dtype=F64)
    value, product = law.jvp(x, sigma, v)
    plain = Denoiser.jvp(law, x, sigma, v)
    torch.testing.assert_close(value, plain[0])
    torch.testing.assert_close(product, plain[1])
    torch.testing.assert_close(law.vjp(x, sigma, v)[1], product)
    dense = law.spectrum.dense()
    posterior = dense - dense @ torch.linalg.inv(dense + sigma**2 * torch.eye(6, dtype=F64)) @ dense
    torch.testing.assert_close(law.posterior_trace(x, sigma), posterior.trace().expand(3), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(law.divergence(x, torch.full((3,), sigma)), Denoiser.divergence(law, x, sigma))


def test_limits():
    """gaussian_score F8: σ → ∞ gives μ, σ → 0 the projection on μ + span U."""
    law = t1()
    x = torch.tensor([[3.0, -2.0, 7.0]], dtype=F64)
    torch.testing.assert_close(law(x, 1e6), law.mean.expand(1, 3), atol=1e-10, rtol=0)
    torch.testing.assert_close(law(x, 1e-6), torch.tensor([[3.0, -2.0, 0.5]], dtype=F64), atol=1e-11, rtol=0)
    assert torch.equal(law(x, 0.0), torch.tensor([[3.0, -2.0, 0.5]], dtype=F64))


def test_minimal_loss():
    """gaussian_score F14: the least denoising loss is Σ λσ²/(λ + σ²)."""
    law = t1()
    for sigma, loss in ((0.1, 0.0195904), (1.0, 1.0), (10.0, 4.0955304)):
        assert float(law.posterior_trace(X_T, sigma)) == pytest.approx(loss, abs=1e-7)


def test_best_linear_denoiser():
    """gaussian_score F15: least squares of y on y + n gives Σ(Σ + σ²)⁻¹ for data that are not Gaussian."""
    generator = torch.Generator().manual_seed(3)
    y = torch.empty(200_000, 2, dtype=F64).exponential_(1.0, generator=generator) @ torch.tensor(
        [[1.0, 0.5], [0.0, 0.8]], dtype=F64
    )
    noisy = y + 0.7 * torch.randn(y.shape, generator=generator, dtype=F64)
    law = Gaussian.fit(y)
    slope = torch.linalg.lstsq(noisy - noisy.mean(0), y - y.mean(0)).solution
    zero = torch.zeros(2, 2, dtype=F64)
    torch.testing.assert_close(law.jvp(zero, 0.7, torch.eye(2, dtype=F64))[1], slope, atol=1e-2, rtol=0)


STATES = {
    12.91: (7.366710788, -13.757933628, 19.7843125),
    2.0: (2.378427532, -3.035743642, 3.4875),
    0.5: (2.004693079, -1.698254309, 1.246875),
    0.002: (1.974695943, -1.493744307, 0.5029875),
    0.0: (1.974695455, -1.493740357, 0.5),
}


@pytest.mark.parametrize("sigma", list(STATES))
def test_states_of_the_flow(sigma):
    """gaussian_score F18; geometry fact 18."""
    expected = torch.tensor([STATES[sigma]], dtype=F64)
    torch.testing.assert_close(t1().flow(X_T, 80.0, sigma), expected, atol=2e-9, rtol=1e-9)


def test_denoiser_along_the_flow():
    """gaussian_score F19."""
    law = t1()
    for sigma, expected in {
        12.91: (1.149218531, -1.019108074, 0.5),
        2.0: (1.689213766, -1.119749626, 0.5),
        0.5: (1.945593486, -1.349127154, 0.5),
    }.items():
        ours = law(law.flow(X_T, 80.0, sigma), sigma)
        torch.testing.assert_close(ours, torch.tensor([expected], dtype=F64), atol=2e-9, rtol=0)


def test_flow_solves_its_equation():
    """gaussian_score F20: the closed form against an ODE solver."""
    from scipy.integrate import solve_ivp

    law = t1()

    def slope(sigma, x):
        return law.noise(torch.from_numpy(x)[None], float(sigma))[0].numpy()

    end = solve_ivp(slope, (80.0, 0.5), X_T[0].numpy(), "DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
    torch.testing.assert_close(law.flow(X_T, 80.0, 0.5)[0], torch.from_numpy(end), atol=1e-8, rtol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e2), st.floats(1e-3, 1e2), st.floats(1e-3, 1e2), st.sampled_from(KINDS))
def test_flow_semigroup_and_inverse(a, b, c, kind):
    """gaussian_score F21."""
    law = random_gaussian(kind)
    x = law.colour(torch.randn(2, 6, dtype=F64), a)
    # A spectrum in a float32 transform or basis is itself exact to 1e-7 only; these are float64.
    torch.testing.assert_close(law.flow(law.flow(x, a, b), b, c), law.flow(x, a, c), rtol=1e-8, atol=1e-8 * (1 + c))
    torch.testing.assert_close(law.flow(law.flow(x, a, b), b, a), x, rtol=1e-8, atol=1e-8 * (1 + a))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 20))
def test_rotating_the_law_rotates_the_denoiser(seed, sigma):
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=F64))[0]
    root = torch.randn(5, 5, generator=generator, dtype=F64)
    mean, x = torch.randn(2, 5, generator=generator, dtype=F64)
    plain = Gaussian(mean, root @ root.T)
    turned = Gaussian(rotation @ mean, rotation @ root @ root.T @ rotation.T)
    torch.testing.assert_close(turned((rotation @ x)[None], sigma)[0], rotation @ plain(x[None], sigma)[0])
    torch.testing.assert_close(turned.log_prob((rotation @ x)[None], sigma), plain.log_prob(x[None], sigma))


def test_residue_off_the_span():
    """gaussian_score F22, F23: the off-span gain is σ/σ_T, the endpoint gain sqrt(λ/(λ + 6400))."""
    law = t1()
    gain = (law.flow(X_T, 80.0, 0.002) - law.mean) / (X_T - law.mean)
    assert float(gain[0, 2]) == pytest.approx(2.5e-5)
    end = (law.flow(X_T, 80.0, 0.0) - law.mean) / (X_T - law.mean)
    assert float(end[0, 0]) == pytest.approx((4 / 6404) ** 0.5)


def test_change_of_variables():
    """gaussian_score F24."""
    law = t1()
    before, after = law.log_prob(X_T, 80.0), law.log_prob(law.flow(X_T, 80.0, 5.0), 5.0)
    assert float(before) == pytest.approx(-17.6251849517, abs=1e-9)
    assert float(after) == pytest.approx(-9.3862720197, abs=1e-9)
    assert float(law.flow_log_det(80.0, 5.0)) == pytest.approx(-8.2389129320, abs=1e-9)
    each = law.flow_log_det(torch.tensor([80.0, 40.0]), torch.tensor([5.0, 5.0]))
    assert each.shape == (2,)
    assert float(each[0]) == pytest.approx(-8.2389129320, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_may_be_numbers_scalars_or_one_a_row(kind):
    law = random_gaussian(kind)
    x, levels = torch.randn(3, 6, dtype=F64), torch.tensor([0.1, 1.0, 9.0])
    for call in (
        law.forward,
        law.log_prob,
        law.colour,
        law.trace,
        lambda x, s: law.jvp(x, s, x)[1],
        lambda x, s: law.flow(x, s, 0.5),
        lambda x, s: law.flow(x, 2.0, s),
    ):
        rows = torch.cat([call(x[i : i + 1], float(levels[i])) for i in range(3)])
        torch.testing.assert_close(call(x, levels), rows)
        torch.testing.assert_close(call(x, torch.tensor(0.3)), call(x, float(torch.tensor(0.3))))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_laws_moments(kind):
    law = random_gaussian(kind)
    x = law.sample(200_000, torch.Generator().manual_seed(0), sigma=0.5)
    expected = law.spectrum.dense() + 0.25 * torch.eye(6, dtype=F64)
    torch.testing.assert_close(x.mean(0), law.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), expected, atol=0.02 * float(expected.max()), rtol=0)


def test_fits():
    x = torch.randn(800, 2, 4, 4) @ torch.randn(4, 4) + 2
    full = Gaussian.fit(x)
    expected = torch.cov(x.double().flatten(1).T, correction=0)
    assert full.mean.dtype == torch.float32
    torch.testing.assert_close(full.spectrum.dense(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Gaussian.fit(iter(x.split(100))).spectrum.values, full.spectrum.values)
    low = Gaussian.fit(x, rank=5)
    assert low.spectrum.rank == 5
    assert low.spectrum.trace == pytest.approx(full.spectrum.trace)
    assert Gaussian.fit(x, rank=5, tail="zero").spectrum.tail == 0
    cosine = Gaussian.fit(x, basis="dct")
    assert cosine.spectrum.trace == pytest.approx(full.spectrum.trace)
    assert cosine(x[:3], 1.0).shape == (3, 2, 4, 4)
    with pytest.raises(ArgumentError, match="basis"):
        Gaussian.fit(x, basis="fft")


@pytest.mark.parametrize("basis", ["pca", "dct"])
@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4)])
def test_a_fit_to_float64_keeps_its_mean(basis, shape):
    x = torch.randn(60, *shape, dtype=F64) + 1 / 3
    for data in (x, x.numpy(), list(x.split(25)), iter(x.split(25))):
        law = Gaussian.fit(data, basis=basis)
        assert law.mean.dtype == F64
        torch.testing.assert_close(law.mean, x.mean(0), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(law(x[:2], 1e6), x.mean(0).expand(2, *shape), rtol=0, atol=1e-10)
    for data in (x.float(), x.float().numpy(), iter(x.float().split(25))):
        narrow = Gaussian.fit(data, basis=basis)
        assert narrow.mean.dtype == torch.float32
        assert narrow(x[:2].float(), 1.0).dtype == torch.float32
    with pytest.raises(DataError, match="empty"):
        Gaussian.fit(iter([]), basis=basis)


def test_float32_follows_float64():
    law = random_gaussian("dense", 32)
    x = law.sample(8, sigma=1.0)
    for sigma in (1e-3, 0.1, 1.0, 80.0):
        narrow = law.float()(x.float(), sigma)
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), law.double()(x, sigma), atol=1e-4, rtol=1e-4)


def test_storage():
    law = random_gaussian("tail")
    again = Gaussian.from_dict(json.loads(json.dumps(law.to_dict())))
    x = torch.randn(2, 6, dtype=F64)
    assert torch.equal(again(x, 0.5), law(x, 0.5))
    for bad in ({}, {"type": "Gaussian"}, law.to_dict() | {"covariance": Spectrum.isotropic(5, 1.0).to_dict()}):
        with pytest.raises(DataError):
            Gaussian.from_dict(bad)


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match="coordinates"):
        Gaussian(torch.zeros(3), torch.eye(2))
    with pytest.raises(ArgumentError, match="finite"):
        Gaussian(torch.tensor([float("nan")]), torch.eye(1))
    with pytest.raises(ArgumentError, match="singular"):
        t1().log_prob(X_T)
    with pytest.raises(ArgumentError, match="singular"):
        t1().flow(X_T, 0.0, 1.0)
    with pytest.raises(ArgumentError, match="negative"):
        t1().log_prob(X_T, -1.0)
