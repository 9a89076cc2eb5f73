"""Laws survive what is done to modules: states, copies, pickles and JSON, whole or damaged."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest
import torch

from farfield.distributions import Gaussian, GaussianMixture
from farfield.distributions.base import Distribution
from farfield.distributions.curvature import by_products
from farfield.errors import DataError
from farfield.numerics import arrays
from farfield.numerics.spectrum import Spectrum

DIM = 5


def spectrum(seed: int, rank: int = 2, tail: float = 0.0) -> Spectrum:
    torch.manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(DIM, rank, dtype=torch.float64))[0]
    return Spectrum.low_rank(basis, torch.rand(rank, dtype=torch.float64) + 0.5, tail)


def gaussian(seed: int, dtype: torch.dtype = torch.float64) -> Gaussian:
    law = Gaussian(
        torch.randn(DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype), spectrum(seed, 2, 0.1 * seed)
    )
    return law.to(dtype)


def mixture(seed: int, dtype: torch.dtype = torch.float64) -> GaussianMixture:
    means = torch.randn(2, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return GaussianMixture([0.2 * seed, 1.0], means, [spectrum(seed, 2, 0.1 * seed), spectrum(seed + 9, 3 - seed)])


def same(a: Distribution, b: Distribution, dtype: torch.dtype) -> None:
    x = torch.randn(3, DIM, generator=torch.Generator().manual_seed(7), dtype=dtype)
    for left, right in (
        (a(x, 0.7), b(x, 0.7)),
        (a.log_prob(x, 0.7), b.log_prob(x, 0.7)),
        (a.trace(x, 0.7), b.trace(x, 0.7)),
    ):
        torch.testing.assert_close(left, right, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_a_loaded_state_is_the_whole_law(make: Any, dtype: torch.dtype):
    """Tails, weights, eigenvalues and what follows from them, and not only the means."""
    source, target = make(1, dtype), make(2, dtype)
    x = torch.randn(3, DIM, dtype=dtype)
    assert not torch.allclose(source(x, 0.7), target(x, 0.7), rtol=0.01)
    target(x.to(torch.float32), 0.7)  # leaves a copy of the bases in another type behind
    target.load_state_dict(source.state_dict())
    same(source, target, dtype)
    same(source, target, torch.float32)


def test_a_loaded_state_tells_whether_the_law_is_singular():
    regular, singular = Gaussian(torch.zeros(DIM), spectrum(1, 2, 0.3)), Gaussian(torch.zeros(DIM), spectrum(2, 2, 0.0))
    regular.load_state_dict(singular.state_dict())
    with pytest.raises(ValueError, match="singular"):
        regular.log_prob(torch.zeros(1, DIM), 0.0)


def test_a_state_of_other_ranks_is_refused():
    other = GaussianMixture([1.0, 1.0], torch.randn(2, DIM, dtype=torch.float64), [spectrum(3, 4), spectrum(4, 1)])
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(mixture(1).state_dict())


@pytest.mark.parametrize("make", [gaussian, mixture])
def test_copies_and_pickles_are_the_same_law(make: Any):
    law = make(1)
    same(law, copy.deepcopy(law), torch.float64)
    same(law, pickle.loads(pickle.dumps(law)), torch.float64)
    same(law, type(law).from_dict(json.loads(json.dumps(law.to_dict()))), torch.float64)


BAD = [None, 3, math.inf, [1], [math.inf], "abc", {"dtype": [], "shape": [], "data": ""}, arrays.encode(torch.tensor(1.0)),
       arrays.encode(torch.zeros(0)), arrays.encode(torch.zeros(2, 0))]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda value: str(value)[:40])
def test_damaged_dictionaries_are_data_errors(bad: Any):
    for law in (gaussian(1), mixture(1)):
        stored = law.to_dict()
        for name in stored:
            with pytest.raises(DataError):
                type(law).from_dict(stored | {name: bad})
    for own in (Spectrum.dct((DIM, 2, 1), torch.rand(2 * DIM)), spectrum(1)):
        stored = own.to_dict()
        for name in stored.keys() & {"kind", "values", "basis", "event_shape"}:
            with pytest.raises(DataError):
                Spectrum.from_dict(stored | {name: bad})


def test_no_states_have_no_results():
    """Every method of a mixture takes an empty batch, as those of a Gaussian do."""
    law, none = mixture(1), torch.zeros(0, DIM, dtype=torch.float64)
    assert law.sample(0).shape == law(none, 1.0).shape == none.shape
    assert law.prune(none, 1.0).kept.shape == (0, 2)
    values, vectors = law.posterior_spectrum(none, 1.0, 3)
    assert values.shape == (0, 3)
    assert vectors.shape == (0, 3, DIM)


def test_all_eigenpairs_of_a_large_law_are_found_by_products():
    """Lanczos' method finds all but one; asked for all, the whole Jacobian is formed."""
    law = Gaussian(torch.zeros(260, dtype=torch.float64), Spectrum.diagonal(torch.linspace(0.1, 2, 260)))
    values, vectors = by_products(law, torch.zeros(1, 260, dtype=torch.float64), 0.5, 260, {})
    assert vectors.shape == (1, 260, 260)
    assert torch.allclose(values[0], law.posterior_spectrum(torch.zeros(1, 260), 0.5, 260)[0][0], rtol=1e-10)


def test_the_trace_of_point_masses_is_not_negative():
    """It is 0 where one point has all the weight; rounding must not make a variance negative."""
    torch.manual_seed(0)
    law = GaussianMixture([0.5, 0.5], torch.randn(2, 50, dtype=torch.float64), Spectrum.isotropic(50, 0.0))
    x = law.sample(64, sigma=1e-5)
    assert float(law.posterior_trace(x, 1e-5).min()) >= 0
