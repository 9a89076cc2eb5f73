"""Run every benchmark and print each figure beside its limit: ``make bench``."""

from __future__ import annotations

import importlib
import sys
import time

from benchmarks.table import Row, show

NAMES = (
    "import_time",
    "solver_overhead",
    "empirical",
    "mixture_endpoints",
    "report_time",
    "ema",
    "stf",
    "training_step",
    "laws",
    "fitting",
    "potential_sections",
    "criticality",
)


def main() -> int:
    rows: list[Row] = []
    skipped = []
    for name in sys.argv[1:] or NAMES:
        start = time.perf_counter()
        print(f"-- {name}", flush=True)
        found = importlib.import_module(f"benchmarks.{name}").run()
        show(found)
        print(f"   ({time.perf_counter() - start:.0f} s)", flush=True)
        rows += found
        if not found:
            skipped.append(name)
    missed = [r for r in rows if not r.ok]
    print(f"{len(rows) - len(missed)} of {len(rows)} figures within their limits")
    if skipped:
        print(f"not measured: {', '.join(skipped)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
