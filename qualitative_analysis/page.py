"""Pieces of one self-contained HTML page: no script, no external file, readable on a phone and in print.

Every function takes plain text or the output of another function here and returns HTML; plain text is escaped.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_model import arrays

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d5dae0; --shade: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--ink); background: #fff;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
p, figcaption, li, td, th, h1, h2, h3, summary { overflow-wrap: anywhere; }
nav a { display: inline-block; margin: .1rem .9rem .1rem 0; }
a { color: #0b5cad; }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
img.pixels { image-rendering: pixelated; }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .95rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; max-height: 28rem; }
table { border-collapse: collapse; font-size: .85rem; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
.scroll td, .scroll th { white-space: nowrap; overflow-wrap: normal; }
thead th { background: var(--shade); position: sticky; top: 0; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .95rem; }
code, pre { font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--shade); padding: .7rem; overflow-x: auto; border-radius: 4px; margin: .6rem 0; }
code { overflow-wrap: anywhere; }
pre code { overflow-wrap: normal; }
.claim { border: 1px solid var(--line); border-left-width: 6px; border-radius: 4px; padding: .5rem .9rem; margin: .7rem 0; }
.claim.holds { border-left-color: #1a7f4b; }
.claim.fails { border-left-color: #b3341f; }
.claim p { margin: .2rem 0; }
.claim ul { margin: .3rem 0; padding-left: 1.2rem; color: var(--soft); font-size: .93rem; }
.missing { border: 1px dashed #b3341f; border-radius: 4px; padding: .4rem .9rem; margin: .7rem 0; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  figure, .claim, tr { break-inside: avoid; }
  figure img { max-height: 20cm; width: auto; }
  .scroll { overflow: visible; max-height: none; border: 0; }
  .scroll td, .scroll th { white-space: normal; overflow-wrap: break-word; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  thead th { position: static; }
}
"""


def text(value: Any) -> str:
    """Escaped plain text; a float in four significant digits."""
    return html.escape(f"{value:.4g}" if isinstance(value, float) else arrays.plain(str(value)))


def number(value: str) -> str:
    """A CSV entry for reading: decimals to four significant digits, anything else as it is."""
    try:
        return f"{float(value):.4g}" if "." in value or "e" in value else value
    except ValueError:
        return value


def table(columns: Mapping[str, Sequence[Any]], label: str) -> str:
    """A table that scrolls inside its own box."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{text(number(entry) if isinstance(entry, str) else entry)}</td>" for entry in row) + "</tr>\n"
        for row in zip(*columns.values(), strict=True)
    )  # fmt: skip
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"
    )


def image(path: Path, description: str, pixels: bool = False) -> str:
    """A PNG inside the page; `pixels` keeps enlarged images sharp."""
    encoded = base64.b64encode(Path(path).read_bytes()).decode()
    sharp = ' class="pixels"' if pixels else ""
    return f'<img{sharp} alt="{text(description)}" src="data:image/png;base64,{encoded}">'


def figure(picture: str, caption: str) -> str:
    """A picture with its caption (plain text)."""
    return f"<figure>{picture}<figcaption>{text(caption)}</figcaption></figure>\n"


def details(title: str, body: str) -> str:
    """A part that is closed until it is asked for."""
    return f"<details><summary>{text(title)}</summary>\n{body}</details>\n"


def section(name: str, title: str, body: str) -> str:
    """A heading that the navigation can point to, and what follows it."""
    return f'<section id="{text(name)}"><h2>{text(title)}</h2>\n{body}</section>\n'


def commands(lines: Sequence[str]) -> str:
    """Command lines, as they are typed."""
    return f"<pre><code>{text(chr(10).join(lines))}</code></pre>\n"


def missing(what: str, command: str) -> str:
    """What is not there, and what makes it."""
    return f'<p class="missing">Missing: {text(what)}. It is made by <code>{text(command)}</code>.</p>\n'


def document(title: str, body: str) -> str:
    """The whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )
