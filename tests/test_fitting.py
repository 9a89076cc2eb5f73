"""Clusters, classes and shared bases: what a fitted mixture keeps of its data."""

import numpy as np
import pytest
import torch

from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.distributions import mixture_clusters as module
from farfield.distributions.mixture_clusters import clusters, coordinates, extended, kmeans
from farfield.distributions.mixture_family import MixtureFamily
from farfield.distributions.mixture_fit import grouped, shared, within
from farfield.errors import ArgumentError, DataError

F64 = torch.float64


def blobs(count=6, each=40, d=20, spread=0.3, dtype=F64):
    """Well separated clusters, and the label of every point."""
    labels = torch.arange(count).repeat_interleave(each)
    return (4 * torch.randn(count, d, dtype=dtype))[labels] + spread * torch.randn(len(labels), d, dtype=dtype), labels


def dense(law):
    """Σ_i of all components, (K, d, d)."""
    bases, eye = law.bases.double(), torch.eye(law.dim, dtype=F64)
    inner = torch.einsum("kdr,kr,ker->kde", bases, law.values * law.mask, bases)
    return inner + law.tails.view(-1, 1, 1) * (eye - torch.einsum("kdr,ker->kde", bases, bases))


def total(law):
    """Mean and covariance of a mixture, by the law of total covariance."""
    means = law.means.flatten(1).double()
    gap = means - law.weights_ @ means
    return law.weights_ @ means, torch.einsum("k,kde->de", law.weights_, dense(law)) + gap.T @ (
        law.weights_[:, None] * gap
    )


def agreement(found, truth):
    """Fraction of points whose cluster's most common true label is their own."""
    right = sum(int(torch.bincount(truth[found == k]).max()) for k in torch.unique(found))
    return right / len(truth)


# -- clusters ---------------------------------------------------------------------------------------------------------


def test_principal_coordinates_hold_the_variance_and_find_the_same_clusters(monkeypatch):
    x, truth = blobs(d=60, dtype=torch.float32)
    plain = coordinates(x, 6)
    assert np.shares_memory(plain, x.numpy())
    monkeypatch.setattr(module, "_ROTATE", 1)
    rotated = coordinates(x, 6)
    assert rotated.shape[1] < 60 // 3
    assert rotated.dtype == np.float32
    centred = x - x.mean(0)
    # Of the variance of all points, which here are the sample.
    assert (rotated**2).sum() >= 0.989 * float(centred.square().sum())
    distances = torch.cdist(torch.from_numpy(rotated), torch.from_numpy(rotated)).square()
    gap = torch.cdist(x, x).square() - distances
    assert float(gap.mean()) <= 0.0101 * float(torch.cdist(x, x).square().mean())
    for points in (plain, rotated):
        assert agreement(kmeans(points, 6).labels, truth) == 1.0
    assert np.array_equal(coordinates(x.numpy(), 6), rotated)
    # A flat spectrum has no leading coordinates worth having.
    assert coordinates(torch.randn(500, 60), 6).shape[1] == 60


def test_the_published_protocol():
    """gaussian_score A9, E29: mini-batch k-means with batches of 2048 and seed 0."""
    from sklearn.cluster import MiniBatchKMeans

    x = torch.randn(3000, 5)
    expected = MiniBatchKMeans(9, batch_size=2048, random_state=0, n_init=3).fit_predict(x.numpy())
    assert np.array_equal(clusters(x, 9).numpy(), expected)
    other = clusters(x, 9, seed=1)
    assert not torch.equal(other, clusters(x, 9))
    assert torch.equal(other, clusters(x, 9, seed=1))


def test_centres_are_extended_far_from_each_other():
    x, _ = blobs(count=8, each=30)
    start = x[:60].view(2, 30, -1).mean(1).numpy()
    found = torch.from_numpy(extended(x.numpy(), start, 8))
    assert found.shape == (8, 20)
    assert torch.equal(found[:2], torch.from_numpy(start))
    # One new centre in each of the other six clusters: drawn by squared distance, never near those before.
    nearest = torch.cdist(found, torch.stack(x.split(30)).mean(1)).argmin(1)
    assert nearest.unique().numel() == 8
    assert np.array_equal(extended(x.numpy(), start, 8), found.numpy())
    with pytest.raises(ArgumentError, match="centres"):
        extended(x.numpy(), start, 1)


