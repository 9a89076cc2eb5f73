"""The one-step rules: published end points, declared orders, peers on the same grid, evaluations, operations."""

import math
from functools import cache

import mpmath
import pytest
import torch
from diffusers import DPMSolverSinglestepScheduler, KDPM2DiscreteScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from farfield.denoiser import Denoiser, FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.sampling import AtLastLevel, Sampler, karras
from farfield.sampling.legs import legs_between
from farfield.sampling.solvers import DPM2, DPM3, SOLVERS, DPMpp2M, DPMpp2S, Euler, Heun, Taylor2, make_solver
from farfield.sampling.solvers.finite_difference import master, master_step
from tests.laws import T1, points, smooth_mixture

F64 = torch.float64
COARSE = karras(8, 0.5, 5.0)
LITTLE = [DPM2(0.25), DPM2(1.0), DPM3("reduce"), DPMpp2S(0.3), DPMpp2S(1.0), Taylor2("difference")]


def start():
    return torch.tensor([[3.0, -2.0]], dtype=F64)


def at_the_end(rule, grid=COARSE, denoiser=None, x=None):
    x = start() if x is None else x
    return Sampler(rule, grid, finish=AtLastLevel()).run(denoiser or points(T1), x).x


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "end", "digits"),
    [
        (DPM2(), (0.915488889960, -0.188911569423), 2e-12),
        (DPMpp2S(), (0.90006284, -0.18807578), 1e-8),
        (DPM3(), (0.90370558, -0.18732580), 1e-8),
        (Taylor2(), (0.895662252056, -0.187794638246), 2e-12),
        (Taylor2("difference"), (0.895662252056, -0.187794638246), 1e-4),
    ],
)
def test_end_points_on_three_points(rule, end, digits):
    """Geometry fact 29; the difference quotient over 1/64 of a step is close to the derivative."""
    assert at_the_end(rule)[0].tolist() == pytest.approx(end, abs=digits)


def test_end_points_on_the_unit_gaussian():
    """Geometry fact 34."""
    unit = FunctionDenoiser(lambda x, sigma: x / (1 + sigma * sigma), (1,))
    for n, end in ((10, 1.099607793882), (18, 1.025616474147), (40, 1.004545341153)):
        x = Sampler("dpm2", karras(n)).run(unit, torch.tensor([[80.0]], dtype=F64)).x
        assert float(x) == pytest.approx(end, abs=2e-12)


def test_basins_of_three_points_on_a_line():
    """Geometry fact 25: where the end of DPM-Solver-2 on 40 levels changes from one data point to the next."""
    law = points(torch.tensor([[-1.0], [0.2], [3.0]], dtype=F64))
    for low, high, between, edge in ((-34.0, -33.0, -0.4, -33.4529), (35.0, 36.0, 1.6, 35.1696)):
        for _ in range(2):
            x = torch.linspace(low, high, 101, dtype=F64)
            end = Sampler("dpm2", karras(40)).run(law, x[:, None]).x[:, 0]
            k = int((end < between).sum())
            low, high = float(x[k - 1]), float(x[k])
        assert (low + high) / 2 == pytest.approx(edge, abs=1.5e-4)


def test_equations_as_printed():
    """Geometry facts 29 and 33, erratum E2: without the factors of the table Heun is another rule, DPM-Solver-2 of order 1."""
    law = points(T1)

    def run(grid, gamma, part):
        x = start()
        for a, b, _ in legs_between(grid.levels):
            d, s = law(x, a), b if part == 1 else math.sqrt(a * b)
            later = law(torch.lerp(d, x, s / a), s)
            x = master_step(x, d, later - d, master(a, b, gamma(s), part * (b - a)))
        return x

    printed = {"heun": (lambda s: 1.0, 1), "dpm2": (lambda s: 1 / s, 0.5)}
    ends = {"heun": (0.892320261250, -0.187314110420), "dpm2": (0.904486468524, -0.179733547722)}
    for name, order in (("heun", 2), ("dpm2", 1)):
        assert run(COARSE, *printed[name])[0].tolist() == pytest.approx(ends[name], abs=2e-12)
        errors = [float((run(karras(n + 1, 0.5, 5.0), *printed[name]) - exact()).norm()) for n in (160, 320)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)


# -- orders -----------------------------------------------------------------------------------------------------------


@cache
def exact(law="points"):
    """The exact end, by steps of order three."""
    denoiser = points(T1) if law == "points" else smooth_mixture()
    return at_the_end("dpm3", karras(4001, 0.5, 5.0), denoiser)


@pytest.mark.parametrize("rule", [Heun(), DPM2(), DPMpp2S(), DPM3(), Taylor2(), *LITTLE], ids=repr)
def test_order_on_three_points(rule):
    """Geometry fact 32, and every option of the rules."""
    assert exact()[0].tolist() == pytest.approx((0.904276982593, -0.187408328570), abs=1e-10)
    coarse, fine = (float((at_the_end(rule, karras(n + 1, 0.5, 5.0)) - exact()).norm()) for n in (160, 320))
    assert math.log2(coarse / fine) == pytest.approx(rule.order, abs=0.15)


