"""Step rules against the published end points, closed forms and their declared orders."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError
from farfield.numerics.spectrum import Spectrum
from farfield.sampling import AtLastLevel, Sampler, karras
from farfield.sampling.solvers import PLANNED, Whitened, make_solver
from farfield.sampling.solvers.exponential import step_weights
from tests.laws import T1, points, smooth_mixture

F64 = torch.float64
#: Every rule in every order it has: the order tests cover them all, and a new solver joins by its registration. A rule that
#: chooses its own steps does not get more exact with the grid; its tests are in test_solvers_adaptive.py.
RULES = [PLANNED[name]() for name in PLANNED if name != "whitened"] + [
    *(Whitened(order, corrector=corrector) for order in (1, 2, 3) for corrector in ("longer", "always")),
    Whitened(3, 0),
    Whitened(2, corrector="start"),
    Whitened(3, corrector="start"),
    Whitened(3, corrector="never"),
]
COVARIANT = [
    Whitened(order, unit=unit, corrector=corrector)
    for order in (1, 2, 3)
    for unit in ("posterior", "data")
    for corrector in ("longer", "always", "start")
]


def named(rule):
    return "-".join(str(v) for v in rule.to_dict().values())


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("euler", (0.812465897280, -0.183755269392)),
        ("heun", (0.922573806980, -0.188830564125)),
        ("dpmpp_2m", (0.915923049547, -0.195215528934)),
    ],
)
def test_end_points_on_three_points(name, end):
    """Geometry fact 29."""
    x = torch.tensor([[3.0, -2.0]], dtype=F64)
    out = Sampler(name, karras(8, 0.5, 5.0), finish=AtLastLevel()).run(points(T1), x).x
    assert out[0].tolist() == pytest.approx(end, abs=2e-12)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("euler", (0.750799862630, 0.859455424636, 0.936062397446)),
        ("heun", (1.175432545986, 1.044728839827, 1.007901109827)),
        ("dpmpp_2m", (1.158105341726, 1.051089541046, 1.008368002590)),
    ],
)
def test_end_points_on_the_unit_gaussian(name, ends):
    """Geometry fact 34; the Euler row is the product of fact 35."""
    unit = FunctionDenoiser(lambda x, sigma: x / (1 + sigma * sigma), (1,))
    for n, end in zip((10, 18, 40), ends, strict=True):
        x = Sampler(name, karras(n)).run(unit, torch.tensor([[80.0]], dtype=F64)).x
        assert float(x) == pytest.approx(end, abs=2e-12)
    grid = list(karras(18))
    product = math.prod(b / a + (1 - b / a) / (1 + a * a) for a, b in pairwise(grid))
    assert 80 * product == pytest.approx(0.859455424636, abs=1e-11)


@pytest.mark.parametrize(("lam", "gain"), [(0.01, 0.0013627134), (1.0, 0.0130591100), (100.0, 0.1267729800)])
def test_heun_multipliers(lam, gain):
    """Gaussian_score F31."""
    mode = FunctionDenoiser(lambda x, sigma: x * lam / (lam + sigma * sigma), (1,))
    assert float(Sampler("heun", karras(18)).run(mode, torch.ones(1, 1, dtype=F64)).x) == pytest.approx(gain, rel=1e-7)


def endpoint_errors(rule, denoiser, x, end, counts, covariance=None):
    errors = []
    for n in counts:
        sampler = Sampler(rule, karras(n + 1, 0.5, 5.0), finish=AtLastLevel(), covariance=covariance)
        errors.append(float((sampler.run(denoiser, x).x - end).norm()))
    return errors


@cache
def mixture_end():
    """The exact end of the order tests on the mixture."""
    x = torch.tensor([[3.0, -2.0], [0.7, 2.5]], dtype=F64)
    return Sampler(Whitened(3), karras(3001, 0.5, 5.0), finish=AtLastLevel()).run(smooth_mixture(), x).x


def check_order(rule, coarse, fine):
    """The slope is the order ±0.3; of three residuals under the longer corrector one more, until the grid is very fine.

    There all steps but the first are of fourth order: the slope falls from 4 to 3 as the error does from 1e-7 to 1e-12.
    """
    slope, order = math.log2(coarse / fine), rule.describe().order
    if isinstance(rule, Whitened) and (rule.order, rule.corrector) == (3, "longer"):
        assert order - 0.3 < slope < order + 1.3
    else:
        assert slope == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("rule", RULES, ids=named)
@pytest.mark.parametrize("law", ["gaussian", "mixture"])
def test_order(rule, law):
    """Geometry fact 32, whitened_solver fact 4: the error falls like h^order, ±0.3 on the finest levels."""
    x = torch.tensor([[3.0, -2.0], [0.7, 2.5]], dtype=F64)
    if law == "gaussian":
        denoiser = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64))
        end = denoiser.flow(x, 5.0, 0.5)
    else:
        denoiser = smooth_mixture()
        end = mixture_end()
    coarse, fine = endpoint_errors(rule, denoiser, x, end, (160, 320))
    check_order(rule, coarse, fine)


@pytest.mark.parametrize("rule", COVARIANT, ids=named)
def test_order_of_the_whitened_solver_with_a_covariance(rule):
    """Whitened_solver fact 4 with the covariance of the mixture itself."""
    denoiser, x = smooth_mixture(), torch.tensor([[3.0, -2.0], [0.7, 2.5]], dtype=F64)
    gaussian = Gaussian(torch.tensor([0.2, 0.1], dtype=F64), torch.tensor([[0.9, -0.1], [-0.1, 1.1]], dtype=F64))
    coarse, fine = endpoint_errors(rule, denoiser, x, mixture_end(), (160, 320), gaussian)
    check_order(rule, coarse, fine)


# -- the whitened solver ----------------------------------------------------------------------------------------------

GAUSSIANS = {
    "dense": Spectrum.from_covariance(torch.diag(torch.tensor([4.0, 0.25, 0.01], dtype=F64))),
    "low-rank": Spectrum.low_rank(torch.eye(3, dtype=F64)[:, :2], [4.0, 0.25], tail=0.01),
    "low-rank-zero": Spectrum.low_rank(torch.eye(3, dtype=F64)[:, :2], [4.0, 0.25], tail=0.0),
    "isotropic": Spectrum.isotropic(3, 0.7),
    "diagonal": Spectrum.diagonal(torch.tensor([4.0, 0.25, 0.01], dtype=F64)),
}
MEAN = torch.tensor([1.0, -1.0, 0.5], dtype=F64)


@pytest.mark.parametrize("kind", GAUSSIANS)
@pytest.mark.parametrize(("a", "b"), [(80.0, 0.002), (80.0, 12.0), (1.0, 0.9), (5.0, 0.0)])
def test_exact_on_gaussian_data_in_one_step(kind, a, b):
    """Whitened_solver fact 1, and down to zero noise as well."""
    gaussian = Gaussian(MEAN, GAUSSIANS[kind])
    x = torch.tensor([[40.0, -80.0, 120.0], [0.3, 0.2, -0.1]], dtype=F64)
    sampler = Sampler("whitened", [a, b], covariance=gaussian, **({} if b == 0 else {"finish": AtLastLevel()}))
    out = sampler.run(gaussian, x)
    torch.testing.assert_close(out.x, gaussian.flow(x, a, b), rtol=1e-12, atol=1e-12)
    assert out.nfe == 1


@pytest.mark.parametrize(
    ("lam", "integral"), [(0.5, 1.6084941417), (50.0, 0.4603660935), (0.001, 1.9861690613), (0.0, 1 / 0.5 - 1 / 80)]
)
def test_weight_of_a_constant_residual(lam, integral):
    """Whitened_solver fact 2: [asinh(√λ/b) − asinh(√λ/a)]/√λ from a = 80 to b = 0.5, and its limit at λ = 0."""
    _, (weight,) = step_weights(torch.tensor([lam]), 80.0, 0.5, [80.0], 1 / 7, False)
    assert float(weight) / math.sqrt(0.25 + lam) == pytest.approx(integral, rel=1e-9)
    if lam:
        root = math.sqrt(lam)
        closed = (math.asinh(root / 0.5) - math.asinh(root / 80)) / root
        assert float(weight) / math.sqrt(0.25 + torch.tensor([lam]).double().item()) == pytest.approx(closed, rel=1e-7)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_vanishing_covariance_is_the_isotropic_rule(order):
    """Whitened_solver fact 3."""
    x = torch.tensor([[30.0, -70.0]], dtype=F64)
    tiny = Gaussian(torch.zeros(2, dtype=F64), 1e-16 * torch.eye(2, dtype=F64))
    grid = karras(9)
    plain = Sampler(Whitened(order), grid, finish=AtLastLevel()).run(smooth_mixture(), x, trajectory=True)
    limit = Sampler(Whitened(order), grid, finish=AtLastLevel(), covariance=tiny).run(
        smooth_mixture(), x, trajectory=True
    )
    torch.testing.assert_close(limit.trajectory.states, plain.trajectory.states, rtol=1e-8, atol=1e-8)


def test_isotropic_second_order_in_log_sigma_is_the_exponential_adams_rule():
    """The weights by hand for λ = 0 and u = log σ: x' = e^{−h}x + (1 − e^{−h})D + [h − 1 + e^{−h}]/h₋ (D − D₋)."""
    past, b = [2.0, 5.0], 0.7
    h, previous = math.log(past[0] / b), math.log(past[1] / past[0])
    _, (w0, w1) = step_weights(torch.zeros(1), past[0], b, past, 0, True)
    slope = (h - 1 + math.exp(-h)) / previous
    assert float(w1) == pytest.approx(-slope, rel=1e-12)
    assert float(w0) == pytest.approx(1 - math.exp(-h) + slope, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_low_rank_with_a_tail_equals_dense(order):
    """The directions outside the basis cost no projection, and come out the same."""
    x = torch.tensor([[40.0, -80.0, 120.0]], dtype=F64)
    bend = FunctionDenoiser(lambda x, sigma: torch.tanh(x / (1 + sigma)), (3,))
    out = {
        kind: Sampler(Whitened(order), karras(7), covariance=Gaussian(MEAN, GAUSSIANS[kind])).run(bend, x).x
        for kind in ("dense", "low-rank", "diagonal")
    }
    torch.testing.assert_close(out["low-rank"], out["dense"], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(out["diagonal"], out["dense"], rtol=1e-11, atol=1e-11)


def test_rotation_and_shift_change_nothing():
    """Whitened_solver fact 5."""
    generator = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=F64))
    shift = torch.tensor([5.0, -3.0, 2.0], dtype=F64)
    x = torch.tensor([[40.0, -80.0, 120.0], [3.0, 1.0, -2.0]], dtype=F64)
    bend = FunctionDenoiser(lambda x, sigma: torch.tanh(x / (1 + sigma)), (3,))
    moved = FunctionDenoiser(lambda x, sigma: bend((x - shift) @ q, sigma) @ q.T + shift, (3,))
    covariance = torch.diag(torch.tensor([4.0, 0.25, 0.01], dtype=F64))
    base = Sampler("whitened", karras(7), covariance=Gaussian(MEAN, covariance)).run(bend, x).x
    turned = Gaussian(q @ MEAN + shift, q @ covariance @ q.T)
    out = Sampler("whitened", karras(7), covariance=turned).run(moved, x @ q.T + shift).x
    torch.testing.assert_close(out, base @ q.T + shift, rtol=1e-10, atol=1e-10)


def test_a_cluster_elsewhere_is_exact_to_zero():
    """The last step's residual law: a Gaussian with the same covariance and another mean, from any level to 0."""
    covariance = torch.diag(torch.tensor([4.0, 0.25, 0.0], dtype=F64))
    cluster = Gaussian(MEAN + 2, covariance)
    x = torch.tensor([[4.0, -8.0, 12.0]], dtype=F64)
    out = Sampler("whitened", [3.0], covariance=Gaussian(MEAN, covariance)).run(cluster, x).x
    torch.testing.assert_close(out, cluster.flow(x, 3.0, 0.0), rtol=1e-12, atol=1e-12)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ArgumentError, match=r"'hein'; known: .*euler, heun, .*mean 'heun'"):
        Sampler("hein")
    with pytest.raises(ArgumentError, match="no option 'stages'"):
        make_solver("heun", stages=3)
    with pytest.raises(ArgumentError, match="order = 4"):
        make_solver("whitened", order=4)
    with pytest.raises(ArgumentError, match="makes no use"):
        Sampler("heun", covariance=Gaussian(MEAN, torch.eye(3)))
