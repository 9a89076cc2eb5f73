"""Between the first and the last evaluation of a run the host never waits for the device: a step only queues work.

On a CPU the operations that would have to wait are watched for; with CUDA its own debug mode refuses them.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from farfield.denoiser import Denoiser
from farfield.distributions import Gaussian
from farfield.processes.base import expand
from farfield.sampling import Ancestral, Churn, ClassifierFree, Jump, LateStart, Sampler, Teleport, karras
from farfield.sampling.solvers import PLANNED, RK45
from farfield.sampling.stop_rules import Budget, SmallChange

SHAPE = (2, 3, 3)
GRID = karras(7)
LAW = Gaussian(torch.zeros(SHAPE), torch.diag(torch.linspace(0.1, 2.0, 18)))
LEADING = Gaussian.fit(torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0)), rank=5)

#: Operations whose result the host has to know before it can go on.
WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "masked_select", "_unique2",
    "unique_dim", "unique_consecutive", "repeat_interleave", "index.bool",
}  # fmt: skip


def samplers():
    """Every rule whose evaluations are planned, and the parts of a sampler that act between steps."""
    for name, rule in PLANNED.items():
        yield name, Sampler(name, GRID)
        if rule.uses_covariance:
            yield f"{name}, covariance", Sampler(name, GRID, covariance=LAW)
            yield f"{name}, leading directions", Sampler(name, GRID, covariance=LEADING)
        if rule.takes_noise:
            # Two-stage rules would ask below the model's range under ancestral noise.
            noise = Ancestral(1.0) if rule.evaluations_per_step == 1 else Churn(2.0)
            yield f"{name}, noise", Sampler(name, GRID, noise=noise)
    yield "jump", Sampler("heun", GRID, finish=Jump(0.5))
    yield "budget", Sampler("unipc", GRID, finish=Jump(Budget(4)))
    yield "teleport", Sampler("dpmpp_3m", GRID, start=Teleport(LAW, 3.0))
    yield "seeded history", Sampler("lms", GRID, start=LateStart(LAW, 10.0, seed_history=True))
    yield "guidance", Sampler("dpm2", GRID, guidance=(ClassifierFree(2.0, (0.01, 20.0)),))


CASES = dict(samplers())


class Between(Denoiser):
    """A Gaussian's denoiser that enters a context at its first evaluation and leaves it at its last."""

    def __init__(self, enter, leave, last):
        super().__init__(SHAPE)
        self.register_buffer("mean", torch.full(SHAPE, 0.1))
        self.label_dim = 3
        self.enter, self.leave, self.last, self.count = enter, leave, last, 0

    def forward(self, x, sigma, labels=None, **condition):
        self.count += 1
        if self.count == self.last:
            self.leave()
        level = expand(sigma, x)
        out = self.mean + (x - self.mean) / (1 + level * level)
        if self.count == 1:
            self.enter()
        return out


class Watch(TorchDispatchMode):
    """Notes the operations that wait."""

    def __init__(self):
        super().__init__()
        self.on, self.seen, self.operations = False, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if self.on:
            self.operations += 1
            if mask or name in WAITING:
                self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))

    def enter(self):
        self.on = True

    def leave(self):
        self.on = False


def run(sampler, model, device="cpu"):
    labels = {"labels": torch.zeros(4, dtype=torch.int64, device=device)} if sampler.guidance else {}
    return sampler(model, 4, seed=1, **labels)


def watched(sampler, last):
    watch = Watch()
    model = Between(watch.enter, watch.leave, last)
    with watch:
        out = run(sampler, model)
    return watch, model, out


@pytest.mark.parametrize("case", CASES)
def test_no_step_asks_for_a_number(case):
    sampler = CASES[case]
    watch, model, out = watched(sampler, sampler.nfe)
    assert model.count == out.nfe == sampler.nfe
    assert watch.operations >= sampler.nfe - 2
    assert watch.seen == []


@pytest.mark.parametrize(
    ("sampler", "last"),
    [(Sampler(RK45(1e-2, 1e-2), GRID), 12), (Sampler("euler", GRID, finish=Jump(SmallChange(1e-6))), 7)],
    ids=["rk45", "stop rule"],
)
def test_the_watch_sees_those_that_do(sampler, last):
    """An adaptive rule and a rule that stops samples wait once a step, and say so."""
    assert "_local_scalar_dense" in {name.split(".")[0] for name in watched(sampler, last)[0].seen}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, whose debug mode refuses every wait")
@pytest.mark.parametrize("case", CASES)
def test_cuda_never_waits(case):
    sampler = CASES[case]
    model = Between(
        lambda: torch.cuda.set_sync_debug_mode("error"), lambda: torch.cuda.set_sync_debug_mode("default"), sampler.nfe
    ).to("cuda")
    try:
        out = run(sampler, model, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert model.count == out.nfe == sampler.nfe
    assert out.x.is_cuda
