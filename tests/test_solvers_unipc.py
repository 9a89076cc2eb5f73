"""The multistep rules in the denoiser (UniPC, DPM-Solver++(3M)): weights, hand-written runs, orders, noise."""

import math
from functools import cache, partial
from itertools import pairwise

import mpmath
import pytest
import torch

from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.sampling import Ancestral, AtLastLevel, Churn, Sampler, Teleport, karras
from farfield.sampling.legs import Leg, Route, legs_between
from farfield.sampling.solvers import Whitened, make_solver
from farfield.sampling.solvers.dpmpp_3m import DPMpp3M
from farfield.sampling.solvers.unipc import UniPC
from tests.laws import T1, points, smooth_mixture

F64 = torch.float64
UNIPC = [
    UniPC(p, variant, corrector) for p in (1, 2, 3) for variant in ("bh1", "bh2") for corrector in ("always", "never")
]
THIRD = [DPMpp3M(start, curvature) for start in ("rising", "corrected") for curvature in ("published", "exact")]


def named(value):
    return "-".join(str(v) for v in value.to_dict().values()) if hasattr(value, "to_dict") else None


# -- weights -----------------------------------------------------------------------------------------------------------


def by_mpmath(known, a, b):
    """``∫_{log b}^{log a} (b/s) ℓ_j(log s) d log s`` to 30 digits."""
    with mpmath.workdps(30):
        u = [mpmath.log(s) for s in known]
        low, high = mpmath.log(b), mpmath.log(a)

        def integrand(j, v):
            basis = mpmath.fprod((v - u[i]) / (u[j] - u[i]) for i in range(len(u)) if i != j)
            return mpmath.exp(low - v) * basis

        return [float(mpmath.quad(partial(integrand, j), mpmath.linspace(low, high, 5))) for j in range(len(u))]


@pytest.mark.parametrize("known", [[80.0], [80.0, 110.0], [3.0, 4.0, 7.0], [0.03, 0.031, 0.2]])
@pytest.mark.parametrize("fall", [1.001, 1.7, 40.0])
def test_exponential_weights_by_quadrature(known, fall):
    a, b = known[0], known[0] / fall
    gain, weights = DPMpp3M(curvature="exact").advance(Leg(a, b, b), known)
    assert gain == b / a
    assert weights == pytest.approx(by_mpmath(known, a, b), rel=1e-11, abs=1e-14)
    assert sum(weights) == pytest.approx(1 - gain, rel=1e-11)
    if len(known) == 3:
        predict = UniPC(3).advance(Leg(a, b, b), known)
        assert predict.weights == pytest.approx(weights, rel=1e-14)
    levels = [b, *known]
    for p in (2, 3):  # UniC-p has the value at the end and p before it
        if len(levels) > p:
            correct = UniPC(p).correction(Leg(a, b, b), levels[: p + 1])
            assert correct.weights == pytest.approx(by_mpmath(levels[: p + 1], a, b), rel=1e-10, abs=1e-14)


def test_the_weights_that_are_not_solved_for():
    """UniP-2 and UniC-1 with the authors' ½ for either B(h): Eq. 12 and 13 of the paper in log σ."""
    a, b, before = 2.0, 1.3, 3.1
    h, previous = math.log(a / b), math.log(before / a)
    for variant, big in (("bh1", h), ("bh2", 1 - math.exp(-h))):
        ratio, (now, past) = UniPC(2, variant).advance(Leg(a, b, b), [a, before])
        # D₁/r₁ with r₁ = (λ₋ − λ)/h = −h₋/h, weighted by −B/2.
        share = big / 2 * h / previous
        assert (ratio, now, past) == pytest.approx((b / a, 1 - b / a + share, -share), rel=1e-14)
        ratio, (end, start) = UniPC(1, variant).correction(Leg(a, b, b), [b, a])
        assert (end, start) == pytest.approx((big / 2, 1 - b / a - big / 2), rel=1e-14)


