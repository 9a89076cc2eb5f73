"""``build_report``: run every section, put the page together, write the folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from farfield.data import DataSet
from farfield.denoiser import Denoiser
from farfield.errors import ArgumentError, unknown_name
from farfield.report import blocks
from farfield.report.context import QUICK, ReportContext, Sizes
from farfield.report.output import DATA, FORMAT, PAGE, SAMPLER, check_folder, plain, write_files
from farfield.report.page import render
from farfield.report.registry import SECTIONS, Section, running_order
from farfield.sampling import Sampler
from farfield.version import __version__


@dataclass(frozen=True)
class ReportResult:
    """What was written.

    Attributes:
        folder: the output folder; ``page``, ``data`` and ``sampler_file`` are in it.
        sampler: the recommended sampler.
        failed: the error of each section that failed, by name; empty when all went well.
        seconds: the time each section took, by name.
    """

    folder: Path
    sampler: Sampler
    failed: Mapping[str, str]
    seconds: Mapping[str, float]

    @property
    def page(self) -> Path:
        """The report itself."""
        return self.folder / PAGE

    @property
    def data(self) -> Path:
        """Everything machine-readable."""
        return self.folder / DATA

    @property
    def sampler_file(self) -> Path:
        """The recommended sampler as JSON."""
        return self.folder / SAMPLER


def build_report(
    model: Denoiser,
    data: DataSet,
    out: str | Path,
    *,
    name: str,
    source: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    quick: bool = False,
    progress: bool = True,
    sections: Sequence[str] | None = None,
) -> ReportResult:
    """Write a report on a model: ``index.html``, ``report.json`` and ``sampler.json`` in a folder.

    Args:
        model: any denoiser; used in eval mode as it is.
        data: the data it should be compared with; its own split says what is training and what is held out.
        out: the folder; new, empty, or that of a former report.
        name: what the model is called on the page.
        source: how the reader loads it, as ``farfield sample`` takes it (a bundled name or a path); ``name`` by default.
        samples: drawn for the quality numbers, for each seed; 1,500 (``quick``: 300) by default, at most the training set.
        seed: of everything random; the same seed gives the same numbers.
        quick: smaller sizes and fewer solvers, for a first look.
        progress: whether a line for each section goes to the standard error.
        sections: names of the sections wanted; all by default.

    Raises:
        ArgumentError: if model and data disagree in shape, an argument is out of range, or the folder holds something else.
            A section that fails for another reason shows its error in its place and is listed in ``failed``.
    """
    import farfield.report.sections  # noqa: F401  registers the sections

    known = [entry.name for entry in SECTIONS]
    for wanted in sections if sections is not None else ():
        if wanted not in known:
            raise unknown_name("section", wanted, known)
    folder = Path(out)
    check_folder(folder)
    if tuple(data.event_shape) != model.event_shape:
        raise ArgumentError(
            f"the model takes samples of shape {model.event_shape}; {data.name} has samples of shape {tuple(data.event_shape)}"
        )
    if samples is not None and samples < 4:
        raise ArgumentError(f"samples = {samples}; expected at least 4")
    if len(data) < 8:
        raise ArgumentError(f"{data.name} has {len(data)} samples; a report needs at least 8")
    sizes = QUICK if quick else Sizes()
    if samples is not None:
        sizes = replace(sizes, samples=samples, compared=min(sizes.compared, samples))
    context = ReportContext(model, data, name, seed, quick, sizes, source=source, out=folder)
    made, failed, seconds = _run_sections(context, progress, known if sections is None else sections)

    headline = made["summary"].headline if "summary" in made else ""
    shown = [
        (entry.name, entry.title, made[entry.name].blocks)
        for entry in SECTIONS
        if entry.name in made and made[entry.name].blocks
    ]
    settings = f"farfield {__version__}, torch {torch.__version__}, seed {seed}{', quick' if quick else ''}"
    took = f"{sum(seconds.values()):.0f} s"
    title = f"{name} on {data.name}" if name != data.name else name
    page = render(title, "farfield report", headline, shown, f"Made in {took} by {settings}. Numbers: report.json.")
    record = {
        "format": FORMAT,
        "farfield": __version__,
        "torch": torch.__version__,
        "model": name,
        "data": {"name": data.name, "count": len(data), "digest": data.digest},
        "seed": seed,
        "quick": quick,
        "headline": headline,
        "seconds": {k: round(v, 3) for k, v in seconds.items()},
        "failed": failed,
        "sections": {entry.name: made[entry.name].data for entry in SECTIONS if entry.name in made},
    }
    text = json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False)
    write_files(folder, {PAGE: page, SAMPLER: context.sampler.to_json() + "\n", DATA: text + "\n"})
    return ReportResult(folder, context.sampler, failed, seconds)


def _run_sections(
    context: ReportContext, progress: bool, names: Sequence[str]
) -> tuple[dict[str, Section], dict[str, str], dict[str, float]]:
    """The result of every section named, the errors of those that failed, and the seconds each took."""
    from rich.console import Console

    console = Console(stderr=True, quiet=not progress, highlight=False)
    made: dict[str, Section] = {}
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for entry in running_order():
        if entry.name not in names:
            continue
        start = time.perf_counter()
        if not console.is_terminal:  # where nothing moves, say at least what is being done
            console.print(f"  {entry.title} …", markup=False)
        try:
            with console.status(f"{entry.title} …"):
                made[entry.name] = entry.make(context)
            context.once(entry.name, lambda name=entry.name: made[name].data)  # type: ignore[misc]
        except Exception as error:  # one analysis that fails must not take the others with it
            message = f"{type(error).__name__}: {error}"
            failed[entry.name] = message
            made[entry.name] = Section([blocks.warning(f"This section failed. {message}")], {"error": message})
        seconds[entry.name] = time.perf_counter() - start
        state = "failed" if entry.name in failed else "done"
        console.print(f"  {entry.title:<45} {state:<7}{seconds[entry.name]:6.1f} s", markup=False)
    return made, failed, seconds
