"""The variance of training targets: closed forms and quadratures of the stable target field's facts, estimators, phases."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from farfield.analysis import divergence_generator, posterior_spread, target_variance
from farfield.analysis import posteriors as posteriors_module
from farfield.analysis.posteriors import draw_probes
from farfield.data import load
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.distributions.base import Distribution
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.processes import VE, Diffusion

# The trapezoidal rule, whose error falls exponentially for what is analytic around the line (Gauss's rule is worse here:
# sech² has poles close by).
NODES = torch.linspace(-13, 13, 4001, dtype=torch.float64)
MASSES = torch.exp(-NODES * NODES / 2) * (NODES[1] - NODES[0]) / math.sqrt(2 * math.pi)
TWO = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
H = {0.5: 0.7959457344, 1.0: 0.4495995092, 1.5: 0.1972425022, 2.0: 0.0685974088, 3.0: 0.0041510797}
TOY_NORM = 0.8  # of the mean of the 64-dimensional two Gaussians, 0.1 in each coordinate


def average(law: Distribution, name: str, sigma: float, norm: float = 1.0, spread: float = 0.0) -> float:
    """``E q(x)`` over ½N(±μ, (s² + σ²) I) for a q that depends on x·μ alone and is even: a line through the modes is enough."""
    x = norm + math.sqrt(spread**2 + sigma**2) * NODES
    direction = torch.full((law.dim,), law.dim**-0.5, dtype=torch.float64)
    states = x[:, None] * direction
    if name == "mmse":
        return float(MASSES @ law.posterior_trace(states, sigma))
    assert isinstance(law, Empirical)
    return float(MASSES @ getattr(posterior_spread(law, states, sigma), name))


class Heavy(Diffusion):
    """A process that says of itself that its kernel is not Gaussian."""

    gaussian = False


def h(r: float) -> float:
    return float(MASSES @ torch.cosh(r * r + r * NODES) ** -2)


def two_modes(spread: float, dim: int = 64, norm: float = TOY_NORM) -> GaussianMixture:
    mean = torch.full((dim,), norm / math.sqrt(dim), dtype=torch.float64)
    shared = Spectrum.isotropic(dim, spread**2)
    return GaussianMixture([0.5, 0.5], torch.stack((mean, -mean)), [shared, shared])


@pytest.mark.parametrize("r", H)
def test_two_points_error_is_h_fact_1(r):
    """Holds stable_target_field fact 1."""
    assert average(Empirical(TWO), "mmse", 1 / r) == pytest.approx(H[r], rel=1e-8)
    tanh = torch.tanh(r * r + r * NODES)
    assert 1 - float(MASSES @ tanh) == pytest.approx(H[r], abs=1e-8)
    assert 1 - float(MASSES @ tanh.square()) == pytest.approx(H[r], abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(
    points=st.lists(st.floats(-3, 3), min_size=2, max_size=6),
    sigma=st.floats(0.3, 4.0),
    spread=st.floats(0.0, 1.0),
)
def test_variance_and_score_norm_add_up_fact_2(points, sigma, spread):
    """Holds stable_target_field fact 2, for any mixture on the line: V_DSM = d/σ² − E‖∇ log p‖²."""
    means = torch.tensor(points, dtype=torch.float64).unsqueeze(1)
    law = GaussianMixture([1.0] * len(points), means, Spectrum.isotropic(1, spread**2))
    width = math.sqrt(sigma**2 + spread**2)
    x = torch.linspace(-3 - 12 * width, 3 + 12 * width, 4001, dtype=torch.float64).unsqueeze(1)
    p = law.log_prob(x, sigma).exp() * (x[1, 0] - x[0, 0])
    variance = float(p @ law.posterior_trace(x, sigma)) / sigma**4
    score = float(p @ law.score(x, sigma).square().sum(1))
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    assert variance == pytest.approx(1 / sigma**2 - score, abs=1e-8 / sigma**2)


def test_gaussian_closed_form_fact_3():
    """Holds stable_target_field fact 3."""
    law = Gaussian(torch.ones(3, dtype=torch.float64), 4 * torch.eye(3, dtype=torch.float64))
    found = target_variance(law, [10.0, 0.1, 1.0], references=[1], points=64, probes=8)
    assert found.sigmas == (10.0, 1.0, 0.1)
    assert found.dsm.mean == pytest.approx((0.00115384615, 2.4, 299.25187032), rel=1e-8)
    assert found.dsm.error == (0.0, 0.0, 0.0)
    assert found.total is None
    assert not found.exact


@pytest.mark.parametrize(("sigma", "spread", "value"), [(0.3, 0.05, 20.19497), (0.5, 0.1, 11.48273), (1, 0.3, 5.61177)])
def test_two_gaussians_fact_4(sigma, spread, value):
    """Holds stable_target_field fact 4, the closed form that the source misprints (E4), and its sampled estimate."""
    law, v = two_modes(spread), sigma**2 + spread**2
    closed = 64 * spread**2 / (sigma**2 * v) + TOY_NORM**2 / v**2 * h(TOY_NORM / math.sqrt(v))
    assert closed == pytest.approx(value, rel=2e-4)  # the value in the list is a sampled one
    assert average(law, "mmse", sigma, TOY_NORM, spread) / sigma**4 == pytest.approx(closed, rel=1e-9)
    found = target_variance(law, [sigma], references=[1, 8], points=512, probes=512)
    assert abs(found.dsm.mean[0] - closed) < 4 * found.dsm.error[0] + 1e-9
    # The law's own score is the reference of the stable target: both estimators see the same variance.
    gap = found.stf[8].mean[0] - found.stf_within[8].mean[0]
    assert abs(gap) < 5 * math.hypot(found.stf[8].error[0], found.stf_within[8].error[0])


def toy_points() -> Empirical:
    mean = torch.full((64,), 0.1, dtype=torch.float64)
    return Empirical(torch.stack((mean, -mean)))


def test_raw_peak_fact_5():
    """Holds stable_target_field fact 5."""
    law = Empirical(TWO)
    for sigma in (0.4, 0.7, 2.0):
        assert average(law, "mmse", sigma) / sigma**4 == pytest.approx(sigma**-4 * h(1 / sigma), rel=1e-9)
    best = minimize_scalar(lambda r: -(r**4) * average(law, "mmse", 1 / r), bounds=(1, 3), options={"xatol": 1e-10})
    assert best.x == pytest.approx(1.82993664, rel=1e-6)
    assert -best.fun == pytest.approx(1.1304860249, rel=1e-9)
    sigma = TOY_NORM / 1.82993664
    assert sigma == pytest.approx(0.43717361, rel=1e-7)
    assert float(VE().time(torch.tensor(sigma, dtype=torch.float64))) == pytest.approx(0.44354345, rel=1e-7)
    assert average(toy_points(), "mmse", sigma, TOY_NORM) / sigma**4 == pytest.approx(1.76638441, rel=1e-8)


def test_weighted_peak_fact_6():
    """Holds stable_target_field fact 6, and the analysis finds it: the weighted peak lies above the raw one."""
    law = Empirical(TWO)
    best = minimize_scalar(lambda r: -(r**2) * average(law, "mmse", 1 / r), bounds=(0.5, 3), options={"xatol": 1e-10})
    assert best.x == pytest.approx(1.22814111, rel=1e-6)
    assert -best.fun == pytest.approx(0.4795159706, rel=1e-9)
    levels = np.geomspace(0.3, 2, 25)
    found = target_variance(TWO, levels.tolist(), references=[1], probes=20_000)
    step = math.log(levels[1] / levels[0])
    assert abs(math.log(found.peak / 0.81423868)) < 1.5 * step
    raw = found.sigmas[int(np.argmax(found.dsm.mean))]
    assert abs(math.log(raw / 0.54646701)) < 1.5 * step
    assert max(found.weighted.mean) == pytest.approx(0.4795159706, rel=0.02)


def test_between_modes_on_the_schedule_fact_7():
    """Holds stable_target_field fact 7."""
    values = {0.3: 1.8752e-6, 0.4: 0.946833, 0.45: 1.748210, 0.5: 0.948534, 0.6: 0.0685207, 0.7: 2.69774e-3, 0.8: 9.24984e-5,
              1.0: 1.02374e-7}  # fmt: skip
    law = toy_points()
    for t, value in values.items():
        sigma = float(VE().sigma(torch.tensor(t, dtype=torch.float64)))
        found = average(law, "mmse", sigma, TOY_NORM) / sigma**4
        assert found == pytest.approx(value, rel=1e-4), t
    sharp = two_modes(1e-4)
    assert average(sharp, "mmse", 0.01, TOY_NORM, 1e-4) / 0.01**4 == pytest.approx(63.9936, rel=1e-6)


def test_divergence_generator_fact_23():
    """Holds stable_target_field fact 23."""
    y = torch.tensor([1.5 - 1e-9, 1.5 + 1e-9, 1.0], dtype=torch.float64, requires_grad=True)
    f = divergence_generator(y)
    assert f.tolist() == pytest.approx([1 / 9, 1 / 9, 0], abs=1e-8)
    (slope,) = torch.autograd.grad(f.sum(), y)
    assert slope[0].abs() == pytest.approx(8 / 27, abs=1e-7)
    assert slope[1] == pytest.approx(8 / 27, abs=1e-12)
    grid = torch.logspace(-3, 4, 2000, dtype=torch.float64)
    f = divergence_generator(grid)
    assert bool((f >= (1 / grid - 1).square() - 1e-12).all())
    left, middle, right = grid[:-2], grid[1:-1], grid[2:]
    chord = f[:-2] + (f[2:] - f[:-2]) * (middle - left) / (right - left)
    assert bool((f[1:-1] <= chord + 1e-9 * chord.abs()).all())


@pytest.mark.parametrize("count", [2, 3, 7])
def test_divergence_of_far_points_fact_24(count):
    """Holds stable_target_field fact 24: D_f(p₀ ‖ p₀|t), the order of theorem 2 (E8)."""
    law = Empirical(torch.arange(count, dtype=torch.float64).unsqueeze(1) * 100)
    limit = (count - 1) ** 2 + 8 * (count - 1) / (27 * count)
    assert posterior_spread(law, law.data, 0.1).divergence.tolist() == pytest.approx([limit] * count, rel=1e-12)
    assert float(posterior_spread(law, law.data, 1e6).divergence.max()) < 1e-5
    if count == 2:
        assert limit == pytest.approx(1.148148, rel=1e-6)


@pytest.mark.parametrize(("sigma", "value"), [(1, 0.607044), (2, 0.212417), (4, 0.0592372)])
def test_divergence_of_two_points_fact_24(sigma, value):
    """Holds stable_target_field fact 24."""
    assert average(Empirical(TWO), "divergence", sigma) == pytest.approx(value, rel=2e-6)


def test_theorem_2_bounds_two_points_fact_25():
    """Holds stable_target_field fact 25, with i.i.d. references, the exact V_STF of fact 8 and its limit C."""
    found = target_variance(TWO, [1.0], references=[2, 4, 16, 64], probes=40_000, replacement=True)
    exact = {2: 0.22479975, 4: 0.09788584, 16: 0.020569183, 64: 0.0049915254}
    for n, value in exact.items():
        for estimate in (found.stf[n], found.stf_within[n]):
            assert abs(estimate.mean[0] - value) < 4 * estimate.error[0], n
        assert found.stf[n].error[0] < 0.05 * value
        assert found.stf[n].mean[0] < found.bound(n)[0]
    assert 63 * found.bound(64)[0] == pytest.approx(1.79909, rel=0.01)
    assert 63 * found.stf[64].mean[0] == pytest.approx(0.314466, rel=0.05)
    assert average(Empirical(TWO), "spread", 1.0) == pytest.approx(0.31655535, rel=1e-7)
    with pytest.raises(ArgumentError, match="n = 1"):
        found.bound(1)


def test_reduction_depends_on_the_data_fact_30():
    """Holds stable_target_field fact 30."""
    normal = torch.randn(2048, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = target_variance(normal, [2.0, 10.0], [16, 64, 256, 1024], probes=1024, replacement=True)
    near, far = (0.86, 0.70, 0.48, 0.23), (0.107, 0.029, 0.0073, 0.0018)
    for n, low, high in zip((16, 64, 256, 1024), near, far, strict=True):
        estimate = found.remaining[n]
        assert estimate.mean == pytest.approx((high, low), rel=0.05, abs=4 * max(estimate.error)), n


def test_narrow_posteriors_keep_their_digits():
    """Two points: tr Cov = sech²(x/σ²), from 1 down to 1e-21."""
    for sigma in (3.0, 1.0, 0.4, 0.2):
        x = torch.tensor([[1.0], [0.7], [-1.2], [0.0]], dtype=torch.float64)
        found = posterior_spread(Empirical(TWO), x, sigma)
        assert found.trace.tolist() == pytest.approx((torch.cosh(x / sigma**2) ** -2).flatten().tolist(), rel=1e-11)
        assert torch.allclose(found.mean, torch.tanh(x / sigma**2), rtol=1e-12, atol=1e-14)
        w = torch.sigmoid(2 * x / sigma**2).flatten()
        assert found.ess.tolist() == pytest.approx((1 / (w**2 + (1 - w) ** 2)).tolist(), rel=1e-12)


def test_probes_weigh_as_the_empirical_law_does():
    data = load("digits").images[:300]
    law, wide = Empirical(data), Empirical(data.double())
    (part,) = draw_probes(data, 16, 8, False, seed=3)
    for sigma in (0.01, 0.5, 2.0, 30.0):
        x = part.states(sigma).view(-1, *law.event_shape)
        assert torch.allclose(part.weights(sigma), law.weights(x, sigma), rtol=1e-7, atol=1e-12)
        found = part.spread(part.weights(sigma))
        exact = wide.posterior_trace(x, sigma)
        assert torch.allclose(found.trace, exact, rtol=1e-6, atol=1e-9 * float(exact.max()) + 1e-12)
        same = posterior_spread(wide, x, sigma)
        for name in ("trace", "entropy", "ess", "divergence", "spread"):
            assert torch.allclose(getattr(found, name), getattr(same, name), rtol=1e-6, atol=1e-9), name


def test_near_duplicates_at_small_noise_in_many_dimensions():
    """σ = 0.002, d = 3072, float32: expanded squares would be wrong by nats; held to the differences in float64."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(4, 3072, generator=generator) * 2 - 1
    data = torch.cat((base, base + 3e-5 * torch.randn(4, 3072, generator=generator)))
    (part,) = draw_probes(data, 32, 2, False, seed=0)
    w = part.weights(0.002)
    exact = Empirical(part.points + 0).weights(part.states(0.002) - part.centre, 0.002)
    assert float((w - exact).abs().max()) < 1e-6
    assert 0.05 < float(w.max(1).values.min()) < 0.95  # the duplicates do compete
    trace = part.spread(w).trace
    direct = torch.stack([
        (p.unsqueeze(1) * (part.points.double() - p @ part.points.double()).square()).sum() for p in exact
    ])  # fmt: skip
    assert torch.allclose(trace, direct, rtol=1e-4)