@pytest.mark.parametrize("rule", LITTLE, ids=repr)
@pytest.mark.parametrize("law", ["gaussian", "mixture"])
def test_order_of_other_options(rule, law):
    """The default options are in test_solvers.py."""
    if law == "gaussian":
        denoiser = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64))
        end = denoiser.flow(start(), 5.0, 0.5)
    else:
        denoiser, end = smooth_mixture(), exact("mixture")
    coarse, fine = (float((at_the_end(rule, karras(n + 1, 0.5, 5.0), denoiser) - end).norm()) for n in (160, 320))
    assert math.log2(coarse / fine) == pytest.approx(rule.order, abs=0.3)


def test_alternating_steps():
    """Geometry fact 33: a one-step rule keeps its order where steps of length 1 and 3 alternate."""
    for rule in (DPM2(), DPMpp2S(), DPM3(), Taylor2()):
        errors = []
        for n in (80, 160):
            lengths = torch.tensor([1.0, 3.0], dtype=F64).repeat(n // 2).cumsum(0)
            grid = [5.0, *(5.0 - 4.5 * lengths / lengths[-1]).tolist()]
            errors.append(float((at_the_end(rule, grid) - exact()).norm()))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(rule.order, abs=0.3)


# -- identities and peers ---------------------------------------------------------------------------------------------


def test_heun_is_dpm2_at_the_end_of_the_step():
    """Geometry fact 31."""
    torch.testing.assert_close(at_the_end(DPM2(1.0)), at_the_end("heun"), rtol=0, atol=1e-14)
    assert Sampler(DPM2(1.0)).visits() == Sampler("heun").visits()


def test_dpm3_is_exact_for_noise_linear_in_log_sigma():
    """The weight of the last difference: x' = x + ∫ (a + b log σ) dσ, by quadrature at 30 digits."""
    a, b = 0.7, -1.3
    law = FunctionDenoiser(lambda x, sigma: x - sigma * (a + b * sigma.log()), (1,))
    x = at_the_end("dpm3", [5.0, 1.3, 0.2], law, torch.full((1, 1), 3.0, dtype=F64))
    with mpmath.workdps(30):
        moved = mpmath.quad(lambda s: a + b * mpmath.log(s), [5, 0.2])
    assert float(x) == pytest.approx(3.0 + float(moved), abs=1e-13)


def test_dpm2_equals_kdpm2():
    """Diffusers' KDPM2 in float64 on our levels; its last step, which divides by σ = 0, is left out."""
    levels = torch.tensor([*karras(12, 0.05, 20.0)][:-1], dtype=F64)
    middle = torch.cat((levels[:1], (levels[1:] * levels[:-1]).sqrt()))
    peer = KDPM2DiscreteScheduler()
    peer.set_timesteps(12)
    peer.sigmas = torch.cat((levels[:1], levels[1:].repeat_interleave(2)))
    peer.sigmas_interpol = torch.cat((middle[:1], middle[1:].repeat_interleave(2)))
    peer._step_index = 0
    law, x = points(T1), start() * 5
    for k in range(2 * (len(levels) - 1)):
        sigma = peer.sigmas[k] if k % 2 == 0 else peer.sigmas_interpol[k]
        noise = (x - law(x, sigma)) / sigma
        x = peer.step(noise, 0, x).prev_sample
    torch.testing.assert_close(at_the_end("dpm2", levels.tolist(), x=start() * 5), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "algorithm", "types"),
    [
        ("dpm2", "dpmsolver", ("midpoint", "midpoint")),
        ("dpmpp_2s", "dpmsolver++", ("midpoint", "midpoint")),
        ("dpm3", "dpmsolver", ("midpoint", "heun", "midpoint")),
    ],
)
def test_equal_to_the_singlestep_scheduler(rule, algorithm, types):
    """Diffusers' single-step scheduler in the variance-preserving state, with the stages of our steps as its levels.

    Its third-order step makes the second stage by its second-order rule, which is the published one for
    ``solver_type="heun"`` alone, while the last update is for "midpoint": the option is switched between them.
    """
    parts = len(types)
    levels = karras(6, 0.05, 20.0).levels
    inside = [a ** (1 - k / parts) * b ** (k / parts) for a, b, _ in legs_between(levels) for k in range(parts)]
    peer = DPMSolverSinglestepScheduler(
        algorithm_type=algorithm, prediction_type="sample", solver_order=parts, lower_order_final=False,
        final_sigmas_type="sigma_min",
    )  # fmt: skip
    peer.set_timesteps(6)
    peer.sigmas = torch.tensor([*inside, levels[-1]], dtype=F64)
    peer.order_list = [k + 1 for k in range(parts)] * (len(levels) - 1)
    peer._step_index = 0
    law, x = points(T1), start() * 5
    x = x / math.sqrt(1 + levels[0] ** 2)
    for k, sigma in enumerate(inside):
        peer.register_to_config(solver_type=types[k % parts])
        x = peer.step(law(x * math.sqrt(1 + sigma**2), sigma), 0, x).prev_sample
    x = x * math.sqrt(1 + levels[-1] ** 2)
    torch.testing.assert_close(at_the_end(rule, levels, x=start() * 5), x, rtol=1e-12, atol=1e-12)


