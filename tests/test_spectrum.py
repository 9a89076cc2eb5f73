"""Spectra, moments, array storage and the online softmax."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.errors import ArgumentError, DataError
from farfield.numerics import arrays, moments, streams
from farfield.numerics.dct import dct_matrix
from farfield.numerics.spectrum import Spectrum
from farfield.numerics.streaming import OnlineSoftmax

SHAPE = (3, 4, 5)


def orthonormal(d, r):
    return torch.linalg.qr(torch.randn(d, r, dtype=torch.float64))[0]


def every_kind():
    d = 60
    root = torch.randn(d, d, dtype=torch.float64)
    return {
        "dense": Spectrum.from_covariance(root @ root.T),
        "low rank": Spectrum.low_rank(orthonormal(d, 7), torch.rand(7) + 1, tail=0.3),
        "low rank, no tail": Spectrum.low_rank(orthonormal(d, 7), torch.rand(7) + 1),
        "rank 0": Spectrum.isotropic(d, 0.7),
        "diagonal": Spectrum.diagonal(torch.rand(d)),
        "dct": Spectrum.dct(SHAPE, torch.rand(d), orthonormal(3, 3)),
        "dct of a plane": Spectrum.dct((6, 10), torch.rand(d)),
        "dct of a line": Spectrum.dct((60,), torch.rand(d)),
    }


KINDS = tuple(every_kind())


@pytest.mark.parametrize("kind", KINDS)
def test_filter_is_the_matrix_function(kind):
    spectrum = every_kind()[kind].double()
    y = torch.randn(4, 60, dtype=torch.float64)
    dense = spectrum.dense()
    values, vectors = torch.linalg.eigh(dense)
    root = vectors @ torch.diag((values.clamp(min=0) + 2).sqrt()) @ vectors.T
    ours = spectrum.filter(y, (spectrum.values + 2).sqrt(), (spectrum.tail + 2) ** 0.5)
    torch.testing.assert_close(ours, y @ root, atol=1e-6, rtol=1e-6)
    assert spectrum.trace == pytest.approx(float(dense.trace()), rel=1e-6)
    offset = torch.randn(60, dtype=torch.float64)
    with_offset = spectrum.filter(y, spectrum.values, spectrum.tail, offset=offset)
    torch.testing.assert_close(with_offset, y @ dense + offset, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_projection_filter_and_batched_gains_agree(kind):
    spectrum = every_kind()[kind].double()
    y = torch.randn(4, 60, dtype=torch.float64)
    gains = torch.rand(4, spectrum.rank, dtype=torch.float64)
    tail = torch.rand(4, 1, dtype=torch.float64)
    c = spectrum.project(y)
    plain = spectrum.expand(gains * c) + tail * (y - spectrum.expand(c))
    torch.testing.assert_close(spectrum.filter(y, gains, tail), plain, atol=1e-6, rtol=1e-5)
    rows = [spectrum.filter(y[i : i + 1], gains[i], float(tail[i])) for i in range(4)]
    torch.testing.assert_close(torch.cat(rows), spectrum.filter(y, gains, tail), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_storage_is_exact_and_types_follow_the_state(kind):
    spectrum = every_kind()[kind]
    again = Spectrum.from_dict(json.loads(json.dumps(spectrum.to_dict())))
    y = torch.randn(2, 60)
    assert torch.equal(again.filter(y, again.values, again.tail), spectrum.filter(y, spectrum.values, spectrum.tail))
    assert torch.equal(again.values, spectrum.values)
    assert again.filter(y, again.values, again.tail).dtype == torch.float32
    assert again.float().values.dtype == torch.float64
    assert torch.equal(again.half().values, spectrum.values)


@pytest.mark.parametrize("kind", KINDS)
def test_truncation_keeps_the_trace_with_the_mean_and_drops_it_with_zero(kind):
    spectrum = every_kind()[kind]
    rank = min(3, spectrum.rank)
    mean, zero = spectrum.truncate(rank), spectrum.truncate(rank, "zero")
    assert mean.trace == pytest.approx(spectrum.trace)
    top = spectrum.values.sort(descending=True).values[:rank]
    assert zero.trace == pytest.approx(float(top.sum()))
    assert zero.tail_dim + zero.rank == 60


def test_a_basis_in_another_type_is_made_once():
    spectrum = Spectrum.low_rank(orthonormal(60, 7).float(), torch.rand(7) + 1, tail=0.3)
    y = torch.randn(2, 60, dtype=torch.float64)
    with torch.inference_mode():
        value = spectrum.filter(y, spectrum.values, spectrum.tail)
    lifted = spectrum._matrix(torch.float64)
    assert spectrum._matrix(torch.float64) is lifted
    assert spectrum._matrix(torch.float32) is spectrum.basis
    assert "_lift" not in spectrum.state_dict()
    # Made under inference mode, it still serves a gradient.
    state = y.clone().requires_grad_()
    torch.autograd.grad(spectrum.filter(state, spectrum.values, spectrum.tail).sum(), state)
    assert torch.equal(spectrum.filter(y, spectrum.values, spectrum.tail), value)
    other = Spectrum.low_rank(orthonormal(60, 7).float(), torch.rand(7) + 1, tail=0.3)
    spectrum.load_state_dict(other.state_dict())
    assert torch.equal(spectrum._matrix(torch.float64), other._matrix(torch.float64))
    spectrum.double()
    assert spectrum._matrix(torch.float64) is spectrum.basis


def test_dct_matrix_is_scipys_orthonormal_dct():
    from scipy.fft import dct

    x = np.random.default_rng(0).normal(size=9)
    assert np.allclose(dct_matrix(9).numpy() @ x, dct(x, type=2, norm="ortho"))


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match="symmetric"):
        Spectrum.from_covariance(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ArgumentError, match="negative"):
        Spectrum.from_covariance(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    with pytest.raises(ArgumentError, match="not finite"):
        Spectrum.diagonal([1.0, float("nan")])
    with pytest.raises(ArgumentError, match="orthonormal"):
        Spectrum.low_rank(torch.ones(3, 2), [1.0, 1.0])
    with pytest.raises(ArgumentError, match="expected"):
        Spectrum.low_rank(orthonormal(3, 2), [1.0])
    with pytest.raises(ArgumentError, match="tail"):
        Spectrum.isotropic(3, -1.0)
    with pytest.raises(ArgumentError, match="rank"):
        Spectrum.isotropic(3, 1.0).truncate(1)
    with pytest.raises(ArgumentError, match="event shape"):
        Spectrum.dct((2, 2), [1.0])


def test_stored_spectra_are_checked():
    good = Spectrum.diagonal([1.0, 2.0]).to_dict()
    for change in ({"kind": "other"}, {"dim": 3}, {"tail": "x"}, {"values": {"dtype": "float64"}}):
        with pytest.raises(DataError):
            Spectrum.from_dict(good | change)
    with pytest.raises(DataError):
        Spectrum.from_dict({})
    array = arrays.encode(torch.tensor([1.0, 2.0]))
    assert torch.equal(arrays.decode(array), torch.tensor([1.0, 2.0]))
    for change in ({"shape": [3]}, {"dtype": "object"}, {"data": "!"}, {"shape": "x"}):
        with pytest.raises(DataError):
            arrays.decode(array | change)
    with pytest.raises(DataError, match="finite"):
        arrays.decode(arrays.encode(torch.tensor([float("inf")])))


def test_uniforms_lie_inside_the_open_interval():
    """The largest 53-bit integer plus a half would round to 1; every other value is as it was."""
    word = torch.tensor([0, 0xFFFFFFFF])
    low = streams._unit(word, torch.tensor([0, 0xFFFFFFFF]))
    assert low.tolist() == [2.0**-54, 1 - 2.0**-53]
    below = streams._unit(word[1:], torch.tensor([0xFFFFFFFF - 2048]))
    assert below.tolist() == [((2**53 - 2) + 0.5) * 2.0**-53]
    assert bool(low.log().isfinite().all())


# -- moments ----------------------------------------------------------------------------------------------------------


def test_moments_stream_over_tensors_maps_and_blocks(tmp_path):
    x = torch.randn(300, 2, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 1e4
    expected = torch.cov(x.flatten(1).T, correction=0)
    np.save(tmp_path / "x.npy", x.numpy())
    for data in (x, np.load(tmp_path / "x.npy", mmap_mode="r"), list(x.split(70)), iter(x.split(1))):
        stats = moments.moments(data)
        assert stats.count == 300
        assert stats.mean.shape == (2, 3)
        # A mean of 1e4 costs no digits: the blocks are shifted.
        torch.testing.assert_close(stats.covariance, expected, atol=1e-10, rtol=1e-10)


def test_moments_refuse_bad_data():
    with pytest.raises(DataError, match="empty"):
        moments.moments(torch.zeros(0, 3))
    with pytest.raises(DataError, match="finite"):
        moments.moments(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(DataError, match="shape"):
        moments.moments([torch.zeros(2, 3), torch.zeros(2, 4)])


def test_transform_variances_are_those_of_the_coefficients():
    x = torch.randn(500, *SHAPE, dtype=torch.float64) + torch.randn(500, 1, 1, 1, dtype=torch.float64)
    stats = moments.dct_moments(x)
    spectrum = Spectrum.dct(SHAPE, stats.values, stats.channel_basis)
    c = spectrum.project((x - stats.mean).flatten(1))
    torch.testing.assert_close(c.square().mean(0), stats.values)
    covariance = moments.moments(x).covariance
    assert spectrum.trace == pytest.approx(float(covariance.trace()))
    # The channels come out uncorrelated, summed over frequencies.
    cross = torch.einsum("nci,ndi->cd", c.view(500, 3, -1), c.view(500, 3, -1))
    assert float((cross - torch.diag(cross.diagonal())).abs().max()) < 1e-8 * float(cross.max())


def test_principal_agrees_between_covariance_gram_and_krylov(monkeypatch):
    x = torch.randn(40, 30, dtype=torch.float64) * torch.arange(1, 31).pow(-1.5)
    _, dense = moments.principal(x, 4)
    monkeypatch.setattr(moments, "DENSE_LIMIT", 10)
    _, krylov = moments.principal(x, 4)
    torch.testing.assert_close(krylov.values, dense.values)
    assert krylov.tail == pytest.approx(dense.tail)
    torch.testing.assert_close(krylov.dense(), dense.dense(), atol=1e-5, rtol=1e-4)
    with pytest.raises(ArgumentError, match="rank"):
        moments.principal(x)
    with pytest.raises(ArgumentError, match="several times"):
        moments.principal(iter([x]), 4)
    monkeypatch.undo()
    few = x[:12]
    _, gram = moments.principal(few)
    assert gram.rank == 11
    torch.testing.assert_close(gram.dense(), torch.cov(few.T, correction=0), atol=1e-12, rtol=1e-9)


# -- the online softmax -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 1e4), st.integers(1, 9))
def test_online_softmax_equals_softmax(seed, size, block):
    generator = torch.Generator().manual_seed(seed)
    logits = size * torch.randn(3, 20, generator=generator, dtype=torch.float64)
    values = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    tilt = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    run = OnlineSoftmax(3, 4, 2, 2, torch.float64)
    for i in range(0, 20, block):
        part = slice(i, i + block)
        run.update(logits[:, part].clone(), values[part], [None, tilt[:, part]])
    w = logits.softmax(1)
    torch.testing.assert_close(run.log_sum, logits.logsumexp(1))
    torch.testing.assert_close(run.vector_averages[0], w @ values)
    torch.testing.assert_close(run.vector_averages[1], (w * tilt) @ values)
    torch.testing.assert_close(run.scalar_averages, torch.stack((torch.ones(3).double(), (w * tilt).sum(1))))


def test_online_softmax_survives_blocks_of_minus_infinity():
    run = OnlineSoftmax(2, 1, 1, 1, torch.float64)
    run.update(torch.full((2, 3), -torch.inf, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))
    run.update(torch.tensor([[0.0], [-torch.inf]], dtype=torch.float64), torch.full((1, 1), 2.0, dtype=torch.float64))
    assert run.vector_averages[0, 0, 0] == 2.0
    assert run.log_sum.tolist() == [0.0, -torch.inf]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 7, 9, 60])
def test_leading_eigenpairs(kind, count):
    spectrum = every_kind()[kind].double()
    values, vectors = spectrum.leading(count)
    dense = spectrum.dense()
    expected = torch.linalg.eigvalsh(dense).flip(0)[:count].clamp(min=0)
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(count, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(dense @ vectors.T, vectors.T * values, atol=1e-5, rtol=1e-6)
