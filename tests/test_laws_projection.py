"""States projected once: every level and rank afterwards agrees with the law evaluated anew."""

import pytest
import torch

from farfield.distributions import Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum

F64 = torch.float64
D = 24


def orthonormal(d, r):
    return torch.linalg.qr(torch.randn(d, r, dtype=F64))[0]


def laws():
    root = torch.randn(D, D, dtype=F64)
    mean = torch.randn(D, dtype=F64)
    spectra = [
        Spectrum.low_rank(orthonormal(D, 6), torch.tensor([4.0, 2, 1, 0.5, 0.2, 0.1])),
        Spectrum.low_rank(orthonormal(D, 4), torch.tensor([3.0, 1, 0.4, 0.2]), 0.05),
        Spectrum.from_covariance(root @ root.T),
        Spectrum.isotropic(D, 0.3),
        Spectrum.diagonal(torch.rand(D)),
    ]
    rotation = orthonormal(2, 2)
    return {
        "low rank": Gaussian(mean, spectra[0]),
        "tail": Gaussian(mean, spectra[1]),
        "dense": Gaussian(mean, spectra[2]),
        "isotropic": Gaussian(mean, spectra[3]),
        "diagonal": Gaussian(mean, spectra[4]),
        "dct": Gaussian(mean.view(2, 3, 4), Spectrum.dct((2, 3, 4), torch.rand(D), rotation)),
        "mixture": GaussianMixture([0.2, 0.5, 0.3], torch.randn(3, D, dtype=F64), spectra[:3]),
        "low-rank mixture": GaussianMixture([0.2, 0.5, 0.3], torch.randn(3, D), [spectra[0], spectra[1], spectra[0]]),
        "points": GaussianMixture([0.2, 0.8], torch.randn(2, D, dtype=F64), Spectrum.isotropic(D, 0.0)),
    }


KINDS = tuple(laws())


def truncated(law, rank, tail):
    """The law with every covariance cut to a rank."""
    if isinstance(law, Gaussian):
        return Gaussian(law.mean, law.spectrum.double().truncate(min(rank, law.spectrum.rank), tail))
    spectra = []
    for k in range(law.components):
        own = int(law.mask[k].sum())
        basis = law.stacked.straight(k)[:, :own]
        full = Spectrum.low_rank(basis, law.values[k, :own], float(law.tails[k]))
        spectra.append(full.truncate(min(rank, own), tail))
    return GaussianMixture(law.weights_, law.means.double(), spectra)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noisy", [False, True])
