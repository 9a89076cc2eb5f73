"""What a change on the way does to the sample: closed form, its inverse, and the measurement."""

import json
import math

import pytest
import torch

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.perturbation import perturbation_gain, perturbation_response, plan_injection
from farfield.distributions import Gaussian
from farfield.distributions.gaussian_flow import GaussianFlow
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.processes import VP
from farfield.sampling import Ancestral, Sampler, karras

F64 = torch.float64


def t1():
    basis = torch.eye(3, dtype=F64)[:, :2]
    return Gaussian(torch.tensor([1.0, -1.0, 0.5], dtype=F64), Spectrum.low_rank(basis, [4.0, 0.25]))


def test_a_change_half_way():
    """Holds gaussian_score F35: by the formula, and as the difference of two flows."""
    flow = GaussianFlow(t1(), VP())
    x, change = torch.randn(1, 3, dtype=F64), torch.tensor([[0.1, 0.2, 0.3]], dtype=F64)
    expected = torch.tensor([[0.179809049, 0.103103625, 0.0]], dtype=F64)
    torch.testing.assert_close(flow.push(change, 0.5), expected, atol=1e-9, rtol=0)
    moved = flow.path(x + change, 0.5).endpoint() - flow.path(x, 0.5).endpoint()
    torch.testing.assert_close(moved, expected, atol=1e-9, rtol=0)
    alpha, std = (float(v) for v in flow.scales(0.5))
    gains = perturbation_gain(torch.tensor([4.0, 0.25]), std, alpha).tolist()
    assert gains == pytest.approx([1.798090485, 0.515518124], abs=1e-9)


def test_gains_over_time():
    """Holds gaussian_score F36."""
    schedule = VP()
    table = {
        0.01: (0.1000, 0.1002, 0.1042, 0.1441, 0.2979),
        0.25: (0.5000, 0.5007, 0.5155, 0.6416, 0.8733),
        1.0: (1.0, 1.0, 1.0, 1.0, 1.0),
        4.0: (1.9999, 1.9898, 1.7981, 1.2473, 1.0413),
        100.0: (9.9787, 8.6364, 3.3658, 1.3756, 1.0557),
    }
    for variance, row in table.items():
        found = [
            float(perturbation_gain(variance, schedule.std(t), schedule.alpha(t))) for t in (1, 0.75, 0.5, 0.25, 0.1)
        ]
        assert found == pytest.approx(row, abs=6e-5)
    assert float(perturbation_gain(0.0, 0.5, std_end=0.02)) == pytest.approx(0.04)
    assert float(perturbation_gain(9.0, 4.0)) == pytest.approx(0.6)


@pytest.mark.parametrize("kind", ["zero tail", "tail", "dct"])
def test_the_planner_inverts_the_gain(kind):
    """The planned change moves the endpoint as wanted; what no change can move is said."""
    spectrum = {
        "zero tail": Spectrum.low_rank(torch.linalg.qr(torch.randn(6, 2, dtype=F64))[0], [4.0, 0.2]),
        "tail": Spectrum.low_rank(torch.linalg.qr(torch.randn(6, 2, dtype=F64))[0], [4.0, 0.2], 0.01),
        "dct": Spectrum.dct((2, 3), torch.rand(6, dtype=F64) + 0.1),
    }[kind]
    flow = GaussianFlow(Gaussian(torch.randn(6, dtype=F64), spectrum).double(), VP())
    wanted = torch.randn(2, 6, dtype=F64)
    plan = plan_injection(flow, wanted, 0.6)
    reached = flow.push(plan.delta, 0.6)
    if kind == "zero tail":
        inside = spectrum.expand(spectrum.project(wanted))
        torch.testing.assert_close(reached, inside)
        torch.testing.assert_close(plan.unreachable, 1 - inside.square().sum(1) / wanted.square().sum(1))
    else:
        torch.testing.assert_close(reached, wanted, rtol=1e-6, atol=1e-6)
        assert float(plan.unreachable.max()) < 1e-12
    expected = plan.delta.norm(dim=1) / (float(flow.scales(0.6)[1]) * math.sqrt(6))
    torch.testing.assert_close(plan.size, expected)
    with pytest.raises(ArgumentError, match="no noise left"):
        plan_injection(flow, wanted, 0.0)
    with pytest.raises(ArgumentError, match="shape"):
        plan_injection(flow, wanted[:, :3], 0.5)


def test_the_measurement_on_an_exact_law():
    """On its own Gaussian the measured gain is the formula's, up to the solver, for every sample alike."""
    root = torch.randn(4, 4, dtype=F64)
    law = Gaussian(torch.randn(4, dtype=F64), root @ root.T)
    sampler = Sampler("heun", karras(80))
    found = perturbation_response(law, law, components=(1, 3), levels=(20, 40, 60), n=3, sampler=sampler)
    for measured, gain in zip(found.measured, found.gain, strict=True):
        assert measured == pytest.approx(gain, rel=0.01)
    assert max(max(row) for row in found.error) < 1e-4
    assert max(max(row) for row in found.leak) < 1e-3
    assert found.nfe == 159 + 2 * 2 * sum(2 * (80 - k) - 1 for k in (20, 40, 60))
    json.dumps(found.to_dict())
    assert "component 1" in found.summary()
    assert len(found.tables()[0].rows) == 6
    assert found.plot().axes[0].get_yscale() == "log"


def test_by_name_and_mistakes():
    """``farfield analyze --what perturbation``; components, levels and sizes that do not exist."""
    data = torch.randn(40, 3) * torch.tensor([2.0, 1.0, 0.5])
    law = Gaussian.fit(data)
    found = analyze("perturbation", Subject(law, data), {"components": [1, 2], "levels": [5, 9], "n": 2})
    assert len(found.measured) == 2
    assert len(found.sigmas) == 2
    for given, message in (
        ({"components": (4,)}, "components = \\[4\\]"),
        ({"levels": (0,)}, "levels = \\[0\\]"),
        ({"levels": (18,)}, "levels = \\[18\\]"),
        ({"size": 0.0}, "size = 0"),
        ({"sampler": Sampler("euler", karras(18), noise=Ancestral(1.0))}, "deterministic"),
    ):
        with pytest.raises(ArgumentError, match=message):
            perturbation_response(law, law, **{"components": (1,), **given})
