"""Correlations, normalised pixels, pictures on the way, the reverse SDE of theory, and diversity over labels."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.analysis.label_diversity import entropy, label_diversity, labels_of, mode_masses
from farfield.analysis.potential import Potential
from farfield.analysis.trajectory_diagnostics import (
    correlation_trajectories,
    forward_states,
    normalised_pixels,
    plot_correlations,
    progressive_figure,
    progressive_grid,
    reverse_sde,
)
from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum
from farfield.processes import VP

WIDE = torch.float64
PROCESS = VP()
TIMES = (0.8, 0.5, 0.3, 0.1)


def correlated(c: float, pixels: int) -> torch.Tensor:
    """Two images (2, pixels) of mean 0 and variance 1 over their pixels, with correlation exactly c."""
    a, b = streams.normal(0, range(2), (pixels,), dtype=WIDE)
    a = (a - a.mean()) / a.std(unbiased=False)
    b = b - b.mean() - (a * (b - b.mean())).mean() * a
    b = b / b.std(unbiased=False)
    return torch.stack((a, c * a + math.sqrt(1 - c * c) * b))


# Trajectories


@pytest.mark.parametrize("c", [0.8, -0.4])
def test_correlation_of_noised_images(c):
    """Holds symmetry_breaking F34: θ² c for pixels of mean 0 and variance 1, and E33: of forward trajectories."""
    data = correlated(c, 40_000)
    assert float(correlation_trajectories(data[None])[0, 0]) == pytest.approx(c, abs=1e-12)
    found = correlation_trajectories(forward_states(data, TIMES, seed=2))
    assert found.shape == (len(TIMES), 1)
    for k, t in enumerate(TIMES):
        assert float(found[k, 0]) == pytest.approx(PROCESS.alpha(t) ** 2 * c, abs=4 / math.sqrt(40_000))


def test_correlations_of_generated_trajectories():
    """The reference is left out, order is kept, and a constant image has no correlation."""
    x = torch.randn(3, 4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    x[1, 3] = 2.0
    found = correlation_trajectories(x, reference=2)
    assert found.shape == (3, 3)
    want = torch.corrcoef(x[0].flatten(1).double())
    torch.testing.assert_close(found[0], want[2, [0, 1, 3]])
    assert math.isnan(float(found[1, 2]))
    with pytest.raises(ArgumentError, match="reference = 4"):
        correlation_trajectories(x, reference=4)
    with pytest.raises(ArgumentError, match="n >= 2"):
        correlation_trajectories(x[:, :1])
    assert plot_correlations([0.9, 0.5, 0.1], found, critical=0.3).axes


def test_forward_states_are_addressed_by_sample_and_time():
    """More samples change nothing, and every time has noise of its own."""
    data = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    few, many = forward_states(data[:2], TIMES, seed=5), forward_states(data, TIMES, seed=5)
    assert torch.equal(few, many[:, :2])
    noise = [(many[k] - PROCESS.alpha(t) * data) / PROCESS.std(t) for k, t in enumerate(TIMES)]
    assert float((noise[0] - noise[1]).abs().min()) > 0


def test_normalised_pixels():
    """In units of the batch's spread at the same time; 0 where nothing varies."""
    x = torch.randn(4, 500, 2, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.0])
    found = normalised_pixels(x, sample=7)
    assert found.shape == (4, 6)
    torch.testing.assert_close(found[1, 1], x[1, 7, 0, 1].double() / x[1, :, 0, 1].double().std())
    assert float(found[:, [2, 5]].abs().max()) == 0
    with pytest.raises(ArgumentError, match="sample = 500"):
        normalised_pixels(x, sample=500)


def test_progressive_grids():
    """Both ends, evenly spaced in time and not in index."""
    times = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0])
    states = times.view(7, 1, 1, 1, 1).expand(7, 2, 1, 4, 4)
    grid, shown = progressive_grid(states, times, 3)
    assert shown == [1.0, 0.5, 0.0]
    assert grid.shape == (2, 3, 1, 4, 4)
    assert grid[0, :, 0, 0, 0].tolist() == shown
    assert progressive_figure(states, times, 3).axes
    with pytest.raises(ArgumentError, match="count = 8"):
        progressive_grid(states, times, 8)
    with pytest.raises(ArgumentError, match="expected images"):
        progressive_figure(states.flatten(2), times, 3)


