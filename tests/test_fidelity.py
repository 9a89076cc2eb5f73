"""Score fidelity against the closed forms and quadratures of Wang & Vastola's setting."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from farfield.analysis import reference_laws, score_fidelity, score_gaps
from farfield.denoiser import Denoiser, FunctionDenoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.processes.base import Process


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_laws_take_any_seed(seed):
    data = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    first, second = (reference_laws(data, components=3, seed=seed)["mixture"] for _ in range(2))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first(x, 0.5), second(x, 0.5))


def isotropic(mean: Tensor) -> Gaussian:
    return Gaussian(mean, Spectrum.isotropic(mean.numel(), 0.0))


def fuv(model: Denoiser, law: Denoiser, centres: Tensor, scales: Tensor, weights: Tensor, sigma: float) -> float:
    """The ratio of means over the noised law Σ w N(centre, scale² + σ²), by Gauss-Hermite quadrature."""
    gap, norm = means(model, law, centres, scales, weights, sigma)
    return gap / norm


def means(
    model: Denoiser, law: Denoiser, centres: Tensor, scales: Tensor, weights: Tensor, sigma: float
) -> tuple[float, float]:
    """``E‖s_model − s_law‖²`` and ``E‖s_model‖²``, as in :func:`fuv`."""
    nodes, masses = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(150))
    masses = masses / masses.sum()
    x = centres[:, None] + (scales[:, None] ** 2 + sigma**2).sqrt() * nodes
    w = (weights[:, None] * masses).flatten()
    gap, norm = score_gaps(model, law, x.reshape(-1, 1), sigma)
    return float((w * gap).sum()), float((w * norm).sum())


T3 = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
T4 = torch.tensor([[0.0]] * 4 + [[1.0]], dtype=torch.float64)
F42 = {1: (9.157058e-2, 1.0), 2: (1.265355e-3, 6.368627e-2), 5: (1.470996e-6, 1.601469e-3), 10: (6.410320e-9, 1.000064e-4),
       20: (2.578386e-11, 6.250026e-6)}  # fmt: skip
F43 = {1: 3.118757e-3, 2: 6.427287e-5, 5: 2.893645e-7, 10: 4.586045e-9, 20: 7.191396e-11}
F50 = {80: (7.3646e-12, 1.0685e-7), 20: (2.9889e-8, 2.7383e-5), 10: (1.8610e-6, 4.3951e-4), 5: (1.0894e-4, 7.1105e-3),
       2: (1.8142e-2, 0.28671), 1: (0.32439, 3.2812), 0.5: (0.77676, None)}  # fmt: skip


@pytest.mark.parametrize("sigma", F42)
def test_two_points_against_quadrature_f42(sigma):
    """Holds gaussian_score F42: the Gaussian and the mean against two points."""
    exact = Empirical(T3)
    points, zero, half = (
        T3.flatten(),
        torch.zeros(2, dtype=torch.float64),
        torch.tensor([0.5, 0.5], dtype=torch.float64),
    )
    zero_mean = torch.zeros(1, dtype=torch.float64)
    gauss = Gaussian(zero_mean, torch.eye(1, dtype=torch.float64))
    assert fuv(exact, gauss, points, zero, half, sigma) == pytest.approx(F42[sigma][0], rel=2e-5)
    assert fuv(exact, isotropic(zero_mean), points, zero, half, sigma) == pytest.approx(F42[sigma][1], rel=2e-6)


@pytest.mark.parametrize("sigma", F43)
def test_skewed_points_against_quadrature_f43(sigma):
    """Holds gaussian_score F43: the Gaussian against two points of unequal weight."""
    gauss = Gaussian(torch.tensor([0.2], dtype=torch.float64), torch.tensor([[0.16]], dtype=torch.float64))
    centres, weights = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([0.8, 0.2], dtype=torch.float64)
    measured = fuv(Empirical(T4), gauss, centres, torch.zeros(2, dtype=torch.float64), weights, sigma)
    assert measured == pytest.approx(F43[sigma], rel=2e-5)


def test_the_far_field_error_is_that_of_the_next_cumulant_f42_and_f43():
    """Holds gaussian_score F42 and F43 at σ = 20: E‖Δs‖² near κ₄²/(6 σ¹⁰) without skew, κ₃²/(2 σ⁸) with."""
    zero, half = torch.zeros(2, dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    gauss = Gaussian(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    symmetric = means(Empirical(T3), gauss, T3.flatten(), zero, half, 20.0)[0]
    assert symmetric == pytest.approx(6.4299e-14, rel=2e-4)
    assert symmetric == pytest.approx(4 / (6 * 20.0**10), rel=0.02)  # κ₄ = −2
    gauss = Gaussian(torch.tensor([0.2], dtype=torch.float64), torch.tensor([[0.16]], dtype=torch.float64))
    centres, weights = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([0.8, 0.2], dtype=torch.float64)
    skewed = means(Empirical(T4), gauss, centres, zero, weights, 20.0)[0]
    assert skewed == pytest.approx(1.797130e-13, rel=1e-4)
    assert skewed == pytest.approx(0.096**2 / (2 * 20.0**8), rel=0.003)


@pytest.mark.parametrize("sigma", F50)
def test_gaussian_mixture_against_quadrature_f50(sigma):
    """Holds gaussian_score F50: the Gaussian and the mean against a mixture."""
    weights, means = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([[-2.0], [1.0]], dtype=torch.float64)
    variances = torch.tensor([0.09, 0.25], dtype=torch.float64)
    model = GaussianMixture(weights, means, variances.reshape(2, 1, 1))
    mean = torch.tensor([0.1], dtype=torch.float64)
    gauss = Gaussian(mean, torch.tensor([[2.092]], dtype=torch.float64))
    args = (means.flatten(), variances.sqrt(), weights, float(sigma))
    assert fuv(model, gauss, *args) == pytest.approx(F50[sigma][0], rel=1e-4)
    if F50[sigma][1] is not None:
        assert fuv(model, isotropic(mean), *args) == pytest.approx(F50[sigma][1], rel=1e-4)


def plane() -> Gaussian:
    """F46: mean 0, eigenvalues 4 and 0.25 in three dimensions."""
    basis = torch.eye(3, dtype=torch.float64)[:, :2]
    return Gaussian(torch.zeros(3, dtype=torch.float64), Spectrum.low_rank(basis, [4.0, 0.25]))


def test_isotropic_against_gaussian_f46_and_f55():
    """Holds gaussian_score F46 and F55 by sampling, in both protocols."""
    model, levels = plane(), (5.0, 2.0, 1.0, 0.5)
    laws = {"isotropic": isotropic(model.mean), "gaussian": model}
    data = model.sample(40_000, torch.Generator().manual_seed(1)).double()
    noise = score_fidelity(model, data, sigmas=levels, queries=40_000, protocol="noise", laws=laws, batch_size=40_000)
    noised = score_fidelity(model, data, sigmas=levels, queries=40_000, laws=laws, batch_size=40_000)
    for result, expected in (
        (noise, (0.007022, 0.118672, 0.404762, 0.906142)),
        (noised, (0.007772, 0.206325, 1.625, 9.981132)),
    ):
        curve = result.laws["isotropic"]
        for value, error, target in zip(curve.fuv, curve.standard_error, expected, strict=True):
            assert value == pytest.approx(target, rel=0.03)
            assert abs(value - target) < 5 * error + 1e-3 * target
        assert result.laws["gaussian"].fuv == (0.0,) * 4  # F55: against itself


def test_far_field_limit_f55():
    """Holds gaussian_score F55: σ⁴ FUV of the mean tends to Σ λ²/d."""
    model = plane()
    far = score_fidelity(model, torch.zeros(2, 3, dtype=torch.float64), sigmas=[200.0], queries=20_000, protocol="noise",
                         laws={"isotropic": isotropic(model.mean), "gaussian": model}, batch_size=20_000)  # fmt: skip
    assert 200.0**4 * far.laws["isotropic"].fuv[0] == pytest.approx(5.3535, rel=0.03)


def test_monte_carlo_agrees_with_quadrature_and_its_error_bar():
    result = score_fidelity(Empirical(T3), T3, sigmas=[2.0, 1.0], queries=30_000, batch_size=30_000)
    curve = result.laws["gaussian"]
    for value, error, target in zip(curve.fuv, curve.standard_error, (F42[2][0], F42[1][0]), strict=True):
        assert abs(value - target) < 5 * error
        assert error < 0.05 * target
    assert max(result.laws["empirical"].fuv) == 0.0


def test_the_scalar_and_quantiles_of_ratios():
    result = score_fidelity(Empirical(T3), T3, sigmas=[1.0], queries=4000)
    curve = result.laws["isotropic"]
    assert list(curve.quantiles[0]) == sorted(curve.quantiles[0])
    assert curve.quantiles[0][0] < curve.mean_ratio[0]
    # Ratio of means against mean of ratios: both are kept, and they differ.
    assert curve.mean_ratio[0] != pytest.approx(curve.fuv[0], rel=0.01)


def test_batches_and_level_lists_change_nothing():
    data = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    model = Empirical(data)
    a = score_fidelity(model, data, sigmas=[3.0, 0.5], queries=40, seed=5)
    b = score_fidelity(model, data, sigmas=[0.5, 1.0, 3.0], queries=40, seed=5, batch_size=7)
    assert a.laws["gaussian"].fuv[0] == pytest.approx(b.laws["gaussian"].fuv[0], rel=1e-9)
    assert a.laws["gaussian"].fuv[1] == pytest.approx(b.laws["gaussian"].fuv[2], rel=1e-9)
    c = score_fidelity(model, data, sigmas=[3.0, 0.5], queries=40, seed=6)
    assert c.laws["gaussian"].fuv != a.laws["gaussian"].fuv


def test_held_out_points_unmask_a_memorising_model():
    g = torch.Generator().manual_seed(0)
    data, other = torch.randn(60, 8, generator=g), torch.randn(60, 8, generator=g)
    memory, law = Empirical(data), Gaussian(torch.zeros(8), torch.eye(8))
    kept = score_fidelity(law, data, sigmas=[0.3], queries=200)
    fresh = score_fidelity(law, data, sigmas=[0.3], queries=200, points=other)
    assert fresh.laws["empirical"].fuv[0] > 2 * kept.laws["empirical"].fuv[0]
    assert score_fidelity(memory, data, sigmas=[0.3], queries=50).laws["empirical"].fuv[0] < 1e-12


def test_gaussian_until():
    levels = [10.0, 5.0, 2.0, 1.0, 0.5]
    result = score_fidelity(Empirical(T3), T3, sigmas=levels, queries=4000)
    assert 1.0 < result.gaussian_until < 2.0  # F42: 1.27e-3 at 2 and 9.2e-2 at 1
    assert result.explained_until("gaussian", 1e-30) is None
    assert result.explained_until("empirical") == 0.5
    with pytest.raises(ArgumentError, match="isotropic, gaussian, mixture, empirical"):
        result.explained_until("poisson")


def test_default_laws_and_plain_values():
    data = torch.randn(120, 1, 3, 3, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    laws = reference_laws(data, components=3)
    assert list(laws) == ["isotropic", "gaussian", "mixture", "empirical"]
    x = torch.randn(5, 1, 3, 3)
    assert torch.allclose(laws["isotropic"](x, 1.0), data.mean(0).expand(5, -1, -1, -1), atol=1e-6)
    result = score_fidelity(laws["mixture"], data, queries=32, sigmas=[2.0, 0.2], laws=laws)
    assert result.laws["mixture"].fuv == (0.0, 0.0)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["components"] == 3
    assert result.total_scale == pytest.approx(math.sqrt(float(data.flatten(1).var(0, correction=0).sum())), rel=1e-5)
    figure = result.plot()
    assert len(figure.axes) == 2
    assert all(len(axes.collections) == len(laws) for axes in figure.axes)  # a band for each curve
    from matplotlib.figure import Figure

    one = Figure().subplots()
    assert result.plot(one) is one.figure
    assert "score" in one.get_ylabel()


class Shell(Process):
    """A process without a score."""

    gaussian = False

    def perturb(self, x0, sigma, generator=None): ...
    def log_kernel(self, squared_distance, sigma, dim): ...
    def log_normalizer(self, sigma, dim): ...
    def prior(self, shape, sigma, generator=None): ...
    def renoise(self, x, sigma_from, sigma_to, generator=None): ...


def test_bad_arguments():
    data = torch.zeros(4, 2)
    model = Gaussian(torch.zeros(2), torch.eye(2))
    for bad in (
        {"queries": 1},
        {"sigmas": [1.0, 0.0]},
        {"sigmas": []},
        {"protocol": "both"},
        {"points": torch.zeros(3, 5)},
    ):
        with pytest.raises(ArgumentError):
            score_fidelity(model, data, **bad)
    with pytest.raises(ArgumentError, match="data has shape"):
        score_fidelity(model, torch.zeros(4, 3))
    field = FunctionDenoiser(lambda x, sigma: x, (2,), process=Shell())
    with pytest.raises(ArgumentError, match="scores"):
        score_fidelity(field, data)
