"""The derivative of a denoiser along the trajectory: closed forms, dual numbers and difference quotients."""

import pytest
import torch

import farfield as ff
from farfield.denoiser import Denoiser, FunctionDenoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.distributions.jittered import Jittered
from farfield.errors import ArgumentError
from farfield.processes import Diffusion
from farfield.sampling import AtLastLevel, ClassifierFree, FunctionGuidance, Sampler, karras
from farfield.sampling.run import Evaluations
from farfield.sampling.solvers import Taylor2
from tests.laws import T1, points

F64 = torch.float64


def rate(denoiser, x, sigma, guidance=(), **condition):
    evaluate = Evaluations(denoiser, condition, guidance)
    slope = (x - evaluate(x, sigma)) / sigma
    before = evaluate.count
    found = evaluate.derivative(x, sigma, slope)
    return found, slope, evaluate.count - before


def quotient(denoiser, x, sigma, slope, guidance=(), **condition):
    """A central difference along the slope."""
    evaluate, h = Evaluations(denoiser, condition, guidance), 1e-5 * sigma
    return (evaluate(x + h * slope, sigma + h) - evaluate(x - h * slope, sigma - h)) / (2 * h)


@pytest.mark.parametrize("law", [points(T1), Empirical(T1)], ids=["dual", "closed"])
@pytest.mark.parametrize(
    ("sigma", "value"),
    [
        (1.0, (-0.894781229506, 0.381417874823)),
        (0.5, (-0.504855202308, 0.951281615583)),
        (3.0, (-0.037292519833, -0.008387399373)),
    ],
)
def test_three_points(law, sigma, value):
    """Geometry fact 11."""
    found, _, count = rate(law, torch.tensor([[0.5, 0.5]], dtype=F64), sigma)
    assert found[0].tolist() == pytest.approx(value, abs=2e-12)
    assert count == 1


def laws():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, 3, generator=generator, dtype=F64)
    root = torch.randn(2, 3, 3, generator=generator, dtype=F64)
    covariances = root @ root.mT
    return {
        "empirical": Empirical(data),
        "jittered": Jittered(data, 0.3),
        "gaussian": Gaussian(data[0], covariances[0]),
        "mixture": GaussianMixture(torch.tensor([0.3, 0.7], dtype=F64), data[:2], covariances),
    }


@pytest.mark.parametrize("name", ["empirical", "jittered", "gaussian", "mixture"])
@pytest.mark.parametrize("sigma", [0.3, 2.0, 20.0])
@pytest.mark.parametrize("guided", [False, True])
def test_laws(name, sigma, guided):
    """Against a central difference along the flow, with a guidance whose strength depends on σ and without."""
    law = laws()[name]
    guidance = (FunctionGuidance(lambda x, s, d: d + 0.1 * s**2 / (1 + s**2) * (d - x)),) if guided else ()
    x = sigma * torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    found, slope, count = rate(law, x, sigma, guidance)
    torch.testing.assert_close(found, quotient(law, x, sigma, slope, guidance), rtol=1e-6, atol=1e-8)
    assert count == 1


def test_classes_of_a_finite_set():
    """Labels reach the derivative; classifier-free guidance asks twice in dual numbers."""
    data = torch.randn(30, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    labels = torch.arange(30) % 2
    law, x, own = Empirical(data, labels=labels), torch.randn(4, 3, dtype=F64), torch.tensor([0, 1, 1, 0])
    for guidance, cost in (((), 1), ((ClassifierFree(2.5),), 2)):
        found, slope, count = rate(law, x, 0.8, guidance, labels=own)
        torch.testing.assert_close(found, quotient(law, x, 0.8, slope, guidance, labels=own), rtol=1e-6, atol=1e-8)
        assert count == cost
    for row, kind in enumerate(own.tolist()):
        part = Empirical(data[labels == kind])
        torch.testing.assert_close(rate(law, x, 0.8, labels=own)[0][row], rate(part, x, 0.8)[0][row])


def test_a_network():
    """Dual numbers and the difference quotient over 1/64 of a step move the samples of a bundled network alike."""
    net = ff.load("digits")
    exact = Sampler(Taylor2(), karras(8))(net, 4, seed=0)
    other = Sampler(Taylor2("difference"), karras(8))(net, 4, seed=0)
    euler = Sampler("euler", karras(8))(net, 4, seed=0)
    assert exact.nfe == other.nfe == 15
    assert float((exact.x - other.x).norm()) < 0.1 * float((exact.x - euler.x).norm())
    one = Sampler(Taylor2(), [3.0, 2.0], finish=AtLastLevel())(net, 4, seed=0).x
    two = Sampler(Taylor2("difference"), [3.0, 2.0], finish=AtLastLevel())(net, 4, seed=0).x
    assert float((one - two).norm() / one.norm()) < 2e-4


class _Opaque(torch.autograd.Function):
    """Half its input, with a derivative in reverse mode alone."""

    @staticmethod
    def forward(x):
        return x / 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


class _Broken(Denoiser):
    def forward(self, x, sigma, **condition):
        raise RuntimeError("out of order") if isinstance(sigma, torch.Tensor) else ArithmeticError


class _HeavyTailed(Diffusion):
    """A kernel of another shape."""

    gaussian = False

    def __repr__(self):
        return "HeavyTailed()"

    def log_kernel(self, squared_distance, sigma, dim):
        return -(dim + 3) / 2 * torch.log1p(squared_distance / (3 * sigma * sigma))


def test_models_without_a_forward_derivative():
    """The error says what to do, and doing it works; other errors of the model come through."""
    model = FunctionDenoiser(lambda x, sigma: _Opaque.apply(x) / sigma, (2,))
    x = torch.ones(2, 2)
    with pytest.raises(ArgumentError, match=r"no forward derivative .*derivative='difference'"):
        Sampler(Taylor2(), karras(4)).run(model, x)
    assert Sampler(Taylor2("difference"), karras(4)).run(model, x).nfe == 7
    with pytest.raises(RuntimeError, match="out of order"):
        Evaluations(_Broken((2,)), {}).derivative(x, 1.0, x)
    flow = Empirical(T1, process=_HeavyTailed())
    with pytest.raises(ArgumentError, match=r"not known for HeavyTailed.*difference"):
        Sampler(Taylor2(), karras(4, 0.1, 10.0)).run(flow, 10 * x.double())
    assert torch.isfinite(Sampler(Taylor2("difference"), karras(4, 0.1, 10.0)).run(flow, 10 * x.double()).x).all()
