"""Runs that are refused leave nothing behind, measurements belong to their step, time and classes are counted whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from farfield.cli.main import main
from farfield.errors import ArgumentError
from farfield.experiments import Settings, run_experiment
from farfield.experiments.base import figure_name
from farfield.interop import load
from farfield.networks.model_file import ModelSpec, Preconditioning, build_model
from farfield.training import TrainStep, train
from farfield.training.engine import Engine, close
from farfield.training.feed import Batch
from farfield.training.setup import alone
from tests.runs import tiny, weights


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": {"kind": "stf", "reference": 16}}, "target.reference = 16; expected at least the mini-batch"),
        ({"preview": {"every": 5}}, "preview.every draws images; the data have samples of shape"),
        ({"evaluate": {"every": 5}}, "evaluate.every = 5 without evaluate.samples measures nothing"),
    ],
)
def test_a_refused_run_leaves_no_folder(points: str, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """Else the corrected configuration would be refused as another run's."""
    with pytest.raises(ArgumentError, match=message):
        train(tiny(points, **changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_start_beside_a_run_leaves_its_record_alone(points: str, tmp_path: Path) -> None:
    train(tiny(points), tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with alone(tmp_path / "run"), pytest.raises(ArgumentError, match="being trained in"):
        train(tiny(points, steps=20, keep=5), tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    train(tiny(points, steps=20, keep=5), tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["keep"] == 5


def test_a_measurement_is_logged_at_its_step_and_at_no_other(points: str, tmp_path: Path) -> None:
    """Off the beat of the log, and NaN: neither stops the run nor is repeated."""

    def hook(done: int, model: torch.nn.Module) -> dict[str, float]:
        return {"answer": 42.0 if done < 6 else math.nan}

    config = tiny(points, evaluate={"every": 3})
    train(config, tmp_path / "run", progress=False, hooks=[hook])
    lines = log(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12]
    assert {line["step"]: line["answer"] for line in lines if "answer" in line} == {3: 42.0, 6: None, 9: None, 12: None}
    assert ["loss" in line for line in lines] == [False, True, False, True, False, True]
    assert "answer" not in load(tmp_path / "run").card["training"]["metrics"]


def test_the_log_counts_the_seconds_of_all_starts(points: str, tmp_path: Path) -> None:
    for steps in (6, 12):
        train(tiny(points, steps=steps), tmp_path / "run", progress=False)
    seconds = [line["seconds"] for line in log(tmp_path / "run")]
    assert seconds == sorted(seconds)
    path = tmp_path / "run" / "checkpoints" / "step-00000012.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "seconds": 1000.0}))
    train(tiny(points, steps=16), tmp_path / "run", progress=False)
    assert log(tmp_path / "run")[-1]["seconds"] > 1000


def test_a_class_that_only_held_out_images_have(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 3
    labels[-1] = 3
    images = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    for seed in range(4):  # whichever rows are held out, one of these runs has class 3 there alone
        np.savez(tmp_path / f"{seed}.npz", images=images, labels=np.roll(labels, 10 * seed))
        config = tiny(
            str(tmp_path / f"{seed}.npz"), data={"source": str(tmp_path / f"{seed}.npz"), "holdout": 20},
            network={"kind": "mlp", "width": 8, "depth": 1}, labels={"use": True}, batch_size=8, steps=1,
        )  # fmt: skip
        result = train(config, tmp_path / str(seed), progress=False)
        assert load(tmp_path / str(seed)).label_dim == 4
        assert result.validation_loss is not None


def test_a_layer_without_a_gradient_does_not_stop_several_processes(tmp_path: Path) -> None:
    """A network made for augmentation and trained without it, in a group of processes."""
    config = tiny("digits", network={"kind": "mlp", "width": 8, "depth": 1, "augment_dim": 2}, batch_size=4)
    step = TrainStep(build_model(ModelSpec(config.network, (1, 8, 8), Preconditioning(sigma_data=0.5))), config)
    engine, group = Engine("cpu"), f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=group, rank=0, world_size=1)
    try:
        handler = SimpleNamespace(to_kwargs=dict)
        engine.accelerator = SimpleNamespace(ddp_handler=handler)
        engine.accelerator.prepare_model = lambda m: DistributedDataParallel(
            m, **engine.accelerator.ddp_handler.to_kwargs()
        )
        step.join(engine)
        for k in range(3):
            step(k, Batch(torch.zeros(4, 1, 8, 8), None, torch.arange(4) + 4 * k, torch.arange(4)))
    finally:
        close()
    assert step.named_parameters()["model.map_augment.weight"].grad is None


def test_settings_without_effect_on_an_experiment_are_refused(tmp_path: Path) -> None:
    for name, value in (("steps", 9), ("seeds", 5)):
        with pytest.raises(ArgumentError, match=f"{name} has no effect on stf-variance"):
            run_experiment("stf-variance", Settings(out=tmp_path / "out", **{name: value}))
    assert not (tmp_path / "out").exists()


def test_figures_about_data_at_a_path_have_a_name() -> None:
    assert figure_name("variance", "digits") == "variance-digits"
    assert figure_name("variance", "toy:ring") == "variance-toy-ring"
    assert figure_name("variance", "../a b/c.npz") == "variance-..-a-b-c.npz"


def test_an_average_of_the_run_in_this_folder(
    points: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(points, ema={"posthoc": {"every": 4}}), tmp_path / "run", progress=False)
    monkeypatch.chdir(tmp_path / "run")
    assert main(["ema", ".", "--sigma-rel", "0.1"]) == 0, capsys.readouterr().err
    assert weights(tmp_path / "run-ema-0.1") != weights(tmp_path / "run")