def test_levels(kind, noisy):
    """One projection of x, or of y and z, for levels as numbers, one a row, and many at once."""
    law = laws()[kind].double()
    y = law.sample(5, sigma=0.3)
    z = torch.randn_like(y) if noisy else None
    p = law.project(y, z)

    def state(sigma):
        return y if z is None else y + torch.as_tensor(sigma, dtype=F64).reshape(-1, *(1,) * (y.ndim - 1)) * z

    rows = torch.tensor([0.05, 0.3, 1.0, 4.0, 50.0], dtype=F64)
    for sigma in (0.2, torch.tensor(3.0), rows):
        x = state(sigma)
        torch.testing.assert_close(p.state(sigma), x)
        torch.testing.assert_close(p.log_prob(sigma), law.log_prob(x, sigma), atol=1e-7, rtol=1e-9)
        torch.testing.assert_close(p.denoise(sigma), law(x, sigma), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(p.score(sigma), law.score(x, sigma), atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(
            p.score_squared(sigma), law.score(x, sigma).flatten(1).square().sum(1), atol=1e-8, rtol=1e-6
        )
        target = torch.randn_like(x)
        expected = (target - law(x, sigma)).flatten(1).square().sum(1)
        torch.testing.assert_close(p.error(target, sigma), expected, atol=1e-9, rtol=1e-7)
        if isinstance(law, GaussianMixture):
            torch.testing.assert_close(p.weights(sigma), law.weights(x, sigma), atol=1e-9, rtol=1e-6)
        else:
            assert torch.equal(p.weights(sigma), torch.ones(5, 1, dtype=F64))
    grid = rows.unsqueeze(1)
    for many in (grid, grid.expand(5, 5)):
        for call in (p.log_prob, p.logits, p.weights, p.coefficients):
            torch.testing.assert_close(call(many), torch.stack([call(s) for s in rows.tolist()]))
    if isinstance(law, Gaussian):
        for call in (p.score_squared, p.denoiser_squared):
            torch.testing.assert_close(call(grid), torch.stack([call(s) for s in rows.tolist()]))
        gap = (law(state(0.7), 0.7) - law.mean).flatten(1).square().sum(1)
        torch.testing.assert_close(p.denoiser_squared(0.7), gap)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["zero", "mean"])
@pytest.mark.parametrize("noisy", [False, True])
def test_ranks(kind, tail, noisy):
    """Every rank in one pass, as if the covariances had been truncated."""
    law = laws()[kind].double()
    ranks = [0, 1, 3, 5]
    y = law.sample(4, sigma=0.3)
    z = torch.randn_like(y) if noisy else None
    p = law.project(y, z, tail)
    target = torch.randn_like(y)
    for sigma in (0.4, torch.tensor([0.1, 0.4, 2.0, 9.0], dtype=F64)):
        x = p.state(sigma)
        cut = [truncated(law, r, tail) for r in ranks]
        expected = torch.stack([c.log_prob(x, sigma) for c in cut])
        torch.testing.assert_close(p.log_prob(sigma, ranks), expected, atol=1e-6, rtol=1e-8)
        means = torch.stack([c(x, sigma) for c in cut])
        torch.testing.assert_close(torch.stack([p.denoise(sigma, r) for r in ranks]), means, atol=1e-6, rtol=1e-6)
        errors = (target - means).flatten(2).square().sum(2)
        torch.testing.assert_close(p.error(target, sigma, ranks), errors, atol=1e-6, rtol=1e-6)
        scores = torch.stack([c.score(x, sigma).flatten(1).square().sum(1) for c in cut])
        torch.testing.assert_close(p.score_squared(sigma, ranks), scores, atol=1e-5, rtol=1e-5)
    levels = torch.tensor([[0.3], [2.0]], dtype=F64)
    both = p.logits(levels, ranks)
    assert both.shape == (4, 2, 4, p.components)
    torch.testing.assert_close(both[2, 1], p.logits(2.0, [3])[0])
    assert p.coefficients(levels, ranks).shape == (4, 2, 4, p.components, p.rank)


@pytest.mark.parametrize("kind", ["low rank", "low-rank mixture"])
def test_coefficients_make_the_denoiser(kind):
    law = laws()[kind].double()
    x = law.sample(3, sigma=0.5)
    p = law.project(x)
    c, w = p.coefficients(0.5, [2])[0], p.weights(0.5, [2])[0]
    cut = truncated(law, 2, "zero")
    if isinstance(law, Gaussian):
        value = law.mean + law.spectrum.expand(c[:, 0])
    else:
        value = sum(
            w[:, k : k + 1] * (law.means[k] + c[:, k] @ law.stacked.straight(k).T) for k in range(law.components)
        )
    torch.testing.assert_close(value, cut(x, 0.5), atol=1e-9, rtol=1e-9)


def test_float32_states_come_back_in_float32():
    for kind in ("tail", "low-rank mixture"):
        law = laws()[kind].float()
        x = law.sample(3, sigma=0.5)
        p = law.project(x, torch.randn_like(x))
        assert p.denoise(0.5).dtype == torch.float32
        assert p.log_prob(0.5).dtype == F64
        torch.testing.assert_close(p.denoise(0.5), law(p.state(0.5), 0.5), atol=1e-5, rtol=1e-5)
        assert p.log_prob(torch.tensor([0.5])).shape == (3,)
        assert law.project(x[:1]).log_prob(torch.tensor([0.5])).shape == (1,)


def test_unexplained_variance_of_ranks_on_gaussian_data():
    """gaussian_score 2.11: truncation's FUV over the noised law is a ratio of sums over the modes left out."""
    values = 5 * torch.arange(1, 13, dtype=F64) ** -1.5
    law = Gaussian(torch.zeros(16, dtype=F64), Spectrum.low_rank(orthonormal(16, 12), values))
    sigma, ranks, n = 0.7, [0, 2, 6], 40_000
    p = law.project(law.sample(n, torch.Generator().manual_seed(0)), torch.randn(n, 16, dtype=F64))
    x, d = p.state(sigma), p.denoise(sigma)
    ours = p.error(d, sigma, ranks).mean(1) / (d - x).square().sum(1).mean()
    lost = torch.stack([(values[r:] ** 2 / (sigma**4 * (values[r:] + sigma**2))).sum() for r in ranks])
    size = (1 / (values + sigma**2)).sum() + 4 / sigma**2
    torch.testing.assert_close(ours, lost / size, atol=0, rtol=0.03)


def test_bad_arguments_are_named():
    law = laws()["tail"]
    x = torch.randn(3, D)
    p = law.project(x)
    with pytest.raises(ArgumentError, match="tail"):
        law.project(x, tail="none")
    with pytest.raises(ArgumentError, match="shape"):
        law.project(x[:, :4])
    with pytest.raises(ArgumentError, match="noise"):
        law.project(x, x[:2])
    for sigma in (torch.ones(2), torch.ones(2, 2), torch.ones(1, 1, 1), -1.0):
        with pytest.raises(ArgumentError, match="sigma"):
            p.log_prob(sigma)
    with pytest.raises(ArgumentError, match="sigma"):
        p.denoise(torch.ones(2, 1))
    for ranks in ([], [-1], [D + 1]):
        with pytest.raises(ArgumentError, match="ranks"):
            p.log_prob(1.0, ranks)
    with pytest.raises(ArgumentError, match="shape"):
        p.error(x[:, :4], 1.0)
