"""Critical times by the general routine: every closed form comes out of it, and every kind of instability is told apart."""

from __future__ import annotations

import json
import math

import pytest
import torch

from farfield.analysis.critical_closed_form import critical_signal, critical_time_closed_form
from farfield.analysis.critical_sampling import sampling_error, variance_along
from farfield.analysis.critical_times import critical_times, first_index_below
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture, toy
from farfield.errors import ArgumentError
from farfield.processes import DDPM, VE, VP, SubVP


def P(*rows):
    return torch.tensor(rows, dtype=torch.float64)


C, S = math.cos(0.3), math.sin(0.3)
TWO = Empirical(P([-1.0], [1.0]))
RECTANGLE = Empirical(P([C, S], [C, -S], [-C, S], [-C, -S]))
EXACT = {"tolerance": 1e-10}


def clusters(weight, width, m=1.0):
    return GaussianMixture([weight, 1 - weight], P([m], [-m]), torch.full((2, 1, 1), width**2, dtype=torch.float64))


def test_two_points_fact_f2():
    """Holds symmetry_breaking F2, F3 and F9: drift, index and density, with no special case."""
    found = critical_times(TWO, **EXACT)
    first = found.first
    assert first.theta == pytest.approx(math.sqrt(math.sqrt(2) - 1), rel=1e-12)
    assert (first.time, first.generative_time) == pytest.approx((0.2926416543, 0.7073583457), abs=1e-10)
    assert first.index == 292
    assert first.variance == pytest.approx(1.0, rel=1e-9)
    assert first.error < 1e-9
    assert (first.kind, first.branches, first.tilt) == ("modes", 2, 0.0)
    assert first.modes_sigma == pytest.approx(1.0, rel=1e-9)
    assert first.bistable_sigma == first.sigma
    assert first.direction.abs().item() == 1
    density = critical_times(TWO, dynamics="langevin", check=False, **EXACT).first
    assert density.sigma == pytest.approx(1.0, rel=1e-10)
    assert density.index == 259
    assert "choice between modes" in found.summary()


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), DDPM(), DDPM(schedule="cosine")], ids=repr)
@pytest.mark.parametrize("dynamics", ["sde", "ode", "langevin"])
def test_every_process_and_dynamics(process, dynamics):
    """The routine agrees with the closed forms for any linear SDE; VE splits at σ² = λ whatever the dynamics (7.1)."""
    law = clusters(0.5, 0.2, 0.8)
    closed = critical_time_closed_form(0.64, process, width=0.2, dynamics=dynamics)
    found = critical_times(law, process, dynamics=dynamics, check=False, **EXACT)
    if closed is None:
        assert not found.symmetric_phase
        return
    assert found.first.sigma == pytest.approx(closed.sigma, rel=1e-8)
    assert found.first.time == pytest.approx(closed.time, rel=1e-6)
    assert found.first.index == closed.index


@pytest.mark.parametrize(
    ("dim", "radius", "theta"), [(3, 2.0, 1 / math.sqrt(3)), (10, 1.0, 0.951308), (100, 10.0, 0.643594)]
)
def test_spheres_fact_f13(dim, radius, theta):
    """Holds symmetry_breaking F13: Bessel ratios, and D directions that break at once."""
    found = critical_times(toy("sphere", dim=dim, radius=radius), count=2, **EXACT)
    for crossing in found.crossings:
        assert crossing.theta == pytest.approx(theta, abs=5e-7)
        assert crossing.theta == pytest.approx(critical_signal(radius**2 / dim), rel=1e-9)
        assert crossing.kind == "modes"
    inner = float((found.crossings[0].direction * found.crossings[1].direction).sum())
    assert abs(inner) < 1e-6


def test_rectangle_fact_f14():
    """Holds symmetry_breaking F14: two breakings at the centre, each with its axis, the bound of the Laplacian between them."""
    found = critical_times(RECTANGLE, count=2, **EXACT)
    a, b = found.crossings
    assert (a.theta, b.theta) == pytest.approx((0.66423012, 0.95732650), abs=5e-9)
    assert (a.time, b.time) == pytest.approx((0.28178798, 0.08873647), abs=5e-9)
    assert a.theta < critical_signal(1 / 2) < b.theta
    assert (abs(float(a.direction[0])), abs(float(b.direction[1]))) == pytest.approx((1, 1), abs=1e-9)
    assert b.theta == pytest.approx(critical_signal(S * S), rel=1e-10)


def test_normalised_data_fact_f15():
    """Holds symmetry_breaking F15 and E6, E7: the spectrum in order, B = asinh λ_k, the first below the Laplacian's θ*."""
    half = torch.nn.functional.normalize(torch.randn(12, 4, dtype=torch.float64), dim=1)
    data = 1.3 * torch.cat((half, -half))
    lambdas = torch.linalg.eigvalsh(data.T @ data / 24).flip(0).tolist()
    found = critical_times(Empirical(data), count=4, check=False, **EXACT)
    integrals = [-2 * math.log(c.theta) for c in found.crossings]
    assert integrals == pytest.approx([math.asinh(v) for v in lambdas], rel=1e-9)
    assert found.first.theta <= critical_signal(1.69 / 4)
    cov = data.T @ data / 24
    for crossing, value in zip(found.crossings, lambdas, strict=True):
        assert torch.allclose(cov @ crossing.direction, value * crossing.direction, atol=1e-5)


