"""The reverse SDE of two points and of a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch

from farfield.analysis.reverse_sde import simulate_reverse
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.processes import VP

TWO = Empirical(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))


def test_two_points_fact_f19():
    """Holds symmetry_breaking F19 with a twentieth of its paths: half on each side, all of them at ±1."""
    found = simulate_reverse(TWO, 1000, keep=(0, 300, 707, 850))
    x = found.x.squeeze(1)
    assert float((x > 0).double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(1000))
    assert float(x.abs().mean()) == pytest.approx(1.0, abs=1e-3)
    assert float(x.abs().std()) == pytest.approx(1.3e-3, rel=0.15)
    assert found.times.tolist() == pytest.approx([1.0, 0.7, 0.293, 0.15, 0.0])
    assert float(found.states[1].std()) == pytest.approx(1.0, abs=0.09)
    # The side is as uncertain as the exact posterior says: F10 at s = 0.7, 0.293 and 0.15.
    for k, s in ((1, 0.7), (2, 0.293), (3, 0.15)):
        right = float(torch.special.ndtr(torch.tensor(1 / VP().sigma(s), dtype=torch.float64)))
        same = (found.states[k].squeeze(1).sign() == x.sign()).double().mean()
        assert float(same) == pytest.approx(right, abs=4 * math.sqrt(right * (1 - right) / 1000) + 0.002)


@pytest.mark.parametrize("start", [0.6, 0.3])
def test_late_starts_keep_the_halves_fact_f19(start):
    """Holds symmetry_breaking F19: the limits are the same for any start, N(0, 1) having the right two moments."""
    x = simulate_reverse(TWO, 1000, steps=200, start=start, seed=1).x
    assert float((x > 0).double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(1000))
    assert float(x.abs().mean()) == pytest.approx(1.0, abs=3e-3)


def test_ode_carries_quantiles():
    """Without noise the map is monotone, so the side of a path is that of its start."""
    start = torch.linspace(-2, 2, 40, dtype=torch.float64).unsqueeze(1)
    found = simulate_reverse(TWO, 40, dynamics="ode", steps=500, initial=start)
    assert torch.equal(found.x.sign(), start.sign())
    assert float((found.x.abs() - 1).abs().max()) < 0.05


def test_gaussian_and_origin():
    """The law comes back with its mean and variance; an origin moves everything along."""
    law = Gaussian(torch.tensor([3.0], dtype=torch.float64), 0.25 * torch.eye(1, dtype=torch.float64))
    found = simulate_reverse(law, 2000, steps=200, origin=torch.tensor([3.0]))
    assert float(found.x.mean()) == pytest.approx(3.0, abs=4 * 0.5 / math.sqrt(2000))
    assert float(found.x.std()) == pytest.approx(0.5, rel=0.08)


def test_paths_do_not_depend_on_the_batch():
    whole = simulate_reverse(TWO, 7, steps=20, seed=5)
    parts = simulate_reverse(TWO, 7, steps=20, seed=5, batch_size=3)
    assert torch.equal(whole.x, parts.x)
    assert torch.equal(simulate_reverse(TWO, 3, steps=20, seed=5).x, whole.x[:3])


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="start = 2"):
        simulate_reverse(TWO, 2, start=2.0)
    with pytest.raises(ArgumentError, match="keep = "):
        simulate_reverse(TWO, 2, steps=3, keep=(3,))
    with pytest.raises(ArgumentError, match="does not move in time"):
        simulate_reverse(TWO, 2, dynamics="langevin")
    with pytest.raises(ArgumentError, match="initial has shape"):
        simulate_reverse(TWO, 2, initial=torch.zeros(3, 1))
