"""The pieces a section is made of, as HTML: text, tables, tiles, figures. Everything that comes from outside is escaped."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from farfield.analysis.plotting import INK, PALETTE


def text(*sentences: str) -> str:
    """A paragraph."""
    return f"<p>{escape(' '.join(sentences))}</p>"


def note(*sentences: str) -> str:
    """A paragraph in small print: how a number was obtained, what to keep in mind."""
    return f'<p class="note">{escape(" ".join(sentences))}</p>'


def warning(*sentences: str) -> str:
    """A paragraph that the reader should not miss."""
    return f'<p class="warning" role="note">{escape(" ".join(sentences))}</p>'


def heading(title: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(title)}</h3>"


def number(value: float | int | None, digits: int = 3) -> str:
    """A number as a reader wants it: ``digits`` significant digits, × 10ⁿ only where it has to be, – for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 6:
        shown = f"{value:,.{max(0, digits - 1 - size)}f}"
    else:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        shown = f"{mantissa} × 10{raised}"
    return shown.replace("-", "−")


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    caption: str = "",
    marked: Sequence[tuple[int, int]] = (),
    right: bool = False,
) -> str:
    """A table; numbers are formatted and aligned to the right.

    Args:
        header: the names of the columns, with units.
        rows: cells, strings or numbers.
        caption: what the table shows.
        marked: (row, column) of cells to set in bold.
        right: align every column but the first to the right, whatever it holds.
    """
    bold = set(marked)

    def cell(value: Any, place: tuple[int, int]) -> str:
        if not isinstance(value, int | float) and value is not None:
            shown, kind = escape(str(value)), ' class="n"' if right and place[1] else ""
        else:
            shown, kind = number(value), ' class="n"'
        if place in bold:
            shown = f"<strong>{shown}</strong>"
        tag = "th scope='row'" if place[1] == 0 else "td"
        return f"<{tag}{kind}>{shown}</{tag[:2]}>"

    def kind_of(column: int) -> str:
        numeric = all(isinstance(row[column], int | float) or row[column] is None for row in rows)
        numeric = numeric or (right and column > 0)
        return ' class="n"' if rows and numeric else ""

    head = "".join(f"<th scope='col'{kind_of(c)}>{escape(name)}</th>" for c, name in enumerate(header))
    body = "".join(
        f"<tr>{''.join(cell(v, (r, c)) for c, v in enumerate(row))}</tr>" for r, row in enumerate(rows)
    )  # fmt: skip
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{top}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """A list of names and values."""
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{number(v) if isinstance(v, int | float) or v is None else escape(str(v))}</dd></div>"
        for k, v in pairs
    )
    return f'<dl class="facts">{items}</dl>'


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Big numbers: (value, what it is, a remark)."""
    inner = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(remark)}</small></div>'
        for value, name, remark in items
    )
    return f'<div class="tiles">{inner}</div>'


def details(summary: str, inner: str) -> str:
    """Something folded away until asked for."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def svg(figure: Any, alt: str, width: int = 56) -> str:
    """A matplotlib figure as inline SVG whose text, axes and palette take the page's own colours.

    Matplotlib's document type, metadata and name spaces are removed: inside HTML they are of no use, and they are the
    only addresses in the file.

    Args:
        figure: a matplotlib figure.
        alt: what a reader who cannot see it should know.
        width: at most so many rem wide.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "farfield", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", body).replace("xlink:href", "href")
    body = body.replace(INK, "currentColor")
    for k, colour in enumerate(PALETTE):
        body = body.replace(colour.lower(), f"var(--c{k})")
    # Identifiers must be unique on the page: one prefix for each figure.
    prefix = f"f{hashlib.blake2b((alt + body).encode(), digest_size=4).hexdigest()}-"
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'href="#', f'href="#{prefix}', body).replace("url(#", f"url(#{prefix}")
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    head = f'<svg style="max-width:{width}rem" role="img" aria-label="{escape(alt, quote=True)}"'
    return body.replace("<svg", head, 1)


def figure(inner: str, caption: str) -> str:
    """A picture with a caption that says what is shown and how to read it."""
    return f"<figure>{inner}<figcaption>{escape(caption)}</figcaption></figure>"


def figures(*inner: str) -> str:
    """Figures side by side where there is room."""
    return f'<div class="side">{"".join(inner)}</div>'


def png(data: bytes, alt: str, width: int) -> str:
    """A PNG inside the page, ``width`` CSS pixels wide, its pixels left sharp."""
    code = base64.b64encode(data).decode("ascii")
    return f'<img class="pixels" alt="{escape(alt, quote=True)}" width="{width}" src="data:image/png;base64,{code}">'
