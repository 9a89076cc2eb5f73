"""Leading eigenpairs of posterior covariances and of the Hessian of log p, against dense matrices."""

import pytest
import torch

from farfield.distributions import Distribution, Empirical, Gaussian, GaussianMixture, curvature, toy
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum

from .test_empirical import StudentT

F64 = torch.float64


def orthonormal(d, r):
    return torch.linalg.qr(torch.randn(d, r, dtype=F64))[0]


def laws(d=8):
    root = torch.randn(d, d, dtype=F64)
    spectra = [
        Spectrum.low_rank(orthonormal(d, 2), [2.0, 0.4]),
        Spectrum.low_rank(orthonormal(d, 3), [1, 0.5, 0.2], 0.1),
    ]
    means = torch.randn(2, d, dtype=F64)
    return {
        "dense": Gaussian(means[0], root @ root.T),
        "low rank": Gaussian(means[0], spectra[0]),
        "tail": Gaussian(means[0], spectra[1]),
        "large tail": Gaussian(means[0], Spectrum.low_rank(orthonormal(d, 2), [2.0, 0.01], 0.5)),
        "isotropic": Gaussian.isotropic(means[0], 0.7),
        "dct": Gaussian(means[0].view(2, 2, 2), Spectrum.dct((2, 2, 2), torch.rand(d))),
        "mixture": GaussianMixture([0.4, 0.6], means, spectra),
        "full mixture": GaussianMixture([0.4, 0.6], means, [Spectrum.from_covariance(root @ root.T), spectra[1]]),
        "points": GaussianMixture([0.4, 0.6], means, Spectrum.isotropic(d, 0.0)),
        "few points": Empirical(torch.randn(3, d, dtype=F64)),
        "points of a set": Empirical(torch.randn(40, d, dtype=F64)),
    }


KINDS = tuple(laws())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_posterior_covariance(kind, count):
    """gaussian_score F9: the eigenpairs are those of σ² ∂D/∂x, and of the Hessian after (v/σ² − 1)/σ²."""
    law = laws()[kind].double()
    levels = torch.tensor([0.3, 1.0, 4.0], dtype=F64)
    x = law.sample(3, sigma=0.5)
    values, vectors = law.posterior_spectrum(x, levels, count)
    assert vectors.shape == (3, count, *law.event_shape)
    flat = vectors.flatten(2)
    for b in range(3):
        state, eye = x[b].expand(8, *law.event_shape), torch.eye(8, dtype=F64).view(8, *law.event_shape)
        jacobian = law.jvp(state, float(levels[b]), eye)[1].flatten(1)
        covariance = levels[b] ** 2 * jacobian
        expected = torch.linalg.eigvalsh(covariance).flip(0)[:count]
        torch.testing.assert_close(values[b], expected, atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(flat[b] @ flat[b].T, torch.eye(count, dtype=F64), atol=1e-7, rtol=0)
        torch.testing.assert_close(covariance @ flat[b].T, flat[b].T * values[b], atol=1e-6, rtol=1e-6)
        top, _ = law.hessian_spectrum(x[b : b + 1], float(levels[b]), count)
        hessian = torch.linalg.eigvalsh((jacobian - torch.eye(8, dtype=F64)) / levels[b] ** 2).flip(0)
        torch.testing.assert_close(top[0], hessian[:count], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dense", [0, 256])
def test_products_give_the_same(dense, monkeypatch):
    """The base class's way, by the whole Jacobian and by Lanczos' method, also with labels."""
    monkeypatch.setattr(curvature, "DENSE", dense)
    for kind in ("mixture", "points of a set"):
        law = laws()[kind]
        x, levels = law.sample(2, sigma=0.5), torch.tensor([0.5, 2.0], dtype=F64)
        ours = Distribution.posterior_spectrum(law, x, levels, 3)
        torch.testing.assert_close(ours[0], law.posterior_spectrum(x, levels, 3)[0], atol=1e-8, rtol=1e-6)
    labels = torch.arange(40) % 2
    law = Empirical(torch.randn(40, 8, dtype=F64), labels=labels)
    x, wanted = law.sample(2, sigma=0.5), torch.tensor([0, 1])
    ours = Distribution.posterior_spectrum(law, x, 1.0, 2, labels=wanted)[0]
    torch.testing.assert_close(ours, law.posterior_spectrum(x, 1.0, 2, labels=wanted)[0])
    torch.testing.assert_close(ours[1], Empirical(law.data[labels == 1]).posterior_spectrum(x[1:], 1.0, 2)[0][0])


def test_a_ring_has_one_soft_direction():
    """The density on a ring curves along the radius only, where σ is small."""
    law = toy("ring")
    x = torch.tensor([[1.0, 0.0]], dtype=F64)
    values, vectors = law.posterior_spectrum(x, 0.1, 2)
    assert float(vectors[0, 0, 1].abs()) == pytest.approx(1.0)
    assert float(values[0, 1]) < 0.02 * float(values[0, 0])


def test_other_kernels_have_a_covariance_but_no_such_hessian():
    law = Empirical(torch.randn(20, 4, dtype=F64), StudentT(8.0))
    x = torch.randn(2, 4, dtype=F64)
    values, _ = law.posterior_spectrum(x, 1.0, 4)
    w = law.weights(x, 1.0)
    mean = w @ law.data
    total = w @ law.data.square().sum(1) - mean.square().sum(1)
    torch.testing.assert_close(values.sum(1), total)
    with pytest.raises(ArgumentError, match="StudentT"):
        law.hessian_spectrum(x, 1.0, 2)


def test_bad_counts_are_named():
    for kind in ("dense", "mixture", "few points"):
        law = laws()[kind]
        for count in (0, 9):
            with pytest.raises(ArgumentError, match="count"):
                law.posterior_spectrum(law.sample(1), 1.0, count)
    with pytest.raises(ArgumentError, match="count"):
        toy("ring").posterior_spectrum(torch.ones(1, 2), 1.0, 3)
