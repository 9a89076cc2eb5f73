"""The multistep rules against diffusers and azula on the same levels, in float64, to rounding where the peer is right.

The peers get our levels in place of their own schedule. Those in the variance-preserving state see ``x/sqrt(1 + σ²)``.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from azula.sample import xEABSampler, zABSampler, zEABSampler
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from farfield.processes import DDPM, VP
from farfield.sampling import AtLastLevel, Sampler, karras
from farfield.sampling.solvers import DPMpp2M, Whitened
from farfield.sampling.solvers.adams import step_integrals
from farfield.sampling.solvers.deis import DEIS
from farfield.sampling.solvers.dpmpp_3m import DPMpp3M
from farfield.sampling.solvers.ipndm import IPNDM, IPNDMv
from farfield.sampling.solvers.lms import LMS
from farfield.sampling.solvers.plms import PLMS
from farfield.sampling.solvers.unipc import UniPC
from tests.laws import smooth_mixture

#: The peers' own warnings about NumPy and their deprecated interfaces.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers", "ignore::FutureWarning:diffusers")

F64 = torch.float64
LEVELS = karras(10, 0.05, 40.0).levels
X = torch.tensor([[30.0, -20.0], [0.7, 25.0], [-50.0, 3.0]], dtype=F64)


def ours(rule, levels=LEVELS, x=X):
    return Sampler(rule, levels, finish=AtLastLevel()).run(smooth_mixture(), x).x


def scale(sigma):
    return 1 / math.sqrt(1 + sigma * sigma)


def with_levels(scheduler, levels=LEVELS):
    """A scheduler that steps through our levels."""
    scheduler.set_timesteps(len(levels))
    scheduler.sigmas = torch.tensor([*levels, 0.0], dtype=F64)
    scheduler._step_index = 0
    return scheduler


def preserving(scheduler, levels=LEVELS):
    """A run of a scheduler that lives in the variance-preserving state and takes the denoiser's output."""
    x, denoise = X * scale(levels[0]), smooth_mixture()
    for k, sigma in enumerate(levels[:-1]):
        d = denoise(x / scale(sigma), torch.tensor(sigma, dtype=F64))
        x = scheduler.step(d, scheduler.timesteps[k], x).prev_sample
    return x / scale(levels[-1])


def close(found, wanted, tolerance=1e-11):
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


# -- diffusers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [1, 2, 3, 4])
def test_diffusers_lms(many):
    """Their integrals are adaptive to 1e-4, which for polynomials of degree 3 means exact."""
    scheduler, x, denoise = with_levels(LMSDiscreteScheduler(prediction_type="sample")), X, smooth_mixture()
    scheduler.is_scale_input_called = True
    for k, sigma in enumerate(LEVELS[:-1]):
        d = denoise(x, torch.tensor(sigma, dtype=F64))
        x = scheduler.step(d, scheduler.timesteps[k], x, order=many).prev_sample
    for rule in (LMS(many), IPNDMv(many), DEIS("rhoab", many)):
        close(ours(rule), x)


@pytest.mark.parametrize("many", [1, 2, 3])
def test_diffusers_deis(many):
    """What diffusers calls DEIS interpolates in log σ: neither tAB nor ρAB of the authors, our ``"logrho"``."""
    scheduler = DEISMultistepScheduler(solver_order=many, prediction_type="sample", lower_order_final=False)
    close(preserving(with_levels(scheduler)), ours(DEIS("logrho", many)))


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("corrector", ["always", "never"])
def test_diffusers_unipc(p, variant, corrector):
    """Their weights come from a recursion that cancels in short steps; on these steps it loses two digits."""
    scheduler = UniPCMultistepScheduler(
        solver_order=p,
        solver_type=variant,
        prediction_type="sample",
        lower_order_final=False,
        disable_corrector=[] if corrector == "always" else list(range(20)),
    )
    close(preserving(with_levels(scheduler)), ours(UniPC(p, variant, corrector)), 1e-10)


@pytest.mark.parametrize(("order", "kind"), [(2, "midpoint"), (3, "heun")])
def test_diffusers_dpm_solver(order, kind):
    """DPM-Solver++(2M) as it is; (3M) with ``curvature="published"``: their φ₃ too multiplies D''/2 as if it were D''.

    Their second step is the one of 2M, by default at the midpoint; with ``solver_type="heun"`` it is the exponential integral
    that ours takes. Their ``step`` rounds the state to float32 whatever it is given, so its updates are called one by one.
    """
    scheduler = with_levels(DPMSolverMultistepScheduler(solver_order=order, solver_type=kind, prediction_type="sample"))
    x, denoise, past = X * scale(LEVELS[0]), smooth_mixture(), []
    updates = (
        lambda past, x: scheduler.dpm_solver_first_order_update(past[-1], sample=x),
        lambda past, x: scheduler.multistep_dpm_solver_second_order_update(past, sample=x),
        lambda past, x: scheduler.multistep_dpm_solver_third_order_update(past, sample=x),
    )
    for k, sigma in enumerate(LEVELS[:-1]):
        scheduler._step_index = k
        past.append(denoise(x / scale(sigma), torch.tensor(sigma, dtype=F64)))
        x = updates[min(k, order - 1)](past, x)
    wanted = x / scale(LEVELS[-1])
    close(ours(DPMpp2M() if order == 2 else DPMpp3M(curvature="published")), wanted)
    assert not torch.allclose(ours(DPMpp3M(curvature="exact")), wanted, atol=1e-3)


