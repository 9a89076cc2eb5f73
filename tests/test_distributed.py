"""Two processes on this machine train what one process trains, and a run changes hands between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from farfield.data import load
from farfield.errors import ArgumentError, ProcessLostError
from farfield.objectives import StableTargets, TargetConfig
from farfield.training import load_config, train
from farfield.training.engine import Engine
from farfield.training.feed import Feed

#: Relative difference of losses that the order of summation may make: float32 sums of some thousand terms, carried
#: through 60 steps.
TOLERANCE = 2e-5

CONFIG = """
data: {source: digits}
network: {kind: song_unet, model_channels: 8, channel_mult: [1, 2], num_blocks: 1, attn_resolutions: [4], dropout: 0.1}
labels: {use: true, dropout: 0.2}
augment: {p: 0.3}
target: {kind: stf, reference: 128}
uncertainty: true
optimizer: {lr: 2.0e-3, warmup_steps: 10}
ema: {posthoc: {every: 20}}
batch_size: 32
steps: 60
threads: 1
device: cpu
checkpoint_every: 10
log_every: 5
"""


def launch(config: Path, out: Path, *overrides: str) -> subprocess.Popen[str]:
    """The run on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "farfield", "train", str(config), *overrides, "--out", str(out), "--quiet"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def worker(launcher: subprocess.Popen[str], rank: int) -> int:
    """The process number of a worker, by what the launcher wrote into its environment."""
    for task in Path(f"/proc/{launcher.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
    raise AssertionError(f"worker {rank} is not there")


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the workers in /proc")
def test_one_process_and_two_train_the_same_model(tmp_path: Path) -> None:
    """2 processes until one of them is killed, then 1, then 2: the same curve as 1 alone."""
    config, shared, alone = tmp_path / "config.yaml", tmp_path / "shared", tmp_path / "alone"
    config.write_text(CONFIG)
    launcher = launch(config, shared)
    deadline = time.monotonic() + 240
    while not (shared / "log.jsonl").exists() or not log(shared) or log(shared)[-1]["step"] < 15:
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.02)
    os.kill(worker(launcher, 1), signal.SIGKILL)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    # The broken connection and the launcher's signal race to process 0; it says the same of both.
    line = next(line for line in output.splitlines() if line.startswith("farfield: process 0 of 2: "))
    assert "process of this run has ended" in line or "process of the run has ended" in line
    assert "the same command resumes from there" in line
    assert not (shared / "model.safetensors").exists()

    resumed = train(load_config(config, ["steps=40"]), shared, progress=False)
    assert resumed.steps == 40
    launcher = launch(config, shared)
    output, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, output
    assert output.count("60 steps") == 1, "one process speaks for both"
    train(load_config(config), alone, progress=False)
    keys = ("loss", "grad_norm", "validation_loss")
    pairs = list(zip(log(shared), log(alone), strict=True))
    assert [a["step"] for a, _ in pairs] == list(range(5, 61, 5))
    for a, b in pairs:
        for key in keys:
            if key in b:
                assert a[key] == pytest.approx(b[key], rel=TOLERANCE), (a["step"], key)
    names = [sorted(p.name for p in (run / "posthoc").iterdir()) for run in (shared, alone)]
    assert names[0] == names[1]


def test_parts_of_a_batch_are_the_batch() -> None:
    """Two ranks of a feed, with the data on the device or not, hold together what one rank holds."""
    data = load("digits", split="train")
    whole = Feed(data, True, torch.device("cpu"), 32, seed=3)
    parts = [Feed(data, True, torch.device("cpu"), 32, 3, rank, 2, resident=False) for rank in (0, 1)]
    for step in (0, 1, 2, 50, 7):  # out of order: what was prepared is not what is asked for
        want, got = whole(step), [part(step) for part in parts]
        assert torch.equal(torch.cat([b.images for b in got]), want.images)
        assert want.labels is not None
        assert torch.equal(torch.cat([b.labels for b in got if b.labels is not None]), want.labels)
        assert torch.equal(torch.cat([b.ids for b in got]), want.ids)
        assert torch.equal(got[1].rows, want.rows)
    for part in parts:
        part.close()


def test_references_are_gathered_ahead_where_the_data_are_not_on_the_device() -> None:
    data = load("digits", split="train")
    feeds = [Feed(data, True, torch.device("cpu"), 32, 3, resident=r) for r in (True, False)]
    made = []
    for feed in feeds:
        targets = StableTargets(TargetConfig("stf", 200), len(data), feed.take, 32, seed=3)
        feed.also = targets.rows_of
        for step in (0, 1):
            b = feed(step)
            sigma, noise = (
                torch.full((32,), 2.0),
                torch.randn(b.images.shape, generator=torch.Generator().manual_seed(step)),
            )
            made.append(targets(step, b.rows, b.images, sigma, noise, b.labels))
        assert (b.ahead is None) == feed.resident
        feed.close()
    assert torch.equal(made[0], made[2])
    assert torch.equal(made[1], made[3])


def test_batches_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    with pytest.raises(ArgumentError, match="batch_size = 32; expected a multiple of 1 processes × accumulate = 5"):
        train(load_config(config, ["accumulate=5"]), tmp_path / "run", progress=False)


def test_one_process_needs_no_group() -> None:
    engine = Engine("cpu")
    assert (engine.rank, engine.world, engine.main) == (0, 1, True)
    assert engine.mean([1.0, 2.0]) == [1.0, 2.0]
    assert engine.on_main(lambda: 7) == 7
    with pytest.raises(RuntimeError, match="Connection reset"), engine.watch(lambda: ""):
        raise RuntimeError("Connection reset by peer")  # alone, such an error is not another process's end
    engine.accelerator = object()
    with (
        pytest.raises(ProcessLostError, match=r"has ended .Connection reset by peer.; try again"),
        engine.watch(lambda: "try again"),
    ):
        raise RuntimeError("[pair.cc:537] Connection reset by peer.")
