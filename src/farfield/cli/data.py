"""``farfield data``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Data:
    """List the data sources, or describe one: count, shape, range, classes, digest.

    A source is a name of the list, a folder of images (one subfolder for each class, if there are classes), an .npz
    array or a parquet file with images.

    example:  farfield data digits

    example:  farfield data path/to/images --size 32
    """

    source: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="DATA")] = None
    """A name or a path; the list of names by default."""
    size: int | None = None
    """Resize to so many pixels."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> int:
        """Print the list or the description."""
        from farfield.cli.common import console, print_json
        from farfield.data import describe, load, names

        if self.source is None:
            known = names()
            if self.json:
                print_json(list(known))
            else:
                print("\n".join(known))
                print("or a path: a folder of images, an .npz file, a .parquet file")
            return 0
        facts = describe(load(self.source, size=self.size))
        if self.json:
            print_json(facts)
            return 0
        from rich.table import Table

        table = Table("", "", title=str(self.source), show_header=False)
        for key, value in facts.items():
            table.add_row(key, str(value))
        console().print(table)
        return 0
