"""The Fréchet distance: closed forms, singular covariances, streaming, and the finite-sample correction."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from farfield.errors import ArgumentError, DataError
from farfield.metrics import (
    FeatureStatistics,
    corrected_frechet,
    frechet_distance,
    frechet_floor,
    frechet_infinity,
    pca_features,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_covariance(dim: int, rank: int, seed: int) -> torch.Tensor:
    root = normal(dim, rank, seed=seed)
    return root @ root.T


@pytest.mark.parametrize(("t", "known"), [(1.0, 1.04630345), (0.1, None), (1e-3, None), (30.0, None)])
def test_gaussian_blurred_by_noise(t, known):
    # Σ (sqrt(s² + t²) − s)² for N(0, diag(s²)) against N(0, diag(s² + t²)), s² = 4, 1, 0.01.
    squares = torch.tensor([4.0, 1.0, 0.01], dtype=torch.float64)
    truth = float(((squares + t * t).sqrt() - squares.sqrt()).square().sum())
    mean = torch.zeros(3, dtype=torch.float64)
    rotation = torch.linalg.qr(normal(3, 3)).Q
    clean, noisy = (rotation @ torch.diag(s) @ rotation.T for s in (squares, squares + t * t))
    assert frechet_distance((mean, clean), (mean, noisy)) == pytest.approx(truth, rel=1e-9, abs=1e-13)
    if known is not None:
        assert truth == pytest.approx(known, abs=5e-9)


@pytest.mark.parametrize("dim", [1, 5, 60])
def test_agrees_with_the_matrix_square_root(dim):
    a, b = random_covariance(dim, dim + 5, 1), random_covariance(dim, dim + 5, 2)
    mean_a, mean_b = normal(dim, seed=3), normal(dim, seed=4)
    root = scipy.linalg.sqrtm(a.numpy() @ b.numpy())
    truth = float((mean_a - mean_b).square().sum() + a.trace() + b.trace()) - 2 * float(np.trace(root).real)
    assert frechet_distance((mean_a, a), (mean_b, b)) == pytest.approx(truth, rel=1e-9)


def test_symmetric_zero_and_invariant():
    a, b = normal(400, 7, seed=1), normal(300, 7, seed=2) @ random_covariance(7, 9, 3) + 1
    forward = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(forward, rel=1e-12)
    assert frechet_distance(a, a) <= 1e-13
    rotation = torch.linalg.qr(normal(7, 7, seed=5)).Q
    assert frechet_distance(a @ rotation + 3, b @ rotation + 3) == pytest.approx(forward, rel=1e-12)
    assert frechet_distance(2 * a, 2 * b) == pytest.approx(4 * forward, rel=1e-12)
    assert frechet_distance(a, a + 0.5) == pytest.approx(7 * 0.25, rel=1e-12)


def test_singular_covariances():
    dim, mean = 40, torch.zeros(40, dtype=torch.float64)
    a, b, zero = random_covariance(dim, 6, 1), random_covariance(dim, 9, 2), torch.zeros(dim, dim)
    scale = float(a.trace() + b.trace())
    assert frechet_distance((mean, a), (mean, a)) <= 1e-12 * scale
    assert frechet_distance((mean, a), (mean, 4 * a)) == pytest.approx(float(a.trace()), rel=1e-12)
    # tr (A^{1/2} B A^{1/2})^{1/2} is the nuclear norm of the product of any two roots.
    nuclear = float(torch.linalg.svdvals(normal(dim, 6, seed=1).T @ normal(dim, 9, seed=2)).sum())
    assert frechet_distance((mean, a), (mean, b)) == pytest.approx(scale - 2 * nuclear, rel=1e-12)
    assert frechet_distance((mean, b), (mean, a)) == pytest.approx(scale - 2 * nuclear, rel=1e-12)
    assert frechet_distance((mean, a), (mean, zero)) == pytest.approx(float(a.trace()), rel=1e-14)
    assert frechet_distance((mean, zero), (mean, a)) == pytest.approx(float(a.trace()), rel=1e-14)
    few = normal(10, dim, seed=6)  # fewer samples than features
    assert frechet_distance(few, few) <= 1e-12 * dim


@pytest.mark.parametrize("sizes", [[2500], [1] * 2500, [1024, 1024, 452], [7, 2000, 493], [0, 2499, 1]])
def test_statistics_do_not_depend_on_the_batches(sizes):
    x = normal(2500, 6) * 1e-3 + 1e4  # raw second moments would lose eight digits here
    whole, parts = FeatureStatistics.of(x), FeatureStatistics(6)
    for batch in x.split(sizes):
        parts.update(batch)
    assert parts.count == 2500
    assert torch.equal(parts.mean(), whole.mean())
    assert torch.equal(parts.covariance(), whole.covariance())
    truth = np.cov(x.numpy().astype(np.longdouble).T)
    assert torch.allclose(whole.covariance(), torch.from_numpy(truth.astype(np.float64)), rtol=1e-8, atol=1e-14)
    biased = whole.covariance(unbiased=False)
    assert torch.allclose(biased * 2500 / 2499, whole.covariance(), rtol=1e-12)


def test_reading_statistics_does_not_change_them():
    x = normal(1500, 3)
    stream = FeatureStatistics(3).update(x[:700])
    stream.mean(), stream.covariance()
    assert torch.equal(stream.update(x[700:]).covariance(), FeatureStatistics.of(x).covariance())


def test_merge():
    x = normal(3000, 4) + torch.tensor([1e3, 0, -1e3, 1])
    a, b = FeatureStatistics.of(x[:1300]), FeatureStatistics.of(x[1300:])
    merged, whole = a.merge(b), FeatureStatistics.of(x)
    assert merged.count == 3000
    assert torch.allclose(merged.mean(), whole.mean(), rtol=1e-13, atol=0)
    assert torch.allclose(merged.covariance(), whole.covariance(), rtol=1e-10, atol=1e-12)
    assert torch.equal(FeatureStatistics(4).merge(a).covariance(), a.covariance())
    assert torch.equal(a.merge(FeatureStatistics(4)).covariance(), a.covariance())
    more = merged.update(x[:10])
    assert more.count == 3010


def test_wrong_inputs():
    with pytest.raises(DataError, match="NaN"):
        FeatureStatistics(2).update(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(ArgumentError, match="at least 2"):
        FeatureStatistics.of(torch.zeros(1, 2)).covariance()
    with pytest.raises(ArgumentError, match=r"\(n, 2\)"):
        FeatureStatistics(2).update(torch.zeros(3, 3))
    with pytest.raises(ArgumentError, match="to merge"):
        FeatureStatistics(2).merge(FeatureStatistics(3))
    with pytest.raises(ArgumentError, match="on the other"):
        frechet_distance(normal(9, 2), normal(9, 3))
    with pytest.raises(ArgumentError, match="eigenvalue"):
        frechet_distance(normal(9, 2), (torch.zeros(2), -torch.eye(2)))
    with pytest.raises(ArgumentError, match="expected shapes"):
        frechet_distance(normal(9, 2), (torch.zeros(2), torch.eye(3)))


def law(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(dim, dtype=torch.float64), torch.diag(1 / torch.arange(1, dim + 1, dtype=torch.float64))


def draw(n: int, dim: int, seed: int) -> torch.Tensor:
    return normal(n, dim, seed=seed) * law(dim)[1].diagonal().sqrt()


@pytest.mark.parametrize(("dim", "n", "other"), [(1, 50, None), (10, 300, None), (10, 200, 400), (20, 400, None)])
def test_floor_is_the_mean_distance_of_samples_to_their_law(dim, n, other):
    values = [
        frechet_distance(draw(n, dim, seed), law(dim) if other is None else draw(other, dim, 1000 + seed))
        for seed in range(200)
    ]
    error = float(np.std(values)) / math.sqrt(len(values))
    assert frechet_floor(law(dim), n, other) == pytest.approx(float(np.mean(values)), rel=0.04, abs=4 * error)


def test_floor_in_one_dimension():
    # Mean term λ/n; (sqrt(S) − sqrt(λ))² has the leading order λ/(2(n − 1)).
    one = (torch.zeros(1), torch.tensor([[3.0]]))
    assert frechet_floor(one, 11) == pytest.approx(3 / 11 + 1.5 / 10, rel=1e-12)
    with pytest.raises(ArgumentError, match="at least 2"):
        frechet_floor(one, 1)


@pytest.mark.parametrize(("dim", "n"), [(8, 300), (40, 297)])
def test_corrected_distance_of_one_law_is_that_of_the_target_size(dim, n):
    # Both the formula (n/2 ≥ 10 d) and the simulated regressor are met.
    target, reference = 1500, 1500
    truth = frechet_floor(law(dim), target, reference)
    results = [
        corrected_frechet(draw(n, dim, seed), draw(reference, dim, 500 + seed), target, seed=seed, repeats=8)
        for seed in range(12)
    ]
    values, raw = [r.value for r in results], float(np.mean([r.raw for r in results]))
    error = float(np.std(values)) / math.sqrt(len(values))
    assert raw > 2 * truth  # uncorrected, the two sizes do not compare
    assert float(np.mean(values)) == pytest.approx(truth, abs=3 * error + 0.04 * raw)
    assert all(r.spread > 0 for r in results)


def test_corrected_distance_of_two_laws():
    dim, n, target = 8, 200, 2000
    mean, covariance = law(dim)
    truth = frechet_distance((mean + 0.3, 2 * covariance), (mean, covariance))
    results = [
        frechet_infinity(draw(n, dim, seed) * math.sqrt(2) + 0.3, (mean, covariance), seed=seed, repeats=8)
        for seed in range(30)
    ]
    values = [r.value for r in results]
    assert float(np.mean(values)) == pytest.approx(truth, abs=3 * float(np.std(values)) / math.sqrt(30))
    assert float(np.mean([r.raw for r in results])) > truth
    single = corrected_frechet(draw(n, dim, 1), draw(target, dim, 2), target)
    assert single.n_other == target


def test_correction_is_seeded_and_records_itself():
    a, b = draw(100, 5, 1), draw(300, 5, 2)
    first, again, other = (corrected_frechet(a, b, 300, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.value != other.value
    assert corrected_frechet(b, a, 300, seed=3) == first  # the smaller set is found
    record = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert (record["n"], record["n_other"], record["n_target"], record["seed"]) == (100, 300, 300, 3)
    assert record["sizes"][0] == 100
    assert record["distances"][0] == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert json.loads(json.dumps(frechet_infinity(a, b).to_dict(), allow_nan=False))["n_target"] is None


def test_smaller_targets_are_measured():
    a, b = draw(100, 3, 1), draw(300, 3, 2)
    assert corrected_frechet(a, b, 100).value == frechet_distance(a, b)
    fewer = corrected_frechet(a, b, 40)
    assert fewer.sizes == (40,)
    assert fewer.value > frechet_distance(a, b)
    with pytest.raises(ArgumentError, match="n_target"):
        corrected_frechet(a, b, 1)
    with pytest.raises(ArgumentError, match="repeats"):
        corrected_frechet(a, b, 200, repeats=0)
    constant = corrected_frechet(a, torch.zeros(300, 3), 200)
    assert math.isfinite(constant.value)


def test_pca_features():
    basis = torch.linalg.qr(normal(12, 12, seed=7)).Q
    data = (normal(500, 12, seed=8) * torch.linspace(3, 0.1, 12)) @ basis + 2
    images = data.reshape(500, 3, 2, 2)
    features = pca_features(images, 4)
    out = features(images)
    assert out.shape == (500, 4)
    assert out.dtype == torch.float64
    assert torch.allclose(out.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.cov(out.T), torch.diag(features.variances), atol=1e-10)
    assert bool((features.variances[:-1] > features.variances[1:]).all())
    assert float(features.variances.sum()) / float(data.var(0).sum()) == pytest.approx(features.explained, rel=1e-10)
    lead = features.basis.gather(0, features.basis.abs().argmax(0, keepdim=True))
    assert bool((lead > 0).all())
    assert torch.allclose(pca_features(images.flip(0), 4).basis, features.basis, atol=1e-10)
    # All components: an isometry, so the distance is that of the pixels.
    full = pca_features(images, 12)
    other = images * 1.2 - 0.1
    assert frechet_distance(full(images), full(other)) == pytest.approx(
        frechet_distance(images.flatten(1), other.flatten(1)), rel=1e-10
    )
    with pytest.raises(ArgumentError, match="1 to 12"):
        pca_features(images, 13)
    with pytest.raises(ArgumentError, match="12 coordinates"):
        features(torch.zeros(2, 3))