def test_estimators_agree_and_references_only_help():
    found = target_variance(load("digits").images[:400], references=[1, 4, 32, 128, 400, 900], probes=600)
    assert sorted(found.stf) == [1, 4, 32, 128, 400]  # 900 references do not exist
    assert found.exact
    for k, h_ in enumerate(found.entropy.mean):
        assert found.stf[1].mean[k] == found.dsm.mean[k]
        assert abs(found.stf[400].mean[k]) <= 1e-9 * found.dsm.mean[k]  # P6
        shares = [found.remaining[n].mean[k] for n in (1, 4, 32, 128, 400)]
        errors = [found.remaining[n].error[k] for n in (1, 4, 32, 128, 400)]
        assert all(b <= a + 3 * (e + f) for a, b, e, f in zip(shares, shares[1:], errors, errors[1:], strict=False))
        for n in (4, 32, 128):
            if h_ > 0.2:
                gap = found.stf[n].mean[k] - found.stf_within[n].mean[k]
                assert abs(gap) < 5 * math.hypot(found.stf[n].error[k], found.stf_within[n].error[k])
    far = 0  # the highest level: P5 without replacement
    for n in (4, 32, 128):
        expected = (400 - n) / (n * 399)
        assert found.remaining[n].mean[far] == pytest.approx(expected, rel=0.05 + 4 * found.remaining[n].error[far])
    assert found.constant.mean[far] == pytest.approx(found.dsm.mean[far], rel=0.1)


