"""Mean shift: fixed and annealed, its rate and its end, on laws whose modes are known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KernelDensity

from farfield.analysis.mean_shift import annealed_mean_shift, mean_shift
from farfield.analysis.mean_shift_modes import local_rates
from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical, Gaussian, GaussianMixture
from farfield.errors import ArgumentError, NonFiniteError
from farfield.sampling import Sampler

from .test_empirical import StudentT

F64 = torch.float64
T2 = torch.tensor([[-1.0], [1.0]], dtype=F64)
#: Three groups on a line, of fact 43.
GROUPS = torch.cat(
    (
        torch.linspace(3.7, 4.3, 13, dtype=F64),
        torch.linspace(-3.2, -2.8, 3, dtype=F64),
        torch.tensor([-0.1, 0.1], dtype=F64),
    )
)[:, None]
STARTS = torch.tensor([[-6.0], [-3.0], [0.0], [3.0]], dtype=F64)


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize(
    ("h", "mode", "rate"),
    [
        (1.25, 0.0, 0.64),
        (0.8, 0.879732103720, 0.353236602631),
        (0.9, 0.695657998626, 0.637111048083),
        (0.5, 0.999325673015, None),
    ],
)
def test_two_points(h, mode, rate, accelerate):
    """Geometry fact 42: modes of T2 and the rate at each; from either side, plain and accelerated."""
    law = Empirical(T2)
    found = mean_shift(law, torch.tensor([[0.3], [-2.0]], dtype=F64), h, tolerance=1e-14, accelerate=accelerate)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.x, torch.tensor([[mode], [-mode]], dtype=F64), rtol=0, atol=2e-12)
    if rate is not None:
        torch.testing.assert_close(
            local_rates(law, found.x, h)[0], torch.full((2,), rate, dtype=F64), rtol=0, atol=2e-11
        )
    assert float((mode - torch.tanh(torch.tensor(mode / h**2, dtype=F64))).abs()) < 1e-11
    torch.testing.assert_close(found.log_prob, law.log_prob(found.x, h))


def test_steps_shrink_at_the_rate():
    """Geometry 2.8: near the end each step is shorter by λ_max(Cov_w)/h², whatever the dimension."""
    law, h = Empirical(torch.randn(30, 4, dtype=F64)), 0.9
    end = mean_shift(law, law.data[:1], h, tolerance=1e-12, steps=20_000).x
    path = [law.data[:1]]
    for _ in range(400):
        path.append(law(path[-1], h))
        if float((path[-1] - end).norm()) < 1e-6:
            break
    ratio = float((path[-1] - end).norm() / (path[-2] - end).norm())
    assert ratio == pytest.approx(float(local_rates(law, end, h)[0]), rel=1e-3)


def test_rates_of_a_network_and_in_many_dimensions():
    """The eigenvalue by Jacobian products, for a function and for a data set beyond the direct limit, is the direct one."""
    matrix = torch.diag(torch.tensor([0.2, 0.9, 0.4], dtype=F64))
    net = FunctionDenoiser(lambda x, s: x @ matrix, (3,))
    value, vector = local_rates(net, torch.zeros(2, 3, dtype=F64), 1.0)
    torch.testing.assert_close(value, torch.full((2,), 0.9, dtype=F64))
    assert float(vector[0, 1].abs()) == pytest.approx(1, abs=1e-5)
    law, h = Empirical(torch.randn(50, 150, dtype=F64)), 9.0
    state = mean_shift(law, law.data[:2], h).x
    expected = law.posterior_spectrum(state, h, 1)[0][:, 0] / h**2
    torch.testing.assert_close(local_rates(law, state, h)[0], expected, rtol=1e-6, atol=0)
    assert local_rates(law, state[:0], h)[0].shape == (0,)


def test_annealing_reaches_the_global_mode():
    """Geometry fact 43: from every start; a fixed small bandwidth stops at the nearest group; one step a level comes near."""
    law = Empirical(GROUPS)
    levels = [10 * (0.25 / 10) ** (k / 11) for k in range(12)]
    found = annealed_mean_shift(law, STARTS, levels, tolerance=1e-9)
    torch.testing.assert_close(found.x, torch.full((4, 1), 4.0, dtype=F64), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.log_prob, torch.full((4,), -0.1088942038, dtype=F64), rtol=0, atol=1e-10)
    assert found.modes.shape == (12, 4, 1)
    assert bool(found.converged.all())
    fixed = mean_shift(law, STARTS, 0.25, tolerance=1e-9)
    torch.testing.assert_close(fixed.x[:, 0], torch.tensor([-3.0, -3.0, 0.0, 4.0], dtype=F64), rtol=0, atol=1e-7)
    expected = torch.tensor([-1.5259903556, -1.5259903556, -1.8098687494], dtype=F64)
    torch.testing.assert_close(fixed.log_prob[:3], expected, rtol=0, atol=1e-9)
    single = annealed_mean_shift(law, STARTS, levels, one_step=True)
    torch.testing.assert_close(single.x, torch.full((4, 1), 3.9999994, dtype=F64), rtol=0, atol=5e-8)
    assert int(single.steps.sum()) == 4 * 12
    # A warm start: annealing spends fewer steps at the last bandwidth than mean shift from afar.
    assert int(found.steps[-1].max()) < int(fixed.steps.max())
    fast = annealed_mean_shift(law, STARTS, levels, accelerate=True)
    torch.testing.assert_close(fast.x, found.x, rtol=0, atol=1e-5)


def test_an_euler_step_is_a_part_of_a_shift():
    """Chen et al., Prop. 5: the Euler step with the optimal denoiser is the mean shift of bandwidth t_n, of weight w_n."""
    law = Empirical(GROUPS)
    run = Sampler("euler", (10.0, 4.0, 1.0)).run(law, STARTS, trajectory=True).trajectory
    for k, (t, s) in enumerate(((10.0, 4.0), (4.0, 1.0), (1.0, 0.0))):
        shifted = annealed_mean_shift(law, run.states[k], (t,), one_step=True).x
        torch.testing.assert_close(run.states[k + 1], s / t * run.states[k] + (1 - s / t) * shifted)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 3), st.booleans())
def test_density_never_falls(seed, h, accelerate):
    """Corollary 1 of Chen et al.: from a state to its mean, on the way there, and from any start to its end."""
    generator = torch.Generator().manual_seed(seed)
    law = Empirical(torch.randn(15, 2, generator=generator, dtype=F64))
    x = 2 * torch.randn(20, 2, generator=generator, dtype=F64)
    gain = law.log_prob(law(x, h), h) - law.log_prob(x, h)
    assert float(gain.min()) >= -1e-12
    found = mean_shift(law, x, h, tolerance=1e-6, steps=300, accelerate=accelerate)
    assert float((found.log_prob - law.log_prob(x, h)).min()) >= -1e-12
    part = mean_shift(law, x, h, tolerance=0, steps=3, accelerate=accelerate)  # stopped half way
    assert float((part.log_prob - law.log_prob(x, h)).min()) >= -1e-12
    assert int(part.steps.max()) <= 3


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 1.5))
def test_acceleration_finds_the_same_modes_in_fewer_steps(seed, h):
    """Where plain mean shift converges, its accelerated form is there as well, and never much later."""
    generator = torch.Generator().manual_seed(seed)
    law = Empirical(torch.randn(40, 3, generator=generator, dtype=F64))
    plain = mean_shift(law, law.data, h, tolerance=1e-9, steps=20_000)
    fast = mean_shift(law, law.data, h, tolerance=1e-9, steps=20_000, accelerate=True)
    assert bool(fast.converged.all())
    near = (plain.x - fast.x).norm(dim=1) < 1e-4 * h
    assert float(near.double().mean()) >= 0.9  # basins may nearly touch
    assert int(fast.steps.sum()) <= 1.1 * int(plain.steps.sum()) + 40


def test_acceleration_close_to_a_split():
    """At h = 0.995 on T2 the rate is 0.98: a few per cent of the steps are enough, for the same mode."""
    law, x = Empirical(T2), torch.tensor([[0.3]], dtype=F64)
    plain = mean_shift(law, x, 0.995, tolerance=1e-12, steps=20_000)
    fast = mean_shift(law, x, 0.995, tolerance=1e-12, steps=20_000, accelerate=True)
    torch.testing.assert_close(fast.x, plain.x, rtol=0, atol=1e-8)
    assert int(fast.steps) * 5 < int(plain.steps)


def test_starts_do_not_feel_each_other():
    """The end, the steps and the length of the last step belong to the start, not to the batch; with classes too."""
    law = Empirical(torch.randn(80, 5, dtype=F64), labels=torch.arange(80) % 2)
    x, labels = torch.randn(11, 5, dtype=F64), torch.arange(11) % 2
    for given_ in ({}, {"labels": labels}, {"accelerate": True, "labels": labels}):
        whole = mean_shift(law, x, 0.9, **given_)
        small = mean_shift(law, x, 0.9, batch_size=3, **given_)
        torch.testing.assert_close(small.x, whole.x, rtol=0, atol=1e-12)
        assert torch.equal(small.steps, whole.steps)
        torch.testing.assert_close(small.log_prob, whole.log_prob, rtol=0, atol=1e-12)
    own = mean_shift(Empirical(law.data[1::2]), x[1::2], 0.9)
    torch.testing.assert_close(mean_shift(law, x, 0.9, labels=labels).x[1::2], own.x, rtol=0, atol=1e-12)
    assert mean_shift(law, x[:0], 0.9).x.shape == (0, 5)


def test_float32_allows_for_rounding():
    """Far from the origin a float32 state cannot move by less than its rounding; it still counts as arrived."""
    data = 1000 + torch.randn(60, 50)
    found = mean_shift(Empirical(data), data, 3.0, tolerance=1e-9)
    assert bool(found.converged.all())
    assert found.x.dtype == torch.float32
    exact = mean_shift(Empirical(data.double()), data.double(), 3.0, tolerance=1e-9)
    assert float((found.x - exact.x).abs().max()) < 2e-2


def test_other_laws_and_networks():
    """A mixture's own modes, a Gaussian's mean, and a function without a density."""
    mixture = GaussianMixture(
        [0.5, 0.5], torch.tensor([[-2.0], [2.0]], dtype=F64), torch.full((2, 1, 1), 0.1, dtype=F64)
    )
    found = mean_shift(mixture, torch.tensor([[-0.4], [0.4]], dtype=F64), 0.5, accelerate=True)
    torch.testing.assert_close(found.x, torch.tensor([[-2.0], [2.0]], dtype=F64), rtol=0, atol=1e-5)
    law = Gaussian(torch.tensor([1.0, -1.0], dtype=F64), torch.eye(2, dtype=F64))
    found = mean_shift(law, torch.zeros(1, 2, dtype=F64), 1.0, tolerance=1e-12)
    torch.testing.assert_close(found.x, law.mean[None], rtol=0, atol=1e-11)
    half = FunctionDenoiser(lambda x, s: x / 2, (2,))
    found = mean_shift(half, torch.ones(3, 2), 1.0)
    assert found.log_prob is None
    assert float(found.x.abs().max()) < 1e-6
    assert found.steps.tolist() == [21] * 3  # 2⁻²¹ √2 is the first step below 1e-6


def test_the_density_is_scikit_learns():
    """Whose modes they are: the kernel density of a peer, with the same bandwidth (its MeanShift has another kernel)."""
    data = torch.randn(40, 3, dtype=F64)
    peer = KernelDensity(kernel="gaussian", bandwidth=0.7).fit(data.numpy())
    found = mean_shift(Empirical(data), data[:10], 0.7)
    torch.testing.assert_close(
        found.log_prob, torch.from_numpy(peer.score_samples(found.x.numpy())), rtol=0, atol=1e-10
    )
    around = found.x + 0.01 * torch.randn(10, 3, dtype=F64)
    assert bool((found.log_prob >= torch.from_numpy(peer.score_samples(around.numpy())) - 1e-12).all())


def test_mistakes_are_named():
    """Bandwidths, processes, acceleration without a density, and outputs that are not finite."""
    law, x = Empirical(T2), torch.zeros(1, 1, dtype=F64)
    for given_, message in (
        ({"bandwidth": 0.0}, "bandwidth = 0"),
        ({"bandwidth": math.inf}, "bandwidth = inf"),
        ({"bandwidth": 1.0, "steps": 0}, "steps = 0"),
        ({"bandwidth": 1.0, "tolerance": -1}, "tolerance = -1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            mean_shift(law, x, **given_)
    with pytest.raises(ArgumentError, match="Gaussian kernel"):
        mean_shift(Empirical(T2, StudentT(3.0)), x, 1.0)
    with pytest.raises(ArgumentError, match="needs a density"):
        mean_shift(FunctionDenoiser(lambda x, s: x, (1,)), x, 1.0, accelerate=True)
    with pytest.raises(ArgumentError, match="must decrease"):
        annealed_mean_shift(law, x, (1.0, 2.0))
    with pytest.raises(ArgumentError, match="one step a level"):
        annealed_mean_shift(law, x, (2.0, 1.0), one_step=True, accelerate=True)
    with pytest.raises(NonFiniteError, match="not finite"):
        mean_shift(FunctionDenoiser(lambda x, s: x * math.nan, (1,)), x, 1.0, steps=3)
