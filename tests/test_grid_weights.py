"""Grids as weights of Euler steps, and Euler's method unrolled."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farfield.errors import ArgumentError
from farfield.sampling import Sampler, karras
from farfield.sampling.weights import grid_from_weights, unrolled_state, unrolled_weights, weights_of
from tests.laws import T1, points


def test_weights_of_the_18_level_grid():
    """Geometry fact 2, all of them; they grow as sampling proceeds for every N."""
    expected = (
        1, 0.7343258905, 0.6717602768, 0.6174220678, 0.5703208963, 0.5293638052, 0.4935624243, 0.4620805749, 0.4342286186,
        0.4094426651, 0.3872620266, 0.3673091952, 0.3492732996, 0.3328968481, 0.3179652407, 0.3042985065, 0.2917447884,
        0.2801751910,
    )  # fmt: skip
    assert weights_of(karras(18))[::-1] == pytest.approx(expected, rel=1e-9)
    for n in (5, 10, 18, 40):
        weights = weights_of(karras(n))
        assert all(b > a for a, b in pairwise(weights))
        assert weights[-1] == 1


@given(weights=st.lists(st.floats(1e-3, 0.99), max_size=40), top=st.floats(1e-2, 1e3))
def test_weights_and_levels_are_the_same_thing(weights, top):
    grid = grid_from_weights(top, weights)
    assert len(grid.levels) == len(weights) + 1
    assert weights_of(grid) == pytest.approx((*weights, 1.0), rel=1e-9)
    assert grid_from_weights(top, weights_of(grid)).levels == pytest.approx(grid.levels, rel=1e-9)


@given(n=st.integers(1, 40), part=st.floats(0, 1))
def test_unrolled_weights_are_convex(n, part):
    """Geometry fact 4: the weights of the outputs plus that of the start sum to 1."""
    steps = round(part * n)
    first, rest = unrolled_weights(karras(n), steps)
    assert first + sum(rest) == pytest.approx(1, abs=1e-14)
    assert min((first, *rest)) >= 0
    assert len(rest) == steps


def test_unrolled_euler_identity():
    """Geometry fact 4: T1 from (40, −25), and the weights behind x_1."""
    start = torch.tensor([[40.0, -25.0]], dtype=torch.float64)
    run = Sampler("euler", karras(18)).run(points(T1), start, trajectory=True).trajectory
    for n in (18, 10, 5, 1, 0):
        state = unrolled_state(karras(18), start, run.denoised, 18 - n)
        assert float((state - run.states[18 - n]).abs().max()) <= 2e-14
    first, rest = unrolled_weights(karras(18), 17)
    assert rest[::-1][:3] == pytest.approx([0.73432589, 0.17846931, 0.053842166], rel=1e-7)
    assert first == pytest.approx(2.5e-5, rel=1e-9)


def test_a_grid_of_weights_samples_as_its_levels_do():
    start = torch.tensor([[40.0, -25.0]], dtype=torch.float64)
    grid = grid_from_weights(80.0, weights_of(karras(12)))
    a, b = (Sampler("heun", g).run(points(T1), start).x for g in (grid, karras(12)))
    assert torch.allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("weights", [(0.5, 0.0), (0.5, 1.0, 0.5), (-0.1,), (1.2,), (float("nan"),), (1 - 1e-16,) * 30])
def test_bad_weights(weights):
    with pytest.raises(ArgumentError):
        grid_from_weights(80.0, weights)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="sigma_max = 0"):
        grid_from_weights(0, (0.5,))
    with pytest.raises(ArgumentError, match="steps = 4"):
        unrolled_weights(karras(3), 4)
    x = torch.zeros(2, 3)
    with pytest.raises(ArgumentError, match="at least 2 outputs"):
        unrolled_state(karras(3), x, torch.zeros(1, 2, 3), 2)
    with pytest.raises(ArgumentError, match="denoised has shape"):
        unrolled_state(karras(3), x, torch.zeros(3, 2, 2), 2)
