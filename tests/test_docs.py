"""The Python of the documentation runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_examples_run(page: Path) -> None:
    """All blocks of a page in one namespace, in order."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    space: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, page.name, "exec"), space)
