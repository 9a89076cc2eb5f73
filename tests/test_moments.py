"""Means, covariances and their leading eigenpairs: accuracy, memory, ranks and shrinkage."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics import covariance, covariance_leading, moments
from farfield.numerics.covariance_leading import kept, krylov, weighted
from farfield.numerics.covariance_sums import MomentSums
from farfield.numerics.shrinkage import Regulariser

F64 = torch.float64


def image_like(n, d, offset=0.0, power=1.5):
    """Points whose covariance has the spectrum of photographs, λ_k ∝ k^(−2·power/2) about 200 at the top."""
    basis = torch.linalg.qr(torch.randn(d, d, dtype=F64))[0]
    return (torch.randn(n, d, dtype=F64) * 14 * torch.arange(1, d + 1).double().pow(-power)) @ basis.T + offset


def exact(x):
    """The covariance by numpy, from the exact differences to the mean."""
    y = x.flatten(1).double().numpy()
    y = y - y.mean(0)
    return torch.from_numpy(y.T @ y / len(y))


# -- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
def test_the_covariance_is_that_of_float64(offset):
    x = image_like(700, 90, offset).float()
    stats = moments.moments(x)
    expected = exact(x)
    top = float(torch.linalg.matrix_norm(expected, 2))
    torch.testing.assert_close(stats.covariance, expected, atol=1e-14 * top * max(1, offset), rtol=0)
    assert torch.equal(stats.covariance, stats.covariance.T)
    # Small eigenvalues, 1e-6 of the largest, come out to six digits: float32 products would lose them.
    values = torch.linalg.eigvalsh(stats.covariance)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(expected), rtol=1e-6, atol=0)
    narrow = torch.linalg.eigvalsh((x.T @ x / len(x) - torch.outer(x.mean(0), x.mean(0))).double())
    assert float((narrow / values - 1).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, F64])
def test_every_type_of_data(kind):
    x = (40 * torch.randn(50, 2, 3) + 128).clamp(0, 255).to(kind)
    stats = moments.moments(x)
    assert stats.mean.shape == (2, 3)
    assert stats.mean.dtype == F64
    torch.testing.assert_close(stats.covariance, exact(x), atol=1e-9, rtol=1e-12)


def test_strided_data_and_one_coordinate():
    x = torch.randn(60, 8, 6, dtype=F64)
    for y in (x[:, ::2], x.transpose(1, 2), x[:, :1, :1], x[::3]):
        torch.testing.assert_close(moments.moments(y).covariance, exact(y), atol=1e-13, rtol=0)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_symmetric_product_is_added_in_place(rows, transposed):
    y = torch.randn(rows, 600, dtype=F64)
    y = y.T.contiguous().T if transposed else y
    total = torch.eye(600, dtype=F64)
    place = total.data_ptr()
    covariance.add_products(total, y)
    covariance.mirror(total)
    assert total.data_ptr() == place
    torch.testing.assert_close(total, torch.eye(600, dtype=F64) + y.T @ y)


def test_blas_keeps_to_the_threads_of_torch():
    from threadpoolctl import threadpool_info

    def threads():
        return {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}

    before = threads()
    with covariance.blas_threads():
        assert max(threads()) <= torch.get_num_threads()
    assert threads() == before


class Largest(TorchDispatchMode):
    """The largest tensor, in bytes, that any operation made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if (
                isinstance(value, torch.Tensor)
                and value._base is None
                and value.untyped_storage().data_ptr() not in KNOWN
            ):
                self.bytes = max(self.bytes, value.numel() * value.element_size())
        return result


KNOWN = set()


@pytest.mark.parametrize("mapped", [False, True])
def test_a_fit_makes_no_second_copy(mapped, tmp_path, monkeypatch):
    """Nothing larger than a block or the d×d matrix is made, from memory and from a file."""
    monkeypatch.setattr(covariance, "block_size", lambda dim, limit=4096: 128)
    x = torch.randn(6000, 64)
    data = x
    if mapped:
        np.save(tmp_path / "x.npy", x.numpy())
        data = np.load(tmp_path / "x.npy", mmap_mode="r")
    KNOWN.clear()
    KNOWN.add(x.untyped_storage().data_ptr())
    with Largest() as largest:
        law = Gaussian.fit(data, rank=8)
    assert 0 < largest.bytes <= 128 * 64 * 8
    assert law.spectrum.values[0] == pytest.approx(float(torch.linalg.eigvalsh(exact(x))[-1]))