def test_published_curvature_is_half_of_the_exact_one():
    """The authors' φ₃: the quadratic coefficient of the parabola through three outputs gets half of its integral."""
    known, b = [2.0, 2.9, 4.0], 1.1
    h = math.log(2.0 / b)
    r0, r1 = math.log(known[1] / known[0]) / h, math.log(known[2] / known[1]) / h
    outputs = torch.tensor([0.3, -0.8, 1.7], dtype=F64).tolist()
    d0, d1 = (outputs[0] - outputs[1]) / r0, (outputs[1] - outputs[2]) / r1
    first, second = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
    phi1 = 1 - math.exp(-h)
    phi2 = 1 - phi1 / h
    phi3 = 0.5 - phi2 / h
    for curvature, factor in (("published", 1), ("exact", 2)):
        _, weights = DPMpp3M(curvature=curvature).advance(Leg(2.0, b, b), known)
        found = sum(w * v for w, v in zip(weights, outputs, strict=True))
        assert found == pytest.approx(phi1 * outputs[0] + phi2 * first + factor * phi3 * second, rel=1e-13)


# -- runs written by hand ----------------------------------------------------------------------------------------------


def unipc_by_hand(grid, p, variant, denoise, x):
    """UniPC as its algorithms are written: solve for ρ, correct with the output at the predicted state."""

    def rho(ratios, h, unknown, many):
        b = -h if variant == "bh1" else math.expm1(-h)
        right, phi, factorial = [], math.expm1(-h) / -h - 1, 1
        for i in range(1, many + 1):
            right.append(phi * factorial / b)
            factorial *= i + 1
            phi = phi / -h - 1 / factorial
        matrix = torch.tensor([[r**i for r in ratios] for i in range(many)], dtype=F64)
        return b, torch.linalg.solve(matrix[:unknown, :unknown], torch.tensor(right, dtype=F64)[:unknown])

    def move(x, start, end, values, levels, new=None):
        h = math.log(start / end)
        ratios = [math.log(start / s) / h for s in levels[1:]]
        differences = [(v - values[0]) / r for v, r in zip(values[1:], ratios, strict=True)]
        many = len(values)
        if new is None:
            big, weights = rho([*ratios, 1.0], h, many - 1, many)
            weights = [0.5] if many == 2 else weights.tolist()
        else:
            big, weights = rho([*ratios, 1.0], h, many, many)
            weights = [0.5] if many == 1 else weights.tolist()
            differences.append(new - values[0])
        out = end / start * x - math.expm1(-h) * values[0]
        return out - big * sum((w * d for w, d in zip(weights, differences, strict=True)), torch.zeros_like(x))

    values, levels, origin = [], [], None
    for k, (a, b) in enumerate(pairwise(grid)):
        new = denoise(x, torch.tensor(a, dtype=F64))
        if k:
            q = min(p, k)
            x = move(origin, levels[0], a, values[:q], levels[:q], new)
        values, levels, origin = [new, *values], [a, *levels], x
        q = min(p, k + 1)
        x = move(x, a, b, values[:q], levels[:q])
    return x


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc_by_hand(p, variant):
    x, grid = torch.tensor([[3.0, -2.0], [0.4, 6.0]], dtype=F64), karras(8, 0.5, 5.0)
    found = Sampler(UniPC(p, variant), grid, finish=AtLastLevel()).run(points(T1), x).x
    wanted = unipc_by_hand(grid.levels, p, variant, points(T1), x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-11)


def test_solved_weights_do_not_know_b():
    """Where the weights are solved for, B(h) cancels: bh1 and bh2 part company in the ramp of UniPC-3 alone."""
    levels = [2.0, 3.0, 4.0]
    a, b = (UniPC(3, variant).advance(Leg(2.0, 1.5, 1.5), levels) for variant in ("bh1", "bh2"))
    assert a == b
    x, grid = torch.full((1, 2), 40.0, dtype=F64), karras(9)
    ramp, whole = (
        [Sampler(UniPC(3, variant), levels, finish=AtLastLevel()).run(points(T1), x).x for variant in ("bh1", "bh2")]
        for levels in (grid.levels[:2], grid)
    )
    assert torch.equal(*ramp)
    assert not torch.equal(*whole)


