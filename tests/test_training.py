"""Configuration, objective, averages, checkpoints and the loop."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from farfield.errors import ArgumentError, ModelFileError, NonFiniteError
from farfield.interop import load
from farfield.networks.files import read_tensors, write_tensors
from farfield.training import TrainConfig, TrainStep, from_dict, load_config, to_dict, train
from farfield.training.checkpoint import latest_checkpoint, read_checkpoint, steps_in, write_checkpoint
from farfield.training.config import AugmentConfig, EMAConfig, OptimizerConfig
from farfield.training.ema import EMA, ema_decay
from farfield.training.step import augment, learning_rate


@pytest.fixture
def points(tmp_path: Path) -> str:
    """400 points on a ring."""
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    path = tmp_path / "ring.npz"
    np.savez(path, images=np.stack((np.cos(angle), np.sin(angle)), 1).astype(np.float32))
    return str(path)


def tiny(source: str, **changes: object) -> TrainConfig:
    return from_dict(
        {
            "data": {"source": source},
            "network": {"kind": "mlp", "width": 32, "depth": 2},
            "optimizer": {"lr": 3e-3, "warmup_steps": 10},
            "ema": {"half_life": 2000},
            "batch_size": 64,
            "steps": 12,
            "threads": 1,
            "device": "cpu",
            "checkpoint_every": 5,
            "log_every": 4,
            **changes,
        }
    )


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# configuration


def test_config_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {source: digits}\nnetwork: {kind: mlp, width: 64}\noptimizer: {lr: 1e-3}\nsteps: 1e5\n")
    config = load_config(path, ["network.depth=7", "ema.ramp=null", "augment.flip=0.5", "optimizer.betas=[0.9, 0.99]"])
    assert (config.network.kind, config.steps, config.ema.ramp) == ("mlp", 100_000, None)
    assert to_dict(config)["network"]["depth"] == 7
    assert config.optimizer == OptimizerConfig(lr=1e-3, betas=(0.9, 0.99))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", ["digits", "toy"])
def test_shipped_configs(name: str) -> None:
    config = load_config(Path(__file__).parents[1] / "configs" / f"{name}.yaml")
    assert config.data.source in ("digits", "toy:ring")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr'"),
        ("optimiser.lr=1", "Did you mean 'optimizer'"),
        ("optimizer.lr=fast", "optimizer.lr = 'fast'; expected a finite number"),
        ("optimizer.lr=-1", "optimizer.lr = -1.0; expected a positive number"),
        ("optimizer.lr=.nan", "expected a finite number"),
        ("optimizer.betas=[0.9]", "a list of 2 entries"),
        ("optimizer.decay=cosin", "Did you mean 'cosine'"),
        ("steps=0", "steps = 0; expected a positive number"),
        ("steps=1.5", "steps = 1.5; expected a whole number"),
        ("steps=true", "steps = True; expected a whole number"),
        ("steps=1e400", "expected a whole number"),
        ("labels.use=1", "labels.use = 1; expected true or false"),
        ("network.kind=unet", "unknown network.kind 'unet'; known: mlp, song_unet"),
        ("network.kind=[mlp]", "unknown network.kind ['mlp']; known: mlp, song_unet"),
        ("network.kind={a: 1}", "unknown network.kind {'a': 1}"),
        ("network.kind=null", "unknown network.kind None"),
        ("network=[1]", "network = [1]"),
        ("network.width=big", "network.width = 'big'"),
        ("data=digits", "data = 'digits'; expected a mapping"),
        ("seed", "expected key=value"),
        ("seed=[1", "not valid YAML"),
        ("seed.x=1", "seed is not a group"),
        ("augment.translate=-1", "augment.translate = -1"),
        ("preconditioning.sigma_min=100", "expected 0 < min < max"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {source: digits}\nnetwork: {kind: mlp}\nseed: 3\n")
    with pytest.raises(ArgumentError) as caught:
        load_config(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1", "no mapping"), ("", "no mapping"), ("seed: 1", "data is missing"),
     ("data: {size: 8}", "data.source is missing"), ("!!python/object/apply:os.getcwd []", "not valid YAML")],
)  # fmt: skip
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=message):
        load_config(path)
    with pytest.raises(ArgumentError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml")


# parts


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


def test_augmentation() -> None:
    images = torch.arange(2 * 16.0).reshape(2, 1, 4, 4).repeat(500, 1, 1, 1)
    ids = torch.arange(1000)
    moved, told = augment(AugmentConfig(flip=0.5, translate=1), images, 3, ids)
    assert 0.4 < float(told[:, 0].mean()) < 0.6
    assert set(told[:, 1].tolist()) == {-1.0, 0.0, 1.0}
    for k in range(20):  # one by one with rolls, away from the border
        image = images[k, 0].flip(-1) if told[k, 0] else images[k, 0]
        rolled = image.roll((int(told[k, 1]), int(told[k, 2])), (0, 1))
        assert torch.equal(moved[k, 0, 1:3, 1:3], rolled[1:3, 1:3])
    part, _ = augment(AugmentConfig(flip=0.5, translate=1), images[7:9], 3, ids[7:9])
    assert torch.equal(part, moved[7:9])


def test_a_part_of_a_batch_sees_the_same_noise(points: str) -> None:
    """The seam for several processes: losses depend on the images' numbers, not on who computes them."""
    from farfield.networks.model_file import ModelSpec, Preconditioning, build_model

    config = tiny(points)
    step = TrainStep(build_model(ModelSpec(config.network, (2,), Preconditioning(0.7))), config)
    images, ids = torch.randn(8, 2), torch.arange(100, 108)
    whole, sigma = step.losses(images, None, ids)
    part, part_sigma = step.losses(images[3:5], None, ids[3:5])
    torch.testing.assert_close(part, whole[3:5])
    assert torch.equal(part_sigma, sigma[3:5])


