"""One step of training, and the parts it is made of."""

from __future__ import annotations

import pytest
import torch

from farfield.networks.model_file import ModelSpec, Preconditioning, build_model
from farfield.training import TrainStep
from farfield.training.config import EMAConfig, OptimizerConfig
from farfield.training.ema import EMA, ema_decay
from farfield.training.engine import Engine
from farfield.training.feed import Batch
from farfield.training.step import learning_rate
from tests.runs import tiny


def test_learning_rate() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, decay="cosine")
    assert learning_rate(config, 0, 100) == pytest.approx(0.1)
    assert learning_rate(config, 50, 100) == pytest.approx(0.5)
    assert learning_rate(config, 99, 100) < 1e-3
    root = OptimizerConfig(lr=1.0, warmup_steps=0, decay="rsqrt", decay_start=25)
    assert [learning_rate(root, s, 1000) for s in (0, 25, 100)] == pytest.approx([1.0, 1.0, 0.5])


def test_average_of_weights() -> None:
    assert ema_decay(EMAConfig(half_life=1000, ramp=None), 0, 1000) == 0.5
    assert ema_decay(EMAConfig(half_life=1000, ramp=0.05), 2000, 100) == 0.5
    assert ema_decay(EMAConfig(half_life=1000, ramp=0.05), 0, 100) == 0.0
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = EMA(model, EMAConfig(half_life=100, ramp=None))
    torch.nn.init.ones_(model.weight)
    for _ in range(3):
        ema.update(0, 100)
    assert float(ema.model.weight) == pytest.approx(1 - 0.5**3)
    assert not ema.model.weight.requires_grad


def test_a_part_of_a_batch_sees_the_same_noise(points: str) -> None:
    """The seam for several processes: losses depend on the images' numbers, not on who computes them."""
    config = tiny(points)
    step = TrainStep(build_model(ModelSpec(config.network, (2,), Preconditioning(sigma_data=0.7))), config)
    images, ids = torch.randn(8, 2), torch.arange(100, 108)
    whole, _, sigma = step.losses(images, None, ids)
    part, _, part_sigma = step.losses(images[3:5], None, ids[3:5])
    torch.testing.assert_close(part, whole[3:5])
    assert torch.equal(part_sigma, sigma[3:5])


def unet_step(**changes: object) -> TrainStep:
    """A step of a small conditional network with everything that is random switched on."""
    config = tiny(
        "digits",
        network={"kind": "song_unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "dropout": 0.2,
                 "label_dim": 3, "augment_dim": 9},
        labels={"use": True, "dropout": 0.3},
        augment={"p": 0.4},
        batch_size=8,
        **changes,
    )  # fmt: skip
    torch.manual_seed(1)
    return TrainStep(build_model(ModelSpec(config.network, (1, 8, 8), Preconditioning(sigma_data=0.6))), config)


def batch_of(count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1
    return Batch(images, torch.arange(count) % 3, torch.arange(40, 40 + count), torch.arange(count))


def state_after(step: TrainStep, steps: int = 3) -> dict[str, torch.Tensor]:
    for k in range(steps):
        step(k, batch_of())
    return {name: p.detach().clone() for name, p in step.named_parameters().items()}


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"channels_last": True}])
def test_ways_to_compute_a_step_agree(changes: dict[str, object]) -> None:
    """Dropout, noise and augmentation belong to the image, so that parts of a batch add up to the batch."""
    want, got = state_after(unet_step()), state_after(unet_step(**changes))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=2e-3, atol=2e-5, msg=name)


def test_half_precision_rounds_the_network_alone() -> None:
    """bfloat16 has three digits: losses agree to that, weights and their gradients stay float32."""
    full, half = unet_step(), unet_step(precision="bf16")
    b = batch_of()
    want, got = (s.losses(b.images, b.labels, b.ids)[0] for s in (full, half))
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.02)
    assert not torch.equal(got, want)
    half(0, b)
    assert {p.dtype for p in half.named_parameters().values()} == {torch.float32}


def test_learned_weighting_is_trained_and_leaves_the_reported_loss_alone() -> None:
    plain, weighted = unet_step(), unet_step(uncertainty=True)
    b = batch_of()
    assert weighted(0, b).loss == pytest.approx(plain(0, b).loss, rel=1e-6)
    assert "uncertainty.weight" in weighted.named_parameters()
    assert weighted.uncertainty is not None
    assert bool(weighted.uncertainty.weight.detach().any())
    loss, reported, _ = weighted.losses(b.images, b.labels, b.ids)
    assert not torch.equal(loss, reported)


@pytest.mark.slow
def test_compiled_network_trains_the_same_model() -> None:
    want = state_after(unet_step())
    step = unet_step(compile=True)
    step.join(Engine("cpu"))
    got = state_after(step)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=2e-3, atol=2e-5, msg=name)
