"""``farfield experiment``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Experiment:
    """Measure a claim of the sources, or list the claims: claim, measurement, verdict.

    example:  farfield experiment

    example:  farfield experiment stf-variance --out runs/stf-variance

    example:  farfield experiment stf-training --data digits --steps 400 --out runs/stf-training
    """

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """Which one; without a name, all are listed."""
    data: tuple[str, ...] = ()
    """Data sets to measure on; the experiment's own by default."""
    out: Path | None = None
    """Folder for result.json and figures; an experiment that trains also resumes from there."""
    seed: int = 0
    """Seed of everything random."""
    seeds: int = 3
    """Repetitions, where an experiment repeats."""
    steps: int | None = None
    """Training steps, where an experiment trains."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> int:
        """List, or measure and print."""
        from farfield.cli.common import console, print_json, print_table
        from farfield.experiments import EXPERIMENTS, Settings, run_experiment
        from farfield.experiments.base import to_dict

        if self.name is None:
            if self.json:
                print_json([{"name": e.name, "claim": e.claim, "source": e.source} for e in EXPERIMENTS.values()])
                return 0
            for e in EXPERIMENTS.values():
                console().print(f"[bold]{e.name}[/bold]  ({e.cost})\n  {e.claim}.\n  {e.source}\n")
            return 0
        settings = Settings(self.out, self.data, self.seed, self.seeds, self.steps, not self.quiet)
        outcome = run_experiment(self.name, settings)
        if self.json:
            print_json(to_dict(EXPERIMENTS[self.name], outcome))
            return 0
        print(f"claim: {EXPERIMENTS[self.name].claim}.\n")
        for part in outcome.tables:
            print_table(part)
        print(f"verdict: {outcome.verdict}. {outcome.because}.")
        if self.out is not None:
            print(self.out)
        return 0