# -- evaluations ------------------------------------------------------------------------------------------------------


def test_counts_of_the_publications():
    """Erratum E18: DPM-Solver counts points, EDM steps. 18 points: 34, with order 3 and two lower last steps 48; 7: 12."""
    for n, second, third in ((18, 34, 48), (7, 12, 15)):
        assert Sampler("dpm2", karras(n), finish=AtLastLevel()).nfe == second
        assert Sampler(DPM3("reduce"), karras(n), finish=AtLastLevel()).nfe == third
        assert Sampler("dpm3", karras(n), finish=AtLastLevel()).nfe == 3 * (n - 1)
        assert Sampler("dpm2", karras(n)).nfe == Sampler("heun", karras(n)).nfe == 2 * n - 1
    assert [Sampler(DPM3("reduce"), karras(n), finish=AtLastLevel()).nfe for n in (2, 3, 4)] == [1, 3, 6]


class Watching(Denoiser):
    """Three points; notes the levels of its calls."""

    def __init__(self):
        super().__init__((2,))
        self.law, self.levels = points(T1), []

    def forward(self, x, sigma, **condition):
        self.levels.append(float(sigma))
        return self.law(x, sigma)


@pytest.mark.parametrize("rule", [Euler(), Heun(), DPM2(0.3), DPM3(), DPM3("reduce"), DPMpp2S(), Taylor2(), DPMpp2M(),
                                  Taylor2("difference")], ids=repr)  # fmt: skip
def test_levels_are_as_planned_and_the_last_step_is_eulers(rule):
    """Erratum E24: never at σ = 0, and the sample is the denoiser's last output."""
    model, sampler = Watching(), Sampler(rule, karras(6))
    out = sampler.run(model, start() * 20, trajectory=True)
    assert model.levels == pytest.approx(sampler.visits(), rel=1e-15)
    assert len(model.levels) == out.nfe == sampler.nfe
    assert min(model.levels) > 0
    assert torch.equal(out.trajectory.denoised[-1], out.x)


class Counting(TorchDispatchMode):
    """Counts the operations that are not views or single numbers."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("rule", "new", "in_place"),
    [
        (Euler(), 1, 0),
        (Heun(), 3, 0),
        (DPM2(), 4, 2),
        (DPM2(0.3), 4, 3),
        (DPM2(form="finite_difference"), 3, 1),
        (DPMpp2S(), 2, 0),
        (DPMpp2S(form="finite_difference"), 3, 1),
        (DPMpp2M(), 2, 0),
        (DPM3(), 5, 4),
        (Taylor2("difference"), 4, 3),
    ],
    ids=repr,
)
def test_operations_of_a_step(rule, new, in_place):
    """No more passes over the state than the formula needs, and no allocation where a temporary can be overwritten."""
    x, d = torch.randn(4, 3), torch.randn(4, 3)
    plan = rule.plan(legs_between((3.0, 2.0, 1.0)), x)[1]
    with Counting() as seen:
        rule.step(lambda state, sigma: d, x, d, d + 1 if rule.history else None, plan)
    made = seen.made[1:] if rule.history else seen.made
    assert sum(name.endswith("_") for name in made) == in_place
    assert sum(not name.endswith("_") for name in made) == new


# -- options and descriptions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpm2", {"midpoint": 0.0}, r"midpoint = 0\.0"),
        ("dpmpp_2s", {"midpoint": 1.5}, r"midpoint = 1\.5; expected a number in \(0, 1\]"),
        ("dpm2", {"midpoint": True}, "midpoint = True"),
        ("dpm3", {"final": "euler"}, "expected 'full' or 'reduce'"),
        ("taylor2", {"derivative": "none"}, "expected 'exact' or 'difference'"),
        ("heun", {"form": "table"}, "expected 'native' or 'finite_difference'"),
    ],
)
def test_options_are_checked(name, options, message):
    with pytest.raises(ArgumentError, match=message):
        make_solver(name, **options)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_rule_describes_itself(name):
    rule = SOLVERS[name]()
    found = rule.describe()
    text = str(found)
    assert found.name == name
    assert found.order == rule.order
    assert found.to_dict()["final"]
    assert found.source or name == "whitened"  # the library's own rule
    assert f"order:{'':<16}{rule.order}" in text
    assert all(line[22:].strip() for line in text.splitlines())
    assert ("γ" in found.derivative) == (found.gamma != "–" and name != "taylor2")


def test_a_description():
    lines = str(Heun().describe()).splitlines()
    assert lines[0].split(maxsplit=1) == ["solver:", "heun (form = native)"]
    assert lines[4].split() == ["γ:", "σ/σ'"]
    assert str(DPM3().describe()).count("Lu et al. 2022")
