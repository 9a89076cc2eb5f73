"""``farfield info``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Info:
    """Show versions, devices, and the names that the library knows.

    example:  farfield info --json
    """

    json: bool = False
    """Print as JSON."""

    def run(self) -> int:
        """Print the facts."""
        import importlib.metadata
        import platform

        import torch

        from farfield.cli.common import console, print_json
        from farfield.data import names
        from farfield.interop import bundled_models
        from farfield.networks import NETWORKS
        from farfield.sampling import SOLVERS
        from farfield.sampling.grids import GRIDS
        from farfield.version import __version__

        packages = ("numpy", "scipy", "scikit-learn", "safetensors", "accelerate", "pyarrow", "pillow", "matplotlib")
        facts = {
            "farfield": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            **{name: importlib.metadata.version(name) for name in packages},
            "models": list(bundled_models()),
            "data": list(names()),
            "solvers": sorted(SOLVERS),
            "grids": sorted(GRIDS),
            "networks": sorted(NETWORKS),
        }
        if self.json:
            print_json(facts)
            return 0
        from rich.table import Table

        table = Table("", "", show_header=False)
        for key, value in facts.items():
            table.add_row(key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        console().print(table)
        return 0
