"""Interpolation of latents: coefficients, laws, the corrected formulas, and the diagnostics before decoding."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2

from farfield.analysis.interpolation_diagnostics import detail, latent_diagnostics, plot_norms
from farfield.analysis.interpolation_plot import draw_interpolation
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import karras
from farfield.sampling.encoding import decode, encode
from farfield.sampling.interpolation import (
    MODES,
    angle,
    angle_deviation,
    coefficients,
    combine,
    corner_grid,
    from_simplex,
    interpolate,
    magnitude_factor,
    morph,
    slerp_variance,
    variance_factor,
)
from tests.laws import smooth_mixture

WIDE = torch.float64
KEEP_LAW = ("in-distribution", "n-linear", "sine")
alphas_ = st.floats(0, 1)
angles_ = st.floats(0.01, math.pi - 0.01)


def noise(n: int, *shape: int, start: int = 0) -> torch.Tensor:
    return streams.normal(5, range(start, start + n), shape, dtype=WIDE)


def at_angle(psi: float, norm: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two vectors of equal norm."""
    return norm * torch.tensor([[1.0, 0.0, 0.0]], dtype=WIDE), norm * torch.tensor(
        [[math.cos(psi), math.sin(psi), 0.0]], dtype=WIDE
    )


def test_radius_of_linear():
    """Geometry fact 55."""
    for alpha, factor in ((0.1, 0.905538514), (0.25, 0.790569415), (0.5, 0.707106781)):
        assert float(variance_factor(alpha, "linear")) ** 0.5 == pytest.approx(factor, abs=5e-10)


def test_variance_of_slerp_at_an_angle():
    """Geometry fact 56, erratum E6: ½ sec²(ψ/2), at least 0.5."""
    for psi, factor in ((math.pi / 3, 2 / 3), (math.pi / 2, 1.0), (2 * math.pi / 3, 2.0)):
        assert float(variance_factor(0.5, "slerp", psi)) == pytest.approx(factor, rel=1e-12)
        assert factor == pytest.approx(1 / (2 * math.cos(psi / 2) ** 2))


def test_shares_of_the_second_latent():
    """Geometry fact 57, erratum E5: the corrected n-linear, and the high-dimensional slerp."""
    alphas = (0.1, 0.25, 0.5, 0.75)
    n_linear, sine = (coefficients(alphas, mode)[1].tolist() for mode in ("n-linear", "sine"))
    assert n_linear == pytest.approx([0.110431526, 0.316227766, 0.707106781, 0.948683298], abs=5e-10)
    assert sine == pytest.approx([0.156434465, 0.382683432, 0.707106781, 0.923879533], abs=5e-10)
    # The printed denominator α² + (1 − α²) is 1, which would leave λ = α: the in-distribution mode.
    assert coefficients(alphas, "in-distribution")[1].tolist() == list(alphas)
    # Slerp of orthogonal latents is the sine rule.
    assert torch.allclose(coefficients(alphas, "slerp", math.pi / 2)[1], coefficients(alphas, "sine")[1])


def test_variance_of_slerp():
    """Geometry fact 58, erratum E9: above 1, infinite for d ≤ 3, not the mean over angles; and not normal."""
    for d, factor in ((4, 1.11642707), (5, 1.04729261), (6, 1.02653718), (8, 1.01208735), (16, 1.00236516),
                      (64, 1.00012757), (1024, 1.00000048)):  # fmt: skip
        assert slerp_variance(d) == pytest.approx(factor, abs=6e-9)
        assert slerp_variance(d, 0.5 + 1e-9) == pytest.approx(factor, abs=6e-9)  # the quadrature agrees
    assert slerp_variance(3) == math.inf
    assert slerp_variance(3, 0.0) == slerp_variance(64, 1.0) == 1
    density = lambda psi: math.sin(psi) ** 4  # noqa: E731
    total = quad(density, 0, math.pi)[0]
    over_angles = quad(lambda p: density(p) / total / (2 * math.cos(p / 2) ** 2), 0, math.pi)[0]
    assert over_angles == pytest.approx(4 / 3, rel=1e-9)
    a, b = noise(60_000, 6), noise(60_000, 6, start=60_000)
    for alpha in (0.5, 0.25):
        z = interpolate(a, b, alpha, "slerp")
        assert float(z.square().mean()) == pytest.approx(slerp_variance(6, alpha), abs=0.006)
    middle = interpolate(a, b, 0.5, "slerp")
    assert float(middle.pow(4).mean() / middle.square().mean() ** 2) == pytest.approx(2.70, abs=0.03)


