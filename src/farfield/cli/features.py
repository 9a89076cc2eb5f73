"""``farfield features``."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Features:
    """List the bundled feature classifiers, or train one for your own data.

    A classifier's last hidden layer serves `farfield evaluate` as features. Training can be killed at any moment: the
    same command goes on after the last whole epoch.

    example:  farfield features

    example:  farfield features train digits --out runs/digits-features

    example:  farfield features train path/to/images --flip 0.5 --out runs/mine
    """

    action: Annotated[tyro.conf.Positional[Literal["list", "train"]], tyro.conf.arg(metavar="list|train")] = "list"
    """What to do."""
    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="DATA")] = None
    """Labelled images to train on: a name or a path."""
    out: Path | None = None
    """Folder of the classifier; runs/features-DATA by default."""
    size: int | None = None
    """Resize the images to so many pixels."""
    epochs: int | None = None
    """Passes over the images; by default what suits the data."""
    batch_size: int | None = None
    """Images a step."""
    lr: float | None = None
    """Peak learning rate."""
    flip: float | None = None
    """Probability of a mirror image; leave it at 0 where mirror images are of another class."""
    translate: int | None = None
    """Shifts by up to so many pixels."""
    precision: Literal["fp32", "bf16"] | None = None
    """Type of the convolutions in training."""
    seed: int = 0
    """Names weights, order and augmentation."""
    device: str = "auto"
    """Where to compute: auto (the first GPU, or else the CPU), cpu, cuda, cuda:1."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> int:
        """Print the list, or train and print where the classifier is."""
        return self._train() if self.action == "train" else self._list()

    def _changes(self) -> dict[str, Any]:
        names = ("epochs", "batch_size", "lr", "flip", "translate", "precision")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _list(self) -> int:
        from farfield.cli.common import console, print_json
        from farfield.errors import ArgumentError
        from farfield.metrics.network_features import bundled_features, load_features

        given = [name for name in ("data", "out", "size", *self._changes()) if getattr(self, name) is not None]
        if given:
            raise ArgumentError(f"{', '.join(given)} has no effect on the list; did you mean: farfield features train")
        cards = [load_features(name).card for name in bundled_features()]
        if self.json:
            print_json(cards)
            return 0
        from rich.table import Table

        table = Table("features", "images", "number", "weights", "accuracy on held-out images", title="classifiers")
        for card in cards:
            network, scores = card["network"], card["training"]["accuracy"]
            shapes = ", ".join(f"{network['channels']} × {s} × {s}" for s in network["sizes"])
            shown = ", ".join(f"{100 * float(v):.1f} % at {k} px" for k, v in scores.items())
            count = f"{card['weights']['parameters']:,}"
            table.add_row(card["name"], shapes, str(network["widths"][-1]), count, shown)
        console().print(table)
        return 0

    def _train(self) -> int:
        from farfield.cli.common import print_json
        from farfield.data import load
        from farfield.errors import ArgumentError
        from farfield.metrics.classifier_training import recipe, train_classifier
        from farfield.numerics.devices import choose_device

        if self.data is None:
            raise ArgumentError("DATA is missing: farfield features train DATA")
        data = load(self.data, size=self.size)
        out = self.out if self.out is not None else Path("runs") / f"features-{data.name}"
        config, training = recipe(data)
        training = replace(training, seed=self.seed, **self._changes())
        with _progress(not self.quiet) as show:
            card = train_classifier(data, out, config, training, device=choose_device(self.device), progress=show)
        if self.json:
            print_json(card)
            return 0
        scores = ", ".join(f"{100 * v:.1f} % at {k} px" for k, v in card["training"]["accuracy"].items())
        print(f"{out}: {card['weights']['parameters']:,} weights, {scores} of held-out images")
        print(f"next:  farfield evaluate SAMPLES --data {self.data} --features {out} pca")
        return 0


@contextmanager
def _progress(wanted: bool) -> Iterator[Callable[[int, int, float], None] | None]:
    """A bar on a terminal, a line for each epoch otherwise; nothing where it is not wanted."""
    if not wanted:
        yield None
        return
    if not sys.stderr.isatty():
        from farfield.metrics.classifier_training import print_epoch

        yield print_epoch
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("features", total=None)
        yield lambda done, steps, loss: bar.update(task, total=steps, completed=done, description=f"loss {loss:.3f}")
