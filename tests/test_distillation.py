"""Distillation targets against closed forms on a Gaussian, and on the 64-point toy T5."""

from __future__ import annotations

import copy
import json
from itertools import pairwise

import pytest
import torch

from farfield.analysis.straightness import straightening
from farfield.denoiser import Denoiser, FunctionDenoiser
from farfield.distributions import Empirical, Gaussian
from farfield.errors import ArgumentError
from farfield.sampling import Churn, Jump, Sampler, SmallChange, karras
from farfield.training.config import EMAConfig
from farfield.training.distillation import (
    consistency_levels,
    consistency_target,
    denoised_for,
    distillation_loss,
    distillation_pairs,
    jump,
    progressive_target,
    transitive_target,
)
from farfield.training.ema import EMA
from tests.test_shape import t5

VARIANCES = torch.tensor([4.0, 1.0, 0.01], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
LAW = Gaussian(MEAN, torch.diag(VARIANCES))
#: The exact consistency function of the Gaussian: where the flow from (x, σ) ends.
ENDS = FunctionDenoiser(lambda x, sigma: LAW.flow(x, sigma, 0.0), (3,))


def noised(sigma: torch.Tensor | float, n: int = 64) -> torch.Tensor:
    z = torch.randn(n, 3, dtype=torch.float64)
    level = sigma[:, None] if isinstance(sigma, torch.Tensor) else sigma
    return LAW.sample(n) + level * z


def euler_gain(high: float, low: float) -> torch.Tensor:
    """One Euler step multiplies x − μ by this, for each eigenvalue."""
    return (low + (high - low) * VARIANCES / (VARIANCES + high**2)) / high


def test_progressive_target_is_two_euler_steps_in_closed_form():
    x, (s, m, t) = noised(5.0), (5.0, 3.0, 1.2)
    target = progressive_target(LAW, x, (s, m, t))
    end = MEAN + euler_gain(s, m) * euler_gain(m, t) * (x - MEAN)
    assert torch.allclose(jump(x, target, s, t), end, rtol=1e-12)
    assert torch.allclose(target, denoised_for(x, end, s, t), rtol=1e-10, atol=1e-12)
    # Salimans & Ho's formula: x̃ = (z_t'' − (σ_t''/σ_t) z_t)/(α_t'' − (σ_t''/σ_t) α_t), in their own coordinates.
    alpha = {level: 1 / (1 + level**2) ** 0.5 for level in (s, t)}
    ratio = (t * alpha[t]) / (s * alpha[s])
    printed = (alpha[t] * end - ratio * alpha[s] * x) / (alpha[t] - ratio * alpha[s])
    assert torch.allclose(target, printed, rtol=1e-10, atol=1e-12)


def test_progressive_target_of_one_step_is_the_teacher_and_of_the_last_is_its_last_output():
    x = noised(5.0)
    assert torch.allclose(progressive_target(LAW, x, (5.0, 2.0)), LAW(x, 5.0))
    middle = jump(x, LAW(x, 5.0), 5.0, 1.0)
    assert torch.allclose(progressive_target(LAW, x, (5.0, 1.0, 0.0)), LAW(middle, 1.0))
    four = (5.0, 4.0, 2.0, 1.0, 0.5)
    run = Sampler("euler", (*four, 0.1)).run(LAW, x, trajectory=True).trajectory
    assert torch.allclose(jump(x, progressive_target(LAW, x, four), 5.0, 0.5), run.states[4], rtol=1e-12)


def test_a_short_step_keeps_its_digits():
    """The target is a convex combination of outputs; a difference of states in float32 would be lost."""
    x = noised(5.0).float()
    law = Gaussian(MEAN.float(), torch.diag(VARIANCES.float()))
    levels = (5.0, 5.0 * (1 - 1e-6), 5.0 * (1 - 2e-6))
    assert torch.allclose(progressive_target(law, x, levels), law(x, 5.0), rtol=1e-4, atol=1e-5)
    end = jump(jump(x, law(x, 5.0), *levels[:2]), law(x, 5.0), *levels[1:])
    assert float((denoised_for(x, end, levels[0], levels[2]) - law(x, 5.0)).abs().max()) > 1e-2


def test_the_exact_consistency_function_is_unchanged():
    """With steps of the exact flow CD's target is the function itself; with Euler steps it errs like the step squared."""
    sigma, sigma_next = 3.0, 2.0
    x = noised(sigma)
    along = FunctionDenoiser(
        lambda y, s: denoised_for(y, LAW.flow(y, sigma, sigma_next), sigma, sigma_next), (3,)
    )  # the "teacher" whose Euler step is the flow
    target = consistency_target(along, ENDS, x, sigma, sigma_next)
    assert torch.allclose(target, ENDS(x, sigma), rtol=1e-12)
    errors = []
    for step in (0.2, 0.1, 0.05):
        found = consistency_target(LAW, ENDS, x, sigma, sigma - step)
        errors.append(float((found - ENDS(x, sigma)).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_levels_of_each_row():
    levels = consistency_levels(karras(18), torch.tensor([0.0, 0.5, 0.9999999]))
    grid = karras(18).levels
    assert levels[0].tolist() == pytest.approx([grid[0], grid[8], grid[16]], rel=1e-15)
    assert levels[1].tolist() == pytest.approx([grid[1], grid[9], grid[17]], rel=1e-15)
    place = torch.rand(5000)
    high, low = consistency_levels(karras(5), place)
    assert len(set(high.tolist())) == 4  # n = 1 … N − 1: the closing 0 is never a target's level
    assert float(low.min()) == 0.002
    x = noised(high[:64])
    rows = consistency_target(LAW, ENDS, x, high[:64], low[:64])
    for i in (0, 13, 63):
        one = consistency_target(LAW, ENDS, x[i : i + 1], float(high[i]), float(low[i]))
        assert torch.allclose(rows[i : i + 1], one, rtol=1e-12)


def test_transitive_target_between_the_two():
    x, (s, m, t) = noised(5.0), (5.0, 3.0, 1.2)
    assert torch.allclose(transitive_target(LAW, LAW, x, (s, m, t)), progressive_target(LAW, x, (s, m, t)), rtol=1e-12)
    clean = transitive_target(LAW, ENDS, x, (s, m, 0.0))
    assert torch.allclose(clean, consistency_target(LAW, ENDS, x, s, m), rtol=1e-12)


def test_targets_on_the_points_are_ahead():
    """Geometry fact 54: r*(J(x̂); t_n) is at least as near to the converged point as r*(x̂; t_{n+1}), in about 99.6 %."""
    data, _ = t5()
    law, levels = Empirical(data), karras(18).levels
    nearer, cases = 0, 0
    generator = torch.Generator().manual_seed(0)
    for high, low in pairwise(levels):
        place = torch.randint(0, 64, (200,), generator=generator)
        x = data[place] + high * torch.randn(200, 16, generator=generator, dtype=torch.float64)
        below = [s for s in karras(40).levels if s < high]
        end = Sampler("heun", (high, *below)).run(law, x).x if below else law(x, high)
        target = consistency_target(law, law, x, high, low)
        nearer += int(((target - end).norm(dim=1) <= (law(x, high) - end).norm(dim=1) + 1e-9).sum())
        cases += 200
    assert cases == 3400
    assert nearer / cases == pytest.approx(0.996, abs=0.004)


def test_pairs_are_starts_and_ends_of_the_teacher():
    sampler = Sampler("heun", karras(10))
    pairs = distillation_pairs(LAW, sampler, 7, seed=3, between=(4, 1), batch_size=3, dtype=torch.float64)
    run = sampler(LAW, 7, 3, trajectory=True, dtype=torch.float64).trajectory
    assert torch.equal(pairs.start, run.states[0])
    assert torch.allclose(pairs.target, run.states[-1], rtol=1e-12)
    assert torch.allclose(pairs.between, run.states[[1, 4]], rtol=1e-12)
    assert pairs.levels == (run.sigmas[1], run.sigmas[4])
    assert (pairs.sigma, pairs.nfe) == (80.0, 19)
    later = distillation_pairs(LAW, sampler, 2, seed=3, first=5, dtype=torch.float64)
    assert torch.allclose(later.target, pairs.target[5:], rtol=1e-12)
    assert later.between.shape == (0, 2, 3)
    # The pairs' minimiser is a denoiser whose single step from the start is the sample.
    assert torch.allclose(jump(pairs.start, pairs.target, 80.0, 0.0), pairs.target)


class Scale(Denoiser):
    """D(x, σ) = w x, a student of one weight."""

    def __init__(self, value: float) -> None:
        super().__init__((3,))
        self.w = torch.nn.Parameter(torch.tensor(value))

    def forward(self, x, sigma, **condition):
        return self.w * x


def test_gradients_reach_the_student_alone():
    student = Scale(0.3)
    teacher, average = copy.deepcopy(student), EMA(student, EMAConfig())
    x = noised(3.0).float()
    for target in (
        consistency_target(teacher, average.model, x, 3.0, 2.0),
        transitive_target(teacher, average.model, x, (3.0, 2.0, 1.0)),
        progressive_target(teacher, x, (3.0, 2.0, 1.0)),
    ):
        assert not target.requires_grad
        student.zero_grad()
        loss = distillation_loss(student, x, 3.0, target)
        assert loss.shape == (64,)
        loss.sum().backward()
        assert float(student.w.grad.abs()) > 0
        assert teacher.w.grad is None
        assert average.model.w.grad is None


def test_a_rectified_student_walks_straight():
    """Straightness before and after. The line from noise Ax_N to sample is x_t = (A + t/T (1 − A)) x_N about the mean, and

    the denoiser that walks it, D = A (A + t/T (1 − A))⁻¹ x, is constant on its own path and ends at the teacher's sample.
    """
    shrink = (VARIANCES / (VARIANCES + 80**2)).sqrt()

    def rectified(x, sigma):
        return MEAN + shrink / (shrink + sigma / 80 * (1 - shrink)) * (x - MEAN)

    sampler = Sampler("heun", karras(120))
    student = FunctionDenoiser(rectified, (3,))
    found = straightening(LAW, student, sampler, 40, 1, batch_size=16, dtype=torch.float64)
    assert found.before.straightness > 1e-3
    assert found.after.straightness < 1e-12
    assert found.after.lowest_cosine == pytest.approx(1, abs=1e-12)
    assert found.after.total_turning.mean[0] < 1e-4
    assert found.student_aim == pytest.approx(1, abs=1e-8)
    assert found.teacher_aim < found.student_aim
    assert found.teacher_miss[0] == pytest.approx(1, abs=0.25)  # its first output is almost the mean
    assert found.student_miss[0] < 0.005  # the teacher's own discretisation
    assert found.apart == pytest.approx(found.student_miss[0], rel=1e-6)
    # One step of it is as good as many.
    once = straightening(LAW, student, sampler, 40, 1, student_sampler=Sampler("euler", (80.0,)), dtype=torch.float64)
    assert once.apart == pytest.approx(found.apart, rel=1e-6)
    assert once.after.nfe == 1


def test_a_consistent_student_hits_from_anywhere():
    """Its output is constant along the teacher's path, where it misses nothing; its own path is another matter."""
    sampler = Sampler("heun", karras(120))
    found = straightening(LAW, ENDS, sampler, 40, 1, batch_size=16, dtype=torch.float64)
    assert max(found.student_miss) < 0.005
    assert max(found.teacher_miss) > 0.7
    assert found.teacher_miss[-1] == pytest.approx(0, abs=1e-12)  # Euler's last step: x_0 = r_1
    assert found.after.straightness > 1e-3
    assert found.apart > 0.5


def test_a_teacher_beside_itself():
    found = straightening(LAW, LAW, Sampler("heun", karras(18)), 10, 1, dtype=torch.float64)
    assert found.apart == 0
    assert found.before.to_dict() == found.after.to_dict()
    assert found.teacher_miss == found.student_miss
    json.dumps(found.to_dict(), allow_nan=False)
    assert all(len(row) == len(table.columns) for table in found.tables() for row in table.rows)
    assert "miss" in found.summary()
    assert len(found.plot().axes) == 2


def test_bad_arguments():
    x = noised(3.0)
    with pytest.raises(ArgumentError, match="deterministic"):
        distillation_pairs(LAW, Sampler("euler", karras(5), noise=Churn(10)), 2)
    with pytest.raises(ArgumentError, match="before steps 1 to 4"):
        distillation_pairs(LAW, Sampler("euler", karras(5)), 2, between=(0,))
    with pytest.raises(ArgumentError, match="at a step of its own"):
        distillation_pairs(LAW, Sampler("euler", karras(5), finish=Jump(SmallChange(0.1))), 2, between=(1,))
    with pytest.raises(ArgumentError, match="two at least"):
        progressive_target(LAW, x, (3.0,))
    with pytest.raises(ArgumentError, match="levels 3 and 4"):
        progressive_target(LAW, x, (3.0, 4.0, 1.0))
    with pytest.raises(ArgumentError, match="sigma_next = 0"):
        consistency_target(LAW, LAW, x, 3.0, 0.0)
    with pytest.raises(ArgumentError, match="levels 1 and 1"):
        transitive_target(LAW, LAW, x, (3.0, 1.0, 1.0))
    with pytest.raises(ArgumentError, match="single level"):
        consistency_levels((1.0,), torch.rand(3))
    with pytest.raises(ArgumentError, match="student takes events"):
        straightening(LAW, Gaussian(torch.zeros(2), torch.eye(2)), Sampler(), 2)
    with pytest.raises(ArgumentError, match="student_sampler starts at 10"):
        straightening(LAW, LAW, Sampler(), 2, student_sampler=Sampler("euler", (10.0,)))
    with pytest.raises(ArgumentError, match="n = 1"):
        straightening(LAW, LAW, Sampler(), 1)
