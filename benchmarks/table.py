"""The rows that every benchmark returns, and how they are printed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure with its limit: ``value`` must not exceed ``limit``."""

    name: str
    value: float
    limit: float
    unit: str
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.value <= self.limit


def show(rows: list[Row]) -> None:
    """Print the rows as a table."""
    width = max((len(r.name) for r in rows), default=0)
    for r in rows:
        verdict = "ok  " if r.ok else "MISS"
        print(f"{verdict}  {r.name:<{width}}  {r.value:8.3g}  (limit {r.limit:g})  {r.unit}  {r.detail}", flush=True)
