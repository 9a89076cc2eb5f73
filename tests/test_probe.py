"""Looks at a network in training: the record, that it survives kills and changes nothing, and looks afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from farfield.analysis import Subject, analyze
from farfield.analysis.learning import LearningProbe, named_laws
from farfield.analysis.learning_record import RECORD, read_record
from farfield.errors import ArgumentError, NonFiniteError
from farfield.interop import load
from farfield.training import TrainStep, from_dict, to_dict, train
from farfield.training.config import differences
from farfield.training.probe import ProbeConfig, RunProbe, look_afterwards
from tests.runs import tiny, weights

PROBE = {"every": 3, "per_decade": 0, "sigmas": [0.3, 5.0], "laws": ["gaussian", "mixture:3"], "queries": 16}


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in read_record(folder / RECORD)]


def test_a_run_with_looks_is_the_run_without(points: str, tmp_path: Path) -> None:
    """Same weights; a row at the start, when it is time, and at the end; the last one is of the model that is kept."""
    train(tiny(points), tmp_path / "plain", progress=False)
    train(tiny(points, steps=13, probe=PROBE), tmp_path / "probed", progress=False)
    train(tiny(points, steps=13), tmp_path / "longer", progress=False)
    assert weights(tmp_path / "probed") == weights(tmp_path / "longer")
    assert not (tmp_path / "plain" / RECORD).exists()
    assert steps(tmp_path / "probed") == [0, 3, 6, 9, 12, 13]
    last = read_record(tmp_path / "probed" / RECORD)[-1]
    assert (last["images"], last["weights"], last["sigmas"]) == (13 * 64, "average", [5.0, 0.3])
    data = torch.from_numpy(np.load(points)["images"])
    model = load(tmp_path / "probed")
    config = model.card["training"]["config"]
    assert config["probe"]["laws"] == ["gaussian", "mixture:3"]
    from farfield.training.setup import load_data

    images = load_data(from_dict(config))[0].images
    assert len(images) < len(data)  # the laws are those of the training part
    row = LearningProbe(images, named_laws(images, last["laws"]), (0.3, 5.0), queries=16)(model)
    assert row == {name: last[name] for name in row}


@pytest.mark.parametrize("fails", [2, 8])
def test_a_run_that_was_killed_leaves_the_same_record(
    points: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """Killed before the first checkpoint and after one, in the middle of a line."""
    config = tiny(points, probe={**PROBE, "every": 1, "weights": "raw"})
    call = TrainStep.__call__

    def failing(self: TrainStep, step: int, batch: object):  # type: ignore[no-untyped-def]
        if step == fails:
            raise NonFiniteError("killed")
        return call(self, step, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainStep, "__call__", failing)
    with pytest.raises(NonFiniteError, match="killed"):
        train(config, tmp_path / "killed", progress=False)
    monkeypatch.undo()
    path = tmp_path / "killed" / RECORD
    assert steps(tmp_path / "killed") == list(range(fails + 1))
    with path.open("a") as file:
        file.write('{"step": 9, "imag')
    assert steps(tmp_path / "killed") == list(range(fails + 1))
    for name in ("killed", "whole"):
        train(config, tmp_path / name, progress=False)
    assert path.read_bytes() == (tmp_path / "whole" / RECORD).read_bytes()
    train(config, tmp_path / "killed", progress=False)  # a finished run is not looked at again
    assert path.read_bytes() == (tmp_path / "whole" / RECORD).read_bytes()


def test_looks_are_bookkeeping(points: str, tmp_path: Path) -> None:
    """Runs from before there were looks resume; looks may begin, change and end on the way."""
    plain = to_dict(tiny(points))
    del plain["probe"]
    assert from_dict(plain) == tiny(points)
    assert differences(tiny(points), tiny(points, probe=PROBE)) == []
    run = tmp_path / "run"
    train(tiny(points, steps=5), run, progress=False)
    record = json.loads((run / "run.json").read_text())
    del record["config"]["probe"]
    (run / "run.json").write_text(json.dumps(record))
    train(tiny(points, steps=10, probe=PROBE), run, progress=False)
    train(tiny(points, steps=16, probe={**PROBE, "sigmas": [1.0]}), run, progress=False)
    train(tiny(points, steps=20), run, progress=False)
    assert steps(run) == [6, 9, 10, 12, 15, 16]
    found = analyze("learning", Subject(load(run), torch.zeros(4, 2), folder=run))
    assert (found.steps, found.sigmas) == ((12, 15, 16), (1.0,))


def test_looks_are_dense_at_the_start() -> None:
    c = ProbeConfig(every=100, per_decade=5)
    found = [s for s in range(1001) if c.due(s, 1000)]
    assert found == sorted({0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 158, 251, 398, 631, *range(100, 1001, 100)})
    assert [s for s in range(8) if ProbeConfig(every=3, per_decade=0).due(s, 7)] == [0, 3, 6, 7]
    assert not any(ProbeConfig().due(s, 7) for s in range(8))


def test_only_the_first_process_looks(points: str, tmp_path: Path) -> None:
    """Another one waits for it, and leaves the file alone."""
    asked = []
    engine = SimpleNamespace(main=False, device=torch.device("cpu"), on_main=lambda action: asked.append(action))
    probe = RunProbe(tiny(points, probe=PROBE), torch.zeros(4, 2), tmp_path, engine)  # type: ignore[arg-type]
    (tmp_path / RECORD).write_text("{}\n")
    probe.begin(0, None)  # type: ignore[arg-type]
    probe(1, None)  # type: ignore[arg-type]
    probe(3, None)  # type: ignore[arg-type]
    assert len(asked) == 2
    assert (tmp_path / RECORD).read_text() == "{}\n"


def test_looks_afterwards(points: str, tmp_path: Path) -> None:
    """Checkpoints hold what raw looks saw; snapshots serve where a run kept them; a record comes first."""
    network = {"kind": "mlp", "width": 16, "depth": 1, "dropout": 0.3}
    looks = {**PROBE, "every": 4, "weights": "raw"}
    run = tmp_path / "run"
    config = tiny(points, network=network, probe=looks, checkpoint_every=4, keep=9, ema={"posthoc": {"every": 4}})
    train(config, run, progress=False)
    data = torch.from_numpy(np.load(points)["images"])
    subject = Subject(load(run), data, folder=run)
    options = {"sigmas": [0.3, 5.0], "laws": ["gaussian", "mixture:3"], "queries": 16}
    assert analyze("learning", subject).steps == (0, 4, 8, 12)
    with pytest.raises(ArgumentError, match="has its own levels and laws; afterwards=true"):
        analyze("learning", subject, options)
    found = analyze("learning", subject, {**options, "afterwards": True})
    assert (found.steps, found.weights, found.images) == ((4, 8, 12), "snapshots", (256, 512, 768))
    assert found.gains[0][0][0] != found.gains[0][0][-1]

    from farfield.training.setup import load_data

    images = load_data(config)[0].images
    made = lambda: LearningProbe(images, named_laws(images, options["laws"]), (0.3, 5.0), queries=16)  # noqa: E731
    for file in (run / "posthoc").iterdir():
        file.unlink()
    rows = look_afterwards(run, made)
    recorded = [row for row in read_record(run / RECORD) if row["step"]]
    assert [row["weights"] for row in rows] == ["checkpoints"] * 3
    assert [{**row, "weights": "raw"} for row in rows] == recorded
    (run / RECORD).unlink()
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    with pytest.raises(ArgumentError, match=r"has no learning.jsonl and kept no weights.*train with probe.every=50"):
        analyze("learning", subject)
    with pytest.raises(ArgumentError, match=r"'model' has no folder of a training run.*train with probe.every=50"):
        analyze("learning", Subject(subject.model, data))


def test_wrong_settings_are_one_line(points: str, tmp_path: Path) -> None:
    for changes, message in (
        ({"every": -1}, "probe.every = -1"),
        ({"sigmas": [0.0]}, "probe.sigmas"),
        ({"sigmas": []}, "probe.sigmas"),
        ({"laws": ["gaussian", "gaussian"]}, "probe.laws"),
        ({"laws": ["gausian"]}, "law 'gausian'; expected"),
        ({"queries": 1}, "probe.queries = 1"),
        ({"weights": "ema"}, "probe.weights"),
    ):
        with pytest.raises(ArgumentError, match=message):
            tiny(points, probe={**PROBE, **changes})
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "classes.npz", images=rng.normal(size=(40, 3)).astype(np.float32), labels=np.arange(40) % 2)
    config = tiny(str(tmp_path / "classes.npz"), labels={"use": True, "dropout": 0.0}, probe=PROBE)
    with pytest.raises(ArgumentError, match=r"without a class, which it never learns with labels.dropout = 0"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
