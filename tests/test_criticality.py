"""The analysis ``criticality``: the exact law of a data set beside a model."""

from __future__ import annotations

import json

import pytest
import torch

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.critical_times import critical_times
from farfield.analysis.criticality import Criticality, Match
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
    shared = {"origin": data.double().mean(0), "noise": 8, "check": False, "tolerance": 1e-2, "sigma_max": 20.0}
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
