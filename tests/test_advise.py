"""`advise`: its rules against closed forms, their scaling, lattices, and EDM's defaults where those are known to be good."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from farfield import advise as top_level_advise
from farfield.analysis import advise, target_variance
from farfield.analysis.advice import EDM
from farfield.analysis.noise_range import highest_level, noise_law, removable, rounding, start_divergence
from farfield.cli.main import main
from farfield.data import load
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError, DataError
from farfield.numerics.spectrum import Spectrum


def gaussian(values: list[float], mean: float = 0.0) -> Gaussian:
    return Gaussian(torch.full((len(values),), mean, dtype=torch.float64), Spectrum.diagonal(values))


@pytest.fixture(scope="module")
def digits():
    return advise(load("digits"))


@pytest.fixture(scope="module")
def photographs():
    """Smooth random fields with the 1/f spectrum of photographs, 8 bits, σ_data 0.5: 3x16x16."""
    generator = torch.Generator().manual_seed(0)
    u = torch.arange(16, dtype=torch.float64)
    frequency = (u[:, None] ** 2 + u[None, :] ** 2).clamp(min=0.5).sqrt()
    values = torch.stack([s * frequency**-2 for s in (1.0, 0.06, 0.02)])  # luminance, and two fainter colours
    law = Gaussian(torch.zeros(3, 16, 16, dtype=torch.float64), Spectrum.dct((3, 16, 16), values.flatten()))
    mix = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64) + 2)[0]
    x = torch.einsum("ij,njhw->nihw", mix, law.sample(3000, generator))
    # The mean photograph is brighter at the top.
    x = (0.5 * x / x.std() + torch.linspace(0.18, -0.18, 16)[:, None]).clamp(-1, 1)
    return ((x + 1) * 127.5).round().float() / 127.5 - 1


# -- the highest level --------------------------------------------------------------------------------------------------


def test_start_divergence_is_that_of_two_gaussians():
    law = gaussian([4.0, 1.0, 0.25, 0.0], mean=0.3)
    for sigma in (0.1, 1.0, 30.0):
        p = torch.distributions.MultivariateNormal(
            law.mean, torch.diag(law.spectrum.values + sigma**2)
        )  # fmt: skip
        q = torch.distributions.MultivariateNormal(torch.zeros(4).double(), sigma**2 * torch.eye(4).double())
        exact = float(torch.distributions.kl_divergence(p, q))
        assert start_divergence(law, sigma) == pytest.approx(exact, rel=1e-9, abs=1e-14)
    # Far away KL = Σλ²/4σ⁴ without a mean, which a plain difference would lose to rounding.
    assert start_divergence(gaussian([4.0, 1.0]), 1e5) == pytest.approx(17 / 4e20, rel=1e-6)


def test_highest_level_in_closed_form():
    # A mean far larger than the spread: KL = ‖μ‖²/2σ², hence σ = ‖μ‖/2 share.
    law = gaussian([1e-8] * 4, mean=5.0)
    assert highest_level(law, 0.03) == pytest.approx(10 / 0.06, rel=1e-6)
    # No mean and many coordinates: KL ≈ d λ²/4σ⁴, hence σ⁴ = d λ²/8 share².
    wide = gaussian([2.0] * 5000)
    assert highest_level(wide, 0.03) == pytest.approx((5000 * 4 / (8 * 0.03**2)) ** 0.25, rel=0.01)
    for law in (gaussian([3.0, 0.1], 0.2), wide):
        assert start_divergence(law, highest_level(law, 0.1)) == pytest.approx(2 * 0.1**2, rel=1e-6)
    with pytest.raises(DataError):
        highest_level(gaussian([0.0, 0.0]))


def test_a_start_at_the_highest_level_errs_by_less_than_promised():
    """Total variation between N(0, σ²) and the law at σ, in one dimension by quadrature, stays below 3 %."""
    law = gaussian([1.0], mean=2.0)
    sigma = highest_level(law)

    def gap(x: float) -> float:
        spread = math.sqrt(1 + sigma**2)
        return abs(math.exp(-((x / sigma) ** 2) / 2) / sigma - math.exp(-(((x - 2) / spread) ** 2) / 2) / spread)

    distance = quad(gap, -12 * sigma, 12 * sigma, limit=400, points=[0])[0] / math.sqrt(2 * math.pi) / 2
    assert 0.015 < distance < 0.03


# -- the lowest level ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [9, 17, 64, 256])
def test_lattices_are_found(levels):
    generator = torch.Generator().manual_seed(0)
    step = 2 / (levels - 1)
    data = torch.randint(0, levels, (500, 3, 8, 8), generator=generator).float() * step - 1
    found = rounding(data)
    assert found.step == pytest.approx(step, rel=1e-5)
    assert found.values == levels
    assert found.coarse
    assert found.level == pytest.approx(step / math.sqrt(12), rel=1e-5)


def test_a_lattice_with_gaps_and_float32_noise():
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([0, 3, 5, 6, 11, 40, 90, 91, 255])
    data = places[torch.randint(0, 9, (4000, 2), generator=generator)].float() / 255
    data = data * (1 + 1e-7 * torch.randn(data.shape, generator=generator).clamp(-1, 1))
    assert rounding(data).step == pytest.approx(1 / 255, rel=1e-4)


def test_what_is_no_lattice():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(3000, 4, generator=generator)
    found = rounding(smooth)
    assert found.step is None
    assert not found.coarse
    assert found.level == pytest.approx(found.span / (255 * math.sqrt(12)), rel=1e-12)
    assert found.span == pytest.approx(2 * 3.09, rel=0.05)  # all but 0.2 % of a normal law
    irregular = torch.randn(20, generator=generator)[torch.randint(0, 20, (4000, 2), generator=generator)]
    assert rounding(irregular).step is None
    binary = torch.randint(0, 2, (500, 8), generator=generator).float()
    assert rounding(binary).step is None  # two categories are no rounded continuum
    # A lattice finer than eight bits over the range is found, and does not decide.
    fine = torch.randint(0, 1021, (4000, 8), generator=generator).float() / 1020
    assert rounding(fine).step == pytest.approx(1 / 1020, rel=1e-4)
    assert not rounding(fine).coarse
    with pytest.raises(DataError):
        rounding(torch.ones(10, 2))


# -- where to train -----------------------------------------------------------------------------------------------------


def test_removable_share_of_a_gaussian():
    values = [9.0, 1.0, 0.04, 0.0]
    law, mean = gaussian(values), sum(values) / 4
    sigmas = torch.tensor([0.05, 0.5, 3.0], dtype=torch.float64)
    for sigma, found in zip(sigmas.tolist(), removable(law.spectrum, sigmas).tolist(), strict=True):
        least = sum(v * sigma**2 / (v + sigma**2) for v in values)
        assert found == pytest.approx(1 - least / (4 * mean * sigma**2 / (mean + sigma**2)), rel=1e-12)
        # What the mean square errors of the law itself say.
        x = torch.zeros(1, 4, dtype=torch.float64)
        assert least == pytest.approx(float(law.posterior_trace(x, sigma)), rel=1e-12)
    assert removable(gaussian([2.0] * 3).spectrum, sigmas).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    low_rank = Spectrum.low_rank(torch.eye(6)[:, :2], [5.0, 1.0], tail=0.3)
    same = Spectrum.diagonal([5.0, 1.0, 0.3, 0.3, 0.3, 0.3])
    assert torch.allclose(removable(low_rank, sigmas), removable(same, sigmas), rtol=1e-12)


def test_noise_law_against_quadrature():
    values, low, high = [9.0, 1.0, 0.04, 0.01], 0.01, 50.0
    mean = sum(values) / 4

    def density(u: float) -> float:
        s2 = math.exp(2 * u)
        r = 1 - sum(v / (v + s2) for v in values) * (mean + s2) / (4 * mean)
        return math.exp(u) * math.sqrt(mean) / (s2 + mean) * math.sqrt(max(r, 0.01))

    ends = (math.log(low), math.log(high))
    area, first, second = (quad(lambda u, k=k: u**k * density(u), *ends)[0] for k in range(3))
    found = noise_law(gaussian(values).spectrum, low, high)
    assert found.p_mean == pytest.approx(first / area, rel=1e-4)
    assert found.p_std == pytest.approx(math.sqrt(second / area - (first / area) ** 2), rel=1e-4)
    assert float(np.trapezoid(found.density, np.log(found.sigmas))) == pytest.approx(1, rel=1e-9)
    assert found.best == pytest.approx(found.sigmas[int(np.argmax(found.removable))])


def test_without_correlations_the_effect_alone_decides():
    """q ∝ sech(ln σ − ln √v), whose standard deviation is π/2."""
    found = noise_law(gaussian([4.0] * 5).spectrum, 2e-4, 2e4, count=2000)
    assert found.p_mean == pytest.approx(math.log(2), abs=1e-6)
    assert found.p_std == pytest.approx(math.pi / 2, rel=1e-2)
    assert found.best is None


# -- the whole ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.01, 7.3])
def test_advice_scales_with_the_data(scale):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    data = torch.randn(400, 6, generator=generator, dtype=torch.float64) @ mixing + 0.5
    one, other = advise(data, probes=32), advise(scale * data, probes=32)
    for name in ("sigma_min", "sigma_max", "sigma_data"):
        assert getattr(other, name) == pytest.approx(scale * getattr(one, name), rel=1e-6), name
    assert other.p_mean == pytest.approx(one.p_mean + math.log(scale), abs=1e-6)
    assert other.p_std == pytest.approx(one.p_std, rel=1e-6)
    assert other.references == one.references
    for n, share in one.removed_loss.items():
        assert other.removed_loss[n] == pytest.approx(share, rel=1e-6)


def test_near_edm_where_edm_is_known_to_be_good(photographs):
    found = advise(photographs, points=512, probes=32)
    assert {s.name: s.near for s in found.settings if s.name != "references"} == dict.fromkeys(
        ("sigma_min", "sigma_max", "p_mean", "p_std", "sigma_data"), True
    )
    assert found.sigma_min == pytest.approx(2 / 255 / math.sqrt(12), rel=1e-3)
    assert "256 values" in found.settings[0].reason
    assert found.basis == "dct"  # 3,000 samples are too few for the covariance of 768 coordinates
    assert found.difference().endswith("Different: none.")


def test_digits(digits):
    assert digits.sigma_data == pytest.approx(0.752, abs=1e-3)
    assert digits.sigma_min == pytest.approx(0.125 / math.sqrt(12), rel=1e-6)
    near = {s.name: s.near for s in digits.settings}
    assert near == {"sigma_min": False, "sigma_max": True, "p_mean": True, "p_std": True, "sigma_data": True,
                    "references": False}  # fmt: skip
    assert "sigma_min 0.0361 (0.002)" in digits.difference()
    assert digits.basis == "pca"
    assert sum(digits.phases) == pytest.approx(1, abs=1e-6)
    assert digits.stable
    assert digits.removed[1797] == pytest.approx(1, rel=1e-9)  # all points as references leave no variance
    assert digits.removed_loss[1797] == pytest.approx(digits.variance_share, rel=1e-9)
    shares = list(digits.removed_loss.values())
    assert shares == sorted(shares)
    assert digits.removed_loss[digits.references] >= 0.9 * max(shares)
    for setting in digits.settings:
        assert "\n" not in setting.reason
        assert any(c.isdigit() for c in setting.reason) or setting.name == "sigma_data"


def test_the_loss_that_references_remove_is_measured_on_any_choice_of_points():
    """R(n) is the mean posterior variance inside a batch of n: it does not depend on how many points stand by."""
    data = load("digits").images[:1000]
    levels = np.geomspace(0.3, 20, 10).tolist()
    small = advise(data, target=target_variance(data, levels, [64], points=300, probes=500))
    large = advise(data, target=target_variance(data, levels, [64], points=None, probes=500))
    assert small.removed_loss[64] == pytest.approx(large.removed_loss[64], rel=0.12)
    assert small.removed[64] > large.removed[64]


def test_references_do_not_pay_where_points_are_far_apart():
    """White noise in many dimensions: the intermediate phase lies far above the levels that matter."""
    found = advise(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)), probes=32)
    assert not found.stable
    assert found.references == 1
    assert "less than" in found.settings[-1].reason


def test_record_plot_and_names(digits):
    record = json.loads(json.dumps(digits.to_dict(), allow_nan=False))
    assert {s["name"] for s in record["settings"]} == set(EDM)
    assert record["removed"]["1024"] == digits.removed[1024]
    assert record["target"]["points"] == 1797
    assert len(digits.plot().axes[0].lines) >= 5
    assert top_level_advise is advise


@pytest.mark.parametrize("data", [torch.zeros(20), torch.zeros(3, 4), torch.zeros(20, 4, dtype=torch.uint8)])
def test_wrong_data(data):
    with pytest.raises(ArgumentError, match="data"):
        advise(data)


def test_data_without_anything_to_learn():
    with pytest.raises(DataError, match="alike"):
        advise(torch.ones(20, 4))
    with pytest.raises(DataError, match="finite"):
        advise(torch.full((20, 4), torch.nan))


# -- command line and report --------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "advice"
    small = ["advise", "digits", "--points", "300", "--probes", "16"]
    assert main([*small, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for words in ("sigma_max", "EDM", "Near EDM's defaults", "objective.p_mean=-0.", "300 (targets"):
        assert words in shown
    assert sorted(p.name for p in out.iterdir()) == ["advice.json", "noise.png", "targets.png"]
    assert main([*small, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "advice.json").read_text(encoding="utf-8"))
    assert main([*small, "--out", str(out / "noise.png")]) == 2
    assert "--out" in capsys.readouterr().err


def test_report_section():
    from farfield.report.context import ReportContext
    from farfield.report.sections.targets import targets

    data = load("digits")
    made = targets(ReportContext(Gaussian.fit(data.images), data, "gauss", quick=True))
    page = "".join(made.blocks)
    assert "near phase" in page
    assert "EDM&#x27;s default" in page
    assert made.data["target"]["total"] == 1500
    json.dumps(made.data, allow_nan=False)
