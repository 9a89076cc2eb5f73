"""The Adams rules (DEIS, lms, iPNDM, S-PNDM, PLMS): published end points, orders, start, cost, options."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.sampling import Ancestral, AtLastLevel, Sampler, karras
from farfield.sampling.legs import legs_between
from farfield.sampling.solvers import SOLVERS, Whitened, make_solver
from farfield.sampling.solvers.adams import step_integrals
from farfield.sampling.solvers.deis import DEIS
from farfield.sampling.solvers.ipndm import IPNDM, IPNDMv
from farfield.sampling.solvers.lms import LMS
from farfield.sampling.solvers.plms import PLMS
from farfield.sampling.solvers.spndm import SPNDM
from tests.laws import T1, points, smooth_mixture

F64 = torch.float64
GRID = karras(8, 0.5, 5.0)
FAMILY = ("deis", "lms", "ipndm_v", "ipndm", "spndm", "plms")


def named(value):
    return "-".join(str(v) for v in value.to_dict().values()) if hasattr(value, "to_dict") else None


def end_on_three_points(rule, grid=GRID):
    x = torch.tensor([[3.0, -2.0]], dtype=F64)
    return Sampler(rule, grid, finish=AtLastLevel()).run(points(T1), x).x


# -- end points --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "end", "digits"),
    [
        (SPNDM(), (0.900974429833, -0.191601300443), 2e-12),
        (IPNDM(2), (0.900974429833, -0.191601300443), 2e-12),
        (DEIS("rhoab", 2), (0.879486207557, -0.190519920116), 2e-12),
        (DEIS("rhoab", 3), (0.90219916, -0.18781336), 6e-9),
        (DEIS("rhoab", 4), (0.91132159, -0.18475858), 6e-9),
        (LMS(), (0.91132159, -0.18475858), 6e-9),
        (IPNDMv(3), (0.90219916, -0.18781336), 6e-9),
        (PLMS(), (0.93279940, -0.17611075), 6e-9),
    ],
    ids=named,
)
def test_end_points_on_three_points(rule, end, digits):
    """Geometry fact 29."""
    assert end_on_three_points(rule)[0].tolist() == pytest.approx(end, abs=digits)


@pytest.mark.parametrize(
    ("rule", "ends"),
    [
        (SPNDM(), (0.931728063012, 0.979559871089, 0.996003030367)),
        (DEIS("rhoab", 2), (0.821238264156, 0.931684529849, 0.983879975321)),
    ],
    ids=["spndm", "deis"],
)
def test_end_points_on_the_unit_gaussian(rule, ends):
    """Geometry fact 34."""
    unit = FunctionDenoiser(lambda x, sigma: x / (1 + sigma * sigma), (1,))
    for n, end in zip((10, 18, 40), ends, strict=True):
        x = Sampler(rule, karras(n)).run(unit, torch.tensor([[80.0]], dtype=F64)).x
        assert float(x) == pytest.approx(end, abs=2e-12)


def literal_table(grid, kind, transport=False, law=None, x=None):
    """The multistep rows of Table 1 as printed, with r₂ the earlier output itself, or carried to the present state."""
    denoise = law or points(T1)
    x = torch.tensor([[3.0, -2.0]], dtype=F64) if x is None else x
    states, before = [x], None
    for t1, t in pairwise(grid):
        r = denoise(x, torch.tensor(t1, dtype=F64))
        h, rate = t - t1, torch.zeros_like(x)
        if before is not None:
            t2, r2, x2 = before
            earlier = x - t1 * (x2 - r2) / t2 if transport else r2
            rate = (r - earlier) / (h if kind == "spndm" else t1 - t2)
        before = (t1, r, x)
        x = t / t1 * x + (t1 - t) / t1 * r - h * h / (2 * t1) * rate
        states.append(x)
    return states


@pytest.mark.parametrize(
    ("kind", "rule", "end", "gap"),
    [
        ("spndm", SPNDM(), (0.910781683309, -0.194762210019), 0.0098),
        ("deis", DEIS("rhoab", 2), (0.884941137248, -0.192355261127), 0.0055),
    ],
    ids=["spndm", "deis"],
)
def test_table_one_taken_literally(kind, rule, end, gap):
    """Geometry facts 29, 30, erratum E3: another rule from the second multistep step on, and the same one before."""
    x = torch.tensor([[3.0, -2.0]], dtype=F64)
    literal = literal_table(GRID.levels, kind)
    native = Sampler(rule, GRID, finish=AtLastLevel()).run(points(T1), x, trajectory=True).trajectory.states
    assert literal[-1][0].tolist() == pytest.approx(end, abs=2e-12)
    assert float(literal[-1][0, 0] - native[-1][0, 0]) == pytest.approx(gap, abs=6e-5)
    torch.testing.assert_close(torch.stack(literal[:3]), native[:3], rtol=0, atol=1e-14)
    assert not torch.allclose(literal[3], native[3], atol=1e-6)
    carried = literal_table(GRID.levels, kind, transport=True)
    torch.testing.assert_close(torch.stack(carried), native, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("native", "other"),
    [
        (SPNDM(), SPNDM("finite_difference")),
        (DEIS("rhoab", 2), DEIS("rhoab", 2, form="finite_difference")),
    ],
    ids=["spndm", "deis"],
)
def test_finite_difference_form_is_the_native_one(native, other):
    """Geometry fact 30: to rounding, on any grid, down to zero noise too."""
    x = torch.tensor([[40.0, -25.0], [3.0, 9.0]], dtype=F64)
    for grid in (karras(9), karras(5, 0.01, 30.0, 3.0), [9.0, 8.5, 2.0, 1.9, 0.1]):
        a = Sampler(native, grid).run(points(T1), x, trajectory=True)
        b = Sampler(other, grid).run(points(T1), x, trajectory=True)
        torch.testing.assert_close(a.trajectory.states, b.trajectory.states, rtol=1e-12, atol=1e-12)
        assert a.nfe == b.nfe == len(list(grid)) - (grid[-1] == 0)


def test_equal_steps_make_the_rules_one():
    """Geometry fact 31, and its extension to four points: fixed and variable weights agree on a uniform grid."""
    grid = list(np.linspace(5.0, 0.5, 9))
    torch.testing.assert_close(
        end_on_three_points(SPNDM(), grid), end_on_three_points(DEIS("rhoab", 2), grid), rtol=0, atol=1e-14
    )
    for many in (3, 4):
        torch.testing.assert_close(
            end_on_three_points(IPNDM(many), grid), end_on_three_points(LMS(many), grid), rtol=0, atol=1e-13
        )
    assert not torch.allclose(end_on_three_points(IPNDM(4)), end_on_three_points(LMS(4)), atol=1e-3)


def test_one_rule_under_three_names():
    for many in (1, 2, 3, 4):
        for start in ("rising", "corrected"):
            ends = [end_on_three_points(rule) for rule in (DEIS("rhoab", many, start), LMS(many, start))]
            assert torch.equal(*ends)
            assert torch.equal(end_on_three_points(IPNDMv(many, start)), ends[0])
    assert end_on_three_points(DEIS("tab", 1))[0].tolist() == pytest.approx(
        (0.812465897280, -0.183755269392), abs=2e-12
    )


# -- orders ------------------------------------------------------------------------------------------------------------


@cache
def exact(law):
    x = torch.tensor([[3.0, -2.0], [0.7, 2.5]], dtype=F64)
    if law == "gaussian":
        denoiser = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64))
        return denoiser, x, denoiser.flow(x, 5.0, 0.5)
    end = Sampler(Whitened(3), karras(3001, 0.5, 5.0), finish=AtLastLevel()).run(smooth_mixture(), x).x
    return smooth_mixture(), x, end


def alternating(n):
    """n steps from 5 to 0.5 whose lengths alternate 1:3."""
    lengths = np.tile([1.0, 3.0], n // 2)
    return list(5.0 - 4.5 * np.concatenate(([0.0], np.cumsum(lengths) / lengths.sum())))


GRIDS = {
    "karras": lambda n: karras(n + 1, 0.5, 5.0),
    "uniform": lambda n: list(np.linspace(5.0, 0.5, n + 1)),
    "alternating": alternating,
}


def slope(rule, law="mixture", counts=(160, 320), grid="karras"):
    denoiser, x, end = exact(law)
    errors = []
    for n in counts:
        out = Sampler(rule, GRIDS[grid](n), finish=AtLastLevel()).run(denoiser, x).x
        errors.append(float((out - end).norm()))
    return math.log2(errors[0] / errors[1]) / math.log2(counts[1] / counts[0])


OPTIONS = [
    *(DEIS(variant, many) for variant in ("tab", "rhoab", "logrho") for many in (1, 2, 3, 4)),
    *(DEIS(variant, 3, "corrected") for variant in ("tab", "rhoab", "logrho")),
    *(IPNDM(many) for many in (1, 2, 3)),
    IPNDMv(2),
    SPNDM("finite_difference"),
]


@pytest.mark.parametrize("law", ["gaussian", "mixture"])
@pytest.mark.parametrize("rule", OPTIONS, ids=named)
def test_order_of_the_options(rule, law):
    """Geometry fact 32 for every number of points and both starts: the declared order within ±0.3."""
    assert slope(rule, law) == pytest.approx(rule.order, abs=0.3)


def test_four_points_with_the_corrected_start_are_of_third_order_in_the_end():
    """What the rule declares; it is steeper where the fourth-order errors still outweigh the one of the start."""
    rule = DEIS("tab", 4, "corrected")
    assert slope(rule, "gaussian", (160, 320)) == pytest.approx(rule.order, abs=0.3)
    assert slope(LMS(4, "corrected"), "gaussian", (40, 80)) > 3.6


def test_order_of_plms_depends_on_the_grid():
    """Geometry fact 32: 4.2 on a uniform grid at its finest levels (T1, 160 to 320 steps), 2 on the grid with ρ = 7."""
    x, ends = torch.tensor([[3.0, -2.0]], dtype=F64), torch.tensor([[0.904276982593, -0.187408328570]], dtype=F64)
    errors = {}
    for name in ("uniform", "karras"):
        for n in (160, 320):
            out = Sampler(PLMS(), GRIDS[name](n), finish=AtLastLevel()).run(points(T1), x).x
            errors[name, n] = float((out - ends).norm())
    assert math.log2(errors["uniform", 160] / errors["uniform", 320]) == pytest.approx(4.2, abs=0.1)
    assert math.log2(errors["karras", 160] / errors["karras", 320]) == pytest.approx(2, abs=0.1)


def test_literal_table_is_of_second_order():
    """Geometry fact 32, last sentence."""
    denoiser, x, end = exact("mixture")
    for kind in ("spndm", "deis"):
        errors = [
            float((literal_table(GRIDS["karras"](n).levels, kind, law=denoiser, x=x)[-1] - end).norm())
            for n in (120, 240)
        ]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_alternating_steps():
    """Geometry fact 33, erratum E4: the weights of equal steps lose an order, those of the steps as they are do not."""
    for law in ("gaussian", "mixture"):
        for rule in (SPNDM(), IPNDM(4)):
            assert slope(rule, law, grid="alternating") == pytest.approx(1.0, abs=0.1)
        assert slope(DEIS("rhoab", 2), law, grid="alternating") == pytest.approx(2.0, abs=0.1)
        assert slope(LMS(3, "corrected"), law, grid="alternating") == pytest.approx(3.0, abs=0.3)


# -- start, cost, memory -----------------------------------------------------------------------------------------------


def test_corrected_start_by_hand():
    """Four points: the first two steps once more with Adams-Moulton weights, then Adams-Bashforth."""
    grid, denoise, x = GRID.levels, points(T1), torch.tensor([[3.0, -2.0]], dtype=F64)
    slopes, starts = [], []
    for k, (a, b) in enumerate(pairwise(grid)):
        slopes.insert(0, (x - denoise(x, torch.tensor(a, dtype=F64))) / a)
        levels = list(grid[: k + 1][::-1])
        if k in (1, 2):
            w = step_integrals(levels, grid[k - 1], a)
            x = starts[-1] + sum(c * e for c, e in zip(w, slopes, strict=True))
        starts.append(x)
        w = step_integrals(levels[:4], a, b)
        x = x + sum(c * e for c, e in zip(w, slopes, strict=False))
    torch.testing.assert_close(end_on_three_points(LMS(4, "corrected")), x, rtol=0, atol=1e-13)


def test_cost():
    """Geometry fact 5, erratum E19: one evaluation a step, and one more in the first step of PLMS, unless that ends at 0."""
    for n in (1, 2, 18, 40):
        for name in FAMILY:
            sampler = Sampler(name, karras(n))
            assert sampler.nfe == n + (name == "plms" and n > 1)
            assert 0 not in sampler.visits()
    assert Sampler("plms", karras(50)).nfe == 51
    seen = []
    unit = FunctionDenoiser(lambda x, sigma: seen.append(float(sigma.flatten()[0])) or 0 * x, (2,))
    Sampler("plms", [5.0, 2.0, 1.0]).run(unit, torch.ones(1, 2, dtype=F64))
    assert seen == [5.0, 2.0, 2.0, 1.0]


class Allocations(TorchDispatchMode):
    """Counts the operations that return a new tensor."""

    def __init__(self):
        super().__init__()
        self.fresh = self.all = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.all += 1
        self.fresh += not func.__name__.split(".")[0].endswith("_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("rule", "fresh", "operations"),
    [(LMS(4), 2, 5), (DEIS("tab", 3), 2, 4), (IPNDM(4), 2, 5), (SPNDM(), 2, 3), (PLMS(), 2, 5)],
    ids=named,
)
def test_a_step_makes_two_tensors(rule, fresh, operations):
    """What is remembered and the new state, and one pass over memory for each value: the coefficients are numbers."""
    x = torch.randn(2, 3)
    plans, memory = rule.plan(legs_between(karras(8).levels), x), None
    assert all(isinstance(w, float) for plan in plans for w in plan.advance.weights)
    for plan in plans:
        with Allocations() as count:
            x, memory = rule.step(lambda x, sigma: x / 2, x, x / 2, memory, plan)
    # One more operation makes the output that this test hands in.
    assert (count.fresh, count.all) == (fresh + 1, operations + 1)
    assert len(memory.values) == rule.history
    assert memory.before is None


# -- options -----------------------------------------------------------------------------------------------------------


def test_options():
    assert make_solver("deis", order=3, variant="rhoab") == DEIS("rhoab", 3)
    assert make_solver("lms", order=2) == LMS(2)
    for name in FAMILY:
        rule = SOLVERS[name]()
        options = rule.to_dict()
        assert make_solver(options.pop("name"), **options) == rule
    assert (LMS().order, LMS(4, "corrected").order, LMS(1).order, IPNDM(4).order, PLMS().order) == (2, 3, 1, 2, 2)
    assert (LMS().history, IPNDM(1).history, PLMS().history, SPNDM().history) == (3, 0, 3, 1)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("deis", {"variant": "zab"}, "variant = 'zab'; expected 'tab'"),
        ("deis", {"points": 5}, "points = 5; deis interpolates 1 to 4"),
        ("deis", {"order": 0}, "points = 0"),
        ("deis", {"form": "finite_difference"}, "'tab' and points = 4"),
        ("deis", {"form": "other"}, "form = 'other'"),
        ("deis", {"variant": "rhoab", "beta_max": 3.0}, "no effect with variant = 'rhoab'"),
        ("deis", {"beta_max": 0.01}, "beta_min < beta_max"),
        ("lms", {"start": "warm"}, "start = 'warm'; expected 'rising'"),
        ("lms", {"points": True}, "points = True"),
        ("ipndm_v", {"points": 2.0}, "ipndm_v interpolates"),
        ("ipndm", {"points": 9}, "points = 9"),
        ("spndm", {"form": "fd"}, "form = 'fd'"),
        ("spndm", {"order": 3}, "no option 'order'"),
    ],
)
def test_refusals(name, options, match):
    with pytest.raises(ArgumentError, match=match):
        make_solver(name, **options)


@pytest.mark.parametrize("name", FAMILY)
def test_noise_is_refused(name):
    """The slopes hold the noise of their own step: with fresh noise in between they are not one curve."""
    with pytest.raises(ArgumentError, match="wrong with noise"):
        Sampler(name, karras(6), noise=Ancestral(1.0))


def test_descriptions():
    for name in (*FAMILY, "pndm"):
        text = SOLVERS[name]().describe()
        assert (text.order, text.name) == (SOLVERS[name]().order, name)
        assert text.startup
        assert text.source
    assert DEIS("rhoab", 2).describe().gamma == SPNDM().describe().gamma == "1"
    assert DEIS("rhoab", 3).describe().derivative == "–"
    assert "once more" in LMS(4, "corrected").describe().startup
    assert "2 in the first step" in str(PLMS().describe())
