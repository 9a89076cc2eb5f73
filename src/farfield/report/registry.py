"""The registry of report sections: a new analysis adds its own by one decorated function in a file of its own.

@section("emergence", "When features appear", order=45)
def emergence(context: ReportContext) -> Section: ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from farfield.errors import ArgumentError

if TYPE_CHECKING:
    from farfield.report.context import ReportContext


@dataclass(frozen=True)
class Section:
    """What a section gives the page.

    Attributes:
        blocks: pieces of HTML, made by ``farfield.report.blocks``, in order.
        data: what ``report.json`` keeps of it, JSON-safe.
        headline: a sentence for the head of the page; only the summary has one.
    """

    blocks: list[str]
    data: dict[str, Any] = field(default_factory=dict)
    headline: str = ""


@dataclass(frozen=True)
class Entry:
    """A registered section.

    Attributes:
        name: its key in ``report.json`` and its anchor on the page.
        title: its heading.
        order: its place on the page.
        needs: sections that run before it, because it uses what they compute; ``"*"`` for all others.
        make: the function.
    """

    name: str
    title: str
    order: int
    needs: tuple[str, ...]
    make: Callable[[ReportContext], Section]


#: All sections, in the order of the page.
SECTIONS: list[Entry] = []


def section(
    name: str, title: str, *, order: int, needs: tuple[str, ...] = ()
) -> Callable[[Callable[[ReportContext], Section]], Callable[[ReportContext], Section]]:
    """Register a section; arguments as for :class:`Entry`.

    Raises:
        ArgumentError: for a name that is taken.
    """

    def register(make: Callable[[ReportContext], Section]) -> Callable[[ReportContext], Section]:
        if any(entry.name == name for entry in SECTIONS):
            raise ArgumentError(f"a report section named {name!r} exists already")
        SECTIONS.append(Entry(name, title, order, needs, make))
        SECTIONS.sort(key=lambda entry: entry.order)
        return make

    return register


def running_order() -> list[Entry]:
    """The sections in the order of the page, except that each comes after those it needs."""
    known = {entry.name: entry for entry in SECTIONS}
    done: dict[str, Entry] = {}

    def visit(entry: Entry) -> None:
        if entry.name not in done:
            for name in entry.needs:
                if name in known and name not in done and "*" not in known[name].needs:
                    visit(known[name])
            done[entry.name] = entry

    for entry in sorted(SECTIONS, key=lambda e: "*" in e.needs):
        visit(entry)
    return list(done.values())
