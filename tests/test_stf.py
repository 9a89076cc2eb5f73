"""The stable target: identities, accuracy, guards and memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from farfield.denoiser import FunctionDenoiser
from farfield.distributions import Empirical
from farfield.distributions.posterior import Points, Request
from farfield.errors import ArgumentError, DataError
from farfield.objectives import EDMObjective, IDDPMObjective, VEObjective, VPObjective, stable_target
from farfield.processes import Diffusion
from farfield.sampling import Sampler, karras

from .test_empirical import StudentT, images

F64 = torch.float64


def draw(count=30, dim=5, rows=6, sigma=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(count, dim, dtype=F64, generator=generator)
    return reference[:rows] + sigma * torch.randn(rows, dim, dtype=F64, generator=generator), reference


# -- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [5, 200])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("process", [Diffusion(), StudentT(8.0)], ids=["diffusion", "student"])
def test_whole_data_set_is_the_empirical_law(dim, dtype, process):
    """stable_target_field fact 16: with every point as reference the target is the denoiser of the data set."""
    noisy, data = draw(300, dim)
    levels = torch.logspace(-2, 2, 6).to(dtype)
    noisy = data[:6] + levels.double().unsqueeze(1) * (noisy - data[:6])
    target, facts = stable_target(noisy.to(dtype), levels, data.to(dtype), process=process)
    assert facts is None
    assert target.dtype == dtype
    exact = Empirical(data.to(dtype).double(), process)(noisy.to(dtype).double(), levels.double())
    error = 1e-12 if dtype == F64 else 5e-6
    torch.testing.assert_close(target.double(), exact, atol=error, rtol=error)


@pytest.mark.parametrize(
    "objective", [EDMObjective(), VPObjective(), VEObjective(), IDDPMObjective()], ids=lambda o: o.kind
)
@pytest.mark.parametrize("event", [(2,), (3, 8, 8)])
def test_one_reference_is_score_matching(objective, event):
    """stable_target_field fact 17: n = 1 gives the losses of DSM bit for bit, for every objective."""
    model = FunctionDenoiser(lambda x, s: x / (1 + s.reshape(-1, *(1,) * len(event)) ** 2), event)
    for _ in range(20):
        clean, noise, sigma = torch.randn(1, *event), torch.randn(1, *event), objective.sigma(torch.randn(1))
        noisy = clean + sigma.reshape(-1, *(1,) * len(event)) * noise
        target, _ = stable_target(noisy, sigma, clean)
        assert torch.equal(target, clean)
        plain = objective(model, clean, sigma, noise, 0.5)
        assert torch.equal(objective(model, clean, sigma, noise, 0.5, target=target), plain)
    # The same where the mask leaves each row its source alone.
    clean, sigma = torch.randn(8, *event), objective.sigma(torch.randn(8))
    noisy = clean + sigma.reshape(-1, *(1,) * len(event)) * torch.randn(8, *event)
    target, facts = stable_target(
        noisy, sigma, clean, torch.arange(8), torch.arange(8), torch.arange(8), diagnostics=True
    )
    assert torch.equal(target, clean)
    assert torch.equal(facts.ess, torch.ones(8, dtype=F64))
    assert torch.equal(facts.source, torch.ones(8, dtype=F64))
    assert float(facts.within.max()) < 1e-10


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 20), st.floats(0.2, 5))
def test_symmetries(seed, sigma, scale):
    """stable_target_field fact 18: permutation, translation, rotation and scale."""
    noisy, reference = draw(sigma=sigma, seed=seed)
    target, _ = stable_target(noisy, sigma, reference)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(30, generator=generator)
    torch.testing.assert_close(stable_target(noisy, sigma, reference[order])[0], target, atol=1e-10, rtol=0)
    move = 3 * torch.randn(5, dtype=F64, generator=generator)
    torch.testing.assert_close(
        stable_target(noisy + move, sigma, reference + move)[0], target + move, atol=1e-9, rtol=0
    )
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=F64, generator=generator))[0]
    torch.testing.assert_close(
        stable_target(noisy @ turn, sigma, reference @ turn)[0], target @ turn, atol=1e-9, rtol=0
    )
    score = (target - noisy) / sigma**2
    scaled, _ = stable_target(scale * noisy, scale * sigma, scale * reference)
    torch.testing.assert_close((scaled - scale * noisy) / (scale * sigma) ** 2, score / scale, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("process", [Diffusion(), StudentT(4.0)], ids=["diffusion", "student"])
def test_hull_and_limits(process):
    """stable_target_field fact 19: within the hull; the mean for σ → ∞, the nearest point for σ → 0."""
    noisy, reference = draw()
    for sigma in (0.1, 1.0, 10.0):
        target, _ = stable_target(noisy, sigma, reference, process=process)
        directions = torch.randn(5, 200, dtype=F64)
        low, high = (reference @ directions).amin(0), (reference @ directions).amax(0)
        assert bool(((target @ directions >= low - 1e-12) & (target @ directions <= high + 1e-12)).all())
    far, _ = stable_target(noisy, 1e7, reference, process=process)
    torch.testing.assert_close(far, reference.mean(0).expand(6, 5), atol=1e-10, rtol=0)
    if process.gaussian:
        near, _ = stable_target(noisy, 1e-6, reference)
        torch.testing.assert_close(near, reference[torch.cdist(noisy, reference).argmin(1)], atol=1e-12, rtol=0)


def test_jacobian():
    """stable_target_field fact 20 (P7): the target score has the Jacobian Cov_w(y)/σ⁴ − I/σ²."""
    noisy, reference = draw(rows=1)
    sigma, h = 0.9, 1e-4
    weights = torch.softmax(-(noisy - reference).square().sum(1) / (2 * sigma**2), 0)
    centred = reference - weights @ reference
    expected = (weights.unsqueeze(1) * centred).T @ centred / sigma**4 - torch.eye(5, dtype=F64) / sigma**2
    steps = torch.cat((h * torch.eye(5, dtype=F64), -h * torch.eye(5, dtype=F64)))
    values = (stable_target(noisy + steps, sigma, reference)[0] - noisy - steps) / sigma**2
    numeric = ((values[:5] - values[5:]) / (2 * h)).T
    torch.testing.assert_close(numeric, expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(numeric, numeric.T, atol=1e-9, rtol=0)


def test_grid_of_the_source():
    """stable_target_field fact 27: EDM's grid of 18 levels, and 35 evaluations of Heun's method."""
    levels = list(karras(18))
    assert levels[:4] == pytest.approx([80, 57.5859847, 40.7855738, 28.3745846], abs=5e-8)
    assert levels[-3:] == pytest.approx([0.00752802, 0.002, 0], abs=5e-9)
    assert Sampler("heun", karras(18)).nfe == 35


# -- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1e-3, 0.002, 0.05, 0.5, 1.0, 1.5, 2.5, 10.0, 80.0])
def test_float32_in_3072_dimensions(sigma):
    """7.3 of the source's notes: near-duplicates at σ = 0.002 too, against differences in float64."""
    data = images(120)
    generator = torch.Generator().manual_seed(1)
    # A cluster closer than the noise, where the expanded square in float32 is off by a hundred nats.
    data[10:20] = data[10] + 3e-5 * torch.randn(10, 3072, generator=generator)
    source = torch.tensor([0, 1, 2, 3, 4, 5, *range(10, 20)])
    noise = torch.randn(16, 3072, generator=generator)
    noisy = data[source] + sigma * noise
    target, facts = stable_target(noisy, sigma, data, source, diagnostics=True)
    gap = noisy.double().unsqueeze(1) - data.double()
    weights = torch.softmax(-gap.square().sum(2) / (2 * sigma**2), 1)
    torch.testing.assert_close(target.double(), weights @ data.double(), atol=2e-5, rtol=0)
    torch.testing.assert_close(facts.ess, 1 / weights.square().sum(1), atol=0, rtol=1e-5)
    torch.testing.assert_close(facts.source, weights.gather(1, source.unsqueeze(1)).squeeze(1), atol=1e-6, rtol=1e-4)
    spread = (data.double() - (weights @ data.double()).unsqueeze(1)).square().sum(2)
    torch.testing.assert_close(facts.within, (weights * spread).sum(1), atol=1e-8, rtol=1e-5)
    if sigma == 0.002:
        # With the source known the logits need no noisy sample: −(‖δ‖² + 2σ z·δ)/2σ² with δ = y_src − y_k.
        delta = data[source].double().unsqueeze(1) - data.double()
        along = (noise.double().unsqueeze(1) * delta).sum(2)
        known = torch.softmax(-(delta.square().sum(2) + 2 * sigma * along) / (2 * sigma**2), 1)
        torch.testing.assert_close(facts.source, known.gather(1, source.unsqueeze(1)).squeeze(1), atol=1e-4, rtol=0)
        assert 2 < float(facts.ess[6:].mean()) < 10


