"""``farfield``: parse, call the library, print. Exit code 0 on success, 2 on wrong arguments, 1 on failure."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

from farfield.cli.advise import Advise
from farfield.cli.analyze import Analyze
from farfield.cli.data import Data
from farfield.cli.ema import Ema
from farfield.cli.evaluate import Evaluate
from farfield.cli.experiment import Experiment
from farfield.cli.features import Features
from farfield.cli.info import Info
from farfield.cli.interpolate import Interpolate
from farfield.cli.models import Models
from farfield.cli.report import Report
from farfield.cli.sample import Sample
from farfield.cli.train import Train
from farfield.errors import ArgumentError, FarfieldError
from farfield.version import __version__

DESCRIPTION = """Train, sample and explain physics-inspired generative models.

Start with:  farfield report digits --out runs/report

Each command explains itself:  farfield sample --help

The version:  farfield --version
"""


def _subcommand(command: type[Any]) -> Any:
    """The command under its lower-case name, described by its docstring."""
    about = inspect.cleandoc(command.__doc__ or "")
    return Annotated[command, tyro.conf.subcommand(command.__name__.lower(), description=about)]


COMMANDS = (
    Report,
    Advise,
    Train,
    Ema,
    Sample,
    Interpolate,
    Evaluate,
    Analyze,
    Features,
    Experiment,
    Models,
    Data,
    Info,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args == ["--version"]:
            print(f"farfield {__version__}", flush=True)
            return 0
        commands: Any = Union[tuple(_subcommand(c) for c in COMMANDS)]  # noqa: UP007
        command = tyro.cli(
            commands,
            prog="farfield",
            description=DESCRIPTION,
            args=args,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
        )
    except SystemExit as stop:  # tyro has printed what is wrong, or the help
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:
        return _reader_has_gone()
    except OSError as error:
        print(f"farfield: {error.strerror or error} (standard output)", file=sys.stderr)
        return 1
    try:
        code = command.run() or 0
        sys.stdout.flush()
        return code
    except FarfieldError as error:
        print(f"farfield: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    except BrokenPipeError:
        return _reader_has_gone()
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        print(f"farfield: {error.strerror or error}{name}", file=sys.stderr)
        return 1
    except MemoryError:
        print("farfield: out of memory; try a smaller --batch-size or fewer samples", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfarfield: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _reader_has_gone() -> int:
    """Standard output was closed, as by ``head``: nothing more to say, and nothing to say it to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
