"""Checkpoints: round trips, damage, leftovers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from farfield.errors import ModelFileError
from farfield.training.checkpoint import latest_checkpoint, read_checkpoint, steps_in, write_checkpoint


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