def test_angle_of_noise():
    """Geometry fact 59: standard deviation of the angle, and that it is about 1/√d."""
    for d, deviation in ((16, 0.258009), (256, 0.0626223), (3072, 0.0180451)):
        assert angle_deviation(d) == pytest.approx(deviation, abs=6e-7)
    assert angle_deviation(100_000) * math.sqrt(100_000) == pytest.approx(1, abs=1e-4)
    psi = angle(noise(4000, 16), noise(4000, 16, start=4000))
    assert float(psi.mean()) == pytest.approx(math.pi / 2, abs=0.015)
    assert float(psi.std()) == pytest.approx(0.258009, abs=0.01)


@settings(max_examples=80, deadline=None)
@given(alphas_, angles_)
def test_equal_norms(alpha, psi):
    """Geometry fact 60: the identities of equal norms, for any angle (Remarks 7 and 8, errata E10, E11)."""
    a, b = at_angle(psi)
    found = {mode: float(interpolate(a, b, alpha, mode).norm() ** 2 / 9) for mode in MODES}
    assert found["slerp"] == pytest.approx(1, abs=1e-9)
    assert found["linear"] == pytest.approx(1 - 2 * alpha * (1 - alpha) * (1 - math.cos(psi)), abs=1e-12)
    lam = alpha
    assert found["in-distribution"] == pytest.approx(1 + 2 * lam * math.sqrt(1 - lam * lam) * math.cos(psi), abs=1e-12)
    for mode in MODES:
        assert float(magnitude_factor(alpha, mode, psi)) == pytest.approx(found[mode], abs=1e-9)
    # E11: the second line of Eq. 59 lacks sin²(αψ), without which the square would not be that of C.
    c_a, c_b = coefficients(alpha, "slerp", psi)
    assert float(c_a**2 + c_b**2 + 2 * c_a * c_b * math.cos(psi)) == pytest.approx(1, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(alphas_, st.sampled_from(KEEP_LAW))
def test_squares_add_up_to_one(alpha, mode):
    """The modes that keep the law, and their mirror image in the other latent (all but in-distribution)."""
    c_a, c_b = coefficients(alpha, mode)
    assert float(c_a**2 + c_b**2) == pytest.approx(1, abs=1e-14)
    if mode != "in-distribution":
        d_b, d_a = coefficients(1 - alpha, mode)
        assert float(c_a - d_a) == pytest.approx(0, abs=1e-14)
        assert float(c_b - d_b) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
def test_ends_are_exact(mode, dtype):
    """Geometry fact 60: a at 0 and b at 1, to the bit, for any event shape, about any centre; coefficients vary smoothly."""
    a, b = noise(3, 2, 4, 4).to(dtype), noise(3, 2, 4, 4, start=3).to(dtype)
    for centre in (None, noise(1, 2, 4, 4, start=9)[0].to(dtype)):
        frames = interpolate(a, b, (0.0, 0.3, 1.0), mode, centre)
        assert frames.shape == (3, 3, 2, 4, 4)
        assert frames.dtype == dtype
        assert torch.equal(frames[0], a)
        assert torch.equal(frames[2], b)
        assert torch.allclose(frames[1], interpolate(a, b, 0.3, mode, centre))


@pytest.mark.parametrize("mode", ["linear", *KEEP_LAW])
def test_law_is_kept(mode):
    """Covariance of any shape about any mean: kept by what keeps N(0, I), narrowed by linear."""
    law = Gaussian(torch.tensor([3.0, -5.0], dtype=WIDE), torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=WIDE))
    a, b = law.colour(noise(40_000, 2)), law.colour(noise(40_000, 2, start=40_000))
    z = interpolate(a, b, 0.4, mode, law.mean)
    factor = float(variance_factor(0.4, mode))
    assert factor == pytest.approx(0.52 if mode == "linear" else 1.0)
    assert torch.allclose(z.mean(0), law.mean, atol=0.04)
    assert torch.allclose(torch.cov(z.T) / factor, torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=WIDE), atol=0.08)


def test_slerp_of_aligned_latents():
    """Near 0 slerp's limit, linear; near π n-linear; rows decide for themselves, and nothing is NaN."""
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=WIDE)
    b = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=WIDE)
    z = interpolate(a, b, (0.25, 0.5), "slerp")
    assert z[0, 0].tolist() == [1.25, 0.0]
    assert z[0, 1].tolist() == pytest.approx([0.5 / math.hypot(0.25, 0.75), 0.0])
    assert z[1, 2].tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert bool(torch.isfinite(z).all())
    # The limit is reached smoothly: at ψ = 2e-6 the formula itself is linear to twelve digits.
    near = coefficients(0.3, "slerp", 2e-6)
    assert [float(c) for c in near] == pytest.approx([0.7, 0.3], rel=1e-10)


def test_angle_keeps_its_digits():
    for psi in (1e-9, 0.5, math.pi / 2, math.pi - 1e-9):
        assert float(angle(*at_angle(psi))) == pytest.approx(psi, rel=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda w: sum(w) > 0.1))