def test_bad_data_are_refused(monkeypatch):
    x = torch.randn(60, 30)
    for limit in (1 << 16, 1):
        monkeypatch.setattr(module, "_ROTATE", limit)
        for value in (float("nan"), float("inf")):
            bad = x.clone()
            bad[7, 3] = value
            with pytest.raises(DataError, match="finite"):
                clusters(bad, 4)
    with pytest.raises(ArgumentError, match="components"):
        clusters(x, 61)
    with pytest.raises(ArgumentError, match="labels"):
        grouped(x, [0, 1])


# -- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 5, 30, 200])
@pytest.mark.parametrize("rotate", [False, True])
def test_a_mixture_has_the_mean_and_covariance_of_its_data(components, rotate, monkeypatch):
    """gaussian_score F16: also where clusters have fewer points than coordinates, and one point, and after a rotation."""
    monkeypatch.setattr(module, "_ROTATE", 1 if rotate else 1 << 16)
    x = torch.randn(200, 24, dtype=F64) * torch.arange(1, 25) ** -1.0 + 3
    law = GaussianMixture.fit(x, components)
    mean, covariance = total(law)
    torch.testing.assert_close(mean, x.mean(0), atol=1e-13, rtol=0)
    torch.testing.assert_close(covariance, torch.cov(x.T, correction=0), atol=1e-13, rtol=0)


def test_one_component_and_one_for_each_point():
    """gaussian_score F7: K = 1 is the Gaussian, K = N the points themselves, up to the largest size and in any law's type."""
    x = torch.randn(40, 2, 3, dtype=F64)
    z = torch.randn(6, 2, 3, dtype=F64)
    single, masses = GaussianMixture.fit(x, 1), GaussianMixture.fit(x, 40)
    for sigma in (0.2, 2.0):
        torch.testing.assert_close(single(z, sigma), Gaussian.fit(x)(z, sigma))
        torch.testing.assert_close(single.log_prob(z, sigma), Gaussian.fit(x).log_prob(z, sigma))
        torch.testing.assert_close(masses(z, sigma), Empirical(x)(z, sigma))
        torch.testing.assert_close(masses.log_prob(z, sigma), Empirical(x).log_prob(z, sigma))
    assert masses.components == 40
    assert masses.smallest == 0
    # Twice the same points: as a mixture still the same law.
    twice = GaussianMixture.fit(torch.cat((x, x)), 80)
    torch.testing.assert_close(twice(z, 0.5), Empirical(x)(z, 0.5))


def test_maps_arrays_and_tensors_agree(tmp_path):
    x, _ = blobs(dtype=torch.float32)
    np.save(tmp_path / "x.npy", x.numpy().reshape(-1, 4, 5))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    laws = [GaussianMixture.fit(data, 6, rank=3) for data in (x.view(-1, 4, 5), mapped, np.array(mapped))]
    for law in laws[1:]:
        assert torch.equal(law.means, laws[0].means)
        assert torch.equal(law.values, laws[0].values)
    assert laws[0].event_shape == (4, 5)


def test_the_mean_tail_is_probabilistic_principal_component_analysis():
    """Tipping & Bishop 1999: no covariance of the form W Wᵀ + τ I has a larger likelihood (scikit-learn's PCA agrees)."""
    from sklearn.decomposition import PCA

    x = torch.randn(300, 10, dtype=F64) @ torch.randn(10, 10, dtype=F64)
    law = GaussianMixture.fit(x, 1, rank=3)
    model = PCA(3).fit(x.numpy())
    # Theirs has the divisor N − 1, and its residual variance is the mean of the other eigenvalues too.
    reference = torch.from_numpy(model.get_covariance()) * 299 / 300
    torch.testing.assert_close(dense(law)[0], reference, rtol=1e-9, atol=1e-9)
    best = float(law.log_prob(x).mean())
    bases, values, tails = law.bases, law.values, law.tails
    for change in (0.98, 1.02):
        for other in ((bases, values * change, tails), (bases, values, tails * change)):
            assert float(GaussianMixture(law.weights_, law.means, other).log_prob(x).mean()) < best
    turn = torch.linalg.qr(bases[0] + 0.05 * torch.randn(10, 3, dtype=F64))[0][None]
    assert float(GaussianMixture(law.weights_, law.means, (turn, values, tails)).log_prob(x).mean()) < best


