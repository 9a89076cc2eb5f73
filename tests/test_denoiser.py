"""What every exact law shares: the checks of states and levels."""

import pytest
import torch

from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.distributions.base import level
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum

SHAPE = (1, 8, 8)


def laws():
    return {
        "gaussian": Gaussian(torch.zeros(SHAPE), Spectrum.isotropic(64, 1.0)),
        "mixture": GaussianMixture([0.5, 0.5], torch.randn(2, *SHAPE), Spectrum.isotropic(64, 1.0)),
        "empirical": Empirical(torch.randn(3, *SHAPE)),
    }


LAWS = tuple(laws())


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("shape", [(2, 64), (2, 63), (2, 8, 8), (2, 1, 8, 9), (64,), ()])
def test_states_of_the_wrong_shape_are_refused(name, shape):
    law, x = laws()[name], torch.zeros(shape)
    calls = [lambda: law(x, 1.0), lambda: law.log_prob(x, 1.0), lambda: law.trace(x, 1.0), lambda: law.jvp(x, 1.0, x)]
    if isinstance(law, Gaussian):
        calls += [lambda: law.colour(x), lambda: law.flow(x, 2.0, 1.0)]
    for call in calls:
        with pytest.raises(ArgumentError, match=r"x has shape .*expected \(B, 1, 8, 8\)"):
            call()


@pytest.mark.parametrize("name", LAWS)
def test_levels_are_checked_without_reading_tensors(name, monkeypatch):
    law, x = laws()[name], torch.zeros(2, *SHAPE)
    for sigma in (-1.0, float("nan")):
        for call in (law.forward, law.log_prob, law.trace):
            with pytest.raises(ArgumentError, match="sigma"):
                call(x, sigma)
    for sigma in (torch.ones(3), torch.ones(2, 1)):
        with pytest.raises(ArgumentError, match="sigma has shape"):
            law(x, sigma)
    if isinstance(law, Gaussian):
        with pytest.raises(ArgumentError, match="sigma"):
            law.flow(x, 1.0, -1.0)
    if isinstance(law, Empirical):
        return  # It has to choose between two ways of computing.

    def read(*_):
        raise AssertionError("a tensor was read")

    for reader in ("item", "tolist", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, reader, read)
    law(x, torch.full((2,), -1.0))
    law(x, torch.tensor(1.0))


def test_check_shape_and_level():
    law = FunctionDenoiser(lambda x, sigma: x, (3,))
    law.check_shape(torch.zeros(5, 3))
    with pytest.raises(ArgumentError, match=r"x has shape \(3,\); expected \(B, 3\)"):
        law.check_shape(torch.zeros(3))
    cpu = torch.device("cpu")
    assert level(2, cpu) == 2.0
    assert tuple(level(torch.ones(4), cpu, 4).shape) == (4, 1)
