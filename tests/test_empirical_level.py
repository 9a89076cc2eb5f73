"""Derivatives of a finite set's denoiser in the noise level, beside those in the state: forward and reverse, one pass each."""

import pytest
import torch

from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from tests.laws import T1, points
from tests.test_empirical import StudentT

F64 = torch.float64
X = torch.tensor([[0.7, -0.4], [1.1, 0.9], [-2.0, 0.3]], dtype=F64)
V = torch.tensor([[0.2, 1.0], [-0.5, 0.4], [1.0, 0.0]], dtype=F64)


@pytest.fixture(scope="module")
def law():
    return Empirical(T1)


def wrapped(law):
    """A law inside a function of the caller's, as preconditioning or guidance wrap one."""
    return lambda x, sigma: 2 * law(x, sigma) + x * sigma.reshape(-1, *(1,) * (x.ndim - 1))


@pytest.mark.parametrize(
    ("sigma", "rate"),
    [
        (torch.tensor(0.8, dtype=F64), torch.tensor(1.0, dtype=F64)),
        (torch.tensor([0.5, 0.8, 2.0], dtype=F64), torch.tensor([1.0, -0.3, 0.5], dtype=F64)),
    ],
    ids=["one", "rows"],
)
def test_forward_in_state_and_level(law, sigma, rate):
    """Against the textbook softmax, differentiated by autograd."""
    exact = points(T1)
    level = (lambda s: s.reshape(-1, 1)) if sigma.ndim else (lambda s: s)
    reference = wrapped(lambda x, s: exact.function(x, level(s)))
    ours, theirs = wrapped(law), torch.func.jvp(reference, (X, sigma), (V, rate))
    for got, want in zip(torch.func.jvp(ours, (X, sigma), (V, rate)), theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    along = torch.func.jvp(lambda s: ours(X, s), (sigma,), (rate,))[1]
    torch.testing.assert_close(along, torch.func.jvp(lambda s: reference(X, s), (sigma,), (rate,))[1])


def test_forward_in_the_level_alone_is_not_the_state_alone(law):
    """The tangent that used to be dropped is of the size of the other one."""
    sigma = torch.tensor(0.8, dtype=F64)
    both = torch.func.jvp(law, (X, sigma), (V, torch.ones_like(sigma)))[1]
    state = torch.func.jvp(lambda x: law(x, sigma), (X,), (V,))[1]
    assert float((both - state).norm()) > 0.3 * float(state.norm())


@pytest.mark.parametrize("shape", [(), (1,), (3,)], ids=str)
def test_reverse(law, shape):
    sigma = torch.tensor(0.8, dtype=F64).expand(shape).clone().requires_grad_()
    x = X.clone().requires_grad_()
    found = torch.autograd.grad((wrapped(law)(x, sigma) * V).sum(), (x, sigma))
    exact = points(T1)
    level = sigma.reshape(-1, 1) if sigma.ndim else sigma
    wanted = torch.autograd.grad((wrapped(lambda a, s: exact.function(a, level))(x, sigma) * V).sum(), (x, sigma))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_images_and_classes():
    data = torch.randn(12, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    law, labels = Empirical(data, labels=torch.arange(12) % 2), torch.tensor([0, 1])
    x, sigma = data[:2] + 0.5, torch.tensor([0.6, 0.9], dtype=F64)
    found = torch.func.jvp(lambda s: law(x, s, labels), (sigma,), (torch.ones_like(sigma),))[1]
    h = 1e-5
    quotient = (law(x, sigma + h, labels) - law(x, sigma - h, labels)) / (2 * h)
    torch.testing.assert_close(found, quotient, rtol=1e-6, atol=1e-8)


def test_a_level_derivative_that_is_not_known_is_refused():
    law, sigma = Empirical(T1, StudentT(8)), torch.tensor(0.8, dtype=F64)
    assert torch.func.jvp(lambda x: law(x, sigma), (X,), (V,))[1].shape == X.shape
    with pytest.raises(ArgumentError, match="level_derivative is known for diffusion"):
        torch.func.jvp(law, (X, sigma), (V, torch.ones_like(sigma)))
