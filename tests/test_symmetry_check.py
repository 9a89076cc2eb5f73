"""Symmetries of potentials and data sets: sign flips, permutations, quarter turns and rotations."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from farfield.analysis.potential import Potential
from farfield.analysis.symmetry_check import check_symmetry, is_symmetry_of
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical
from farfield.distributions.toys import Sphere
from farfield.errors import ArgumentError

WIDE = torch.float64
SQUARE = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=WIDE)
RECTANGLE = torch.tensor([[a * math.cos(0.3), b * math.sin(0.3)] for a in (1, -1) for b in (1, -1)], dtype=WIDE)


def quarter(x: Tensor) -> Tensor:
    return torch.stack((-x[:, 1], x[:, 0]), 1)


def flips() -> list[Tensor]:
    return [torch.tensor([a, b], dtype=WIDE) for a in (1.0, -1.0) for b in (1.0, -1.0)]


def test_two_points_and_their_reflection():
    """Holds symmetry_breaking F33 for two points, whose only symmetry but the identity is x → −x."""
    potential = Potential(Empirical(torch.tensor([[-1.0], [1.0]], dtype=WIDE)))
    found = check_symmetry(potential, lambda x: -x)
    assert found.holds(1e-12)
    assert found.isometry == 0
    json.dumps(found.to_dict(), allow_nan=False)
    lopsided = Potential(Empirical(torch.tensor([[-1.0], [1.0], [1.0]], dtype=WIDE)))
    assert not check_symmetry(lopsided, lambda x: -x).holds(1e-3)


def test_rectangle_and_square():
    """Holds symmetry_breaking F33: both keep the four sign flips, and only the square the quarter turn."""
    for data, turns in ((RECTANGLE, False), (SQUARE, True)):
        potential = Potential(Empirical(data))
        for flip in flips():
            assert check_symmetry(potential, lambda x, flip=flip: x * flip).holds(1e-12)
            assert is_symmetry_of(data, lambda x, flip=flip: x * flip)
        found = check_symmetry(potential, quarter)
        assert found.holds(1e-12) is turns
        assert is_symmetry_of(data, quarter) is turns
        if not turns:
            assert found.value > 1e-3
            assert found.gradient > 1e-3


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6), st.sampled_from(["sde", "ode", "langevin"]))
def test_every_rotation_of_the_sphere(dim, seed, dynamics):
    """Holds symmetry_breaking F33 for the hypersphere, for each dynamics."""
    turn = torch.linalg.qr(torch.randn(dim, dim, dtype=WIDE, generator=torch.Generator().manual_seed(seed)))[0]
    potential = Potential(Sphere(dim, 1.5), dynamics=dynamics)
    found = check_symmetry(potential, lambda x: x @ turn.T, times=[0.2, 0.6], count=16, seed=seed)
    # u/g² grows like σ⁻², and rounding with it.
    assert found.holds(1e-11)


def test_a_stretch_is_no_symmetry():
    """Of a law that a map leaves alone in gradient and value only by chance the lengths still tell."""
    found = check_symmetry(Potential(Sphere(3, 1.0)), lambda x: 1.5 * x, count=4)
    assert found.isometry == pytest.approx(0.5)
    assert not found.holds(1e-3)
    with pytest.raises(ArgumentError, match="keeps the shape"):
        check_symmetry(Potential(Sphere(3, 1.0)), lambda x: x[:, :2])


def test_networks_are_judged_by_their_gradient():
    """Without a density the value's error is 0 and the gradient decides."""
    law = Empirical(RECTANGLE)
    potential = Potential(FunctionDenoiser(lambda x, s: law(x, s), (2,)))
    found = check_symmetry(potential, quarter)
    assert found.value == 0
    assert found.gradient > 1e-3
    assert check_symmetry(potential, lambda x: -x).holds(1e-12)


def test_data_sets_count_their_points():
    """A map has to take each point to one that occurs as often; images are points too."""
    doubled = torch.cat((SQUARE, SQUARE[:2]))  # the horizontal ones twice
    assert is_symmetry_of(doubled, lambda x: -x)
    assert not is_symmetry_of(doubled, quarter)
    images = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    both = torch.cat((images, images.flip(-1)))
    assert is_symmetry_of(both, lambda x: x.flip(-1))
    assert not is_symmetry_of(images, lambda x: x.flip(-1))
    # A map that takes all points to one of them is no permutation.
    assert not is_symmetry_of(SQUARE, lambda x: torch.ones_like(x) * SQUARE[0])
    # Rounding of the map is forgiven up to the tolerance, and no more.
    assert is_symmetry_of(SQUARE, lambda x: quarter(x) + 1e-8)
    assert not is_symmetry_of(SQUARE, lambda x: quarter(x) + 1e-3)
    with pytest.raises(ArgumentError, match="to the same"):
        is_symmetry_of(SQUARE, lambda x: x[:2])
