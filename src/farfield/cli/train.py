"""``farfield train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Train:
    """Train a model from a configuration file, or go on with a run that was interrupted.

    A run can be killed at any moment: the same command continues it, and the final weights are the same to the bit.
    The folder then holds model.safetensors and card.json, which `farfield sample FOLDER` takes.

    example:  farfield train configs/digits.yaml --out runs/digits

    example:  farfield train configs/digits.yaml optimizer.lr=1e-3 steps=2000 --out runs/short

    example:  farfield train configs/digits.yaml --show

    The same on several GPUs, or on several processes of a CPU (of which accelerate's own --cpu would start only one);
    the model is that of one process, up to rounding, and a run may go on with another number of them:

    example:  torchrun --nproc-per-node 2 -m farfield train configs/digits.yaml --out runs/digits

    example:  accelerate launch --multi_gpu --num_processes 2 -m farfield train configs/digits.yaml --out runs/digits
    """

    config: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG")]
    """YAML file with the configuration."""
    overrides: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Changes to it, e.g. optimizer.lr=1e-3."""
    out: Path | None = None
    """Folder of the run; runs/NAME-OF-THE-CONFIG by default."""
    new: bool = False
    """Refuse to go on with a run that is there already."""
    show: bool = False
    """Print the whole configuration, defaults and all, and train nothing."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Train and print where the model is."""
        from farfield.cli.common import print_json
        from farfield.training import engine, load_config, to_dict, train

        config = load_config(self.config, self.overrides)
        if self.show:
            import yaml

            print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
            return 0
        out = self.out if self.out is not None else Path("runs") / self.config.stem
        try:
            result = train(config, out, resume=not self.new, progress=not self.quiet)
        finally:
            engine.close()
        if not result.main:
            return 0
        if self.json:
            print_json(
                {key: value for key, value in vars(result).items() if key != "main"} | {"folder": str(result.folder)}
            )
        else:
            print(f"{result.folder}: {result.steps} steps, loss {result.loss:.4f}, {result.seconds:.0f} s")
            print(f"next:  farfield report {result.folder} --out {result.folder}-report")
        return 0
