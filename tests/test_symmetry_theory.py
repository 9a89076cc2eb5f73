"""The experiment on two points and the hypersphere, with fewer paths."""

from __future__ import annotations

import math

import pytest
import torch

from farfield.distributions.bessel import bessel_ratio as library_ratio
from farfield.experiments.base import Settings
from farfield.experiments.symmetry_theory import bessel_ratio, compare_theory, stable_radius


@pytest.mark.parametrize("dim", [1, 2, 3, 100])
def test_two_ways_to_the_bessel_ratio(dim):
    for kappa in (1e-3, 0.5, 3.0, 80.0):
        exact = float(library_ratio(torch.tensor([kappa], dtype=torch.float64), dim))
        assert bessel_ratio(dim, kappa) == pytest.approx(exact, rel=1e-12)


def test_stable_radius_facts_f6_f13():
    """Holds symmetry_breaking F6 and F13: 0 below the critical θ, then the printed radii."""
    assert stable_radius(1, 1.0, 0.64) == 0
    assert stable_radius(1, 1.0, 0.8) == pytest.approx(0.94703858, abs=5e-9)
    for dim, radius, stable in ((2, 1.0, 0.861827), (3, 2.0, 1.877105), (10, math.sqrt(10), 2.824458)):
        assert stable_radius(dim, radius, 0.9) == pytest.approx(stable, abs=5e-7)


def test_theory_holds_in_simulation():
    outcome = compare_theory(Settings(seed=1), {(1, 1.0): (600, 250), (3, 2.0): (300, 120)})
    assert outcome.verdict == "holds"
    assert "agree" in outcome.because
    times, radii, simulation = outcome.tables
    assert times.rows[0][6] == 292
    assert len(radii.rows) == 5
    assert len(simulation.rows) == 6 * 2 + 1 + 6 + 1 + 1
    assert len(outcome.figures["theory"].axes) == 2


def test_a_wrong_radius_is_noticed(monkeypatch):
    """The verdict can fail: with stable radii at θ r, as the supplement has them, it does not hold."""
    import farfield.experiments.symmetry_theory as module

    monkeypatch.setattr(module, "stable_radius", lambda dim, radius, theta: theta * radius)
    outcome = compare_theory(Settings(), {(1, 1.0): (200, 100)})
    assert outcome.verdict == "holds in part"