@pytest.mark.parametrize("process", [Diffusion(), StudentT(64.0)], ids=["diffusion", "student"])
def test_diagnostics(process):
    noisy, reference = draw(50, 4, 7)
    target, facts = stable_target(noisy, 0.8, reference, torch.arange(7), process=process, diagnostics=True)
    weights = Empirical(reference, process).weights(noisy, 0.8)
    torch.testing.assert_close(facts.ess, 1 / weights.square().sum(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(facts.source, weights.diagonal(), rtol=1e-9, atol=1e-14)
    spread = (reference - target.unsqueeze(1)).square().sum(2)
    torch.testing.assert_close(facts.within, (weights * spread).sum(1), rtol=1e-9, atol=1e-12)
    unknown = stable_target(noisy, 0.8, reference, process=process, diagnostics=True)[1]
    assert bool(unknown.source.isnan().all())
    assert torch.equal(unknown.ess, facts.ess)


def test_autocast_and_gradients_stay_outside():
    noisy, reference = (t.float() for t in draw(80, 100))
    expected, _ = stable_target(noisy, 0.5, reference)
    noisy.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = stable_target(noisy, 0.5, reference)
    assert torch.equal(inside, expected)
    assert not inside.requires_grad


def test_rows_and_number_types_do_not_matter():
    noisy, reference = draw(40, 50, 30)
    noisy, reference = noisy.repeat(40, 1).float(), reference.float()
    allowed = torch.rand(1200, 40) < 0.5
    allowed[:, :1] = True
    sigma = torch.rand(1200) * 3 + 0.1
    target, facts = stable_target(noisy, sigma, reference, allowed=allowed, diagnostics=True)
    tail, own = stable_target(noisy[1000:], sigma[1000:], reference, allowed=allowed[1000:], diagnostics=True)
    torch.testing.assert_close(target[1000:], tail, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(facts.ess[1000:], own.ess)
    for k in (3, 1100):
        alone, _ = stable_target(noisy[k : k + 1], float(sigma[k]), reference[allowed[k]])
        torch.testing.assert_close(target[k : k + 1], alone, atol=1e-5, rtol=1e-5)
    shaped, _ = stable_target(noisy.view(-1, 2, 25), torch.tensor(1.5), reference.view(-1, 2, 25))
    assert torch.equal(shaped.flatten(1), stable_target(noisy, 1.5, reference)[0])


def test_float64_passes_need_no_bounds():
    """What an accelerator does with a fresh set, where bounds would have to be waited for."""
    noisy, reference = (t.float() for t in draw(200, 100))
    points = Points(reference, None, 64, fresh=True)
    request = Request(noisy, torch.full((6,), 0.6, dtype=F64))
    points.shift, points.largest, points.largest_half = 0.0, float("inf"), float("inf")
    averages = points._direct(request, Diffusion(), wide=True)
    exact = Empirical(reference.double())(noisy.double(), 0.6)
    torch.testing.assert_close(averages.vectors[0], exact, atol=1e-9, rtol=0)


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > self.bytes:
                inputs = [a for a in args if isinstance(a, torch.Tensor)]
                if all(a.untyped_storage().data_ptr() != value.untyped_storage().data_ptr() for a in inputs):
                    self.bytes = value.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_memory(sigma):
    """No tensor of B × n × d, here 786 MB, nor a copy of the reference."""
    reference = torch.randn(2048, 1500)
    noisy = reference[:64] + sigma * torch.randn(64, 1500)
    with Largest() as record:
        stable_target(noisy, sigma, reference, torch.arange(64))
    assert 0 < record.bytes <= 2.5 * 2**20


def test_arguments_are_not_changed():
    for dtype in (torch.float32, F64):
        noisy, reference = (t.to(dtype) for t in draw(60, 40))
        kept, allowed = (noisy.clone(), reference.clone()), torch.ones(6, 60, dtype=torch.bool)
        stable_target(noisy, 0.5, reference, allowed=allowed, diagnostics=True)
        assert torch.equal(noisy, kept[0])
        assert torch.equal(reference, kept[1])
        assert bool(allowed.all())


# -- sources ----------------------------------------------------------------------------------------------------------


def test_sources_are_put_in_front():
    """P8: a source that the reference lacks is added, with its class, and counts for its own row."""
    noisy, points = draw(30, 5, 6)
    clean, reference = points[:6], points[6:]
    expected, _ = stable_target(noisy, 0.7, points, torch.arange(6))
    target, facts = stable_target(noisy, 0.7, reference, clean, diagnostics=True)
    torch.testing.assert_close(target, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(facts.source, Empirical(points).weights(noisy, 0.7).diagonal())
    labels, classes = torch.tensor([0, 1, 2, 0, 9, -1]), torch.arange(24) % 3
    target, _ = stable_target(noisy, 0.7, reference, clean, labels, classes)
    assert torch.equal(target[4], clean[4])  # a class that the reference has none of
    torch.testing.assert_close(target[5], expected[5], atol=1e-12, rtol=0)
    allowed = torch.zeros(6, 24, dtype=torch.bool)
    target, _ = stable_target(noisy, 0.7, reference, clean, allowed=allowed)
    assert torch.equal(target, clean)


def test_bad_arguments_are_named():
    noisy, reference = draw()
    places = torch.arange(6)
    for source in (places + 25, places - 1):
        with pytest.raises(ArgumentError, match="source reaches"):
            stable_target(noisy, 1.0, reference, source)
    for source in (places[:5], noisy[:, :3]):
        with pytest.raises(ArgumentError, match="source has shape"):
            stable_target(noisy, 1.0, reference, source)
    with pytest.raises(ArgumentError, match="reference has shape"):
        stable_target(noisy, 1.0, reference[:, :3])
    with pytest.raises(ArgumentError, match="reference has shape"):
        stable_target(noisy, 1.0, reference[:0])
    with pytest.raises(ArgumentError, match="reference has type"):
        stable_target(noisy, 1.0, reference.bfloat16())
    with pytest.raises(ArgumentError, match="sigma"):
        stable_target(noisy, torch.ones(5), reference)
    with pytest.raises(ArgumentError, match="reference_labels"):
        stable_target(noisy, 1.0, reference, labels=places)
    with pytest.raises(ArgumentError, match="labels has shape"):
        stable_target(noisy, 1.0, reference, labels=places[:2], reference_labels=torch.zeros(30))
    with pytest.raises(ArgumentError, match="reference_labels has shape"):
        stable_target(noisy, 1.0, reference, labels=places, reference_labels=places)
    with pytest.raises(ArgumentError, match="allowed"):
        stable_target(noisy, 1.0, reference, allowed=torch.ones(6, 29, dtype=torch.bool))
    with pytest.raises(DataError, match="finite"):
        stable_target(noisy, 1.0, torch.full((4, 5), torch.nan))
