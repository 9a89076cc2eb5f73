"""What a run tells: a JSON-lines log, and a progress bar where a person watches (plain lines otherwise)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from farfield.errors import ArgumentError
from farfield.networks.files import write_atomic


def trim_log(path: Path, step: int) -> None:
    """Keep the lines of a log up to ``step``: a run that goes on from there writes the later ones again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that a kill cut short
        if isinstance(record, dict) and isinstance(record.get("step"), int) and record["step"] <= step:
            kept.append(line)
    text = "".join(f"{line}\n" for line in kept)
    write_atomic(path, lambda partial: partial.write_text(text, encoding="utf-8"))


class Reporter:
    """Writes each record to the log and shows it.

    Args:
        log: the JSON-lines file, appended to; None writes nothing.
        steps: steps of the whole run.
        start: steps already done.
        progress: whether to show anything; the bar goes to standard error and only to a terminal.
        board: folder for TensorBoard's files, or None.

    Raises:
        ArgumentError: TensorBoard is asked for and not installed.
    """

    def __init__(self, log: Path | None, steps: int, start: int, progress: bool, board: Path | None = None) -> None:
        self.steps, self.progress, self.bar, self.board = steps, progress, None, None
        if board is not None:
            # What an interrupted run logged after its last checkpoint is hidden.
            self.board = summary_writer()(str(board), purge_step=start + 1)
        self.file = None if log is None else log.open("a", encoding="utf-8")
        if progress and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("train", total=steps, completed=start, note="")

    def __enter__(self) -> Reporter:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()

    def advance(self, step: int) -> None:
        """Show that ``step`` steps are done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def record(self, record: dict[str, Any]) -> None:
        """Write one record and hand it to the system: a kill of the process keeps it, a power cut may not."""
        if self.file is not None:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        if self.board is not None:
            for key, value in record.items():
                if key != "step" and isinstance(value, int | float):
                    self.board.add_scalar(key, value, record["step"])
        shown = "  ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in record.items()
        )
        if self.bar is not None:
            self.bar.update(self.task, note=shown.partition("images ")[2].partition("  ")[2])
        elif self.progress:
            print(f"{shown}  (of {self.steps})", file=sys.stderr, flush=True)


def summary_writer() -> Any:
    """TensorBoard's class of writers; raises ``ArgumentError`` where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ArgumentError(
            "tensorboard = true, but TensorBoard is not installed; pip install 'farfield[tensorboard]', or leave it out"
        ) from None
    return SummaryWriter
