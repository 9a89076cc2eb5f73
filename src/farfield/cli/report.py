"""``farfield report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Report:
    """The main job: what a model does, and a faster sampler for it, as one page that opens offline.

    Writes index.html, report.json and sampler.json; `farfield sample MODEL --sampler OUT/sampler.json` uses the last.

    example:  farfield report digits --out runs/report

    example:  farfield report runs/mine --data path/to/images --out runs/mine-report
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A bundled name, a folder of `farfield train`, or a .safetensors file."""
    data: str | None = None
    """The data the model was trained on: a name or a path. By default what the model's card names."""
    out: Path | None = None
    """Folder of the report; runs/report-MODEL by default."""
    seed: int = 0
    """Seed of samples and queries."""
    quick: bool = False
    """Fewer samples and levels: a first look."""
    sections: tuple[str, ...] = ()
    """Only these sections, e.g. `--sections summary fidelity solvers`; all by default."""
    device: str = "auto"
    """Where to compute: auto (the first GPU, or else the CPU), cpu, cuda, cuda:1."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print the report's JSON."""

    def run(self) -> int:
        """Build the report and print where it is."""
        import json

        from farfield.cli.common import card_source, load_for, note
        from farfield.errors import ArgumentError
        from farfield.interop import load
        from farfield.numerics.devices import choose_device
        from farfield.report import build_report

        model = load(self.model).to(choose_device(self.device))
        source = self.data if self.data is not None else card_source(model)
        if source is None:
            raise ArgumentError(f"--data is missing, and the card of {self.model!r} names no data")
        data = load_for(model, source)
        out = self.out if self.out is not None else Path("runs") / f"report-{Path(self.model).name}"
        result = build_report(
            model,
            data,
            out,
            name=Path(self.model).name or self.model,
            source=self.model,
            seed=self.seed,
            quick=self.quick,
            progress=not self.quiet,
            sections=self.sections or None,
        )
        if self.json:
            print(json.dumps(json.loads((out / "report.json").read_text(encoding="utf-8")), indent=1))
        else:
            print(out / "index.html")
        for failed in result.failed:
            note(f"section {failed!r} failed; the report says why in its place")
        return 1 if result.failed else 0
