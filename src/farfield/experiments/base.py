"""What an experiment is: a claim with its source, a measurement as tables and figures, and a verdict in one sentence.

An experiment registers itself by name; the command line lists the registry and runs what is asked for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from farfield.analysis.tables import Table
from farfield.data import load
from farfield.errors import ArgumentError, DataError, unknown_name
from farfield.networks.files import write_atomic, write_json
from farfield.version import __version__

Verdict = Literal["holds", "holds in part", "does not hold"]


@dataclass(frozen=True)
class Settings:
    """What a run of an experiment may vary.

    Args:
        out: folder for result, figures and whatever training leaves; None keeps nothing, and training then works in a
            temporary folder.
        data: data sets to measure on; empty is the experiment's own choice.
        seed: of everything random, and the first of ``seeds`` seeds.
        seeds: repetitions, where an experiment repeats.
        steps: training steps, where an experiment trains; None is its own number.
        progress: show progress on standard error.
    """

    out: Path | None = None
    data: tuple[str, ...] = ()
    seed: int = 0
    seeds: int = 3
    steps: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ArgumentError(f"seeds = {self.seeds}; expected at least 1")
        if self.steps is not None and self.steps < 4:
            raise ArgumentError(f"steps = {self.steps}; expected at least 4")


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Args:
        verdict: whether the claim holds in this measurement.
        because: the sentence that says why, in numbers.
        tables: the measurement.
        figures: matplotlib figures by name.
        settings: what was used, JSON-safe.
    """

    verdict: Verdict
    because: str
    tables: tuple[Table, ...]
    figures: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A claim and the function that measures it."""

    name: str
    claim: str
    source: str
    cost: str
    measure: Callable[[Settings], Outcome]
    trains: bool = False
    repeats: bool = False


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(
    name: str, *, claim: str, source: str, cost: str, trains: bool = False, repeats: bool = False
) -> Callable[[Callable[[Settings], Outcome]], Any]:
    """Register the function that measures a claim.

    Args:
        name: as the command line takes it.
        claim: one sentence.
        source: author, year, place.
        cost: about how long it takes, in words.
        trains: whether it trains models, of several seeds and a number of steps.
        repeats: whether it repeats its measurement with several seeds; one that trains does.
    """

    def register(measure: Callable[[Settings], Outcome]) -> Callable[[Settings], Outcome]:
        EXPERIMENTS[name] = Experiment(name, claim, source, cost, measure, trains, trains or repeats)
        return measure

    return register


def run_experiment(name: str, settings: Settings | None = None) -> Outcome:
    """Run an experiment and keep its result, if a folder is given: ``result.json`` and one PNG for each figure.

    Raises:
        ArgumentError: for an unknown name, or settings without effect on the experiment.
    """
    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    chosen, found = settings if settings is not None else Settings(), EXPERIMENTS[name]
    if not found.trains and chosen.steps is not None:
        raise ArgumentError(f"steps has no effect on {name}, which trains nothing; leave it out")
    if not found.repeats and chosen.seeds != Settings.seeds:
        raise ArgumentError(f"seeds has no effect on {name}, which repeats nothing; leave it out")
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
    outcome = found.measure(chosen)
    if chosen.out is not None:
        _write(chosen.out, found, outcome)
    return outcome


def to_dict(found: Experiment, outcome: Outcome) -> dict[str, Any]:
    """Claim, measurement and verdict, JSON-safe."""
    return {
        "farfield": __version__,
        "experiment": found.name,
        "claim": found.claim,
        "source": found.source,
        "verdict": outcome.verdict,
        "because": outcome.because,
        "settings": outcome.settings,
        "tables": [asdict(table) for table in outcome.tables],
    }


def _write(out: Path, found: Experiment, outcome: Outcome) -> None:
    for name, figure in outcome.figures.items():
        write_atomic(out / f"{name}.png", partial(_save, figure))
    write_json(out / "result.json", to_dict(found, outcome))


def figure_name(kind: str, data: str) -> str:
    """The name of a figure about data, which may be a path: one that a file can have."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '-', data).strip('-')}"


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="png", dpi=150)


def available(names: Sequence[str], progress: bool) -> list[str]:
    """The data sets that can be opened here; one that cannot is named on standard error and left out.

    Raises:
        DataError: if none of them can.
    """
    found, last = [], None
    for name in names:
        try:
            load(name, limit=1)
            found.append(name)
        except DataError as error:
            last = error
            print(f"left out: {error}", file=sys.stderr)
    if not found and last is not None:
        raise last
    return found
