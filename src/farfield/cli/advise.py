"""``farfield advise``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from farfield.analysis import Advice


@dataclass(frozen=True)
class Advise:
    """Which noise levels, sigma_data and reference batch to train with on your data, and why.

    From the covariance, the rounding of the values and the variance of the training target; beside EDM's defaults.

    example:  farfield advise digits

    example:  farfield advise path/to/images --size 32 --out runs/advice
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A name of `farfield data` or a path: a folder of images, an .npz file, a .parquet file."""
    size: int | None = None
    """Resize to so many pixels."""
    out: Path | None = None
    """Folder for advice.json and the two figures noise.png and targets.png; none by default."""
    points: int = 4096
    """At most so many samples for the target variance."""
    probes: int = 128
    """Noised samples at each level."""
    seed: int = 0
    """Seed of the choices of samples and noise."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> int:
        """Measure, print, and write the folder."""
        from farfield.analysis import advise
        from farfield.cli.common import print_json
        from farfield.data import load
        from farfield.errors import ArgumentError

        if self.out is not None:
            if self.out.exists() and not self.out.is_dir():
                raise ArgumentError(f"--out = {str(self.out)!r} is a file; expected a folder")
            self.out.mkdir(parents=True, exist_ok=True)
        data = load(self.data, size=self.size, labels=False)
        found = advise(data, points=self.points, probes=self.probes, seed=self.seed, progress=not self.quiet)
        if self.out is not None:
            _write(found, self.out)
        if self.json:
            print_json(found.to_dict())
        else:
            _show(found, data.name)
        return 0


def _show(found: Advice, name: str) -> None:
    from rich.table import Table

    from farfield.cli.common import console

    shape = "x".join(map(str, found.event_shape))
    table = Table("setting", "advice", "EDM", "why", title=f"{name}: {found.count:,} x {shape}", title_justify="left")
    for setting in found.settings:
        if setting.name == "references":
            shown, edm = (f"{found.references:,}" if found.stable else "none"), "none"
        else:
            shown, edm = f"{setting.value:.3g}", f"{setting.edm:.3g}"
        table.add_row(setting.name, shown, edm, setting.reason)
    console().print(table)
    print(found.difference())
    print(
        f"Measured on {found.spectrum_points:,} samples (covariance, {found.basis}) and {found.target.points:,} "
        f"(targets, {found.target.probes} noised samples at {len(found.target.sigmas)} levels)."
    )
    values = {setting.name: setting.value for setting in found.settings}
    settings = [f"objective.p_mean={found.p_mean:.2f}", f"objective.p_std={found.p_std:.2f}"]
    settings += [f"preconditioning.{name}={values[name]:.3g}" for name in ("sigma_min", "sigma_max")]
    if found.stable:
        settings += ["target.kind=stf", f"target.reference={found.references}"]
    print(f"train with:  {' '.join(settings)}")  # sigma_data is taken from the data by itself


def _write(found: Advice, out: Path) -> None:
    from farfield.networks.files import write_atomic, write_json

    write_json(out / "advice.json", found.to_dict())
    for name, figure in (("noise.png", found.plot()), ("targets.png", found.target.plot())):
        write_atomic(out / name, lambda path, figure=figure: figure.savefig(path, format="png", dpi=150))  # type: ignore[misc]