def test_a_fraction_of_the_variance_of_every_component():
    x, truth = blobs(d=12)
    law = GaussianMixture.per_class(x, truth, rank=0.8)
    for k in range(6):
        values = torch.linalg.eigvalsh(torch.cov(x[truth == k].T, correction=0)).flip(0)
        rank = int(law.mask[k].sum())
        assert rank == int((values.cumsum(0) / values.sum() < 0.8).sum()) + 1
        torch.testing.assert_close(law.values[k, :rank], values[:rank])


def test_shrinkage_gives_small_clusters_a_density():
    x, truth = blobs(each=10, d=30)
    assert GaussianMixture.per_class(x, truth).smallest == 0
    for shrinkage in (0.1, "oas", "ledoit_wolf"):
        law = GaussianMixture.per_class(x, truth, shrinkage=shrinkage)
        assert law.smallest > 0
        single = Gaussian.fit(x[truth == 2], shrinkage=shrinkage).spectrum.dense()
        torch.testing.assert_close(dense(law)[2], single, atol=1e-10, rtol=1e-9)
        # Shrinkage keeps the trace, so that the total variance is still that of the data.
        assert float(total(law)[1].trace()) == pytest.approx(float(torch.cov(x.T, correction=0).trace()))
    assert GaussianMixture.fit(x, 6, shrinkage=0.1).smallest > 0


def test_the_companion_protocol():
    """gaussian_score A9 [C], E29: divisor N_i − 1, jitter 1e-5, and single points of covariance 1e-5 I."""
    x, truth = blobs(count=3, each=30, d=4)
    x, truth = torch.cat((x, 9 + x[:1])), torch.cat((truth, torch.tensor([3])))
    eye = 1e-5 * torch.eye(4, dtype=F64)
    expected = torch.stack([torch.cov(x[truth == k].T) for k in range(3)] + [0 * eye]) + eye
    torch.testing.assert_close(dense(GaussianMixture.per_class(x, truth, correction=1, jitter=1e-5)), expected)
    low = GaussianMixture.per_class(x, truth, rank=2, tail="zero", correction=1, jitter=1e-5)
    torch.testing.assert_close(low.values[:3], torch.linalg.eigvalsh(expected).flip(1)[:3, :2])
    assert float(low.tails.max()) == 0
    single = GaussianMixture.fit(x, 1, correction=1, jitter=1e-5)
    torch.testing.assert_close(dense(single)[0], torch.cov(x.T) + eye)
    shared_basis = GaussianMixture.fit(x, 1, shared_basis=True, correction=1, jitter=1e-5)
    torch.testing.assert_close(dense(shared_basis), dense(single))