@pytest.mark.parametrize(
    ("m", "width", "theta"),
    [(1, 0.1, 0.644536), (1, 0.3, 0.652041), (1, 0.5, 2 / 3), (1, 1, 0.707107), (2, 0.5, 0.352023)],
)
def test_clusters_fact_f16(m, width, theta):
    """Holds symmetry_breaking F16; at width 1 the drift branches over a density that has one mode."""
    first = critical_times(clusters(0.5, width, m), **EXACT).first
    assert first.theta == pytest.approx(theta, abs=5e-7)
    assert first.kind == ("branches" if width == 1 else "modes")
    assert first.branches == 2


@pytest.mark.parametrize("noise", [0, 4])
def test_wide_gaussian_is_no_choice_fact_f17(noise):
    """Holds symmetry_breaking F17: flagged as spread; variance 2 never crosses. (2.6)"""
    law = Gaussian(torch.zeros(2, dtype=torch.float64), torch.diag(P(4.0, 1.0)))
    found = critical_times(law, noise=noise, **EXACT)
    first = found.first
    assert first.theta == pytest.approx(1 / math.sqrt(3), rel=1e-9)
    assert first.time == pytest.approx(0.3272978306, abs=1e-9)
    assert (first.kind, first.runaway, first.branches, first.modes_sigma) == ("spread", True, 0, None)
    assert "no choice" in found.summary()
    calm = critical_times(Gaussian(torch.zeros(1).double(), 2 * torch.eye(1).double()), sigma_min=0.1, check=False)
    assert calm.crossings == ()
    assert "stable from" in calm.summary()


def test_ode_fact_f18():
    """Holds symmetry_breaking F18 and E9: no symmetric phase for λ ≥ 1, nor for the SDE beyond the horizon."""
    for lam in (0.25, 0.5, 0.75):
        law = Empirical(math.sqrt(lam) * P([-1.0], [1.0]))
        first = critical_times(law, dynamics="ode", **EXACT).first
        assert first.theta == pytest.approx(math.sqrt(1 - lam), rel=1e-9)
        assert first.kind == "modes"
    always = critical_times(TWO, dynamics="ode")
    assert (always.crossings, always.unstable_at_start, always.symmetric_phase) == ((), 1, False)
    assert "no symmetric phase" in always.summary()
    assert not critical_times(Empirical(math.sqrt(11600) * P([-1.0], [1.0]))).symmetric_phase


def roots(law, sigma, kappa):
    """How many fixed points there are on a line."""
    x = torch.linspace(-3, 3, 8001, dtype=torch.float64).unsqueeze(1)
    sign = (law(x, sigma) - kappa * x).squeeze(1).sign()
    return int((sign[1:] != sign[:-1]).sum())


@pytest.mark.parametrize("weight", [0.2, 0.45])
def test_unequal_clusters_have_a_fold(weight):
    """Without the symmetry a second state appears beside the first, at the level where a line search counts three."""
    law = clusters(weight, 0.1)
    first = critical_times(law).first
    low, high = 0.3, 1.2
    while high - low > 1e-4:
        middle = (low + high) / 2
        three = roots(law, middle, (1 + 1 / (1 + middle**2)) / 2) >= 3
        low, high = (middle, high) if three else (low, middle)
    assert first.bistable_sigma == pytest.approx(low, rel=0.006)
    assert first.fold == (weight == 0.2)
    assert first.kind == "modes"
    if first.fold:
        assert first.sigma == pytest.approx(low, rel=2e-3)
        assert law(first.sides, first.sigma).flatten().tolist() == pytest.approx(
            ((1 + first.theta**2) / 2 * first.sides.flatten()).tolist(), abs=2e-3
        )
    else:
        assert abs(first.tilt) > 0.1


def test_origin_centres_the_data():
    """Data away from the origin behave as centred ones where the origin is their mean, and have a fold where it is not."""
    law = Empirical(P([2.0], [4.0]))
    assert critical_times(law, origin=P(3.0)[None][0], **EXACT).first.sigma == pytest.approx(2**0.25, rel=1e-9)
    pulled = critical_times(law).first
    assert abs(pulled.tilt) > 0.5 or pulled.fold


