"""Bifurcation diagrams: pitchforks, the second breaking on the branches, folds."""

from __future__ import annotations

import json
import math

import pytest
import torch

from farfield.analysis.bifurcation import bifurcation_diagram, leading_diagram, theta_levels
from farfield.analysis.fixed_points import fixed_point_on_ray
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.processes import VP


def P(*rows):
    return torch.tensor(rows, dtype=torch.float64)


C, S = math.cos(0.3), math.sin(0.3)
LEVELS = theta_levels(VP(), 36, 0.05)


def test_pitchfork_of_two_points():
    """Holds symmetry_breaking F2 and F6 along the branches: one state before θ_c, three after, square-root onset."""
    law = Empirical(P([-1.0], [1.0]))
    diagram = bifurcation_diagram(law, sigmas=LEVELS)
    assert [b.born for b in diagram.branches] == ["far field", "bifurcation", "bifurcation"]
    (event,) = diagram.bifurcations
    assert event.kind == "loss"
    assert event.theta == pytest.approx(math.sqrt(math.sqrt(2) - 1), rel=1e-7)
    centre, up = diagram.branches[0], diagram.branches[1]
    assert int(centre.unstable[0]) == 0
    assert int(centre.unstable[-1]) == 1
    assert not up.unstable.any()
    heights = diagram.coordinates(1, P(1.0)[0:1].view(1)).abs()
    for sigma, height in zip(up.sigmas.tolist(), heights.tolist(), strict=True):
        assert height == pytest.approx(fixed_point_on_ray(law, sigma, P(1.0)), rel=1e-6)
    assert diagram.stable_at(3.0) == 1
    assert diagram.stable_at(0.5) == 2


def test_second_breaking_on_the_branch_fact_f14():
    """Holds symmetry_breaking F14: the branch (x*, 0) loses stability at θ = 0.9573264959, and corners appear."""
    law = Empirical(P([C, S], [C, -S], [-C, S], [-C, -S]))
    levels = list(theta_levels(VP(), 25, 0.5, 0.98))
    diagram = bifurcation_diagram(law, sigmas=levels)
    losses = {event.branch: event for event in diagram.bifurcations if event.theta > 0.9}
    assert diagram.bifurcations[0].theta == pytest.approx(0.66423012, abs=5e-9)
    assert sorted(losses) == [0, 1, 2]
    for number, event in losses.items():
        assert event.theta == pytest.approx(0.9573264959, abs=1e-9)
        assert abs(float(event.direction[1])) == pytest.approx(1, abs=1e-6)
        assert (abs(float(event.state[0])) > 0.5) == (number > 0)
    ends = torch.stack([b.states[-1] for b in diagram.branches if int(b.unstable[-1]) == 0])
    assert len(ends) == 4
    assert diagram.stable_at(levels[-1]) == 4
    assert len(diagram.branches) == 9


def test_fold_of_unequal_clusters():
    """A branch born in a fold comes with its saddle, where the curve D(x) touches the line κ x."""
    law = GaussianMixture([0.2, 0.8], P([1.0], [-1.0]), torch.full((2, 1, 1), 0.01, dtype=torch.float64))
    levels = theta_levels(VP(), 14, 0.5)
    diagram = bifurcation_diagram(law, sigmas=levels, starts=P([1.0], [-1.0]))
    assert [b.born for b in diagram.branches] == ["far field", "fold", "fold"]
    (event,) = diagram.bifurcations
    assert event.kind == "fold"
    # Brent's method on D(x, σ) = κ(σ) x where ∂D/∂x = κ(σ).
    assert event.sigma == pytest.approx(0.7333442439, abs=2 * event.bracket)
    assert event.bracket < 1e-5
    node, saddle = diagram.branches[1:]
    assert not node.unstable.any()
    assert (saddle.unstable == 1).all()
    assert float(node.states[-1]) == pytest.approx(1, abs=0.05)
    alone = bifurcation_diagram(law, sigmas=levels)
    assert len(alone.branches) == 1
    assert alone.bifurcations == ()


def test_wide_gaussian_has_no_branches_fact_f17():
    """Holds symmetry_breaking F17: stability is lost and nothing is gained."""
    law = Gaussian(torch.zeros(1, dtype=torch.float64), 4 * torch.eye(1, dtype=torch.float64))
    diagram = bifurcation_diagram(law, sigmas=LEVELS)
    assert len(diagram.branches) == 1
    assert diagram.bifurcations[0].theta == pytest.approx(1 / math.sqrt(3), rel=1e-6)


def test_plain_and_plotted():
    diagram = bifurcation_diagram(Empirical(P([-0.5], [0.5])), sigmas=LEVELS[::3], dynamics="ode")
    assert diagram.bifurcations[0].theta == pytest.approx(math.sqrt(0.75), rel=1e-6)
    always = bifurcation_diagram(Empirical(P([-1.0], [1.0])), sigmas=LEVELS[::3], dynamics="ode")
    assert [len(b.sigmas) for b in always.branches] == [len(LEVELS[::3])] * 3
    record = json.loads(json.dumps(diagram.to_dict(), allow_nan=False))
    assert len(record["branches"]) == len(diagram.branches)
    for axis in ("theta", "time", "sigma"):
        axes = diagram.plot(axis=axis).axes[0]
        assert len(axes.lines) >= 2
    with pytest.raises(ArgumentError, match="at least two"):
        bifurcation_diagram(Empirical(P([-1.0], [1.0])), sigmas=[1.0])


def test_leading_diagram_of_two_clusters():
    """Along the leading principal component of two equal clusters the centre splits where the coordinate says."""
    side = torch.where(torch.arange(60) % 2 == 0, 1.0, -1.0).double()
    direction = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    data = 5.0 + side.unsqueeze(1) * direction + 1e-3 * torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    found = leading_diagram(data, levels=8, starts=3)
    first = found.bifurcations[0]
    assert first.kind == "loss"
    assert first.theta == pytest.approx(math.sqrt(math.sqrt(2) - 1), rel=1e-6)
    assert found.stable_at(found.levels[-1]) == 2
    with pytest.raises(ArgumentError, match="levels = 1"):
        leading_diagram(data, levels=1)
    with pytest.raises(ArgumentError, match="fold_accuracy"):
        bifurcation_diagram(Empirical(data), sigmas=(1.0, 0.5), fold_accuracy=0.0)