# -- ranks, energies, shrinkage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(400, 70), (40, 70)])
@pytest.mark.parametrize("limit", [4096, 30])
def test_a_fraction_of_the_variance_is_kept_by_the_fewest(shape, limit, monkeypatch):
    """Dense, Gram and Krylov agree on the rank and on the law."""
    monkeypatch.setattr(moments, "DENSE_LIMIT", limit)
    x = image_like(*shape, power=0.75)
    values = torch.linalg.eigvalsh(exact(x)).flip(0)
    share = values.cumsum(0) / values.sum()
    for energy in (0.3, 0.8, 0.95):
        spectrum = Gaussian.fit(x, rank=energy).spectrum
        assert spectrum.rank == int((share < energy).sum()) + 1
        torch.testing.assert_close(spectrum.values, values[: spectrum.rank], rtol=1e-7, atol=0)
        assert spectrum.trace == pytest.approx(float(values.sum()))


def test_fractions_at_the_edges():
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=F64)
    for energy, rank in ((0.4, 1), (0.41, 2), (0.7, 2), (0.9, 3), (0.95, 4), (3, 3), (9, 4)):
        assert kept(energy, values, 10.0) == rank
    equal = Gaussian.fit(torch.eye(10, dtype=F64), rank=0.5)
    assert equal.spectrum.rank == 5
    cosine = Gaussian.fit(image_like(300, 64).view(-1, 8, 8), rank=0.9, basis="dct").spectrum
    found = cosine.values.sort(descending=True).values
    n = int((found > found[-1] * (1 + 1e-9)).sum())
    assert float(found[:n].sum()) >= 0.9 * float(found.sum()) > float(found[: n - 1].sum())
    for wrong in (-1, 0.0, 1.0, 1.5, True, "all"):
        for basis in ("pca", "dct"):
            with pytest.raises(ArgumentError, match="rank"):
                Gaussian.fit(torch.randn(9, 3), rank=wrong, basis=basis)


@pytest.mark.parametrize("shape", [(300, 12), (25, 40), (40, 40), (12, 1), (1, 6)])
def test_shrinkage_is_that_of_scikit_learn(shape, recwarn):
    from sklearn import covariance as reference

    x = image_like(*shape, offset=2.0)
    for name, function in (("oas", reference.oas), ("ledoit_wolf", reference.ledoit_wolf)):
        if shape[0] > 1:
            expected, rho = function(x.numpy())
            for data in (x, MomentSums().update(x), iter(x.split(7))):
                law = Gaussian.fit(data, shrinkage=name)
                torch.testing.assert_close(law.spectrum.dense(), torch.from_numpy(expected), atol=1e-10, rtol=1e-9)
            assert 0 <= rho <= 1
        else:
            assert Gaussian.fit(x, shrinkage=name).spectrum.trace == 0
    assert not [w for w in recwarn if "farfield" in str(w.filename)]


def test_shrinkage_by_a_number_before_the_rank_is_cut():
    x = image_like(20, 30)
    full = exact(x)
    level = float(full.trace()) / 30
    expected = 0.7 * full + 0.3 * level * torch.eye(30, dtype=F64)
    law = Gaussian.fit(x, shrinkage=0.3)
    torch.testing.assert_close(law.spectrum.dense(), expected)
    assert law.spectrum.smallest == pytest.approx(0.3 * level)
    assert math.isfinite(float(law.log_prob(x)[0]))
    low = Gaussian.fit(x, rank=4, shrinkage=0.3).spectrum
    torch.testing.assert_close(low.values, torch.linalg.eigvalsh(expected).flip(0)[:4])
    assert low.trace == pytest.approx(float(full.trace()))
    assert Gaussian.fit(x, rank=4, shrinkage=0.3, tail="zero").spectrum.tail == 0
    cosine = Gaussian.fit(x.view(-1, 5, 6), basis="dct", shrinkage=1.0).spectrum
    torch.testing.assert_close(cosine.dense(), level * torch.eye(30, dtype=F64))
    for wrong in (-0.1, 1.1, "ledoit", math.nan):
        with pytest.raises(ArgumentError, match="shrinkage"):
            Gaussian.fit(x, shrinkage=wrong)
    with pytest.raises(ArgumentError, match="number"):
        Gaussian.fit(x, basis="dct", shrinkage="oas")
    with pytest.raises(ArgumentError, match="ledoit_wolf"):
        Regulariser("ledoit_wolf").line(5, 5, 1.0, 1.0)