def test_reverse_sde_of_two_points():
    """Holds symmetry_breaking F19, with 2,000 paths: half of them on either side, all at ±1, from any start."""
    law = Potential(Empirical(torch.tensor([[-1.0], [1.0]], dtype=WIDE)))
    n = 2000
    for start, steps in ((1.0, 1000), (0.4, 300)):
        times = [start * (1 - k / steps) for k in range(steps + 1)]
        x = streams.normal(1, range(n), (1,), dtype=WIDE)
        end, kept = reverse_sde(law, x, times, seed=1, keep=(steps // 2,))
        assert float((end > 0).double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))
        assert float(end.abs().mean()) == pytest.approx(1, abs=1e-3)
        assert float(end.abs().std()) < 3e-3
        # The marginal on the way has variance 1 at every time.
        assert float(kept.var()) == pytest.approx(1, abs=0.15)
    few, _ = reverse_sde(law, x[:5], times, seed=1)
    torch.testing.assert_close(few, end[:5])
    with pytest.raises(ArgumentError, match="decreasing"):
        reverse_sde(law, x, [0.1, 0.2])


def test_reverse_ode_has_no_noise():
    """The deterministic dynamics of a Gaussian scale the state as the spread scales."""
    from farfield.distributions import Gaussian

    law = Gaussian(torch.zeros(1, dtype=WIDE), Spectrum.diagonal([4.0]))
    times = [0.5 - 0.4 * k / 2000 for k in range(2001)]
    x = torch.tensor([[1.0], [-2.0]], dtype=WIDE)
    end, _ = reverse_sde(Potential(law, dynamics="ode"), x, times)
    spread = [math.sqrt(PROCESS.alpha(t) ** 2 * 4 + PROCESS.std(t) ** 2) for t in (0.5, 0.1)]
    torch.testing.assert_close(end, x * spread[1] / spread[0], rtol=2e-3, atol=0)


# Labels


def test_entropy():
    """Holds symmetry_breaking F34 and E35: 1.2130076 nats, 1.75 bits."""
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    assert entropy(p) == pytest.approx(1.2130076, abs=1e-7)
    assert entropy(p, 2) == pytest.approx(1.75, abs=1e-12)
    assert entropy(torch.tensor([1.0, 0.0])) == 0
    assert entropy(torch.full((6,), 1 / 6)) == pytest.approx(1.791759, abs=1e-5)
    for bad, base in ((torch.tensor([0.5, 0.6]), 2), (torch.tensor([1.5, -0.5]), 2), (p, 1.0)):
        with pytest.raises(ArgumentError, match="expected shares"):
            entropy(bad, base)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 200), st.integers(0, 10**6))
def test_diversity_keeps_its_bounds(classes, n, seed):
    """0 ≤ H ≤ log K, coverage and total variation in [0, 1], intervals ordered, for any labels."""
    labels = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))
    found = label_diversity(labels, classes, reference=torch.full((classes,), 1 / classes), base=2, seed=seed)
    assert 0 <= found.normalised <= 1 + 1e-12
    assert found.entropy == pytest.approx(found.normalised * math.log2(classes))
    assert found.coverage == len(labels.unique()) / classes
    assert 0 <= found.total_variation <= 1
    for low, high in (found.entropy_interval, found.coverage_interval, *found.share_intervals):
        assert low <= high
    assert sum(found.shares) == pytest.approx(1)
    json.dumps(found.to_dict(), allow_nan=False)


def test_intervals_hold_the_truth():
    """The 95 % interval of a share holds it about 95 times in 100; that of the total variation is above 0."""
    truth = torch.tensor([0.1, 0.9], dtype=WIDE)
    held = 0
    for seed in range(100):
        labels = (streams.uniform(seed, range(400), purpose="labels", dtype=WIDE) < 0.9).long()
        found = label_diversity(labels, 2, reference=truth, seed=seed)
        low, high = found.share_intervals[0]
        held += low <= 0.1 <= high
    assert 86 <= held <= 100
    assert found == label_diversity(labels, 2, reference=truth, seed=seed)


def test_any_labeller():
    """Scores, probabilities or integers; batches change nothing."""
    x = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(labels_of(x, lambda v: v, 7), x.argmax(1))
    assert torch.equal(labels_of(x, lambda v: (v[:, 0] > 0).long()), (x[:, 0] > 0).long())
    assert torch.equal(labels_of(x, lambda v: v[:, 0] > 0), (x[:, 0] > 0).long())
    with pytest.raises(ArgumentError, match="labeller returned"):
        labels_of(x, lambda v: v[:, 0])
    with pytest.raises(ArgumentError, match="values below 2"):
        label_diversity(torch.tensor([0, 2]), 2)
    with pytest.raises(ArgumentError, match=r"reference \(3,\)"):
        label_diversity(torch.tensor([0, 1]), 2, reference=torch.ones(3) / 3)


def test_masses_of_modes():
    """Nearest centre, with and without a radius: a tenth of the samples at the smaller of two modes."""
    centres = torch.tensor([[-1.0], [1.0]])
    samples = torch.cat((torch.full((10, 1), -0.95), torch.full((89, 1), 1.05), torch.tensor([[5.0]])))
    found = mode_masses(samples, centres)
    assert found.masses == pytest.approx((0.1, 0.9))
    assert found.outside == 0
    assert found.errors[0] == pytest.approx(0.03)
    near = mode_masses(samples, centres, radius=0.5)
    assert near.masses == pytest.approx((0.1, 0.89))
    assert near.outside == pytest.approx(0.01)
    with pytest.raises(ArgumentError, match="radius"):
        mode_masses(samples, centres, radius=0.0)