def test_symmetric_along_one_axis_only():
    """A centre that is not the mean: followed as a fixed point it gives the exact pitchfork."""
    law = GaussianMixture(
        [0.4, 0.4, 0.2], P([1.0, 0.0], [-1.0, 0.0], [0.0, 0.9]), 0.1 * torch.eye(2).double().expand(3, 2, 2)
    )
    found = critical_times(law, centre="fixed", check=False, **EXACT).first
    x = found.centre.unsqueeze(0)
    kappa = (1 + found.theta**2) / 2
    assert abs(float(found.centre[0])) < 1e-9
    assert torch.allclose(law(x, found.sigma), kappa * x, atol=1e-9)
    mean = critical_times(law, check=False, **EXACT).first
    assert mean.sigma != pytest.approx(found.sigma, rel=1e-3)
    assert mean.tilt == pytest.approx(0, abs=1e-12)


def image_law():
    """A stand-in for images: 2×3×3 Gaussian clusters about ±m, with a shell of other directions."""
    m = torch.linspace(-1, 1, 18, dtype=torch.float64).view(2, 3, 3)
    return GaussianMixture([0.5, 0.5], torch.stack((m, -m)), 0.05 * torch.eye(18).double().expand(2, 18, 18)), m


def test_noise_changes_nothing_for_independent_coordinates():
    """Draws of noise in the other directions leave the crossing where it is, for the law and for a function without a law."""
    law, m = image_law()
    bare = critical_times(law, check=False, **EXACT).first
    assert bare.sigma == pytest.approx(critical_time_closed_form(float(m.square().sum()), width=math.sqrt(0.05)).sigma)
    noisy = critical_times(law, noise=4, check=False, tolerance=1e-6)
    assert noisy.first.sigma == pytest.approx(bare.sigma, rel=1e-6)
    assert noisy.first.errors["noise"] < 1e-9
    function = FunctionDenoiser(lambda x, sigma: law(x, sigma), (2, 3, 3))
    found = critical_times(function, noise=4, check=False, tolerance=1e-6)
    assert found.first.sigma == pytest.approx(bare.sigma, rel=1e-5)
    assert found.first.skew < 1e-9
    assert abs(float((found.first.direction * m).sum()) / float(m.norm())) == pytest.approx(1, abs=1e-6)


def test_a_skew_jacobian_is_reported():
    """A field that is not a gradient: the symmetric part decides, and the rest is told."""
    turn = P([0.0, 1.0], [-1.0, 0.0])

    def field(x, sigma):
        return (x @ (torch.diag(P(1.0, 0.5)) + 0.3 * turn)) / (sigma * sigma)

    found = critical_times(FunctionDenoiser(field, (2,)), VE(1e-2, 50.0), check=False, symmetric=True, tolerance=1e-8)
    first = found.first
    assert first.sigma == pytest.approx(1.0, rel=1e-6)
    assert first.skew == pytest.approx(0.3, rel=1e-4)
    assert first.errors["eigenvalue"] > 0.05
    assert "antisymmetric" in found.summary()


def test_errors_cover_the_tolerance():
    """Coarser searches differ from the exact crossing by no more than a few of their own errors and the tolerance."""
    data = torch.randn(40, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    law = Empirical(torch.cat((data, -data)))
    exact = critical_times(law, check=False, **EXACT).first.sigma
    for tolerance in (1e-2, 1e-3, 1e-5):
        first = critical_times(law, check=False, tolerance=tolerance).first
        assert abs(first.sigma - exact) <= 3 * first.error + tolerance * exact


def test_sampling_error_and_variance():
    """The spread over parts of the data shrinks with their number; the variance along a direction is that of the crossing."""
    points = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * P(2.0, 0.5)
    few, many = points[:250], points
    a, b = (critical_times(Empirical(d), origin=d.mean(0), check=False, tolerance=1e-6).first for d in (few, many))
    assert variance_along(Empirical(many), b) == pytest.approx(b.variance, rel=1e-6)
    ratio = sampling_error(few, a) / sampling_error(many, b)
    assert 1.5 < ratio < 12
    assert abs(a.sigma - b.sigma) < 5 * sampling_error(few, a)


def test_reproducible_plain_and_plotted():
    law, _ = image_law()
    first, second = (critical_times(law, noise=4, count=2, seed=3) for _ in range(2))
    assert torch.equal(first.first.direction, second.first.direction)
    assert first.to_dict() == second.to_dict()
    record = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert record["crossings"][0]["kind"] == first.first.kind
    assert len(first.tables()[0].rows) == len(first.crossings)
    assert len(critical_times(RECTANGLE).plot().axes) == 1
    batches = critical_times(law, noise=4, count=2, seed=3, batch_size=3)
    assert batches.first.sigma == pytest.approx(first.first.sigma, rel=1e-9)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="count = 2"):
        critical_times(TWO, count=2)
    with pytest.raises(ArgumentError, match="noise = 3"):
        critical_times(TWO, noise=3)
    with pytest.raises(ArgumentError, match="'fixed' without noise"):
        critical_times(TWO, centre="fixed", noise=2)
    with pytest.raises(ArgumentError, match="sigma_min = 9"):
        critical_times(TWO, sigma_min=9.0, sigma_max=8.0)
    with pytest.raises(ArgumentError, match="origin has shape"):
        critical_times(TWO, origin=torch.zeros(3))
    assert first_index_below(DDPM(), 1e4) is None
