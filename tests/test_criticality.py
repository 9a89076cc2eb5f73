"""The analysis ``criticality``: the exact law of a data set beside a model."""

from __future__ import annotations

import json

import pytest
import torch

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.critical_field import AveragedField, noise_about
from farfield.analysis.critical_times import critical_times
from farfield.analysis.criticality import Criticality, Match
from farfield.analysis.potential_sections_analysis import first_critical_time
from farfield.data import load as load_data
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical
from farfield.errors import ArgumentError
from farfield.interop import load


def images(count=200):
    """Two clusters of 1×3×4 images with some width, unevenly filled."""
    generator = torch.Generator().manual_seed(0)
    m = torch.linspace(-0.8, 0.8, 12).view(1, 3, 4)
    side = torch.where(torch.arange(count) % 5 < 2, 1.0, -1.0).view(-1, 1, 1, 1)
    return side * m + 0.2 * torch.randn(count, 1, 3, 4, generator=generator)


def subject(scale=1.0, data=None):
    """A subject whose model is the law of its data with a posterior covariance ``scale`` times too large."""
    data = images() if data is None else data
    law = Empirical(data)
    mean = data.mean(0)

    def field(x, sigma):
        return mean + scale * (law(x, sigma) - mean)

    return Subject(FunctionDenoiser(field, (1, 3, 4), 0.002, 80.0), data, name="stand-in")


OPTIONS = {"noise": 4, "count": 1}


def test_a_model_that_is_the_law_agrees():
    found = analyze("criticality", subject(), OPTIONS)
    assert isinstance(found, Criticality)
    (match,) = found.matches
    assert match.gap == pytest.approx(0, abs=1e-3)
    assert match.agrees
    assert match.overlap == pytest.approx(1, abs=1e-3)
    assert match.excess == pytest.approx(0, abs=1e-4)
    assert "they agree" in found.summary()
    assert found.ode is not None
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["matches"][0]["agrees"] is True
    assert found.bare.first.kind == "modes"
    # 200 points of one length would break at asinh λ; these are nearly so.
    assert found.bare.first.sigma == pytest.approx(found.symmetric[0], rel=0.25)
    titles = [table.title for table in found.tables()]
    assert titles[2].startswith("distance from normalised data")
    assert record["departure"]["count"] == 200
    assert "4 draws" in titles[0]
    assert "200 points" in titles[1]
    figure = found.plot()
    assert len(figure.axes) == 3
    assert len(found.plot(figure.axes[0]).axes) == 3


def test_a_gap_is_explained_by_the_excess_variance():
    found = analyze("criticality", subject(1.3), OPTIONS | {"check": False})
    (match,) = found.matches
    assert match.excess == pytest.approx(0.3, rel=1e-3)
    assert match.gap > 0
    assert match.explained == pytest.approx(match.gap, rel=0.35)
    assert not match.agrees
    assert "30.0 % off" in found.summary()


def test_vectors_ode_and_other_processes():
    """No image, no picture; any process and either dynamics."""
    data = images().flatten(1)
    law = Empirical(data)
    model = FunctionDenoiser(lambda x, sigma: law(x, sigma), (12,), 0.002, 80.0)
    found = analyze(
        "criticality", Subject(model, data), {"noise": 2, "count": 1, "process": "ve", "points": 100, "check": False}
    )
    assert found.count == 100
    assert found.bare.first.sigma**2 == pytest.approx(found.bare.first.variance, rel=1e-3)
    assert len(found.plot().axes) == 1
    ode = analyze("criticality", Subject(model, data), {"noise": 2, "count": 1, "dynamics": "ode", "check": False})
    assert not ode.bare.symmetric_phase
    assert ode.ode is None
    assert "no symmetric phase" in ode.summary()