@pytest.mark.parametrize(("start", "corrector"), [("rising", "never"), ("corrected", "start")])
def test_third_order_rule_is_the_isotropic_whitened_one(start, corrector):
    """Exact weights: the whitened solver without a covariance, in log σ."""
    x, grid = torch.tensor([[30.0, -70.0]], dtype=F64), karras(9)
    a, b = (
        Sampler(rule, grid).run(smooth_mixture(), x, trajectory=True).trajectory.states
        for rule in (DPMpp3M(start, "exact"), Whitened(3, 0, corrector=corrector))
    )
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# -- orders ------------------------------------------------------------------------------------------------------------


@cache
def exact(law):
    x = torch.tensor([[3.0, -2.0], [0.7, 2.5]], dtype=F64)
    if law == "gaussian":
        denoiser = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64))
        return denoiser, x, denoiser.flow(x, 5.0, 0.5)
    end = Sampler(Whitened(3), karras(3001, 0.5, 5.0), finish=AtLastLevel()).run(smooth_mixture(), x).x
    return smooth_mixture(), x, end


def slope(rule, law, counts=(160, 320)):
    denoiser, x, end = exact(law)
    errors = [
        float((Sampler(rule, karras(n + 1, 0.5, 5.0), finish=AtLastLevel()).run(denoiser, x).x - end).norm())
        for n in counts
    ]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("law", ["gaussian", "mixture"])
@pytest.mark.parametrize("rule", [r for r in UNIPC if r.points < 3 or r.corrector == "never"] + THIRD, ids=named)
def test_order(rule, law):
    """The declared order within ±0.3: one more than the points with UniC, and what the start leaves of it without."""
    assert slope(rule, law) == pytest.approx(rule.order, abs=0.3)


def test_three_points_are_of_third_order_in_the_end():
    """The corrected first step leaves a third-order error; the fourth-order errors outweigh it on usual grids."""
    assert UniPC(3).order == 3
    assert slope(UniPC(3, "bh1"), "gaussian", (160, 320)) == pytest.approx(3, abs=0.3)
    assert slope(UniPC(3, "bh2"), "mixture", (40, 80)) > 3.5


# -- noise and history -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["published", "exact"])
def test_noise_is_the_stochastic_solver(curvature):
    """Ancestral(1): k-diffusion's third-order SDE rule with η = 1, written with its φ functions."""
    levels = list(karras(9, 0.05, 40.0))
    legs = Route.of(levels, Ancestral(1.0).steps(levels, len(levels))).legs
    plans = DPMpp3M(curvature=curvature).plan(legs, torch.zeros(1))
    for k in range(2, len(legs) - 1):
        s, t = levels[k], levels[k + 1]
        h = math.log(s / t)
        wide = 2 * h
        r0, r1 = math.log(levels[k - 1] / s) / h, math.log(levels[k - 2] / levels[k - 1]) / h
        phi2 = math.expm1(-wide) / wide + 1
        phi3 = (phi2 / wide - 0.5) * (2 if curvature == "exact" else 1)
        outputs = [0.3, -0.8, 1.7]
        d10, d11 = (outputs[0] - outputs[1]) / r0, (outputs[1] - outputs[2]) / r1
        d1, d2 = d10 + (d10 - d11) * r0 / (r0 + r1), (d10 - d11) / (r0 + r1)
        wanted = -math.expm1(-wide) * outputs[0] + phi2 * d1 - phi3 * d2
        found = sum(w * v for w, v in zip(plans[k].advance.weights, outputs, strict=True))
        assert found == pytest.approx(wanted, rel=1e-11)
        assert plans[k].advance.gain == pytest.approx(math.exp(-wide), rel=1e-12)
        assert t * math.sqrt(-math.expm1(-wide)) == pytest.approx(math.sqrt(t**2 - legs[k].end ** 2), rel=1e-12)


