"""The analyses by name, as ``farfield analyze MODEL --what NAME`` runs them.

An analysis registers itself in the file it lives in: a function of a :class:`Subject` and its own options, which are a
frozen dataclass with a default for every field. What it returns can be printed, drawn and stored:

    @analysis("fidelity", about="how much of the score the simple laws explain", options=FidelityOptions)
    def analyze_fidelity(subject: Subject, options: FidelityOptions) -> ScoreFidelity: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from farfield.analysis.tables import Table
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError, unknown_name
from farfield.networks.structure import structure


class Findings(Protocol):
    """What an analysis returns: a frozen dataclass with these views."""

    def summary(self) -> str:
        """The result in one to three sentences, with its numbers."""

    def tables(self) -> Sequence[Table]:
        """The result as tables."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-safe."""

    def plot(self, ax: Any = None) -> Any:
        """The result as a figure of matplotlib."""


@dataclass(frozen=True)
class Subject:
    """What is analysed.

    Attributes:
        model: the denoiser.
        data: the images it was trained on (N, *event), on its device.
        name: what the model is called.
        labels: their classes (N,), where the data have some.
        heldout: images that it was not trained on (M, *event), possibly none.
        folder: of the model's training run, or None.
        seed: of everything random.
        progress: show progress on standard error.
        other, other_data: a second model and its training images, for the analyses that compare two.
    """

    model: Denoiser
    data: Tensor
    name: str = "model"
    labels: Tensor | None = None
    heldout: Tensor | None = None
    folder: Path | None = None
    seed: int = 0
    progress: bool = False
    other: Denoiser | None = None
    other_data: Tensor | None = None


@dataclass(frozen=True)
class Analysis:
    """A registered analysis."""

    name: str
    about: str
    options: type[Any]
    run: Callable[[Subject, Any], Findings]


ANALYSES: dict[str, Analysis] = {}

Run = TypeVar("Run", bound=Callable[..., Findings])


def analysis(name: str, *, about: str, options: type[Any]) -> Callable[[Run], Run]:
    """Register the function that makes an analysis.

    Args:
        name: as the command line takes it.
        about: what it tells, in half a sentence.
        options: its frozen dataclass of options.

    Raises:
        ArgumentError: for a name that is taken.
    """

    def register(run: Run) -> Run:
        if name in ANALYSES:
            raise ArgumentError(f"an analysis named {name!r} exists already")
        ANALYSES[name] = Analysis(name, about, options, run)
        return run

    return register


def analyze(what: str, subject: Subject, options: Mapping[str, object] | None = None) -> Findings:
    """Run an analysis by name.

    Args:
        what: a name of the catalogue.
        subject: the model and its data.
        options: values for the analysis's own options, by name.

    Raises:
        ArgumentError: for an unknown analysis (the known ones are listed), an unknown option or a wrong value.
    """
    if what not in ANALYSES:
        raise unknown_name("analysis", what, ANALYSES)
    found = ANALYSES[what]
    return found.run(subject, structure(found.options, dict(options or {}), ""))