def test_three_phases_by_entropy_not_by_the_raw_variance():
    """A law with a density: V_DSM grows without bound as σ falls (E11), the phases are there all the same."""
    law = Gaussian(torch.zeros(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64))
    found = target_variance(law, references=[1], points=500, probes=200)
    assert found.dsm.mean[-1] == max(found.dsm.mean)
    assert found.near_until is not None
    assert found.far_from is not None
    assert found.near_until < found.far_from
    middle = math.sqrt(found.near_until * found.far_from)
    assert [found.phase(s) for s in (found.near_until / 2, middle, 2 * found.far_from)] == [1, 2, 3]
    assert [found.phase(s) for s in (1e-9, 1e9)] == [1, 3]
    rising = found.entropy.mean[::-1]
    assert all(b >= a - 1e-9 for a, b in pairwise(rising))


def test_levels_beyond_the_phases_have_none():
    found = target_variance(TWO, [0.01, 0.02], references=[1, 2], probes=16)
    assert (found.near_until, found.far_from) == (None, None)
    assert found.remaining[2].mean == (1.0, 1.0)  # nothing to remove: exp(−5000) is 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_chunks_do_not_change_the_numbers(monkeypatch):
    data = load("digits").images[:200]
    whole = target_variance(data, [0.5, 2.0], [8], probes=40, seed=5)
    monkeypatch.setattr(posteriors_module, "_ENTRIES", 200 * 7)
    parts = target_variance(data, [0.5, 2.0], [8], probes=40, seed=5, progress=True)
    for name in ("dsm", "entropy", "divergence", "constant"):
        assert getattr(parts, name).mean == pytest.approx(getattr(whole, name).mean, rel=1e-9), name
    assert parts.stf[8].mean == pytest.approx(whole.stf[8].mean, rel=1e-9)
    assert target_variance(data, [0.5, 2.0], [8], probes=40, seed=6).dsm.mean != whole.dsm.mean


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.01, 100), sigma=st.floats(0.1, 3))
def test_scaling_of_the_data(scale, sigma):
    """x → c x, σ → c σ divides variances of scores by c² and leaves shares alone."""
    data = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = target_variance(data, [sigma], [5], probes=20)
    other = target_variance(scale * data, [scale * sigma], [5], probes=20)
    assert other.dsm.mean[0] * scale**2 == pytest.approx(one.dsm.mean[0], rel=1e-6)
    assert other.entropy.mean[0] == pytest.approx(one.entropy.mean[0], rel=1e-6, abs=1e-12)
    assert other.remaining[5].mean[0] == pytest.approx(one.remaining[5].mean[0], rel=1e-6, abs=1e-9)