def test_no_step_is_corrected_across_noise():
    x, levels = torch.zeros(1), list(karras(6))
    noisy = Route.of(levels, Churn(40.0, 0.0, 100.0).steps(levels, len(levels))).legs
    assert all(p.correct is None for p in DPMpp3M("corrected").plan(noisy, x))
    assert DPMpp3M("corrected").plan(legs_between(levels), x)[1].correct is not None
    with pytest.raises(ArgumentError, match="wrong with noise"):
        Sampler("unipc", karras(6), noise=Ancestral(1.0))


def test_memory_and_cost():
    """Every solver's own count of evaluations and outputs; no state is kept that no step corrects."""
    for rule in (*UNIPC, *THIRD):
        x, memory = torch.ones(1, 2, dtype=F64), None
        for plan in rule.plan(legs_between(karras(7).levels), x):
            x, memory = rule.step(lambda x, sigma: x / 2, x, x / 2, memory, plan)
        assert len(memory.values) == rule.history
        assert memory.before is None  # the last step is corrected by nothing
        assert Sampler(rule, karras(12)).nfe == 12
    assert (UniPC().history, UniPC(3).history, UniPC(3, corrector="never").history, DPMpp3M().history) == (2, 3, 2, 2)


def test_the_state_moved_is_not_corrected():
    """A teleport with history above it: outputs are kept, and the first correction is that of the first real step."""
    law = Gaussian(torch.zeros(2, dtype=F64), torch.tensor([[4.0, 0.0], [0.0, 0.1]], dtype=F64))
    x, grid, errors = torch.tensor([[100.0, -50.0]], dtype=F64), karras(12), []
    for seeded in (False, True):
        start = Teleport(law, 12.0, seed_history=seeded)
        out = Sampler(UniPC(3), grid, start, finish=AtLastLevel()).run(law, law.flow(x, 80.0, 12.0))
        errors.append(float((out.x - law.flow(x, 80.0, 0.002)).norm()))
        assert out.nfe == 11
    assert errors[0] != errors[1]


def test_last_step_is_the_denoiser():
    """Down to zero noise the sample is the output at the last level, corrected or not."""
    seen = []
    law = FunctionDenoiser(lambda x, sigma: seen.append(points(T1)(x, sigma)) or seen[-1], (2,))
    for rule in (UniPC(), DPMpp3M()):
        out = Sampler(rule, karras(6)).run(law, torch.tensor([[40.0, -25.0]], dtype=F64))
        assert torch.equal(out.x, seen[-1])


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("unipc", {"points": 4}, "points = 4; unipc interpolates 1 to 3"),
        ("unipc", {"variant": "vary"}, "variant = 'vary'; expected 'bh1'"),
        ("unipc", {"corrector": "start"}, "corrector = 'start'"),
        ("dpmpp_3m", {"start": "cold"}, "start = 'cold'"),
        ("dpmpp_3m", {"curvature": "half"}, "curvature = 'half'; expected 'published'"),
        ("dpmpp_3m", {"order": 3}, "no option 'order'"),
    ],
)
def test_refusals(name, options, match):
    with pytest.raises(ArgumentError, match=match):
        make_solver(name, **options)


def test_descriptions():
    assert make_solver("unipc", order=3, variant="bh1") == UniPC(3, "bh1")
    assert "every step corrected" in UniPC().describe().startup
    assert "corrected" not in UniPC(corrector="never").describe().startup
    assert (UniPC(1).order, UniPC(2).order, UniPC(2, corrector="never").order) == (2, 3, 2)
    assert DPMpp3M().describe().order == 2
    assert "once more" in DPMpp3M("corrected").describe().startup
