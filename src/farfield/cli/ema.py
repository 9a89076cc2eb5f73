"""``farfield ema``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Ema:
    """Make a model from a training run with an average of the weights chosen afterwards.

    The run must have stored snapshots (ema.posthoc.every above 0); it may still be going on. A wide average is smooth and
    looks back far, a narrow one is close to the last weights; the best width depends on model, data and what is measured.

    example:  farfield ema runs/cifar10 --sigma-rel 0.07 --out runs/cifar10-ema

    example:  farfield ema runs/cifar10 --sigma-rel 0.12 --step 20000 --out runs/cifar10-early
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of `farfield train`."""
    sigma_rel: float
    """Width of the average relative to the length of training, in (0, 0.2886]."""
    step: int | None = None
    """A step that has a snapshot; the last by default."""
    out: Path | None = None
    """Folder of the model, new or empty; RUN-ema-WIDTH by default."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Write the model and print where it is."""
        from farfield.cli.common import print_json
        from farfield.errors import ArgumentError
        from farfield.networks.model_file import save_model
        from farfield.training.posthoc import POSTHOC, averaged_model, plan

        if not self.folder.is_dir():
            raise ArgumentError(f"run = {str(self.folder)!r} is not a folder; expected one of `farfield train`")
        run = self.folder if self.folder.name not in ("", "..") else self.folder.resolve()  # "." has no name
        out = self.out or run.with_name(f"{run.name}-ema-{self.sigma_rel:g}")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ArgumentError(f"out = {str(out)!r} is there already; expected a new or empty folder")
        made = plan(self.folder / POSTHOC, self.sigma_rel, self.step)
        last = made.snapshots[-1]
        model = averaged_model(made)
        average = {"sigma_rel": self.sigma_rel, "snapshots": len(made.snapshots), "profile_mismatch": made.mismatch}
        out.mkdir(parents=True, exist_ok=True)
        about = {**last.training, "steps": last.step, "images": last.images, "average": average}
        save_model(out, model, last.spec, about)
        if self.json:
            print_json({"folder": str(out), "steps": last.step, "images": last.images, **average})
        else:
            print(
                f"{out}: sigma_rel {self.sigma_rel:g} at step {last.step} from {len(made.snapshots)} snapshots, "
                f"profile off by {made.mismatch:.1%}"
            )
            print(f"next:  farfield sample {out}")
        return 0
