"""The loop: learning, resuming, refusing, and what is written on the way."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from farfield.errors import ArgumentError, ModelFileError, NonFiniteError
from farfield.interop import load
from farfield.networks.files import read_tensors, write_tensors
from farfield.training import TrainStep, train
from farfield.training.checkpoint import read_checkpoint, steps_in
from farfield.training.setup import alone
from tests.runs import tiny, weights


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
        "augment": {"p": 0.5},
        "batch_size": 8,
    }
    for steps in (2, 4):
        train(tiny(str(source), steps=steps, **settings), tmp_path / "two", progress=False)
    train(tiny(str(source), steps=4, **settings), tmp_path / "one", progress=False)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    model = load(tmp_path / "one")
    assert model.label_dim == 3
    assert model.card["network"]["augment_dim"] == 9
    assert model(torch.randn(2, 1, 8, 8), 1.0, labels=torch.tensor([0, 2])).shape == (2, 1, 8, 8)


def test_loss_that_is_not_finite_stops_the_run(points: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainStep.losses

    def losses(self: TrainStep, images: torch.Tensor, labels: torch.Tensor | None, ids: torch.Tensor, *rest: object):  # type: ignore[no-untyped-def]
        loss, plain, sigma = original(self, images, labels, ids, *rest)
        factor = torch.where(ids == 7 * 64 + 5, math.nan, 1.0) if int(ids[0]) == 7 * 64 else 1.0
        return loss * factor, plain * factor, sigma

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
        ({"augment": {"p": 0.5}}, "augment changes images"),
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


def test_pictures_measurements_and_snapshots_on_the_way(tmp_path: Path) -> None:
    """Every look at the model leaves its trace, and none of them changes what is trained."""
    rng = np.random.default_rng(0)
    source = tmp_path / "images.npz"
    np.savez(source, images=rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8))
    network = {"kind": "song_unet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "dropout": 0.1}
    common: dict[str, object] = {"network": network, "batch_size": 8, "steps": 8, "log_every": 2}
    seen: list[int] = []

    def hook(done: int, model: torch.nn.Module) -> dict[str, float]:
        seen.append(done)
        return {"answer": 42.0}

    looked = tiny(
        str(source),
        preview={"every": 4, "samples": 9, "steps": 3},
        evaluate={"every": 4, "samples": 16, "steps": 3, "seeds": 2},
        ema={"posthoc": {"every": 4}},
        **common,
    )
    train(looked, tmp_path / "looked", progress=False, hooks=[hook])
    train(tiny(str(source), **common, ema={"half_life": 500_000.0}), tmp_path / "plain", progress=False)
    assert weights(tmp_path / "looked") == weights(tmp_path / "plain")
    assert seen == [4, 8]
    assert sorted(p.name for p in (tmp_path / "looked" / "previews").iterdir()) == [
        "step-00000004.png",
        "step-00000008.png",
    ]
    lines = [json.loads(line) for line in (tmp_path / "looked" / "log.jsonl").read_text().splitlines()]
    assert [line.get("answer") for line in lines] == [None, 42.0, None, 42.0]
    assert [line.get("frechet", 0) > 0 for line in lines] == [False, True, False, True]
    card = load(tmp_path / "looked").card["training"]["metrics"]
    assert card["evaluation"]["seeds"] == [0, 1]
    assert card["quality"]["sampler"] == "heun, 5 evaluations"
    assert len(list((tmp_path / "looked" / "posthoc").glob("*.json"))) == 2


def test_tensorboard_that_is_not_there_is_one_clear_line(
    points: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ArgumentError, match="TensorBoard is not installed; pip install"):
        train(tiny(points, tensorboard=True), tmp_path / "run", progress=False)


def test_one_run_at_a_time_in_a_folder(points: str, tmp_path: Path) -> None:
    train(tiny(points), tmp_path / "run", progress=False)
    with alone(tmp_path / "run"), pytest.raises(ArgumentError, match="being trained in by another process"):
        train(tiny(points), tmp_path / "run", progress=False)