def test_agreement_is_within_twice_the_error():
    match = Match(0, 2.0, 2.09, 0.03, 0.04, 0.0, 0.9, 0.9, 0.05, 0.06)
    assert match.error == pytest.approx(0.05)
    assert match.agrees
    assert not Match(0, 2.0, 2.11, 0.03, 0.04, 0.0, 0.9, 0.9, 0.05, 0.06).agrees


def test_bundled_digits_network_follows_its_data():
    """With the same noise about the mean the network becomes critical where its training set does."""
    data = load_data("digits").train.images
    shared = {"origin": data.double().mean(0), "noise": 16, "check": False, "tolerance": 1e-2, "sigma_max": 20.0}
    law, network = critical_times(Empirical(data), **shared).first, critical_times(load("digits"), **shared).first
    error = (law.error**2 + network.error**2) ** 0.5
    assert abs(law.sigma - network.sigma) < 3 * error
    assert error < 0.2 * law.sigma
    assert network.skew < 0.12


def test_bad_options():
    with pytest.raises(ArgumentError, match="noise = 0"):
        analyze("criticality", subject(), {"noise": 0})
    with pytest.raises(ArgumentError, match="points = -1"):
        analyze("criticality", subject(), {"points": -1})


def test_one_definition_of_the_first_critical_time():
    """The sections on potentials and late starts mark the noiseless value of this analysis, about the data's mean."""
    found = analyze("criticality", subject(), {**OPTIONS, "check": False})
    assert first_critical_time(images()) == pytest.approx(found.bare.first.time, rel=2e-3)
    shifted = first_critical_time(images() + 3.0)
    assert shifted == pytest.approx(found.bare.first.time, rel=2e-3)


def test_the_model_may_go_unexamined():
    found = analyze("criticality", subject(), OPTIONS | {"check_model": False})
    assert found.model.first.kind == "unchecked"
    assert found.data.first.kind == "modes"
    assert "The data's is a choice between modes" in found.summary()
    assert found.bare.crossings[0].kind != "unchecked"
    bare = analyze("criticality", subject(), OPTIONS | {"check_model": False, "check_bare": False}).bare
    assert bare.crossings[0].kind == "unchecked"
    assert bare.crossings[0].sigma == found.bare.crossings[0].sigma


def test_spectral_products_are_those_of_the_jacobian():
    """For a network: the transposed side, recorded once or not, on any draws; the symmetric part is what counts."""
    data = images(50)
    law = Empirical(data)
    model = FunctionDenoiser(lambda x, sigma: law(x, sigma), (1, 3, 4), 0.002, 80.0)
    x = data[:2].double()
    v = torch.randn(2, 3, 1, 3, 4, dtype=torch.float64)
    noise = noise_about(4, (1, 3, 4), 0, torch.float64)
    field, exact = AveragedField(model, 1.3, noise), AveragedField(law, 1.3, noise)
    assert field.transposed
    assert not exact.transposed
    products = exact.spectral_product(x)(v)
    assert torch.allclose(field.spectral_product(x)(v), products, rtol=1e-5, atol=1e-7)
    assert field.products == exact.products == 2 * 4 * 3
    many = AveragedField(model, 1.3, noise_about(40, (1, 3, 4), 0, torch.float64))
    ours = many.spectral_product(x)(v)
    theirs = AveragedField(law, 1.3, many.noise).product(x)(v)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_report_section():
    """On the bundled model: both figures, the agreement, the sizes."""
    from farfield.report.context import ReportContext
    from farfield.report.sections.criticality import criticality

    context = ReportContext(load("digits"), load_data("digits"), "digits", quick=True)
    page = criticality(context)
    html = " ".join(page.blocks)
    assert html.count("<svg") == 2
    assert "8 draws of noise" in html
    assert "First critical noise level" in html
    json.dumps(page.data, allow_nan=False)
    assert page.data["diagram"]["bifurcations"]
    assert context.peek("first critical time") == pytest.approx(page.data["bare"]["crossings"][0]["time"])
