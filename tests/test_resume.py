"""A run that is killed, at moments it does not choose, ends with the very weights of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from farfield.training import load_config, train

SCRIPT = """
import sys
from farfield.training import load_config, train
train(load_config(sys.argv[1]), sys.argv[2])
"""


def last_step(log: Path) -> int:
    if not log.exists():
        return 0
    steps = [
        int(line.split('"step": ')[1].split(",")[0]) for line in log.read_text().splitlines() if '"seconds"' in line
    ]
    return steps[-1] if steps else 0


def test_killed_runs_resume_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "points.npz", images=rng.normal(size=(300, 6)).astype(np.float32), labels=np.arange(300) % 4)
    config = tmp_path / "config.yaml"
    config.write_text(f"""
data: {{source: {tmp_path / "points.npz"}}}
network: {{kind: mlp, width: 48, depth: 3, dropout: 0.1}}
labels: {{use: true, dropout: 0.2}}
optimizer: {{lr: 3e-3, decay: cosine}}
batch_size: 32
steps: 400
threads: 1
device: cpu
checkpoint_every: 7
log_every: 5
""")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for number, target in enumerate((30, 110, 200)):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(config), str(killed)], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while last_step(killed / "log.jsonl") < target:
                assert process.poll() is None, "the run ended before it could be killed"
                assert time.monotonic() < deadline, "the run does not get on"
                time.sleep(0.005)
            time.sleep(0.003 * number)  # not always right after a line of the log
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert not (killed / "model.safetensors").exists()
    result = train(load_config(config), killed, progress=False)
    train(load_config(config), whole, progress=False)
    assert result.steps == 400
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    def log(folder: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    assert log(killed) == log(whole)
    assert not list(killed.rglob("*.partial"))