# -- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_classes_of_few_points_take_the_pooled_covariance(dtype):
    x, truth = blobs(count=3, each=50, d=6, dtype=dtype)
    keep = torch.cat((torch.arange(100), torch.tensor([100, 101])))
    x, truth = x[keep], truth[keep]
    law = GaussianMixture.per_class(x, truth, minimum=10)
    residual = torch.cat([x[truth == k] - x[truth == k].mean(0) for k in range(3)]).double()
    pooled, tolerance = residual.T @ residual / len(x), 1e-12 if dtype == F64 else 1e-6
    torch.testing.assert_close(dense(law)[2], pooled, atol=tolerance, rtol=tolerance)
    own = torch.cov(x[:50].double().T, correction=0)
    torch.testing.assert_close(dense(law)[0], own, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(law.means[2], x[100:].mean(0))
    assert law.smallest > 0
    low = GaussianMixture.per_class(x, truth, rank=2, minimum=10)
    values = torch.linalg.eigvalsh(pooled).flip(0)
    torch.testing.assert_close(low.values[2], values[:2], rtol=1e-5, atol=0)
    assert float(low.tails[2]) == pytest.approx(float(values[2:].mean()), rel=1e-5)
    assert GaussianMixture.per_class(x, truth).smallest == pytest.approx(0, abs=1e-12)


def test_the_pooled_covariance_is_the_mean_of_those_of_the_classes():
    x, truth = blobs(count=4, each=15, d=9)
    groups = grouped(x, truth)
    means = torch.stack([x[g].mean(0) for g in groups])
    expected = torch.stack([torch.cov(x[g].T, correction=0) for g in groups]).mean(0)
    torch.testing.assert_close(within(x, groups, means).dense(), expected)


# -- one basis for all ------------------------------------------------------------------------------------------------


def test_a_shared_basis_keeps_the_variance_along_every_axis():
    x, truth = blobs(d=12)
    gauss = Gaussian.fit(x)
    axes = gauss.spectrum.basis
    law = GaussianMixture.fit(x, 6, shared_basis=True)
    assert agreement(law.weights(x, 0.1).argmax(1), truth) == 1.0
    mean, covariance = total(law)
    torch.testing.assert_close(mean, x.mean(0), atol=1e-13, rtol=0)
    # Only what the axes see of the law of total covariance is left of it.
    torch.testing.assert_close((axes.T @ covariance @ axes).diagonal(), gauss.spectrum.values)
    rotated = axes.T @ dense(law) @ axes
    torch.testing.assert_close(rotated, torch.diag_embed(rotated.diagonal(dim1=1, dim2=2)), atol=1e-12, rtol=0)
    low = GaussianMixture.fit(x, 6, rank=4, shared_basis=True)
    torch.testing.assert_close(total(low)[1].trace(), covariance.trace())
    own = shared(x, clusters(x, 6), 4)
    expected = torch.stack([(x[g] @ own.basis).var(0, correction=0) for g in grouped(x, clusters(x, 6))])
    torch.testing.assert_close(own.variances, expected)
    torch.testing.assert_close(low.values, expected.sort(descending=True).values)
    flat = GaussianMixture.fit(x, 6, rank=4, shared_basis=True, shrinkage=1.0)
    level = dense(law).diagonal(dim1=1, dim2=2).mean(1)
    torch.testing.assert_close(flat.tails, level)
    torch.testing.assert_close(flat.values, level[:, None].expand(-1, 4))
    with pytest.raises(ArgumentError, match="shrinkage"):
        GaussianMixture.fit(x, 6, shared_basis=True, shrinkage="oas")


def test_a_shared_basis_is_exact_where_components_share_their_axes():
    """One decomposition is enough for components that differ in scale alone, whatever their means in the axes."""
    axes = torch.linalg.qr(torch.randn(5, 5, dtype=F64))[0]
    scale = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1], dtype=F64)
    corners = torch.tensor([[i >> k & 1 for k in range(5)] for i in range(32)], dtype=F64) * 2 - 1
    # Moments without cross terms: the corners of a box, twice, at two places along the first axis.
    parts = [(corners * scale * s + torch.eye(5, dtype=F64)[0] * c) @ axes.T for s, c in ((1.0, 40.0), (0.5, -40.0))]
    law = GaussianMixture.fit(torch.cat(parts), 2, shared_basis=True)
    full = GaussianMixture.fit(torch.cat(parts), 2)
    torch.testing.assert_close(dense(law), dense(full), atol=1e-12, rtol=0)


def test_numbers_of_numpy_and_data_of_any_type_are_taken():
    """Ranks from np.arange; masks, 8-bit images and bfloat16 as data."""
    data = torch.randint(0, 2, (40, 4), generator=torch.Generator().manual_seed(0))
    wanted = Gaussian.fit(data.double(), rank=2)
    for own in (data.bool(), data.bool().numpy(), data.to(torch.uint8), data.bfloat16()):
        law = Gaussian.fit(own, rank=np.int64(2))
        torch.testing.assert_close(law.spectrum.values, wanted.spectrum.values)
        assert GaussianMixture.fit(own, 3, rank=np.int64(1)).rank == 1
        assert MixtureFamily(own, np.int64(2), warm=(2, 3)).mixture(3, np.int64(1)).rank == 1
    for bad in (True, -1, np.int64(-1), 1.0, 0.0, "2"):
        with pytest.raises(ArgumentError, match="rank"):
            Gaussian.fit(data, rank=bad)
