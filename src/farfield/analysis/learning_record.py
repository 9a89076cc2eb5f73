"""The record of a run's learning: rows in its folder, from rows to curves, and the analysis that reads them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farfield.analysis.catalogue import Subject, analysis
from farfield.analysis.learning import LAWS, SIGMAS, LearningProbe, named_laws
from farfield.analysis.learning_curves import LawLearning, LearningCurves
from farfield.errors import ArgumentError, ModelFileError

#: The record of a run, in its folder: one row a line, in ascending order of steps.
RECORD = "learning.jsonl"


def learning_curves(rows: Sequence[Mapping[str, Any]], where: str = "the record") -> LearningCurves:
    """The curves of rows: what a probe returned, each with its ``step`` (and ``images``, ``weights``, if known).

    Rows before a change of the probe's levels, laws, queries or weights are left out: its last setting counts.

    Args:
        rows: in ascending order of steps.
        where: they come from, for messages.

    Raises:
        ModelFileError: rows that are not a probe's, out of order, or fewer than two.
    """
    checked = [_check(row, f"{where}, row {k + 1}") for k, row in enumerate(rows)]
    kept = [row for row in checked if _setting(row) == _setting(checked[-1])]
    if len(kept) < 2:
        raise ModelFileError(f"{where} holds {len(kept)} look(s) at the network; learning curves need at least 2")
    steps = tuple(row["step"] for row in kept)
    if any(b <= a for a, b in itertools.pairwise(steps)):
        raise ModelFileError(f"{where} is not in ascending order of steps")
    last = kept[-1]
    levels, images = range(len(last["sigmas"])), [row.get("images") for row in kept]

    def curves(law: str, of: str) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(row["laws"][law][of][k] for row in kept) for k in levels)

    return LearningCurves(
        steps=steps,
        images=tuple(images) if all(isinstance(n, int) for n in images) else None,  # type: ignore[arg-type]
        sigmas=tuple(last["sigmas"]),
        laws={law: LawLearning(curves(law, "score"), curves(law, "denoiser")) for law in last["laws"]},
        variances=tuple(last["variances"]),
        gains=tuple(
            tuple(tuple(row["gains"][k][i] for row in kept) for i in range(len(last["variances"]))) for k in levels
        ),
        queries=last["queries"],
        seed=last["seed"],
        weights=str(last.get("weights", "")),
    )


def _setting(row: Mapping[str, Any]) -> tuple[Any, ...]:
    shape = tuple(row["sigmas"]), tuple(row["laws"]), len(row["variances"])
    return (*shape, row["queries"], row["seed"], row.get("weights"))


def _numbers(value: Any, count: int | None = None) -> bool:
    """Whether a value is a list of finite numbers, of a length if one is given."""
    return (
        isinstance(value, list | tuple)
        and (count is None or len(value) == count)
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    )


def _check(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A row that is whole, or ``ModelFileError``."""
    if not (isinstance(row, Mapping) and _whole(row)):
        raise ModelFileError(f"{where} is not a row of a learning record")
    return row


def _whole(row: Mapping[str, Any]) -> bool:
    """Whether a row has all that curves are made of, in sizes that agree."""
    if not all(type(row.get(name)) is int and row[name] >= 0 for name in ("step", "queries", "seed")):
        return False
    parts: list[Any] = [row.get(name) for name in ("sigmas", "variances", "gains", "laws")]
    sigmas, variances, gains, laws = parts
    if not (sigmas and _numbers(sigmas) and min(sigmas) > 0 and _numbers(variances)):
        return False
    if not (isinstance(gains, list | tuple) and isinstance(laws, Mapping) and laws and len(gains) == len(sigmas)):
        return False
    curves = [law.get(of, ()) for law in laws.values() if isinstance(law, Mapping) for of in ("score", "denoiser")]
    whole = len(curves) == 2 * len(laws) and all(_numbers(c, len(sigmas)) and min(c) >= 0 for c in curves)
    return whole and all(_numbers(g, len(variances)) for g in gains)


def read_record(path: Path) -> list[dict[str, Any]]:
    """The rows of a record file; a last line that is still being written, or was cut short by a kill, is left out.

    Raises:
        ModelFileError: the file cannot be read, or a line before the last is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ModelFileError(f"{path}, line {number}, is not JSON") from error
    return rows


# -- the analysis ---------------------------------------------------------------------------------------------------------

#: How a run without a record is looked at afterwards: from its folder and a function that makes a probe to rows, none
#: where the folder keeps no weights of its way. The training room, which knows the files, adds its own.
Afterwards = Callable[[Path, Callable[[], LearningProbe]], list[dict[str, Any]]]
AFTERWARDS: list[Afterwards] = []


@dataclass(frozen=True)
class LearningOptions:
    """Options of the analysis, for a run that is looked at afterwards; a record has its own.

    Args:
        afterwards: look at the weights that the run kept even where it has a record.
        sigmas, laws, queries, components: as for :class:`~farfield.analysis.learning.LearningProbe`.
    """

    afterwards: bool = False
    sigmas: tuple[float, ...] = SIGMAS
    laws: tuple[str, ...] = LAWS
    queries: int = 256
    components: int = 16


@analysis("learning", about="which laws a network passed in training, and when", options=LearningOptions)
def analyze_learning(subject: Subject, options: LearningOptions) -> LearningCurves:
    """The learning curves of a subject's training run.

    Raises:
        ArgumentError: the model has no folder of a run with a record or kept weights, or an option without effect.
    """
    how = "train with probe.every=50 to record one"
    if subject.folder is None:
        raise ArgumentError(
            f"{subject.name!r} has no folder of a training run, so nothing is known of its learning; {how}"
        )
    path = subject.folder / RECORD
    if path.is_file() and not options.afterwards:
        if options != LearningOptions():
            raise ArgumentError(f"{path} has its own levels and laws; afterwards=true measures with those given here")
        return learning_curves(read_record(path), str(path))

    def probe() -> LearningProbe:
        laws = named_laws(subject.data, options.laws, subject.seed)
        return LearningProbe(
            subject.data,
            laws,
            options.sigmas,
            queries=options.queries,
            components=options.components,
            seed=subject.seed,
        )

    for look in AFTERWARDS:
        if rows := look(subject.folder, probe):
            return learning_curves(rows, f"what {str(subject.folder)!r} kept of its run")
    raise ArgumentError(f"{str(subject.folder)!r} has no {RECORD} and kept no weights of its way; {how}")
