"""Solvers on Gaussians, component by component, against the facts of the Gaussian score paper."""

import itertools
import json
import math

import pytest
import torch

from farfield.analysis.catalogue import Subject, analyze
from farfield.analysis.solver_audit import AuditComparison, compare_solvers, diagonal_law, skip_audits, solver_audit
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import Ancestral, Given, LateStart, Sampler, Teleport, karras
from farfield.sampling.solvers import PLANNED, RK45, Whitened

F64 = torch.float64
VALUES = [0.01, 0.25, 1.0, 4.0, 25.0, 100.0, 200.0]


def law(values=VALUES, means=None):
    mean = torch.zeros(len(values), dtype=F64) if means is None else torch.tensor(means, dtype=F64)
    return Gaussian(mean, Spectrum.diagonal(list(values)))


def test_heun_multipliers():
    """Holds gaussian_score F31."""
    found = solver_audit(Sampler("heun", karras(18)), law())
    assert found.nfe == 35
    assert found.linear
    m = dict(zip(VALUES, found.multiplier.tolist(), strict=True))
    exact = dict(zip(VALUES, found.exact.tolist(), strict=True))
    for value, number, truth in (
        (0.01, 0.0013627134, 0.0012499990),
        (0.25, 0.0065953080, None),
        (1.0, 0.0130591100, 0.0124990235),
        (4.0, 0.0259007850, None),
        (100.0, 0.1267729800, 0.1240347300),
    ):
        assert m[value] == pytest.approx(number, abs=1e-9)
        if truth is not None:
            assert exact[value] == pytest.approx(truth, abs=1e-8)
    assert [round(100 * r, 2) for r in found.relative_error.tolist()] == pytest.approx(
        [9.0, 5.5, 4.5, 3.6, 2.75, 2.2, 1.95], abs=0.05
    )
    euler = solver_audit(Sampler("euler", karras(18)), law([1.0]))
    assert float(euler.multiplier) == pytest.approx(0.010743193, abs=1e-9)
    assert float(euler.relative_error) == pytest.approx(-0.141, abs=1e-3)


def test_heun_multipliers_on_forty_levels():
    """Holds gaussian_score F32."""
    found = solver_audit(Sampler("heun", karras(40)), law())
    percent = [100 * r for r in found.relative_error.tolist()]
    assert percent == pytest.approx([1.55, 0.98, 0.80, 0.65, 0.50, 0.40, 0.36], abs=6e-3)


def test_skips():
    """Holds gaussian_score F33: a teleport removes the solver's own error on components of large variance."""
    found = skip_audits(Sampler("heun", karras(18)), law([1.0, 100.0]))
    large = [abs(float(found[k].relative_error[1])) for k in (0, 2, 4, 5, 6, 8, 10)]
    assert large == pytest.approx([2.2e-2, 2.1e-2, 1.5e-2, 9.8e-3, 4.4e-3, 2.6e-4, 4.9e-6], rel=0.04)
    assert [float(found[k].relative_error[0]) for k in range(7)] == pytest.approx([4.4e-2] * 7, abs=1.1e-3)
    curve = [abs(float(found[k].relative_error[1])) for k in range(11)]
    assert all(b <= a for a, b in itertools.pairwise(curve))
    assert [found[k].nfe for k in range(4)] == [35, 33, 31, 29]


def test_distance_of_the_exact_flow():
    """Holds gaussian_score F56."""
    found = solver_audit(Sampler("heun", karras(18)), law([100.0, 100.0], [0.0, 5.0]))
    assert found.w2_exact.tolist() == pytest.approx([5.963e-3, 0.39058], rel=1e-4)
    fine = solver_audit(Sampler(Whitened(2), karras(8), covariance=law([1.0])), law([100.0, 100.0], [0.0, 5.0]))
    torch.testing.assert_close(fine.w2, fine.w2_exact)
    torch.testing.assert_close(fine.multiplier, fine.exact)
    torch.testing.assert_close(fine.offset, found.means * (1 - found.exact))


@pytest.mark.parametrize("name", list(PLANNED))
def test_every_solver_converges_and_keeps_the_mean(name):
    """The multiplier tends to the exact one, and a component that starts on its mean's flow keeps it."""
    target = law([0.3, 2.0, 50.0], [1.0, -2.0, 3.0])
    errors = []
    for n in (20, 80):
        found = solver_audit(Sampler(name, karras(n)), target)
        assert found.linear
        # An affine rule that is exact on constants: the mean itself is a fixed point.
        torch.testing.assert_close(found.offset, target.mean * (1 - found.multiplier), rtol=1e-9, atol=1e-9)
        errors.append(float(found.relative_error.abs().max()))
    assert errors[1] < max(0.5 * errors[0], 1e-12)


