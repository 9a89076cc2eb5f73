"""``farfield analyze``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from farfield.analysis.catalogue import Findings, Subject
    from farfield.data import DataSet
    from farfield.denoiser import Denoiser


@dataclass(frozen=True)
class Analyze:
    """One analysis of a model, as table, JSON and plot. Without MODEL: what there is, and the options of each.

    example:  farfield analyze

    example:  farfield analyze digits --what fidelity --out runs/fidelity

    example:  farfield analyze cifar10 --what fidelity queries=1024 protocol=noise
    """

    model: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="MODEL")] = None
    """A bundled name, a folder of `farfield train`, or a .safetensors file."""
    options: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[OPTION=VALUE ...]")] = ()
    """Options of the analysis; `farfield analyze` lists them."""
    what: str = "fidelity"
    """Which analysis."""
    data: str | None = None
    """The data the model was trained on: a name or a path. By default what the model's card names."""
    other: str | None = None
    """A second model, for the analyses that compare two (consistency)."""
    out: Path | None = None
    """Folder for WHAT.json and WHAT.png; none by default."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """Where to compute: auto (the first GPU, or else the CPU), cpu, cuda, cuda:1."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> int:
        """List, or analyse, print and write."""
        from farfield.analysis import ANALYSES, analyze
        from farfield.cli.common import print_json, print_table
        from farfield.errors import ArgumentError, unknown_name

        if self.model is None:
            return _list(self.json)
        if self.what not in ANALYSES:  # before anything is loaded
            raise unknown_name("--what", self.what, ANALYSES)
        values = parse_options(self.options)
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ArgumentError(f"--out = {str(self.out)!r} is a file; expected a folder")
        found = analyze(self.what, _subject(self), values)
        if self.out is not None:
            _write(found, self.what, self.out)
        if self.json:
            print_json({"analysis": self.what, "model": self.model, **found.to_dict()})
            return 0
        for table in found.tables():
            print_table(table)
        print(found.summary())
        if self.out is not None:
            print(self.out)
        return 0


def parse_options(given: Sequence[str]) -> dict[str, object]:
    """``name=value`` pairs, whose values are YAML.

    Raises:
        ArgumentError: for a pair without ``=`` or a value that is not YAML.
    """
    import yaml

    from farfield.errors import ArgumentError

    values: dict[str, object] = {}
    for pair in given:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ArgumentError(f"option {pair!r}; expected name=value, e.g. queries=1024")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ArgumentError(f"option {pair!r}: the value is not valid YAML") from error
    return values


def _subject(command: Analyze) -> Subject:
    import farfield.training.probe  # noqa: F401  a finished run without a record is looked at through its checkpoints
    from farfield.analysis import Subject
    from farfield.cli.common import card_source, load_for, trained_on
    from farfield.errors import ArgumentError
    from farfield.interop import load
    from farfield.numerics.devices import choose_device

    assert command.model is not None
    device = choose_device(command.device)

    def opened(name: str, given: str | None) -> tuple[Denoiser, DataSet, DataSet | None]:
        model = load(name).to(device)
        source = given if given is not None else card_source(model)
        if source is None:
            raise ArgumentError(f"--data is missing, and the card of {name!r} names no data")
        return model, *trained_on(model, load_for(model, source))

    model, train, held = opened(command.model, command.data)
    folder = Path(command.model)
    subject = Subject(
        model=model,
        data=train.images.to(device),
        name=folder.name or command.model,
        labels=None if train.labels is None else train.labels.to(device),
        heldout=None if held is None else held.images.to(device),
        folder=folder if folder.is_dir() else None,
        seed=command.seed,
        progress=not command.quiet,
    )
    if command.other is None:
        return subject
    second, other_train, _ = opened(command.other, None)
    return replace(subject, other=second, other_data=other_train.images.to(device))


def _list(as_json: bool) -> int:
    from farfield.analysis import ANALYSES
    from farfield.cli.common import console, print_json
    from farfield.networks.structure import plain

    if as_json:
        print_json([{"name": a.name, "about": a.about, "options": plain(a.options())} for a in ANALYSES.values()])
        return 0
    for a in ANALYSES.values():
        shown = "  ".join(f"{f.name}={_yaml(getattr(a.options(), f.name))}" for f in fields(a.options))
        console().print(f"[bold]{a.name}[/bold]  {a.about}\n  {shown}\n", highlight=False)
    return 0


def _yaml(value: Any) -> str:
    import json

    from farfield.networks.structure import plain

    return value if isinstance(value, str) else json.dumps(plain(value))


def _write(found: Findings, what: str, out: Path) -> None:
    from farfield.networks.files import write_atomic, write_json

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{what}.json", found.to_dict())
    figure = found.plot()
    write_atomic(out / f"{what}.png", lambda path: figure.savefig(path, format="png", dpi=150))
