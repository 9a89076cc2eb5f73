"""Sections of the potential: facts F21 and F22, shapes and split times on exact laws, movies, the analysis and the claim."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import farfield.experiments.symmetry_sections as claim
from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.potential import Potential
from farfield.analysis.potential_movie import potential_movie
from farfield.analysis.potential_sections import (
    MIDDLE,
    all_pairs,
    both_ways,
    interior_minima,
    path_norms,
    path_slopes,
    potential_sections,
    section_angles,
    section_curvature,
    section_shape,
)
from farfield.analysis.potential_sections_analysis import first_critical_time
from farfield.analysis.potential_sections_paths import (
    average_whole,
    curvature_whole,
    generated_paths,
    split_times,
    wells_whole,
)
from farfield.data import DataSet
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.experiments.base import Settings, run_experiment
from farfield.interop import load as load_model
from farfield.numerics.spectrum import Spectrum
from farfield.processes import DDPM, VE, VP
from farfield.report.context import ReportContext
from farfield.report.sections.potential import potential as potential_section

WIDE = torch.float64
PROCESS = VP()
AXES = torch.eye(2, dtype=WIDE)
SQUARE = torch.cat((AXES, -AXES))


def time_of(theta: float) -> float:
    return PROCESS.time(math.sqrt(1 / theta**2 - 1))


def as_network(law: Empirical) -> FunctionDenoiser:
    """The same posterior mean, without a density."""
    return FunctionDenoiser(lambda x, s: law(x, s), law.event_shape)


def ends(theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    return theta * AXES[:1], theta * AXES[1:]


# Facts


def test_two_orthogonal_points_split_at_the_closed_form():
    """Holds symmetry_breaking F21."""
    potential = Potential(Empirical(AXES))
    theta = 0.7
    k = theta**2 / (1 - theta**2)
    exact = k / math.sqrt(2) - k * k / 2
    assert exact == pytest.approx(0.2178240, abs=2e-7)
    found = section_curvature(potential, *ends(theta), time_of(theta))
    assert float(found) == pytest.approx(exact, rel=1e-10)
    near = section_curvature(Potential(as_network(Empirical(AXES))), *ends(theta), time_of(theta))
    assert float(near) == pytest.approx(exact, rel=5e-3)  # the difference of two gradients, without a Jacobian

    def whole(t: torch.Tensor) -> torch.Tensor:
        theta = PROCESS.alpha(t)[:, None]
        return section_curvature(potential, theta * AXES[:1], theta * AXES[1:], t) > 0

    (split,) = split_times(whole, [0.05, 0.1, 0.3, 0.6, 0.9], tolerance=1e-9).tolist()
    assert split == pytest.approx(0.2268670805, abs=1e-8)
    assert PROCESS.alpha(split) == pytest.approx(math.sqrt(2 - math.sqrt(2)), abs=1e-8)
    before, after = (
        potential_sections(potential, *ends(PROCESS.alpha(t)), t, angles=401) for t in (split + 0.01, split - 0.01)
    )
    assert before.shapes == ("convex",)
    assert after.shapes == ("double well",)
    assert before.mean_shape == "convex"


@pytest.mark.parametrize(
    ("theta", "height", "rectangle", "trapezoid"),
    [
        (0.5, 1.25800e-4, 2.85e-6, 3.06e-8),
        (0.7, 7.46844e-3, 1.69e-4, 1.82e-6),
        (0.9, 0.581057, 1.44e-2, 1.28e-4),
    ],
)
def test_quadrature_of_a_section(theta, height, rectangle, trapezoid):
    """Holds symmetry_breaking F22, and E19: with the tangent of the path, not the printed one."""
    t = time_of(theta)
    exact, line = Potential(Empirical(SQUARE)), Potential(as_network(Empirical(SQUARE)))
    truth = potential_sections(exact, *ends(theta), t)
    assert truth.rule == "exact"
    turns = torch.tensor([0.0, MIDDLE], dtype=WIDE)
    assert float(potential_sections(exact, *ends(theta), t, angles=turns).values[0, 1]) == pytest.approx(
        height, rel=2e-5
    )
    errors = {}
    for rule in ("rectangle", "trapezoid"):
        for count in (200, 797):  # a spacing four times smaller
            whole = potential_sections(exact, *ends(theta), t, angles=count)
            found = potential_sections(line, *ends(theta), t, angles=count, rule=rule)
            errors[rule, count] = float((found.values - whole.values).abs().max())
    assert errors["rectangle", 200] == pytest.approx(rectangle, rel=5e-3)
    assert errors["trapezoid", 200] == pytest.approx(trapezoid, rel=5e-3)
    assert errors["rectangle", 200] / errors["rectangle", 797] == pytest.approx(4, rel=0.03)
    assert errors["trapezoid", 200] / errors["trapezoid", 797] == pytest.approx(16, rel=0.03)
    assert float(section_angles()[1] - section_angles()[0]) == pytest.approx(0.0142082, abs=1e-7)
    # The tangent printed in the source, −sin α x₁ + cos α x₁, does not integrate to the potential.
    x1, x2 = ends(theta)
    turned = section_angles()
    states = turned.cos()[:, None] * x1 + turned.sin()[:, None] * x2
    wrong = (exact.gradient(states, t) * (turned.cos() - turned.sin())[:, None] * x1).sum(1) / exact.rate(t)
    assert float((torch.cumulative_trapezoid(wrong, turned) - truth.values[0, 1:]).abs().max()) > 100 * trapezoid


def test_sections_of_images_scaled_to_the_unit_interval_are_others():
    """Holds symmetry_breaking E20: states live in model space; of states mapped to [0, 1] the split is another one."""
    potential, theta = Potential(Empirical(AXES)), 0.74
    right = section_curvature(potential, *ends(theta), time_of(theta))
    shifted = section_curvature(potential, *((x + 1) / 2 for x in ends(theta)), time_of(theta))
    assert float(right) > 0 > float(shifted)


# Sections in general


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["sde", "ode", "langevin"]), st.floats(0.1, 0.9), st.booleans())
def test_the_gradient_integrates_to_the_potential(seed, dynamics, t, origin):
    """For any pair of states, dynamics, time and origin, and for images as for vectors."""
    generator = torch.Generator().manual_seed(seed)
    law = GaussianMixture(
        torch.tensor([0.3, 0.7]),
        torch.randn(2, 1, 2, 2, dtype=WIDE, generator=generator),
        [Spectrum.isotropic(4, 0.1), Spectrum.isotropic(4, 0.4)],
    )
    o = torch.randn(1, 2, 2, dtype=WIDE, generator=generator) if origin else None
    potential = Potential(law, dynamics=dynamics, origin=o)
    x1, x2 = torch.randn(2, 3, 1, 2, 2, dtype=WIDE, generator=generator)
    exact = potential_sections(potential, x1, x2, t, angles=1500, batch_size=4097)
    line = potential_sections(potential, x1, x2, t, angles=1500, rule="trapezoid", batch_size=1000)
    scale = float(exact.values.abs().max())
    torch.testing.assert_close(line.values, exact.values, atol=2e-3 * scale, rtol=0)
    h = 1e-4
    turn = torch.full((3,), MIDDLE, dtype=WIDE)
    slope = (path_slopes(potential, x1, x2, turn + h, t) - path_slopes(potential, x1, x2, turn - h, t)) / (2 * h)
    torch.testing.assert_close(section_curvature(potential, x1, x2, t), slope, rtol=1e-4, atol=1e-5)


def test_rows_of_a_batch_are_the_sections_alone():
    """Neither the batch size nor the other pairs change a section."""
    potential = Potential(as_network(Empirical(SQUARE)))
    x = torch.randn(6, 2, dtype=WIDE, generator=torch.Generator().manual_seed(0))
    all_of_them = potential_sections(potential, x[:3], x[3:], 0.3, angles=50, batch_size=7)
    for k in range(3):
        alone = potential_sections(potential, x[k : k + 1], x[3 + k : 4 + k], 0.3, angles=50)
        torch.testing.assert_close(all_of_them.values[k], alone.values[0], rtol=1e-12, atol=1e-14)


def test_norm_along_the_path():
    """‖x(α)‖² by the formula; constant for equal norms at right angles."""
    x = torch.randn(4, 5, dtype=WIDE, generator=torch.Generator().manual_seed(1))
    turns = section_angles(11)
    states = turns.cos()[None, :, None] * x[:2, None] + turns.sin()[None, :, None] * x[2:, None]
    torch.testing.assert_close(path_norms(x[:2], x[2:], turns), states.square().sum(-1))
    flat = path_norms(3 * AXES[:1], 3 * AXES[1:], turns)
    torch.testing.assert_close(flat, torch.full_like(flat, 9.0))


def test_shapes_of_known_curves():
    """Each shape by a curve that has it."""
    turns = section_angles(201)
    z = turns - MIDDLE
    curves = {
        "convex": z**2,
        "double well": (z**2 - 0.25) ** 2,
        "single well": (z**2 - 0.25) ** 2 + 0.6 * z,
        "no well": -(z**2),
    }
    for shape, curve in curves.items():
        assert section_shape(turns, curve) == shape
    assert interior_minima(torch.stack(list(curves.values()))).tolist() == [1, 2, 1, 0]


def test_averages_of_pairs_do_not_depend_on_their_order():
    """Taken both ways, a section and the one of the swapped pair are the same curve."""
    potential = Potential(Empirical(SQUARE))
    x1, x2 = torch.randn(2, 5, 2, dtype=WIDE, generator=torch.Generator().manual_seed(2))
    there, back = (potential_sections(potential, *pair, 0.3, angles=41).values for pair in ((x1, x2), (x2, x1)))
    torch.testing.assert_close(both_ways(there), both_ways(back))
    turned = (there - there.mean(1, keepdim=True)).flip(1)
    torch.testing.assert_close(turned, back - back.mean(1, keepdim=True))


def test_pairs():
    """All of them, or some by a seed, each once."""
    assert all_pairs(20).shape == (190, 2)
    some = all_pairs(20, 30, seed=4)
    assert some.shape == (30, 2)
    assert len({tuple(p) for p in some.tolist()}) == 30
    assert torch.equal(some, all_pairs(20, 30, seed=4))
    with pytest.raises(ArgumentError, match="at least 1 pair"):
        all_pairs(1)


def test_sections_refuse_what_they_cannot_do():
    network = Potential(as_network(Empirical(AXES)))
    with pytest.raises(ArgumentError, match="no log_prob"):
        potential_sections(network, *ends(0.5), 0.3, rule="exact")
    with pytest.raises(ArgumentError, match="same number of states"):
        potential_sections(network, AXES, AXES[:1], 0.3)
    with pytest.raises(ArgumentError, match="rule = 'simpson'"):
        potential_sections(network, *ends(0.5), 0.3, rule="simpson")
    with pytest.raises(ArgumentError, match="at least 9"):
        section_angles(3)


# Paths and splits


@pytest.mark.parametrize("which", ["sde", "ode"])
def test_generated_paths_have_the_noisy_law(which):
    """States of a Gaussian at each kept time: mean α (μ − o), variance α² λ + s²."""
    mean, variances = torch.tensor([1.0, -0.5], dtype=WIDE), torch.tensor([0.5, 2.0], dtype=WIDE)
    law = Gaussian(mean, Spectrum.diagonal(variances))
    origin = torch.tensor([0.25, 0.25], dtype=WIDE)
    paths = generated_paths(law, 2000, which=which, steps=80, origin=origin, seed=3)
    assert paths.times[0] > paths.times[-1]
    assert paths.nfe == 80
    for t in (0.7, 0.4, 0.1):
        when, x = paths.at(t)
        alpha, spread = PROCESS.alpha(when), PROCESS.std(when)
        want = alpha**2 * variances + spread**2
        assert abs(when - t) <= paths.spacing
        torch.testing.assert_close(x.double().mean(0), alpha * (mean - origin), atol=0.08, rtol=0)
        torch.testing.assert_close(x.double().var(0), want, atol=0, rtol=0.1)
    few = generated_paths(law, 5, which=which, steps=80, origin=origin, seed=3, batch_size=2)
    torch.testing.assert_close(few.states, paths.states[:, :5])


def test_pairs_of_generated_paths_split_on_the_way():
    """Most pairs of samples that end at different points split at a time of their own, the average near their median."""
    points = torch.cat((2 * torch.eye(4, dtype=WIDE), torch.full((4, 1), 4.0, dtype=WIDE)), 1)
    law = Empirical(points)
    potential = Potential(law)
    paths = generated_paths(law, 100, steps=150, seed=1)
    ends_at = paths.samples[:, :4].argmax(1)
    pairs = torch.tensor([p for p in all_pairs(100).tolist() if ends_at[p[0]] != ends_at[p[1]]])[::6]
    scan = [0.05, 0.15, 0.3, 0.45, 0.6]
    memory: dict[float, torch.Tensor] = {}
    found = split_times(wells_whole(potential, paths, pairs, memory=memory), scan, paths.spacing)
    (mean,) = split_times(average_whole(potential, paths, pairs, memory=memory), scan, paths.spacing).tolist()
    assert found.shape == (len(pairs),)
    assert 0.05 < mean < 0.45
    finite = found[found.isfinite()]
    assert len(finite) > 0.8 * len(pairs)
    assert abs(float(finite.median()) - mean) < 0.1
    bent = split_times(curvature_whole(potential, paths, pairs), scan, paths.spacing)
    both = found.isfinite() & bent.isfinite()
    assert float((found - bent)[both].abs().median()) < 0.1


def test_split_times_name_sections_that_never_change():
    always = split_times(lambda t: torch.ones(2) > 0, [0.1, 0.5])
    never = split_times(lambda t: torch.ones(2) < 0, [0.1, 0.5])
    assert bool(always.isnan().all())
    assert bool(never.isinf().all())
    with pytest.raises(ArgumentError, match="increasing"):
        split_times(lambda t: torch.ones(1) > 0, [0.5, 0.1])


# Movies


def test_movie_of_two_points():
    """Holds symmetry_breaking F4 and F6 through the movie: curvature at 0 and the barrier at a few times."""
    law = Empirical(torch.tensor([[-1.0], [1.0]], dtype=WIDE))
    times = [time_of(theta) for theta in (0.2, 0.5, 0.8)]
    movie = potential_movie(Potential(law), times, limits=(-1.5, 1.5), points=1201, critical=0.2926416543)
    h = float(movie.positions[1] - movie.positions[0])
    middle = len(movie.positions) // 2
    bend = (movie.values[:, middle + 1] - 2 * movie.values[:, middle] + movie.values[:, middle - 1]) / h**2
    assert bend.tolist() == pytest.approx([0.498263889, 0.388888889, -2.660493827], rel=1e-4)
    barrier = movie.values[2, middle] - movie.values[2].min()
    assert float(barrier) == pytest.approx(0.40468496, rel=1e-4)
    assert movie.wells.tolist() == [1, 1, 2]
    json.dumps(movie.to_dict(), allow_nan=False)
    figure = movie.plot()
    assert len(figure.axes) == 3
    # By the gradient alone the frames are the same.
    network = potential_movie(Potential(as_network(law)), times, limits=(-1.5, 1.5), points=1201)
    torch.testing.assert_close(network.values, movie.values, atol=1e-4, rtol=0)


def test_movie_along_a_direction():
    """Data on one axis of the plane: the movie along that axis is the one of the line, along the other a parabola."""
    flat = Potential(Empirical(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=WIDE)))
    line = Potential(Empirical(torch.tensor([[-1.0], [1.0]], dtype=WIDE)))
    a = potential_movie(flat, [0.1, 0.4], limits=(-1, 1), points=51, direction=AXES[0])
    b = potential_movie(line, [0.1, 0.4], limits=(-1, 1), points=51)
    torch.testing.assert_close(a.values, b.values)
    across = potential_movie(flat, [0.4], limits=(-1, 1), points=51, direction=5 * AXES[1])
    v = PROCESS.std(0.4) ** 2
    x = across.positions
    torch.testing.assert_close(across.values[0], (1 / (2 * v) - 0.25) * (x**2 - x[0] ** 2), atol=1e-12, rtol=0)
    noisy = potential_movie(flat, [0.1], limits=(-1, 1), points=51, direction=AXES[0], noise=64)
    assert float(noisy.values[0].max() - noisy.values[0].min()) > 0
    with pytest.raises(ArgumentError, match="direction"):
        potential_movie(flat, [0.1], limits=(-1, 1))


# The analysis


def test_analysis_of_the_bundled_digits(tmp_path):
    """`--what potential`: the model's sections beside the data's, JSON-safe, drawn, with the split beside."""
    model = load_model("digits")
    data = torch.rand(64, *model.event_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    subject = Subject(model, data, name="digits")
    options = {"n": 3, "pairs": 3, "angles": 21, "steps": 8, "times": [0.6, 0.1], "critical": False}
    found = analyze("potential", subject, options)
    assert set(found.laws) == {"model", "data"}
    assert found.laws["model"].mean.shape == (2, 21)
    assert len(found.tables()) == 2
    assert "pairs" in found.summary()
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["pairs"] == 3
    found.plot().savefig(tmp_path / "potential.png")
    with pytest.raises(ArgumentError, match="times"):
        analyze("potential", subject, {**options, "times": [2.0]})


def test_claim_on_two_points_and_a_small_model(monkeypatch):
    """The experiment, cut down to seconds: theory within its bound, and one bundled model beside the data's law."""
    monkeypatch.setattr(claim, "RADII", (1.0, 2.0))
    monkeypatch.setattr(claim, "POINTS", 150)
    monkeypatch.setitem(claim.MODELS, "digits", {"load": {}, "n": 3, "pairs": 3, "angles": 21, "steps": 24, "seeds": 1})
    outcome = run_experiment("potential-split", Settings(data=("digits",)))
    theory, models = outcome.tables
    for row in theory.rows:
        assert row[2] == pytest.approx(row[1], abs=1e-4)
        assert row[3] == pytest.approx(row[1], abs=1e-3)
    # The critical time of two points about their mean, from the general routine.
    assert first_critical_time(2 * AXES) == pytest.approx(theory.rows[1][4], abs=1e-3)
    assert models.rows[0][:3] == ("digits", 0, 3)
    assert set(outcome.figures) == {"potential-digits"}


def test_report_section():
    """The section renders from a small context."""
    context = ReportContext(Empirical(SQUARE.float()), DataSet(SQUARE.float().repeat(20, 1)), "square", quick=True)
    made = potential_section(context)
    assert any("<svg" in block for block in made.blocks)
    json.dumps(made.data, allow_nan=False)


def test_other_processes():
    """Variance exploding and discrete time: the same sections through their own coordinates."""
    law, theta = Empirical(AXES), 0.7
    sigma = math.sqrt(1 / theta**2 - 1)
    discrete = DDPM()
    found = section_curvature(Potential(law, discrete), *ends(theta), discrete.time(sigma))
    assert float(found) == pytest.approx(0.2178240, abs=1e-6)
    # Without a drift u'' = J-term alone: −1/σ² is cancelled, and k/√2 − k²/2 keeps its form with k = 1/σ².
    k = 1 / sigma**2
    exploding = VE()
    free = section_curvature(Potential(law, exploding), AXES[:1], AXES[1:], exploding.time(sigma))
    assert float(free) == pytest.approx(k / math.sqrt(2) - k * k / 2, rel=1e-9)
