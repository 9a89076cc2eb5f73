"""How long ``farfield report digits`` takes, from the shell, start of Python included."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from benchmarks.table import Row, show


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "farfield.cli.main",
            "report",
            "digits",
            "--out",
            f"{folder}/report",
            "--quiet",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken = time.perf_counter() - start
    return [Row("farfield report digits", taken, 90, "s")]


if __name__ == "__main__":
    show(run())