def test_simplex(weights):
    """Any number of latents: squares that add up to 1; for two it is n-linear."""
    w = torch.tensor(weights, dtype=WIDE)
    w = w / w.sum()
    c = from_simplex(w)
    assert float(c.square().sum()) == pytest.approx(1, abs=1e-12)
    latents = noise(len(weights), 3)
    assert combine(latents, c).shape == (3,)
    if len(weights) == 2:
        pair = interpolate(latents[:1], latents[1:], float(w[1].clamp(0, 1)), "n-linear")[0]
        assert torch.allclose(combine(latents, c), pair, atol=1e-10)


def test_many_ways():
    """Mixtures of several latents keep the law; a corner of the simplex is a latent."""
    latents = noise(3 * 20_000, 2).view(3, 20_000, 2)
    mixed = combine(latents, from_simplex([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]))
    assert mixed.shape == (2, 20_000, 2)
    assert torch.allclose(torch.cov(mixed[0].T), torch.eye(2, dtype=WIDE), atol=0.04)
    assert torch.equal(mixed[1], latents[1])
    shifted = combine(latents + 7, from_simplex([0.2, 0.3, 0.5]), centre=torch.full((2,), 7.0, dtype=WIDE))
    assert torch.allclose(shifted, mixed[0] + 7)
    with pytest.raises(ArgumentError, match=r"squares of factors add up to 0\.38"):
        combine(latents, [0.2, 0.3, 0.5])
    with pytest.raises(ArgumentError, match="add up to 1"):
        from_simplex([0.5, 0.6])


@pytest.mark.parametrize("mode", MODES)
def test_corner_grid(mode):
    """Corners in the corners, ends of rows on the sides; bilinear for linear, its normalised form for n-linear."""
    corners = noise(4, 5)
    sheet = corner_grid(corners, 3, 5, mode)
    assert sheet.shape == (3, 5, 5)
    assert torch.equal(sheet[[0, 0, -1, -1], [0, -1, 0, -1]], corners)
    assert torch.allclose(sheet[:, 0], interpolate(corners[:1], corners[2:3], (0.0, 0.5, 1.0), mode)[:, 0])
    weights = torch.tensor([0.75 * 0.5, 0.25 * 0.5, 0.75 * 0.5, 0.25 * 0.5], dtype=WIDE)
    if mode == "linear":
        assert torch.allclose(sheet[1, 1], weights @ corners)
    if mode == "n-linear":
        assert torch.allclose(sheet[1, 1], combine(corners, from_simplex(weights)))


def test_refusals():
    a, b = noise(2, 3), noise(2, 3, start=2)
    for call, said in (
        (lambda: interpolate(a, b, 0.5, "spherical"), "unknown interpolation mode 'spherical'"),
        (lambda: interpolate(a, b, 1.2), "expected numbers in [0, 1]"),
        (lambda: interpolate(a, b, []), "expected numbers in [0, 1]"),
        (lambda: interpolate(a, b[:1], 0.5), "expected two of (B, *event)"),
        (lambda: interpolate(a, b * math.nan, 0.5), "NaN or infinity"),
        (lambda: interpolate(a.int(), b.int(), 0.5), "a holds torch.int32; expected floating-point numbers"),
        (lambda: interpolate(a, b.int(), 0.5), "b holds torch.int32"),
        (lambda: combine(a.int(), from_simplex([0.5, 0.5])), "latents holds torch.int32"),
        (lambda: coefficients(0.5, "slerp"), "psi is missing"),
        (lambda: combine(a, torch.ones(3)), "expected (F, M) or (M,)"),
        (lambda: corner_grid(a, 3, 3), "expected 4 corners"),
        (lambda: slerp_variance(1), "dim = 1"),
        (lambda: latent_diagnostics(a, 0.0), "sigma = 0.0"),
        (lambda: latent_diagnostics(a, 1.0, alphas=(0, 1)), "expected (2, B, *event)"),
        (lambda: detail(a), "(n, C, H, W)"),
    ):
        with pytest.raises(ArgumentError) as caught:
            call()
        assert said in str(caught.value)


# -- before decoding ----------------------------------------------------------------------------------------------------


