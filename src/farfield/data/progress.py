"""A progress bar for loops that take long: on standard error, only where a person watches it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], total: int, description: str, threshold: int = 5000) -> Iterator[T]:
    """The items, with a bar once ``total`` reaches ``threshold`` and standard error is a terminal."""
    if total < threshold:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    yield from bar(items, description, total=total, console=console, transient=True, disable=not console.is_terminal)
