"""Deviation of paths from the same noise: closed forms first, then the bundled network."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.analysis import Subject, analyze, score_fidelity
from farfield.analysis.deviation import TOGETHER, trajectory_deviation
from farfield.analysis.gaussian_deviation import gaussian_deviation
from farfield.analysis.subject_laws import subject_laws
from farfield.data import DataSet, load
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError
from farfield.interop import load as load_model
from farfield.numerics import streams
from farfield.numerics.spectrum import Spectrum
from farfield.report.context import ReportContext
from farfield.report.sections.deviation import deviation as deviation_section
from farfield.sampling import LateStart, Sampler, karras
from farfield.sampling.reference_ode import monotone_map
from farfield.sampling.solvers import Whitened

WIDE = torch.float64
LEVELS = (80.0, 12.91, 2.0, 0.5, 0.002, 0.0)
T1 = Gaussian(torch.tensor([1, -1, 0.5], dtype=WIDE), Spectrum.low_rank(torch.eye(3, dtype=WIDE)[:, :2], [4.0, 0.25]))


def isotropic(mean: torch.Tensor) -> Gaussian:
    return Gaussian(mean, Spectrum.isotropic(mean.numel(), 0.0))


def random_gaussian(seed: int, dim: int, rank: int, tail: float, scale: float = 1.0) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, rank, dtype=WIDE, generator=generator))[0]
    values = torch.rand(rank, dtype=WIDE, generator=generator) * scale + tail
    return Gaussian(torch.randn(dim, dtype=WIDE, generator=generator), Spectrum.low_rank(basis, values, tail))


# Gaussians in coefficients


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(0, 7), st.integers(0, 7)),
    st.tuples(st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.3, 1.0])),
    st.booleans(),
)
def test_coefficients_give_what_the_coordinates_give(seed, ranks, tails, shared):
    """For any two ranks, tails and bases, one shared or not."""
    a = random_gaussian(seed, 7, ranks[0], tails[0])
    b = random_gaussian(seed + 1, 7, ranks[1], tails[1])
    if shared:
        assert a.spectrum.basis is not None
        b = Gaussian(b.mean, Spectrum.low_rank(a.spectrum.basis, a.spectrum.values + 0.5, tails[1]))
    x = 80 * torch.randn(4, 7, dtype=WIDE, generator=torch.Generator().manual_seed(seed))
    state, output = gaussian_deviation(a, b, x, LEVELS)
    for k, sigma in enumerate(LEVELS):
        xa, xb = a.flow(x, 80.0, sigma), b.flow(x, 80.0, sigma)
        assert torch.allclose(state[k], (xa - xb).square().mean(1), rtol=1e-9, atol=1e-9)
        gap = (a(xa, sigma) - b(xb, sigma)).square().mean(1)
        assert torch.allclose(output[k], gap, rtol=1e-9, atol=1e-9)


def test_expected_deviation_of_two_gaussians_on_the_same_axes():
    """E MSE = mean over modes of σ_T² (ψ_a − ψ_b)² + ((1 − ψ_a) μ_a − (1 − ψ_b) μ_b)²."""
    la, lb = torch.tensor([4.0, 0.25, 0.0], dtype=WIDE), torch.zeros(3, dtype=WIDE)
    mean = torch.tensor([1, -1, 0.5], dtype=WIDE)
    z = streams.normal(0, range(40_000), (3,), dtype=WIDE)
    state, output = gaussian_deviation(T1, isotropic(mean), 80 * z, LEVELS)
    for k, sigma in enumerate(LEVELS):
        psi_a, psi_b = (((v + sigma**2) / (v + 6400)).sqrt() for v in (la, lb))
        expected = (6400 * (psi_a - psi_b) ** 2 + ((psi_b - psi_a) * mean) ** 2).mean()
        assert float(state[k].mean()) == pytest.approx(float(expected), rel=0.02, abs=1e-12)
        xi = la / (la + sigma**2).clamp(min=1e-300) * psi_a
        assert float(output[k].mean()) == pytest.approx(float((xi**2 * (6400 + mean**2)).mean()), rel=0.02, abs=1e-12)


def test_a_gaussian_and_itself():
    """Deviation 0 in closed form, and by the sampler whose steps are exact on it."""
    found = trajectory_deviation(T1, {"gaussian": T1, "isotropic": isotropic(T1.mean)}, n=8)
    curve = found.laws["gaussian"]
    assert max(curve.state.mean) < 1e-12
    assert max(curve.denoised.mean) < 1e-12
    assert max(curve.end) < 1e-12
    assert found.together_until("gaussian") == 0
    assert found.nfe == 0
    assert found.solver_mse is None
    assert "to the end" in found.summary()
    run = Sampler(Whitened(3), karras(12), covariance=T1)
    sampled = trajectory_deviation(T1, {"gaussian": T1}, n=8, sampler=run, dtype=WIDE)
    assert max(sampled.laws["gaussian"].state.mean) < 1e-20
    assert sampled.nfe == run.nfe
    # Heun's own error would be taken for a deviation: at this order of size the comparison says nothing.
    heun = trajectory_deviation(T1, {"gaussian": T1}, n=8, sampler=Sampler("heun", karras(18)), dtype=WIDE)
    assert 1e-4 < sum(heun.laws["gaussian"].end) / 8 < 1e-1


def t2() -> tuple[GaussianMixture, dict[str, list[float]]]:
    parts = {"weights": [0.3, 0.7], "means": [-2.0, 1.0], "variances": [0.09, 0.25]}
    law = GaussianMixture(
        parts["weights"], torch.tensor([[-2.0], [1.0]], dtype=WIDE), torch.tensor([[[0.09]], [[0.25]]], dtype=WIDE)
    )
    return law, parts


def test_mixture_against_its_gaussian_on_a_line():
    """The deviation that quantiles give, level by level; 0.01 is crossed far below the level where skipping is safe (E30)."""
    law, parts = t2()
    gauss = Gaussian(torch.tensor([0.1], dtype=WIDE), torch.tensor([[2.092]], dtype=WIDE))
    found = trajectory_deviation(law, {"gaussian": gauss, "own": law}, n=16, steps=12, rtol=1e-10, atol=1e-12)
    x = 80 * streams.normal(0, range(16), (1,), purpose="start", dtype=WIDE)
    for k, sigma in enumerate(found.sigmas[:-1]):
        exact = monotone_map(x, 80.0, sigma, **parts)
        mse = (exact - gauss.flow(x, 80.0, sigma)).square()
        assert found.laws["gaussian"].state.mean[k] == pytest.approx(float(mse.mean()), rel=1e-3, abs=1e-9)
        low, high = torch.quantile(mse, torch.tensor([0.25, 0.75], dtype=WIDE)).tolist()
        assert found.laws["gaussian"].state.low[k] == pytest.approx(low, rel=1e-2, abs=1e-9)
        assert found.laws["gaussian"].state.high[k] == pytest.approx(high, rel=1e-2, abs=1e-9)
    assert max(found.laws["own"].state.mean) == 0
    until = found.together_until("gaussian")
    k = next(k for k, s in enumerate(found.sigmas) if s < until)
    assert found.laws["gaussian"].state.mean[k - 1] < TOGETHER <= found.laws["gaussian"].state.mean[k]
    data = law.sample(4000, torch.Generator().manual_seed(0))
    fidelity = score_fidelity(law, data, sigmas=[20, 10, 5, 2, 1], queries=4000, laws={"gaussian": gauss})
    safe = fidelity.explained_until("gaussian", 1e-4)
    assert safe is not None
    assert 4 < safe < 6  # F50: 1.09e-4 at σ = 5
    spoilt = fidelity.explained_until("gaussian", 1e-3)
    assert spoilt is not None
    assert until < spoilt < safe


def test_which_law_ends_closer():
    """The Gaussian of a Gaussian model is closer than its mean, in every pair, and the tests say so."""
    model = random_gaussian(3, 12, 12, 0.0, 2.0)
    near = Gaussian(model.mean + 0.01, model.spectrum)
    found = trajectory_deviation(model, {"isotropic": isotropic(model.mean), "gaussian": near}, n=24)
    compared = found.compare("gaussian", "isotropic")
    assert compared.closer == 1
    assert compared.significant
    assert found.end("gaussian").mean == pytest.approx(1e-4, rel=0.05)  # (1 − ψ)² of a shift by 0.01
    assert min(found.laws["isotropic"].end) > found.end("gaussian").high
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["comparisons"][0]["closer"] == 0  # isotropic against gaussian
    with pytest.raises(ArgumentError, match="unknown law 'gauss'"):
        found.together_until("gauss")
    with pytest.raises(ArgumentError, match="threshold = 0"):
        found.together_until("gaussian", 0)


def test_batches_change_nothing_and_starts_are_the_samplers():
    data = torch.randn(30, 4, dtype=WIDE)
    model, laws = Empirical(data), {"gaussian": Gaussian.fit(data)}
    a = trajectory_deviation(model, laws, n=7, seed=3, steps=8)
    b = trajectory_deviation(model, laws, n=7, seed=3, steps=8, batch_size=3)
    assert a.laws["gaussian"].end == pytest.approx(b.laws["gaussian"].end, abs=1e-3)
    assert a.laws["gaussian"].state.mean == pytest.approx(b.laws["gaussian"].state.mean, rel=1e-2, abs=1e-6)
    run = Sampler(Whitened(3), karras(60), covariance=laws["gaussian"])
    ends = run(model, 7, 3, dtype=WIDE).x
    flow = laws["gaussian"].flow(80 * streams.normal(3, range(7), (4,), purpose="start", dtype=WIDE), 80.0, 0.0)
    assert (ends - flow).square().mean(1).tolist() == pytest.approx(list(a.laws["gaussian"].end), abs=0.02)


@pytest.fixture(scope="module")
def digits():
    model, data = load_model("digits"), load("digits").train
    subject = Subject(model, data.images, labels=data.labels)
    return subject, trajectory_deviation(model, subject_laws(subject, None, 4), n=6, steps=10, shown=4)


def test_the_bundled_network(digits):
    """Together at high noise with every law; at the end the Gaussian is closer than the mean, by far."""
    subject, found = digits
    assert list(found.laws) == ["isotropic", "gaussian", "classes", "mixture", "empirical"]
    assert found.compare("gaussian", "isotropic").closer > 0.9
    assert 0.5 < found.together_until("gaussian") < 5
    assert found.together_until("isotropic") > found.together_until("gaussian")
    assert found.nfe == 10
    assert 0 < found.solver_mse < found.end("gaussian").mean
    assert {name: p.shape for name, p in found.pictures.items()} == dict.fromkeys(("model", *found.laws), (4, 1, 8, 8))
    own = Sampler(Whitened(3), karras(10), covariance=subject_laws(subject, ["gaussian"])["gaussian"])
    assert torch.equal(found.pictures["model"], own(subject.model, 6).x[:4])
    figure = found.plot()
    assert len(figure.axes) == 3
    assert len(found.plot(figure.axes[:2]).axes) == 3
    states, ends = found.tables()
    assert len(states.rows) == 11
    assert [row[0] for row in ends.rows] == list(found.laws)


def test_by_name(digits):
    subject, _ = digits
    options = {"n": 3, "steps": 6, "laws": ["gaussian", "mixture:4", "spherical"], "shown": 0}
    found = analyze("deviation", subject, options)
    assert list(found.to_dict()["laws"]) == ["gaussian", "mixture:4", "spherical"]
    with pytest.raises(ArgumentError, match="unknown law 'gausian'"):
        analyze("deviation", subject, {"laws": ["gausian"]})
    with pytest.raises(ArgumentError, match="each once"):
        analyze("deviation", subject, {"laws": ["gaussian", "gaussian"]})
    with pytest.raises(ArgumentError, match="no classes"):
        subject_laws(Subject(subject.model, subject.data), ["classes"])
    with pytest.raises(ArgumentError, match="distance = 'ssim'"):
        analyze("deviation", subject, {"distance": "ssim"})


def test_report_section(digits):
    subject, _ = digits
    context = ReportContext(subject.model, load("digits"), "digits", quick=True)
    made = deviation_section(context)
    text = "".join(made.blocks)
    assert text.count("<svg") == 2
    assert text.count("<img") == 2
    assert "down to σ =" in text
    json.dumps(made.data, allow_nan=False)
    ring = ReportContext(Gaussian(torch.zeros(2), torch.eye(2)), DataSet(torch.randn(60, 2)), "x", quick=True)
    assert "<img" not in "".join(deviation_section(ring).blocks)


def test_bad_arguments():
    laws = {"gaussian": T1}
    for bad, message in (
        ({"n": 0}, "n = 0"),
        ({"steps": 1}, "steps = 1"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"sampler": Sampler("heun", karras(5), LateStart(T1, 5.0))}, "'late_start'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            trajectory_deviation(T1, laws, **bad)
    with pytest.raises(ArgumentError, match="laws is empty"):
        trajectory_deviation(T1, {})
    with pytest.raises(ArgumentError, match="law 'g' has events"):
        trajectory_deviation(T1, {"g": Gaussian(torch.zeros(2), torch.eye(2))})
    dct = Gaussian(torch.zeros(1, 2, 2), Spectrum.dct((1, 2, 2), [1.0] * 4))
    with pytest.raises(ArgumentError, match="matrices"):
        gaussian_deviation(dct, dct, torch.zeros(1, 1, 2, 2), [80.0, 1.0])
    # Other bases are compared in coordinates.
    assert max(trajectory_deviation(dct, {"g": dct}, n=2).laws["g"].end) < 1e-10
    model = FunctionDenoiser(lambda x, s: T1(x, s), (3,), 0.01, 50.0)
    found = trajectory_deviation(model, laws, n=4, dtype=WIDE)
    assert (found.sigmas[0], found.sigmas[-2]) == (50.0, 0.01)
    assert max(found.laws["gaussian"].state.mean) < 1e-20
    assert math.isfinite(found.solver_mse)
