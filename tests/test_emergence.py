"""When components are decided: the closed form, its definitions, and the measurement on laws that are known."""

import json
import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.emergence import POINTS, committed_variance, emergence, measure_emergence
from farfield.distributions import Empirical, Gaussian
from farfield.distributions.gaussian_flow import GaussianFlow
from farfield.distributions.gaussian_modes import emergence as rise
from farfield.distributions.gaussian_modes import emergence_rate, shrinkage, xi
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.processes import VP
from farfield.processes.schedules import EDM, FlowMatching, as_schedule

F64 = torch.float64


class Timid(Gaussian):
    """Says nine tenths of what it should."""

    def forward(self, x, sigma, **condition):
        return self.mean + 0.9 * (super().forward(x, sigma) - self.mean)


def law(values=(9.0, 1.0, 0.04), tail=0.0, d=5):
    basis = torch.linalg.qr(torch.randn(d, len(values), dtype=F64))[0]
    return Gaussian(torch.randn(d, dtype=F64), Spectrum.low_rank(basis, list(values), tail))


def test_points_of_the_curves():
    """Holds gaussian_score F34, and E22: which point is the fastest depends on the quantity and on the clock."""
    for curve, name in ((lambda z: 1 / (1 + z * z), "shrinkage"), (lambda z: float(rise(z)), "trajectory")):
        assert [curve(z) for z in POINTS[name]] == pytest.approx([0.5, 0.9, 0.1])
    assert float(rise(1.0)) == pytest.approx(0.707107, abs=1e-6)
    assert POINTS["trajectory"][1:] == pytest.approx((0.4843, 9.9499), abs=5e-5)

    def steepest(curve, weight):
        slope = lambda z: -weight(z) * abs(curve(z * (1 + 1e-6)) - curve(z * (1 - 1e-6))) / (2e-6 * z)  # noqa: E731
        best = minimize_scalar(slope, bounds=(0.05, 10), method="bounded", options={"xatol": 1e-9})
        return best.x, -best.fun

    e = lambda z: float(rise(z))  # noqa: E731
    assert steepest(e, lambda z: z) == pytest.approx((math.sqrt(2), 0.3849002), abs=1e-4)
    assert steepest(e, lambda z: 1.0) == pytest.approx((1 / math.sqrt(2), 0.3849002), abs=1e-4)
    assert e(math.sqrt(2)) == pytest.approx(1 / math.sqrt(3))
    assert e(1 / math.sqrt(2)) == pytest.approx(math.sqrt(2 / 3))
    assert steepest(lambda z: e(z) ** 2, lambda z: z)[0] == pytest.approx(1, abs=1e-4)


def test_the_gain_from_pure_noise():
    """Holds gaussian_score 2.7: e(z) is ξ/sqrt(λ) in the limit α_T → 0; critical at α = 1/sqrt(1 + λ) under VP."""
    for variance in (0.01, 1.0, 37.0):
        for alpha in (0.1, 0.5, 0.99):
            std = math.sqrt(1 - alpha**2)
            gain = float(xi(variance, std, 1.0, alpha, 0.0)) / math.sqrt(variance)
            assert gain == pytest.approx(float(rise(std / (alpha * math.sqrt(variance)))))
        alpha = 1 / math.sqrt(1 + variance)
        assert float(shrinkage(variance, math.sqrt(1 - alpha**2), alpha)) == pytest.approx(0.5)