# checkpoints


def test_checkpoint_round_trip_and_keep(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        tensors = {"a": torch.full((2, 3), float(step)), "n": torch.tensor(float(step))}
        write_checkpoint(tmp_path, step, tensors, {"note": step}, keep=2)
    assert steps_in(tmp_path) == [2, 3]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.record["note"], float(found.tensors["n"])) == (3, 3, 3.0)
    assert latest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "json", "missing", "pickle"])
def test_damaged_checkpoint_falls_back(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, step, {"a": torch.full((50,), float(step))}, {}, keep=2)
    path = tmp_path / "step-00000002.safetensors"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-7])
    elif damage == "flipped":
        path.write_bytes(content[:-7] + b"\x01" + content[-6:])
    elif damage == "json":
        path.with_suffix(".json").write_text("{")
    elif damage == "missing":
        path.unlink()
    else:
        torch.save({"a": 1}, path)
    with pytest.raises(ModelFileError):
        read_checkpoint(path)
    with pytest.warns(UserWarning, match="checkpoint skipped"):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    (tmp_path / "step-00000001.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ModelFileError, match="no checkpoint"):
        latest_checkpoint(tmp_path)


def test_damaged_checkpoints_do_not_count_among_those_kept(tmp_path: Path) -> None:
    """1000 is good, 2000 and 3000 are not: what a run writes on its way up again must outlive them."""
    for step in (1000, 2000, 3000):
        write_checkpoint(tmp_path, step, {"a": torch.full((50,), float(step))}, {}, keep=3)
    for step in (2000, 3000):
        (tmp_path / f"step-{step:08d}.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="checkpoint skipped"):
        assert getattr(latest_checkpoint(tmp_path), "step", None) == 1000
    write_checkpoint(tmp_path, 1250, {"a": torch.zeros(50)}, {}, keep=2)
    assert steps_in(tmp_path) == [1000, 1250]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".json", ".safetensors", ".safetensors"]
    assert getattr(latest_checkpoint(tmp_path), "step", None) == 1250


def test_leftovers_of_a_kill_are_cleared(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, {"a": torch.ones(1)}, {}, keep=2)
    (tmp_path / "step-00000002.safetensors").write_bytes(b"no json came after it")
    (tmp_path / ".step-00000002.json.77.partial").write_text("{")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001.json", "step-00000001.safetensors"]


# the loop


def test_training_learns_a_ring(points: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    out = tmp_path / "run"
    result = train(tiny(points, steps=300, log_every=50, checkpoint_every=300), out, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(50, 301, 50))
    assert result.loss < 0.85 * lines[0]["loss"]
    model = load(out)
    assert model.card["training"]["metrics"]["validation_loss"] == result.validation_loss
    assert model.sigma_data == pytest.approx(math.sqrt(0.5), rel=0.02)
    # The denoiser pulls points towards the ring.
    x = 1.2 * torch.nn.functional.normalize(torch.randn(200, 2), dim=1)
    assert (model(x, 0.2).norm(dim=1) - 1).abs().mean() < 0.1


def test_same_seed_same_weights(points: str, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tiny(points, seed=seed), tmp_path / name, progress=False)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_images_labels_and_augmentation_resume_exactly(tmp_path: Path) -> None:
    """A U-Net with everything switched on, made longer in two parts and in one."""
    rng = np.random.default_rng(0)
    source = tmp_path / "images.npz"
    np.savez(source, images=rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), labels=np.arange(40) % 3)
    network = {"kind": "song_unet", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "dropout": 0.2}
    settings: dict[str, object] = {
        "network": network,
        "labels": {"use": True, "dropout": 0.3},
        "augment": {"flip": 0.5, "translate": 1},
        "batch_size": 8,
    }
    for steps in (2, 4):
        train(tiny(str(source), steps=steps, **settings), tmp_path / "two", progress=False)
    train(tiny(str(source), steps=4, **settings), tmp_path / "one", progress=False)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    model = load(tmp_path / "one")
    assert model.label_dim == 3
    assert model.card["network"]["augment_dim"] == 3
    assert model(torch.randn(2, 1, 8, 8), 1.0, labels=torch.tensor([0, 2])).shape == (2, 1, 8, 8)


def test_loss_that_is_not_finite_stops_the_run(points: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainStep.losses

    def losses(self: TrainStep, images: torch.Tensor, labels: torch.Tensor | None, ids: torch.Tensor):  # type: ignore[no-untyped-def]
        loss, sigma = original(self, images, labels, ids)
        return (loss * torch.where(ids == 7 * 64 + 5, math.nan, 1.0) if int(ids[0]) == 7 * 64 else loss), sigma

    monkeypatch.setattr(TrainStep, "losses", losses)
    with pytest.raises(NonFiniteError, match=r"step 7: loss = nan.*lr = .*sigma from .*\(1 of 64.*after step 5"):
        train(tiny(points), tmp_path / "run", progress=False)
    monkeypatch.undo()
    train(tiny(points), tmp_path / "run", progress=False)
    train(tiny(points), tmp_path / "other", progress=False)
    assert weights(tmp_path / "run") == weights(tmp_path / "other")


def test_exploding_run_stops(points: str, tmp_path: Path) -> None:
    config = tiny(points, optimizer={"lr": 1e30, "warmup_steps": 0})
    with pytest.raises(NonFiniteError, match=r"step \d+: .*there is no checkpoint yet"):
        train(config, tmp_path / "run", progress=False)


def edit_newest(run: Path, **changes: object) -> None:
    """Change the record of a run's newest checkpoint; None removes a key."""
    path = max((run / "checkpoints").glob("*.json"))
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def test_a_checkpoint_of_another_run_is_refused(points: str, tmp_path: Path) -> None:
    """Equal shapes are not enough: configuration and data must be those of the run."""
    train(tiny(points), tmp_path / "a", progress=False)
    train(tiny(points, seed=5, optimizer={"lr": 1e-3}), tmp_path / "b", progress=False)
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    shutil.copytree(tmp_path / "b" / "checkpoints", tmp_path / "a" / "checkpoints")
    message = r"checkpoint 12 of '.*a' is of another run \(optimizer.lr, optimizer.warmup_steps, seed differ\)"
    with pytest.raises(ModelFileError, match=message):
        train(tiny(points), tmp_path / "a", progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "0" * 64}, "other data"),
        ({"data": None}, "other data"),
        ({"config": None}, "configuration = None"),
        ({"config": {"data": {"source": "x"}, "colour": 1}}, "unknown key 'colour'"),
        ({"window": None}, "window = None; expected three numbers"),
        ({"window": [1, 2]}, "expected three numbers"),
        ({"window": [1, 2, "x"]}, "expected three numbers"),
        ({"metrics": None}, "metrics = None"),
        ({"metrics": {"loss": "low"}}, "expected numbers by name"),
    ],
)
def test_records_that_are_not_whole_are_refused(
    points: str, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    train(tiny(points), tmp_path / "run", progress=False)
    edit_newest(tmp_path / "run", **changes)
    with pytest.raises(ModelFileError) as caught:
        train(tiny(points), tmp_path / "run", progress=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bookkeeping_of_a_checkpoint_may_differ(points: str, tmp_path: Path) -> None:
    train(tiny(points), tmp_path / "run", progress=False)
    result = train(tiny(points, steps=14, keep=1, log_every=2), tmp_path / "run", progress=False)
    assert result.steps == 14
    assert steps_in(tmp_path / "run" / "checkpoints") == [14]


@pytest.mark.parametrize(
    ("drop", "name"),
    [
        ("optimizer.", r"'optimizer\..*\.step'"),
        ("optimizer.model.last.bias.exp_avg_sq", r"'optimizer\.model\.last\.bias\.exp_avg_sq'"),
        ("optimizer.model.last.bias", r"'optimizer\.model\.last\.bias\.step'"),
    ],
)
def test_a_checkpoint_without_its_optimizer_is_refused(points: str, tmp_path: Path, drop: str, name: str) -> None:
    train(tiny(points), tmp_path / "run", progress=False)
    path = max((tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    tensors = {key: t for key, t in read_tensors(path).items() if not key.startswith(drop)}
    edit_newest(tmp_path / "run", sha256=write_tensors(path, tensors))
    with pytest.raises(ModelFileError, match=f"lacks tensor {name}"):
        train(tiny(points), tmp_path / "run", progress=False)


def test_a_parameter_that_is_never_used_needs_no_optimizer_state(tmp_path: Path) -> None:
    """An augmentation layer without augmentation has no gradient, hence no state; the run resumes all the same."""
    rng = np.random.default_rng(0)
    source = tmp_path / "images.npz"
    np.savez(source, images=rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8))
    network = {"kind": "song_unet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "augment_dim": 3}
    for steps in (2, 4):
        train(tiny(str(source), steps=steps, network=network, batch_size=8), tmp_path / "two", progress=False)
    train(tiny(str(source), steps=4, network=network, batch_size=8), tmp_path / "one", progress=False)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    found = read_checkpoint(max((tmp_path / "two" / "checkpoints").glob("*.json")))
    assert "model.model.map_augment.weight" in found.tensors
    assert "optimizer.model.map_augment.weight.step" not in found.tensors


def test_output_folder_is_respected(points: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(ArgumentError, match="holds something else"):
        train(tiny(points), out, progress=False)
    (out / "thesis.txt").unlink()
    train(tiny(points), out, progress=False)
    with pytest.raises(ArgumentError, match=r"another configuration \(batch_size, seed changed\)"):
        train(tiny(points, seed=9, batch_size=32), out, progress=False)
    with pytest.raises(ArgumentError, match="already holds a run"):
        train(tiny(points), out, resume=False, progress=False)
    before = weights(out)
    train(tiny(points, log_every=3), out, progress=False)  # bookkeeping may change, and a finished run stays as it is
    assert weights(out) == before
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ArgumentError, match="is a file"):
        train(tiny(points), file, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"use": True}}, "no labels"),
        ({"augment": {"flip": 0.5}}, "augment changes images"),
        ({"network": {"kind": "song_unet"}}, "takes"),
        ({"network": {"kind": "mlp", "label_dim": 3}}, "without labels.use"),
        ({"device": "abacus"}, "device = 'abacus'"),
    ],
)
def test_settings_that_do_not_fit_the_data(
    points: str, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        train(tiny(points, **changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
