"""What ``import farfield`` costs over ``import torch``, in fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.table import Row, show

CODE = "import time, torch; start = time.perf_counter(); import farfield; {use}; print(time.perf_counter() - start)"


def seconds(use: str) -> float:
    runs = [
        float(subprocess.run([sys.executable, "-c", CODE.format(use=use)], capture_output=True, text=True).stdout)
        for _ in range(5)
    ]
    return statistics.median(runs)


def run() -> list[Row]:
    return [
        Row("import farfield, over import torch", seconds("pass"), 0.3, "s"),
        Row(
            "the same with Sampler, Gaussian and load",
            seconds("farfield.Sampler, farfield.Gaussian, farfield.load"),
            0.3,
            "s",
        ),
    ]


if __name__ == "__main__":
    show(run())