def test_diagnostics_find_what_leaves_the_shell():
    """Linear is warned of and where; what keeps the law is not; the quantile is that of χ²."""
    a, b = 80 * noise(2, 3, 16, 16), 80 * noise(2, 3, 16, 16, start=2)
    alphas = (0.0, 0.25, 0.5, 0.75, 1.0)
    found = {m: latent_diagnostics(interpolate(a, b, alphas, m), 80.0, alphas=alphas, mode=m) for m in MODES}
    for mode in (*KEEP_LAW, "slerp"):
        assert found[mode].warnings == ()
        assert float((found[mode].variance - 1).abs().max()) < 0.06
    linear = found["linear"]
    (warning,) = linear.warnings
    assert "α = 0.5 falls short" in warning
    assert "n-linear" in warning
    assert linear.variance.tolist() == pytest.approx([1, 0.625, 0.5, 0.625, 1], abs=0.05)
    assert linear.outside.tolist() == [0, 1, 1, 1, 0]
    assert float(linear.quantile[2].max()) < 1e-12
    assert "falls short" in linear.summary()
    squares = (a[0] / 80).square().sum()
    assert float(linear.quantile[0, 0]) == pytest.approx(chi2.cdf(float(squares), 768))
    assert json.loads(json.dumps(linear.to_dict(), allow_nan=False))["mode"] == "linear"
    assert len(linear.tables()[0].rows) == 5
    assert plot_norms(found) is not None


def test_kurtosis_of_a_single_coordinate_is_unknown():
    found = latent_diagnostics(noise(3, 1), 1.0)
    assert bool(found.kurtosis.isnan().all())
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["kurtosis"] == [[None], [None], [None]]
    assert found.tables()[0].rows[0][-1] is None


def test_diagnostics_find_dependent_ends():
    """Ends that are not at right angles, and latents about a mean."""
    a = noise(1, 400)
    b = 0.6 * a + 0.8 * noise(1, 400, start=1)
    frames = interpolate(a, b, (0.0, 0.5, 1.0))
    found = latent_diagnostics(frames, 1.0, alphas=(0.0, 0.5, 1.0), mode="n-linear")
    assert any("not independent" in w for w in found.warnings)
    assert any("lies beyond" in w for w in found.warnings)
    kept = latent_diagnostics(interpolate(a, b, (0.0, 0.5, 1.0), "slerp"), 1.0, alphas=(0.0, 0.5, 1.0))
    assert not any("lies beyond" in w for w in kept.warnings)
    shifted = latent_diagnostics(noise(5, 400) + 3, 1.0, centre=torch.full((400,), 3.0))
    assert shifted.warnings == ()
    assert shifted.angle is None
    assert float(shifted.kurtosis.mean()) == pytest.approx(3, abs=0.3)
    assert shifted.plot() is not None
    assert len(latent_diagnostics(noise(5, 400) + 3, 1.0).warnings) == 1


def test_detail():
    """0 for an even image, less for a blurred one, the mean of squared differences by hand."""
    image = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    assert float(detail(image)) == 1.0
    assert float(detail(torch.ones(1, 3, 4, 4))) == 0.0
    sharp = noise(4, 1, 8, 8)
    assert bool((detail(torch.nn.functional.avg_pool2d(sharp, 3, 1)) < detail(sharp)).all())


def test_pictures():
    """Images in rows over the norms; vectors as paths, in one, two and more dimensions."""
    alphas = (0.0, 0.5, 1.0)
    for shape in ((1, 8, 8), (2,), (1,), (5,)):
        a, b = noise(1, *shape), noise(1, *shape, start=1)
        norms = {m: latent_diagnostics(interpolate(a, b, alphas, m), 1.0, alphas=alphas, mode=m) for m in MODES}
        frames = {m: interpolate(a, b, alphas, m)[:, 0] for m in MODES}
        figure = draw_interpolation(frames, norms, None, noise(20, *shape), "between")
        assert len(figure.axes) == 2


# -- between samples ----------------------------------------------------------------------------------------------------


def test_morph():
    """Ends come back, the middle is what decoding the mixed latents gives, and a Gaussian's frames are its own mixtures."""
    law = smooth_mixture()
    a, b = torch.tensor([[0.9, -0.2]], dtype=WIDE), torch.tensor([[-0.8, -1.0]], dtype=WIDE)
    grid = karras(60, 0.01, 40.0)
    found = morph(law, a, b, (0.0, 0.5, 1.0), grid, mode="sine")
    assert found.x.shape == (3, 1, 2)
    assert float((found.x[0] - a).abs().max()) < 0.01
    assert float((found.x[2] - b).abs().max()) < 0.01
    latents = encode(law, torch.cat((a, b)), grid).z
    middle = decode(law, interpolate(latents[:1], latents[1:], 0.5, "sine"), grid).x
    assert torch.allclose(found.x[1], middle)
    assert found.nfe == 2 * 59 + 2 * 60 - 1
    normal = Gaussian(torch.zeros(2, dtype=WIDE), Spectrum.isotropic(2, 1.0))
    own = morph(normal, a, b, 0.3, karras(4, 1e-4, 80.0), solver="whitened", covariance=normal, lift="clean")
    assert torch.allclose(own.x[0], interpolate(a, b, 0.3), atol=1e-6)