def test_steps_of_its_own_depend_on_the_state():
    """An adaptive rule is no linear map; the smaller its tolerance, the closer it comes to one, the exact flow."""
    target = law([0.3, 2.0, 50.0], [1.0, -2.0, 3.0])
    errors = []
    for tolerance in (1e-3, 1e-6):
        found = solver_audit(Sampler(RK45(rtol=tolerance, atol=tolerance), karras(20)), target)
        assert not found.linear
        errors.append(float(found.relative_error.abs().max()))
    assert errors[1] < 0.1 * errors[0]


def test_a_run_on_samples_has_those_moments():
    """The audit's multiplier and offset are what the sampler does to samples in data space."""
    root = torch.randn(4, 4, dtype=F64)
    target = Gaussian(torch.randn(4, dtype=F64), root @ root.T)
    sampler = Sampler("dpmpp_2m", karras(9))
    found = solver_audit(sampler, target)
    x = 80 * torch.randn(6, 4, dtype=F64)
    basis = target.spectrum.basis
    predicted = (found.offset + found.multiplier * (x @ basis)) @ basis.T
    torch.testing.assert_close(sampler.run(target, x).x, predicted, rtol=1e-9, atol=1e-9)


def test_starts_and_wrong_beliefs():
    """A late start has no bias; a teleport by a law of too small variance is off by what it believes."""
    target = law([100.0, 1.0], [5.0, 0.0])
    late = solver_audit(Sampler("heun", karras(60), LateStart(target, 60.0)), target)
    assert late.total_w2 < 1e-2 * late.total_w2_exact
    right = solver_audit(Sampler("heun", karras(60), Teleport(target, 1.0)), target)
    wrong = solver_audit(Sampler("heun", karras(60), Teleport(target, 1.0)), target, law([25.0, 1.0], [5.0, 0.0]))
    assert float(right.relative_error.abs().max()) < 0.01
    ratio = math.sqrt(26 / 6425) / math.sqrt(101 / 6500)
    assert float(wrong.relative_error[0]) == pytest.approx(ratio - 1, abs=5e-3)
    with pytest.raises(ArgumentError, match="believed has 1 components; the law has 2"):
        solver_audit(Sampler("heun", karras(5)), target, law([1.0]))
    with pytest.raises(ArgumentError, match="start = 'given'"):
        solver_audit(Sampler("heun", karras(5), Given(torch.zeros(1, 2))), target)


def test_noise_and_guidance_are_refused():
    """Only deterministic runs have a multiplier."""
    for given in ({"noise": Ancestral(1.0)}, {"guidance": [lambda x, s, d: d]}):
        with pytest.raises(ArgumentError, match="leave noise and guidance out"):
            solver_audit(Sampler("euler", karras(5), **given), law())


def test_the_tail_is_one_coordinate_that_counts():
    """A low-rank law is audited in r + 1 coordinates; totals are those of the full one."""
    basis = torch.linalg.qr(torch.randn(6, 2, dtype=F64))[0]
    low = Gaussian(torch.randn(6, dtype=F64), Spectrum.low_rank(basis, [4.0, 1.0], 0.1))
    full = Gaussian(low.mean, low.spectrum.dense())
    short, counts = diagonal_law(low)
    assert short.dim == 3
    assert counts.tolist() == [1, 1, 4]
    a, b = (solver_audit(Sampler("heun", karras(12)), x) for x in (low, full))
    assert a.total_w2 == pytest.approx(b.total_w2, rel=1e-6)
    assert a.total_w2_exact == pytest.approx(b.total_w2_exact, rel=1e-6)


def test_comparison_figures_and_storage():
    """Ranking by distance; tables, JSON and figures of one audit and of several."""
    target = law([9.0, 1.0, 0.0])
    found = compare_solvers({n: Sampler(n, karras(10)) for n in ("euler", "heun")}, target)
    assert isinstance(found, AuditComparison)
    assert found.ranking == ("heun", "euler")
    assert "heun" in found.summary()
    assert len(found.tables()[0].rows) == 2
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["name"] == "heun"
    audit = found.audits["heun"]
    stored = json.loads(json.dumps(audit.to_dict()))
    assert stored["relative_error"][2] is None
    assert stored["nfe"] == 19
    assert "squared W₂" in audit.summary()
    assert len(audit.tables()[0].rows) == 3
    assert len(audit.plot().axes) == 2
    assert found.plot().axes[0].get_ylabel()
    with pytest.raises(ArgumentError, match="samplers is empty"):
        compare_solvers({}, target)
    data = torch.randn(50, 4)
    ranked = analyze("audit", Subject(Gaussian.fit(data), data), {"nfe": 8})
    assert all(a.nfe <= 8 for a in ranked.audits.values())
