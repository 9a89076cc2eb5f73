"""The page around the sections: one HTML file with its style inside, no script, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from farfield.analysis.plotting import PALETTE

_STYLE = """
:root { color-scheme: light dark; --ink: #20242b; --soft: #5b6472; --line: #dfe3e8; --back: #ffffff; --card: #f5f7f9;
  --accent: #0072b2; --warn: #b54708; --warnback: #fff4e8; @PALETTE@ }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a3acb9; --line: #333a45; --back: #14171c;
  --card: #1d2229; --accent: #56b4e9; --warn: #f0a35e; --warnback: #2c2217; --c0: #4ba3e0;
  --c1: #f0824a; --c2: #2cc295; --c3: #e29ac1; --c4: #f0b93a; --c5: #8fd3fb; --c6: #c49a50; --c7: #a3a3a3; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.5rem 4rem; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header { border-bottom: 1px solid var(--line); padding-bottom: 1rem; }
h1 { overflow-wrap: anywhere; font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .5rem; scroll-margin-top: 1rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
.verdict { font-size: 1.15rem; max-width: 50rem; }
.kind { color: var(--soft); margin: 0 0 .3rem; font-size: .85rem; letter-spacing: .04em; text-transform: uppercase; }
.note, figcaption, caption { color: var(--soft); font-size: .88rem; }
.warning { background: var(--warnback); color: var(--warn); border-left: 3px solid var(--warn); padding: .6rem .9rem; }
nav { margin: .8rem 0 0; font-size: .92rem; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; }
nav a { color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; display: flex; flex-direction: column; }
.tile b { font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { font-size: .92rem; } .tile small { color: var(--soft); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .28rem .8rem .28rem 0; text-align: left; font-weight: 400; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; border-bottom: 2px solid var(--line); vertical-align: bottom; }
.n { text-align: right; } td strong, th strong { color: var(--accent); }
figure { margin: 1.2rem 0; } figure svg { width: 100%; height: auto; display: block; }
figcaption { max-width: 46rem; margin-top: .4rem; }
img.pixels { image-rendering: pixelated; max-width: 100%; height: auto; display: block; }
.side { display: flex; flex-wrap: wrap; gap: 0 2rem; } .side figure { flex: 0 1 auto; max-width: 30rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .5rem 1.5rem; margin: 1rem 0; }
.facts div { min-width: 0; } dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; background: var(--card); border-radius: .4rem; padding: .8rem 1rem; font-size: .82rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem; color: var(--soft); font-size: .85rem; }
@media print { nav { display: none; } body { max-width: none; padding: 0; font-size: 11pt; } h2 { break-after: avoid; }
  figure, .tile, tr { break-inside: avoid; } :root { --ink: #000; --back: #fff; --card: #f2f2f2; --soft: #444; @PALETTE@ } }
""".replace("@PALETTE@", " ".join(f"--c{k}: {colour};" for k, colour in enumerate(PALETTE)))


def render(title: str, kind: str, verdict: str, sections: Sequence[tuple[str, str, Sequence[str]]], footer: str) -> str:
    """The whole page.

    Args:
        title: the heading.
        kind: a few words above it.
        verdict: a sentence below it.
        sections: (anchor, heading, HTML blocks) in order.
        footer: a line at the end.
    """
    links = "".join(f'<a href="#{escape(name, quote=True)}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{escape(name, quote=True)}"><h2>{escape(heading)}</h2>{"".join(blocks)}</section>'
        for name, heading, blocks in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header><p class="kind">{escape(kind)}</p><h1>{escape(title)}</h1><p class="verdict">{escape(verdict)}</p>'
        f'<nav aria-label="Sections">{links}</nav></header><main>{body}</main>'
        f"<footer>{escape(footer)}</footer></body></html>\n"
    )