def test_divisor_and_jitter_are_arguments():
    """gaussian_score E29: divisor N and no jitter unless asked for, with eigenvalues clamped at 0."""
    x = image_like(40, 6)
    torch.testing.assert_close(Gaussian.fit(x).spectrum.dense(), torch.cov(x.T, correction=0))
    other = Gaussian.fit(x, correction=1, jitter=1e-5).spectrum
    torch.testing.assert_close(other.dense(), torch.cov(x.T) + 1e-5 * torch.eye(6, dtype=F64))
    flat = torch.cat((x, torch.ones(40, 2, dtype=F64)), 1)
    assert float(Gaussian.fit(flat).spectrum.values[-1]) >= 0
    few = Gaussian.fit(x[:3], correction=1, jitter=1e-5)
    torch.testing.assert_close(few.spectrum.dense(), torch.cov(x[:3].T) + 1e-5 * torch.eye(6, dtype=F64))
    low = Gaussian.fit(x, rank=2, tail="zero", correction=1, jitter=1e-5).spectrum
    torch.testing.assert_close(low.values, other.values[:2])
    assert low.tail == 0
    cosine = Gaussian.fit(x.view(-1, 2, 3), basis="dct", correction=1, jitter=1e-5).spectrum
    assert cosine.trace == pytest.approx(other.trace)
    assert Gaussian.fit(x[:1], correction=1, jitter=1e-5).spectrum.trace == pytest.approx(6e-5)
    for options in ({"correction": -1}, {"jitter": -1.0}, {"jitter": math.inf}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            Gaussian.fit(x, **options)


def test_shrinkage_helps_where_points_are_few():
    """gaussian_score section 8 item 8: held-out likelihood with N < d, where the sample covariance has none at all."""
    x = image_like(240, 60, power=0.5)
    few, others = x[:40], x[40:]
    level = 0.1
    plain, oas = Gaussian.fit(few), Gaussian.fit(few, shrinkage="oas")
    assert float(oas.log_prob(others, level).mean()) > float(plain.log_prob(others, level).mean()) + 10


@pytest.mark.parametrize("shape", [(30, 50), (300, 50), (300, 200)])
@pytest.mark.parametrize("rank", [None, 5])
def test_weighted_statistics(shape, rank):
    """Weights count points: those of a repeated data set are whole numbers."""
    x, counts = image_like(*shape, offset=1.0), torch.arange(shape[0]) % 3
    mean, found = weighted(x, counts.double(), rank)
    again = x.repeat_interleave(counts, 0)
    torch.testing.assert_close(mean, again.mean(0))
    expected = exact(again)
    top = torch.linalg.eigvalsh(expected).flip(0)[: len(found.values)]
    torch.testing.assert_close(found.values, top, rtol=1e-9, atol=1e-11)
    assert found.trace == pytest.approx(float(expected.trace()))
    assert found.squares == pytest.approx(float(expected.square().sum()))
    if rank is None:
        whole = found.basis @ torch.diag(found.values) @ found.basis.T
        torch.testing.assert_close(whole, expected, atol=1e-10, rtol=1e-8)


def test_a_krylov_space_knows_the_sums_over_all_eigenvalues():
    x = image_like(150, 80)
    found = krylov(x, x.mean(0), 20)
    expected = exact(x)
    y = x - x.mean(0)
    assert found.trace == pytest.approx(float(expected.trace()))
    assert found.squares == pytest.approx(float(expected.square().sum()), rel=1e-6)
    assert found.fourth == pytest.approx(float(y.square().sum(1).square().mean()))
    weights = torch.rand(150, dtype=F64)
    scaled = krylov(x, (weights / weights.sum()) @ x, 10, (weights / weights.sum()).sqrt())
    torch.testing.assert_close(scaled.values, weighted(x, weights, 10)[1].values, rtol=1e-8, atol=0)


def test_high_dimensions_by_products_of_points():
    """d = 12288 (64×64×3): few points never make a d×d matrix, and the law is exact on their span."""
    x = torch.randn(60, 3, 64, 64) * torch.linspace(2, 0.1, 64)
    KNOWN.clear()
    KNOWN.add(x.untyped_storage().data_ptr())
    with Largest() as largest:
        law = Gaussian.fit(x, rank=20)
    assert largest.bytes <= 60 * 12288 * 8
    y = (x - x.mean(0)).flatten(1).double()
    values = torch.linalg.eigvalsh(y @ y.T / 60).flip(0)
    torch.testing.assert_close(law.spectrum.values, values[:20])
    assert law.spectrum.trace == pytest.approx(float(values.sum()))
    assert law(x, 0.5).shape == x.shape


@pytest.mark.parametrize("shape", [(23, 60), (90, 31)])
def test_blocks_of_any_size_give_the_same_law(shape, monkeypatch):
    """Rows, columns and weights stay together when the data are cut anywhere."""
    x, weights = image_like(*shape, offset=1.0), torch.rand(shape[0], dtype=F64)
    scale = (weights / weights.sum()).sqrt()
    laws = [
        (lambda: Gaussian.fit(x).spectrum.dense()),
        (lambda: Gaussian.fit(x, basis="dct").spectrum.values),
        (lambda: weighted(x, weights, 4)[1].values),
        (lambda: weighted(x, weights, 4)[0]),
        (lambda: krylov(x, scale.square() @ x, 4, scale).values),
    ]
    whole = [law() for law in laws]
    for module in (covariance, covariance_leading):
        monkeypatch.setattr(module, "block_size", lambda dim, limit=4096: 7)
    for law, expected in zip(laws, whole, strict=True):
        torch.testing.assert_close(law(), expected, rtol=1e-9, atol=1e-10)
