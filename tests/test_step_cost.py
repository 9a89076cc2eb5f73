"""What a step of each solver allocates and how often it passes over the state, beside what its formula needs.

One table for all solvers. A step is taken with everything remembered that the rule remembers, and with the denoiser's
outputs ready, so that nothing but the rule itself is counted.
"""

import pytest
import torch
from benchmarks.solver_loops import LOOPS
from benchmarks.solver_overhead import PINNED, STEPS, Unit
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from farfield.distributions import Gaussian
from farfield.sampling import Sampler, karras
from farfield.sampling.legs import Leg, legs_between
from farfield.sampling.solvers import (
    DEIS,
    DPM2,
    DPM3,
    IPNDM,
    LMS,
    PLMS,
    PNDM,
    RK45,
    SOLVERS,
    SPNDM,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    Euler,
    Heun,
    IPNDMv,
    Taylor2,
    UniPC,
    Whitened,
    make_solver,
)

SHAPE = (6, 2, 3, 3)
WHOLE = Gaussian(torch.zeros(2, 3, 3), torch.diag(torch.linspace(0.1, 2.0, 18)))
LEADING = Gaussian.fit(torch.randn(50, 2, 3, 3, generator=torch.Generator().manual_seed(0)), rank=4)

#: (rule, new tensors as large as the state, operations on such tensors, what they are).
TABLE = [
    (Euler(), 1, 1, "the new state, one interpolation"),
    (Heun(), 3, 3, "the Euler state, which the denoiser keeps; the difference of outputs; the new state"),
    (Heun("finite_difference"), 3, 4, "the same, the new state in two passes"),
    (DPM2(), 4, 6, "slope, state of the stage, slope there, new state; each slope is a difference and a quotient"),
    (DPM2(0.3), 4, 7, "the same, and the first slope enters the new state too"),
    (DPM2(form="finite_difference"), 3, 4, "state of the stage, difference of outputs, new state in two passes"),
    (DPMpp2S(), 2, 2, "state of the stage, new state"),
    (DPMpp2S(0.3), 3, 3, "the same, and the output in the middle"),
    (DPMpp2S(form="finite_difference"), 3, 4, "state of the stage, difference, new state in two passes"),
    (DPM3(), 5, 9, "two stages with a state and a difference each, corrected in place, and the new state"),
    (Taylor2(), 2, 4, "the slope, in two passes; the new state, in two; the derivative is the model's"),
    (Taylor2("difference"), 4, 7, "the same, the state ahead, and the difference quotient in its own three passes"),
    (DPMpp2M(), 2, 2, "the extrapolated output, new state"),
    (DPMpp2M("finite_difference"), 2, 3, "the difference of outputs, new state in two passes"),
    (DPMpp3M(), 1, 4, "the new state: its gain, and a pass for each output"),
    (UniPC(2), 2, 7, "the corrected state, from three outputs; the new state, from two"),
    (UniPC(3), 2, 9, "the same with one output more each"),
    (UniPC(3, corrector="never"), 1, 4, "the new state"),
    (DEIS(), 2, 5, "what is remembered; the new state, with a pass for each of four values"),
    (DEIS("rhoab", 2, form="finite_difference"), 4, 5, "what is remembered, the transported output, the difference, new state"),
    (LMS(3), 2, 4, "what is remembered, new state"),
    (LMS(), 2, 5, "what is remembered, new state"),
    (IPNDMv(), 2, 5, "what is remembered, new state"),
    (IPNDM(), 2, 5, "what is remembered, new state"),
    (SPNDM(), 2, 3, "what is remembered, new state"),
    (PLMS(), 2, 5, "what is remembered, new state"),
    (PNDM(), 2, 8, "the noise, in two passes; its weighted mean, which becomes the new state"),
    (RK45(), 28, 50, "the slope; sum, state and slope of each of six stages; the error; its norm, 6; what is accepted, 2"),
]  # fmt: skip

#: The most new tensors of the whitened rule, which depend on its law: none, one on a whole basis, one on leading directions.
WHITENED = [
    (None, 2, "two advances, the correction and the step, from two outputs each"),
    (
        WHOLE,
        12,
        "the same on the basis, state and output centred and projected, residual, and the way back from the basis",
    ),
    (LEADING, 14, "as without a law; state and output centred; residual; what the basis puts right, expanded"),
]


class Costs(TorchDispatchMode):
    """Counts operations that compute at least a whole state, and those whose result is a new tensor."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.new, self.passes = numel, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        large = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.numel() >= self.numel]
        fresh = sum(t.untyped_storage().data_ptr() not in given for t in large)
        self.new += fresh
        self.passes += bool(large) and (bool(fresh) or func.__name__.split(".")[0].endswith("_"))
        return out


class Ready:
    """Evaluations whose answers exist already."""

    def __init__(self, d):
        self.d = d

    def __call__(self, x, sigma):
        return self.d

    def derivative(self, x, sigma, slope):
        return self.d


def cost(rule, covariance=None):
    """New tensors and passes of the last step but the one to zero noise."""
    x, d = torch.randn(SHAPE), torch.randn(SHAPE)
    if rule.adaptive:  # one step of a length that is known to be right
        legs, memory = [Leg(1.0, 0.99, 0.99)], torch.ones(len(x), dtype=torch.float64)
    else:
        legs, memory = legs_between((9.0, 7.0, 5.0, 3.5, 2.0, 1.0)), None
    for plan in rule.plan(legs, x, covariance):
        with Costs(x.numel()) as seen:
            x, memory = rule.step(Ready(d), x, d, memory, plan)
    return seen.new, seen.passes


@pytest.mark.parametrize(
    ("rule", "new", "passes", "why"), TABLE, ids=lambda value: repr(value) if hasattr(value, "plan") else ""
)
def test_a_step_costs_what_its_formula_needs(rule, new, passes, why):
    assert cost(rule) == (new, passes), why


@pytest.mark.parametrize(("law", "most", "why"), WHITENED, ids=["none", "whole", "leading"])
def test_the_whitened_rule_makes_no_more_than_its_law_asks_for(law, most, why):
    assert 2 <= cost(Whitened(2, corrector="always"), law)[0] <= most, why


def test_every_solver_is_in_a_table():
    assert {"whitened", *(rule.name for rule, *_ in TABLE)} == set(SOLVERS)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_loops_are_the_solvers(name):
    """The hand-written loops of the benchmark are an independent program of every rule: the same samples."""
    x = 80 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid, model = karras(STEPS // 2), Unit((2,))
    found = Sampler(make_solver(name, **PINNED.get(name, {})), grid).run(model, x).x
    torch.testing.assert_close(found, LOOPS[name](model, x, list(grid)), rtol=1e-10, atol=1e-10)