def test_rate_of_emergence_along_a_schedule():
    """Holds gaussian_score A7: d/dt ξ̄/sqrt(λ) in closed form is the difference quotient, for EDM, VP and flow matching."""
    for schedule, t in ((EDM(), 0.7), (as_schedule(VP()), 0.4), (FlowMatching(), 0.4)):

        def curve(time, variance, schedule=schedule):
            alpha, std = schedule.scales(torch.tensor(time, dtype=F64))
            return float(rise(std / (alpha * math.sqrt(variance))))

        time = torch.tensor(t, dtype=F64)
        (alpha, std), (alpha_rate, std_rate) = schedule.scales(time), schedule.rates(time)
        for variance in (0.1, 3.0):
            found = float(emergence_rate(variance, std, alpha, std_rate, alpha_rate))
            assert found == pytest.approx((curve(t + 1e-6, variance) - curve(t - 1e-6, variance)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("definition", ["shrinkage", "trajectory"])
def test_order_levels_and_steps(definition):
    """The order is that of variance; critical σ, range, VP α and step follow from the definition that is named."""
    found = emergence(law(), components=5, definition=definition, grid=[80, 8, 2, 0.5, 0.1])
    factor = math.sqrt(3) if definition == "trajectory" else 1.0
    assert [c.variance for c in found.components] == pytest.approx([9, 1, 0.04])
    assert [c.critical for c in found.components] == pytest.approx([3 * factor, factor, 0.2 * factor])
    assert [c.step for c in found.components] == [1, 2, 3]
    assert [c.alpha for c in found.components] == pytest.approx(
        [1 / math.sqrt(1 + c.critical**2) for c in found.components]
    )
    for c in found.components:
        curve = (lambda z: 1 / (1 + z * z)) if definition == "shrinkage" else (lambda z: float(rise(z)))
        scale = math.sqrt(c.variance)
        assert [curve(s / scale) for s in (c.critical, c.settled, c.begins)] == pytest.approx([0.5, 0.9, 0.1])
    assert definition in found.summary()
    assert definition in found.tables()[0].title
    decided = [row[3] for row in found.tables()[1].rows]
    assert decided == [sum(c.critical > s for c in found.components) for s in (80, 8, 2, 0.5, 0.1)]
    for i, c in enumerate(found.components):
        assert found.grid_shrinkage[i] == pytest.approx([c.variance / (c.variance + s * s) for s in found.grid])
    assert json.loads(json.dumps(found.to_dict()))["definition"] == definition


def test_committed_variance_is_what_the_flow_has_decided():
    """Holds gaussian_score 2.7: D starts at μ and stays on μ + span U; V(σ) is its variance over samples; half of it."""
    values = (9.0, 1.0, 0.04)
    gaussian = law(values)
    flow = GaussianFlow(gaussian, VP())
    path = flow.path(torch.eye(5, dtype=F64) + float(flow.scales(1.0)[0]) * gaussian.mean, 1.0)
    alpha, std = (float(v) for v in flow.scales(0.3))
    part = path.denoised(0.3) - gaussian.mean
    # Unit starts: the sum of squares is the variance from a white start, up to σ_T² + λ α_T², here 1 to 1e-4.
    share = float(part.square().sum()) / sum(values)
    assert share == pytest.approx(float(committed_variance(gaussian, [std], alpha)), rel=1e-3)
    inside = gaussian.spectrum.expand(gaussian.spectrum.project(part))
    torch.testing.assert_close(inside, part, atol=1e-12, rtol=0)
    found = emergence(gaussian, sigmas=torch.logspace(2, -3, 200).tolist())
    assert sum(v * v / (v + found.half**2) for v in values) / sum(values) == pytest.approx(0.5, abs=1e-3)
    assert committed_variance(law(tail=0.3), [1e-6]).item() == pytest.approx(1)
    assert committed_variance(law(tail=0.3), [0.5]).item() == pytest.approx(
        (sum(v * v / (v + 0.25) for v in values) + 2 * 0.3 * 0.3 / 0.55) / (sum(values) + 0.6)
    )


def test_the_measured_slope_of_a_gaussian_is_exact():
    """On its own law a Gaussian's slope is λ/(λ + σ²) for any sample, and the relation is linear."""
    gaussian = law()
    data = gaussian.sample(50, torch.Generator().manual_seed(1))
    found = measure_emergence(gaussian, data, emergence(gaussian, sigmas=(9, 1, 0.1)), gaussian.mean, queries=64)
    for component, curve in zip(found.measured, found.shrinkage, strict=True):
        assert component.slope == pytest.approx(curve, abs=1e-9)
        assert component.linear == pytest.approx([1] * 3)
        assert max(component.slope_error) < 1e-9
    assert abs(found.departure[2]) < 1e-9
    again = measure_emergence(gaussian, data, found, gaussian.mean, queries=64, batch_size=7)
    assert again.measured[0].slope == pytest.approx(found.measured[0].slope, abs=1e-12)


def test_any_exact_denoiser_has_that_slope():
    """Holds gaussian_score 2.1 (LMMSE): two points at ±1 are far from Gaussian, and yet Cov(a, b)/Var(a) = λ/(λ + σ²).

    What differs: they are committed earlier, E tanh²(x/σ²) above 1/(1 + σ²), and the relation is not linear.
    """
    data = torch.tensor([[-1.0], [1.0]], dtype=F64)
    gaussian = Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    found = emergence(gaussian, sigmas=(2.0, 1.0, 0.5, 0.25))
    found = measure_emergence(Empirical(data), data, found, gaussian.mean, queries=40_000, batch_size=10_000)
    (m,) = found.measured
    for slope, error, exact in zip(m.slope, m.slope_error, found.shrinkage[0], strict=True):
        assert abs(slope - exact) < 4 * error
    assert m.committed[2] > found.shrinkage[0][2] + 0.02
    assert m.linear[2] < 0.95
    assert found.components[0].critical == 1
    assert 0.9 < m.critical < 1.2


def test_a_shrinking_model_is_found():
    """A model that believes too little is told by its slope."""
    gaussian = law()
    timid = Timid(gaussian.mean, gaussian.spectrum)
    data = gaussian.sample(50, torch.Generator().manual_seed(1))
    found = measure_emergence(timid, data, emergence(gaussian, sigmas=(9, 1, 0.1)), gaussian.mean, queries=64)
    assert found.measured[0].slope == pytest.approx([0.9 * v for v in found.shrinkage[0]])
    assert found.departure[2] == pytest.approx(-0.1 * found.shrinkage[0][2], abs=1e-9)
    assert "departs most" in found.summary()


@pytest.mark.parametrize("shape", [(1, 4, 4), (6,)])
def test_the_analysis_by_name_and_its_figure(shape):
    """``farfield analyze --what emergence``, for pictures and for vectors."""
    data = torch.randn(100, *shape) * torch.linspace(0.2, 1.0, shape[-1])
    found = analyze("emergence", Subject(Gaussian.fit(data), data), {"components": 3, "queries": 16})
    assert len(found.measured) == 3
    assert found.grid[0] == 80
    axes = found.plot().axes
    assert len(axes) == 2
    assert "σ" in axes[0].get_xlabel()
    assert len(found.tables()) == 3
    assert torch.tensor(found.to_dict()["vectors"]).shape == (3, *shape)


def test_mistakes_are_named():
    """Wrong definitions, levels, laws and data."""
    gaussian = law()
    found = emergence(gaussian)
    with pytest.raises(ArgumentError, match="definition = 'median'"):
        emergence(gaussian, definition="median")
    with pytest.raises(ArgumentError, match="positive noise levels"):
        emergence(gaussian, sigmas=(1.0, 0.0))
    with pytest.raises(ArgumentError, match="zero"):
        emergence(Gaussian(torch.zeros(2), torch.zeros(2, 2)))
    with pytest.raises(ArgumentError, match="data has shape"):
        measure_emergence(gaussian, torch.zeros(3, 2), found, gaussian.mean)
    with pytest.raises(ArgumentError, match="queries = 2"):
        measure_emergence(gaussian, torch.zeros(3, 5), found, gaussian.mean, queries=2)
