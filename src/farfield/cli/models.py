"""``farfield models``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Models:
    """List the bundled models, or show what is known about one.

    example:  farfield models

    example:  farfield models digits --json
    """

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="MODEL")] = None
    """A bundled name, a folder or a .safetensors file; all bundled models by default."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> int:
        """Print the table or the card."""
        from farfield.cli.common import console, print_json
        from farfield.interop import bundled_models, load

        if self.name is not None:
            print_json(load(self.name).card)
            return 0
        rows: list[dict[str, Any]] = []
        for name in bundled_models():
            model = load(name)
            rows.append(
                {
                    "name": name,
                    "event_shape": list(model.event_shape),
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "sigma_range": [model.sigma_min, model.sigma_max],
                    "card": model.card,
                }
            )
        if self.json:
            print_json(rows)
            return 0
        from rich.table import Table

        table = Table("model", "sample", "parameters", "noise levels", title="bundled models")
        for row in rows:
            low, high = row["sigma_range"]
            shape = " × ".join(map(str, row["event_shape"]))
            table.add_row(row["name"], shape, f"{row['parameters']:,}", f"{low:g} to {high:g}")
        console().print(table)
        return 0