def test_subsamples_arrays_and_records():
    data = load("digits").images
    found = target_variance(data.numpy(), [1.0], [4], points=100, probes=8)
    assert (found.points, found.total, found.exact) == (100, 1797, False)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["stf"]["4"]["mean"] == list(found.stf[4].mean)
    assert {"near_until", "far_from", "peak", "exact"} <= set(record)
    same = target_variance(Empirical(data), [1.0], [4], points=100, probes=8)
    assert same.dsm == found.dsm
    heavier = target_variance(data, [1.0, 2.0], [1], points=100, probes=8, weight=lambda s: 3.0)
    assert heavier.weighted.mean == pytest.approx([3 * v for v in heavier.dsm.mean])


def test_plots():
    found = target_variance(TWO, references=[1, 2, 16], probes=64, replacement=True)
    figure = found.plot()
    left, right = figure.axes
    assert len(left.lines) == 4
    assert len(right.lines) >= 3
    assert len(left.patches) == 2  # the near and the far phase
    assert found.plot(ax=figure.axes) is figure


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigmas": [1.0, 0.0]}, "sigmas"), ({"sigmas": []}, "sigmas"), ({"references": []}, "references"),
        ({"references": [0]}, "references"), ({"probes": 1}, "probes"), ({"points": 1}, "points"),
    ],
)  # fmt: skip
def test_wrong_arguments(options, words):
    with pytest.raises(ArgumentError, match=words):
        target_variance(TWO, **options)


def test_wrong_sources():
    for source in (TWO[:1], torch.zeros(4), torch.zeros(4, 2, dtype=torch.int64)):
        with pytest.raises(ArgumentError, match="source"):
            target_variance(source, [1.0])
    law = Empirical(TWO.float(), process=Heavy())
    with pytest.raises(ArgumentError, match="process"):
        target_variance(law, [1.0])
    with pytest.raises(ArgumentError, match="process"):
        posterior_spread(law, TWO.float(), 1.0)
    with pytest.raises(ArgumentError, match="one point repeated"):
        target_variance(torch.ones(5, 2))


def test_types_of_sources() -> None:
    result: Tensor = posterior_spread(Empirical(TWO), TWO, 1.0).mean
    assert result.dtype == torch.float64