def test_diffusers_ipndm():
    """Their network predicts velocity on a fixed sine schedule; with our levels in it, it is the same rule."""
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(len(LEVELS) - 1)
    sigmas = torch.tensor(LEVELS, dtype=F64)
    scheduler.alphas = (1 + sigmas**2).rsqrt()
    scheduler.betas = sigmas * scheduler.alphas
    scheduler._step_index = 0
    x, denoise = X * scheduler.alphas[0], smooth_mixture()
    for k, sigma in enumerate(LEVELS[:-1]):
        alpha = scheduler.alphas[k]
        d = denoise(x / alpha, torch.tensor(sigma, dtype=F64))
        noise = (x / alpha - d) / sigma
        x = scheduler.step(alpha * noise - scheduler.betas[k] * d, scheduler.timesteps[k], x).prev_sample
    close(ours(IPNDM(4)), x / scheduler.alphas[-1])


def test_diffusers_plms():
    """Ten steps of the DDPM schedule, down to index 0: the first step's second evaluation and its ε that is forgotten."""
    scheduler, table, denoise = PNDMScheduler(skip_prk_steps=True), DDPM(1000, "linear"), smooth_mixture()
    scheduler.set_timesteps(10)
    sigmas = table.log_sigmas.exp()
    scheduler.alphas_cumprod = 1 / (1 + sigmas**2)
    indices = [int(t) for t in scheduler.timesteps]
    assert indices[:4] == [900, 800, 800, 700]  # the second one twice
    x = X / sigmas[900] * sigmas[900] * scheduler.alphas_cumprod[900].sqrt()
    for t in indices[:-1]:
        alpha = scheduler.alphas_cumprod[t].sqrt()
        noise = (x / alpha - denoise(x / alpha, sigmas[t])) / sigmas[t]
        x = scheduler.step(noise, t, x).prev_sample
    levels = [float(sigmas[t]) for t in (900, *indices[2:])]
    close(ours(PLMS(), levels), x / scheduler.alphas_cumprod[0].sqrt(), 1e-9)
    assert Sampler(PLMS(), levels, finish=AtLastLevel()).nfe == len(indices) - 1


# -- azula -------------------------------------------------------------------------------------------------------------


class OnOurLevels:
    """A denoiser in the variance-exploding state whose times are the places of the levels."""

    def __init__(self):
        self.law = smooth_mixture()

    def schedule(self, t):
        place = ((1 - t) * (len(LEVELS) - 1)).round().long()
        sigma = torch.tensor(LEVELS, dtype=F64)[place]
        return torch.ones_like(sigma), sigma

    def __call__(self, x, t):
        return SimpleNamespace(mean=self.law(x, self.schedule(t)[1]))


@pytest.mark.parametrize(
    ("sampler", "rules"),
    [
        (zABSampler, [LMS(1), LMS(2), LMS(3), LMS(4)]),
        (zEABSampler, [DEIS("logrho", many) for many in (1, 2, 3, 4)]),
        (xEABSampler, [*(Whitened(order, 0, corrector="never") for order in (1, 2)), DPMpp3M(curvature="exact")]),
    ],
    ids=["zAB", "zEAB", "xEAB"],
)
def test_azula(sampler, rules):
    """Their weights come from a Vandermonde system, which costs digits at the higher orders."""
    for order, rule in enumerate(rules, 1):
        peer = sampler(OnOurLevels(), order=order, steps=len(LEVELS) - 1, silent=True, dtype=F64)
        close(ours(rule), peer(X), 1e-9)


# -- where the peers are wrong -----------------------------------------------------------------------------------------


def variable_steps(past, levels, end):
    """The weights of variable-step Adams-Bashforth with three values from the divided differences of Newton's form."""
    (s0, s1, s2), h = levels, end - levels[0]
    e0, e1, e2 = past
    first, second = (e0 - e1) / (s0 - s1), (e1 - e2) / (s1 - s2)
    return h * e0 + h**2 / 2 * first + (h**3 / 3 + h**2 / 2 * (s0 - s1)) * (first - second) / (s0 - s2)


def test_ipndm_v_is_adams_bashforth():
    """diff-sampler's ``ipndm_v`` misplaces a parenthesis at order 3 (and has 11/24 for 9/24 at order 4), so a loop written
    here stands for the peer: Newton's form of the parabola through the last three slopes, integrated term by term."""
    x, denoise, past = X, smooth_mixture(), []
    for k, (a, b) in enumerate(pairwise(LEVELS)):
        past.insert(0, (x - denoise(x, torch.tensor(a, dtype=F64))) / a)
        if k == 0:
            x = x + (b - a) * past[0]
        elif k == 1:
            x = x + (b - a) * past[0] + (b - a) ** 2 / 2 * (past[0] - past[1]) / (a - LEVELS[0])
        else:
            x = x + variable_steps(past[:3], LEVELS[k : k - 3 if k > 2 else None : -1], b)
    close(ours(IPNDMv(3)), x)


def test_tab_weights_of_the_peers_are_biased():
    """The authors' program sums 10,000 rectangles from the left in VP time; the trapezoids between the same points agree
    with our weights a thousand times better, so what is left of the difference is theirs."""
    process, levels, count, end = VP(), [2.0, 2.9, 4.0], 10_000, 0.3
    known = [process.time(s) for s in levels]
    times = torch.linspace(known[0], end, count + 1, dtype=F64)
    step = (end - known[0]) / count
    exact = step_integrals(levels, levels[0], process.sigma(end), DEIS("tab").variable)
    for j, weight in enumerate(exact):
        basis = math.prod((times - t) / (known[j] - t) for i, t in enumerate(known) if i != j)
        values = basis * process.sigma_derivative(times)
        rectangles = float(values[:-1].sum()) * step
        trapezoids = rectangles + float(values[-1] - values[0]) / 2 * step
        assert 1e-6 < abs(rectangles - weight) < 1e-3
        assert abs(trapezoids - weight) < 1e-3 * abs(rectangles - weight)
