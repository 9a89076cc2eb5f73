"""Extreme eigenpairs and linear systems by products, against dense linear algebra."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.errors import ArgumentError
from farfield.numerics.krylov import leading_eigenpairs, random_start, solve


def product_of(matrices):
    """The product of a batch of matrices (B, d, d), and the number of calls."""
    calls = []

    def product(v):
        calls.append(v.shape)
        return (matrices.unsqueeze(1) @ v.unsqueeze(-1)).squeeze(-1).to(v.dtype)

    return product, calls


def symmetric(batch, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(batch, dim, dim, generator=generator, dtype=torch.float64)
    return (a + a.transpose(1, 2)) / 2


@pytest.mark.parametrize("largest", [True, False])
def test_agrees_with_dense_eigendecomposition(largest):
    a = symmetric(3, 40)
    product, calls = product_of(a)
    found = leading_eigenpairs(product, random_start((3, 2, 40)), 4, tolerance=1e-10, largest=largest)
    exact = torch.linalg.eigvalsh(a)
    exact = exact.flip(1)[:, :4] if largest else exact[:, :4]
    assert torch.allclose(found.values, exact, atol=1e-9)
    gap = (a @ found.vectors.transpose(1, 2)).transpose(1, 2) - found.values.unsqueeze(2) * found.vectors
    assert torch.allclose(gap.norm(dim=2), found.residuals, atol=1e-9)
    gram = found.vectors @ found.vectors.transpose(1, 2)
    assert torch.allclose(gram, torch.eye(4, dtype=torch.float64).expand(3, 4, 4), atol=1e-10)
    assert found.products == 2 * len(calls)


@settings(max_examples=25, deadline=None)
@given(dim=st.integers(1, 12), width=st.integers(1, 3), seed=st.integers(0, 1000))
def test_errors_bound_the_eigenvalues(dim, width, seed):
    """Unconverged Ritz values lie within a residual of an eigenvalue; a full space gives all of them."""
    a = symmetric(2, dim, seed)
    exact = torch.linalg.eigvalsh(a).flip(1)
    count = min(width, dim)
    early = leading_eigenpairs(product_of(a)[0], random_start((2, width, dim), seed), count, steps=2, tolerance=0.0)
    distance = (early.values.unsqueeze(2) - exact.unsqueeze(1)).abs().amin(2)
    assert (distance <= early.residuals + 1e-12).all()
    assert (early.values[:, 0] <= exact[:, 0] + 1e-12).all()
    whole = leading_eigenpairs(product_of(a)[0], random_start((2, width, dim), seed), dim, tolerance=0.0)
    assert torch.allclose(whole.values, exact, atol=1e-10)


def test_degenerate_spectra_need_a_block():
    """Multiplicity 3 is seen with three vectors in the start; with one, the value is found and then the next one."""
    q = torch.linalg.qr(symmetric(1, 20)[0]).Q
    values = torch.cat((torch.full((3,), 2.0), torch.linspace(1, 0, 17))).double()
    a = (q * values @ q.T).unsqueeze(0)
    block = leading_eigenpairs(product_of(a)[0], random_start((1, 3, 20)), 3)
    assert torch.allclose(block.values, torch.full((1, 3), 2.0).double(), atol=1e-12)
    identity = torch.eye(6, dtype=torch.float64).unsqueeze(0)
    every = leading_eigenpairs(product_of(identity)[0], random_start((1, 1, 6)), 6)
    assert torch.allclose(every.values, torch.ones(1, 6).double())


def test_a_warm_start_is_cheap_and_can_be_told_to_look_further():
    """A start that is an eigenvector is accepted at once; more steps find a larger eigenvalue that it does not see."""
    a = torch.diag(torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)).unsqueeze(0)
    start = torch.tensor([[[1.0, 0.0, 0.0]]], dtype=torch.float64)
    assert leading_eigenpairs(product_of(a)[0], start).products == 1
    assert float(leading_eigenpairs(product_of(a)[0], start).values) == pytest.approx(1.0)
    assert float(leading_eigenpairs(product_of(a)[0], start, least=3).values) == pytest.approx(3.0)


def test_slightly_asymmetric_operators():
    """The projection is that of the symmetric part, and the residual shows the antisymmetric one."""
    a = symmetric(1, 15)
    skew = torch.randn(15, 15, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    skew = 0.01 * (skew - skew.T)
    top, basis = torch.linalg.eigh(a[0])
    found = leading_eigenpairs(product_of(a + skew)[0], random_start((1, 1, 15)), tolerance=1e-12, steps=15)
    assert float(found.values) == pytest.approx(float(top[-1]), abs=1e-10)
    assert float(found.residuals) == pytest.approx(float((skew @ basis[:, -1]).norm()), rel=1e-6)


def test_single_precision_and_images():
    """Vectors keep their shape and type; dependent starts are completed."""
    a = symmetric(2, 12).float()

    def product(v):
        return (a.unsqueeze(1) @ v.flatten(2).unsqueeze(-1)).view(v.shape)

    start = random_start((2, 1, 3, 2, 2), dtype=torch.float32).expand(2, 3, 3, 2, 2)
    found = leading_eigenpairs(product, start, tolerance=1e-5)
    assert found.vectors.shape == (2, 3, 3, 2, 2)
    assert found.vectors.dtype == torch.float32
    assert torch.allclose(found.values, torch.linalg.eigvalsh(a.double()).flip(1)[:, :3], atol=1e-4)


def test_reproducible():
    a = symmetric(1, 30)
    first, second = (leading_eigenpairs(product_of(a)[0], random_start((1, 1, 30), 7), 3, steps=12) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)
    # The stream of an operator does not depend on how many there are.
    assert torch.equal(random_start((3, 2, 5), 7)[:1], random_start((1, 2, 5), 7))


@pytest.mark.parametrize("asymmetric", [0.0, 0.3])
def test_solve(asymmetric):
    a = symmetric(2, 20)
    skew = torch.randn(2, 20, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    a = a + asymmetric * (skew - skew.transpose(1, 2))
    b = random_start((2, 20), 1)
    found = solve(product_of(a)[0], b, tolerance=1e-12)
    assert torch.allclose((a @ found.x.unsqueeze(2)).squeeze(2), b, atol=1e-9)
    assert (found.residuals < 1e-9).all()


def test_solve_is_quick_for_a_few_outlying_eigenvalues():
    """1 − (rank two) needs three products, whatever the dimension; a singular system gives the least residual."""
    u = torch.linalg.qr(random_start((50, 2), 2)).Q
    a = (torch.eye(50, dtype=torch.float64) - u @ torch.diag(torch.tensor([3.0, 0.7]).double()) @ u.T).unsqueeze(0)
    found = solve(product_of(a)[0], random_start((1, 50), 3))
    assert found.products <= 3
    singular = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)).unsqueeze(0)
    found = solve(product_of(singular)[0], torch.tensor([[2.0, 1.0]], dtype=torch.float64))
    assert torch.isfinite(found.x).all()
    assert float(found.residuals) == pytest.approx(1.0)


def test_bad_arguments():
    product, start = product_of(symmetric(1, 4))[0], random_start((1, 1, 4))
    with pytest.raises(ArgumentError, match="count = 5"):
        leading_eigenpairs(product, start, 5)
    with pytest.raises(ArgumentError, match="start has shape"):
        leading_eigenpairs(product, start[0])
    with pytest.raises(ArgumentError, match="least = 3"):
        leading_eigenpairs(product, start, steps=2, least=3)
    with pytest.raises(ArgumentError, match="steps = 0"):
        solve(product, start[0], steps=0)
