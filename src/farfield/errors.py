"""The errors that farfield raises on purpose. Each message names the argument, its value and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FarfieldError(Exception):
    """Base of all deliberate errors; the command line prints its message as one line and exits with status 1."""


class ArgumentError(FarfieldError, ValueError):
    """An argument is wrong; the command line exits with status 2."""


class DataError(FarfieldError):
    """Data cannot be read or does not hold what it should (unreadable image, NaN, wrong layout)."""


class ModelFileError(FarfieldError):
    """A model or checkpoint file is missing, truncated, foreign or unsafe to read."""


class NonFiniteError(FarfieldError):
    """A loss, state or weight became NaN or infinite."""


class ProcessLostError(FarfieldError):
    """Another process of a distributed run has ended, so that this one cannot go on."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ArgumentError:
    """The error for a name that no registry holds: lists the known ones and suggests the closest.

    Args:
        kind: what is being named, e.g. ``"solver"``.
        name: the name that was given.
        known: the names that exist.
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ArgumentError(f"unknown {kind} {name!r}; known: {', '.join(names) or 'none'}.{hint}")
