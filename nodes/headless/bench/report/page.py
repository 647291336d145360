"""The report of a run: one HTML file without external resources, and a contact sheet.

Prompts and replies are text of strangers: everything is escaped, and the page's policy forbids all but its own script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import unicodedata
from collections.abc import Container, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..items import BenchItem
from ..score_step import ScoredResult

_SIDE = 200
# Letters of a reply that are shown: a judge can repeat itself for megabytes.
_LONGEST = 20_000
# Embeddings, overrides and isolates of the bidirectional algorithm.
_DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_SCRIPT = """
const sort = (head) => {
  const body = document.querySelector("tbody"), column = Number(head.dataset.column);
  const up = head.getAttribute("aria-sort") !== "ascending";
  document.querySelectorAll("th").forEach((one) => one.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => {
    const x = value(a), y = value(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    const number = Number(x) - Number(y);
    return (Number.isNaN(number) ? x.localeCompare(y) : number) * (up ? 1 : -1);
  };
  [...body.rows].sort(compare).forEach((row) => body.append(row));
};
document.querySelectorAll("th[data-column]").forEach((head) => {
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(head); });
});
"""
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #1c1c1e; background: #fff; }
pre { background: #f4f4f6; padding: 1rem; overflow-x: auto; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem; border-bottom: 1px solid #ddd; }
th { position: sticky; top: 0; background: #fff; }
th[data-column] { cursor: pointer; white-space: nowrap; }
th[data-column]::after { content: " \\25B4\\25BE"; opacity: .35; }
th[aria-sort=ascending]::after { content: " \\25B4"; opacity: 1; }
th[aria-sort=descending]::after { content: " \\25BE"; opacity: 1; }
td.name { min-width: 5rem; max-width: 9rem; overflow-wrap: anywhere; }
td.text { min-width: 14rem; max-width: 32rem; }
td.text > div { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; max-height: 16rem; overflow-y: auto; }
img { display: block; max-width: 200px; outline: 1px solid #8884; }
td.step { width: 22%; white-space: pre-wrap; unicode-bidi: plaintext; overflow-wrap: anywhere; }
td.step img { max-width: 100%; margin-bottom: .3rem; }
.reason { color: #a11; }
@media (prefers-color-scheme: dark) {
  body, th { background: #161618; color: #e8e8ea; }
  pre { background: #222226; }
  th, td { border-color: #333; }
  .reason { color: #f88; }
}
"""


def page(
    title: str,
    table: str,
    scored: Sequence[ScoredResult],
    pictures: dict[tuple[str, int], Path],
    shown: Sequence[str] = (),
) -> str:
    """Return the HTML of a report.

    Args:
        table: the table as text.
        pictures: the results by item and sample.
        shown: names of the values to show; all if empty.
    """
    columns = list(dict.fromkeys(name for one in scored for name in shown or one.values or ()))
    shows = ["source", "result"] if any(one.item.source for one in scored) else ["result"]
    heads = [*shows, "item", "group", "prompt", *columns, "state", "reply"]
    rows = [_row(one, shows, columns, pictures.get((one.item.id, one.sample))) for one in scored]
    return document(title, table, heads, range(len(shows), len(heads) - 1), rows)


def document(title: str, table: str, heads: Sequence[str], sortable: Container[int], rows: Sequence[str]) -> str:
    """Return the HTML of a page with a table.

    Args:
        table: text above it.
        sortable: the columns by which the rows can be sorted: by `data-value` of their cells, else by their texts.
        rows: the rows as HTML, with everything escaped.
    """
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = "".join(
        f'<th data-column="{place}" tabindex="0">{escape(name)}</th>'
        if place in sortable
        else f"<th>{escape(name)}</th>"
        for place, name in enumerate(heads)
    )
    lines = "\n".join(rows)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f"<pre>{escape(table)}</pre>\n<table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _row(one: ScoredResult, shows: Sequence[str], columns: Sequence[str], result: Path | None) -> str:
    item = one.item
    values = one.values or {}
    sample = f"&nbsp;/&nbsp;{one.sample}" if item.samples > 1 else ""
    files = {"source": Path(item.source) if item.source else None, "result": result}
    cells = [
        *(f"<td>{image(files[name], name)}</td>" for name in shows),
        f'<td class="name" data-value="{escape(item.id)}">{escape(item.id)}{sample}</td>',
        f"<td>{escape(item.group)}</td>",
        f'<td class="text"><div>{escaped(item.prompt)}</div></td>',
        *(_value_cell(values.get(name)) for name in columns),
        f"<td>{escape(one.state)}</td>",
        f'<td class="text">{_reply(one)}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def escaped(text: str) -> str:
    """Escape a text. Control characters, which could reorder or hide other text, become visible."""
    return escape("".join(f"\\u{ord(one):04x}" if _is_control(one) else one for one in text))


def _is_control(letter: str) -> bool:
    kind = unicodedata.category(letter)
    # Of the formatting characters, only those that change the direction of text. Others join letters or emoji.
    return (kind == "Cc" and letter not in "\n\t") or unicodedata.bidirectional(letter) in _DIRECTIONS


def _value_cell(value: float | None) -> str:
    return f'<td data-value="{"" if value is None else value}">{"" if value is None else f"{value:.2f}"}</td>'


def _reply(one: ScoredResult) -> str:
    texts = one.replies or {}
    parts = [f"{kind}:\n{text}" if len(texts) > 1 else text for kind, text in texts.items()]
    reason = f'<div class="reason">{escaped(one.reason)}</div>' if one.reason else ""
    return reason + (f"<div>{escaped(_shortened(text))}</div>" if (text := "\n\n".join(parts)) else "")


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}\n\n({len(text) - _LONGEST:,} more letters are in replies.jsonl)"


def image(path: Path | None, text: str, side: int = _SIDE) -> str:
    """Return a picture as HTML; "" if it cannot be read.

    Args:
        text: describes it, as HTML.
        side: its longest side in pixels.
    """
    picture = None if path is None else small(path, side)
    if picture is None:
        return ""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img loading="lazy" alt="{text}" src="data:image/jpeg;base64,{data}">'


def small(path: Path, side: int) -> Image.Image | None:
    """Return a copy of a picture with sides of at most `side` pixels; None if it cannot be read."""
    try:
        with Image.open(path) as picture:
            copy = picture.convert("RGB")
            copy.thumbnail((side, side))
            return copy
    except Exception:  # whatever Pillow's decoders raise; the report says what is missing
        return None


_CELL, _GAP, _TEXT = 128, 8, 16
_WORST = 4


def sheet(scored: Sequence[ScoredResult], main: str, pictures: dict[tuple[str, int], Path]) -> bytes:
    """Return a contact sheet as PNG: of each group the four worst results and the median, with their sources.

    Args:
        main: the value by which results are ordered.
    """
    groups: dict[str, list[ScoredResult]] = {}
    for one in scored:
        if one.values is not None:
            groups.setdefault(one.item.group, []).append(one)
    # Without sources, a cell has a single picture.
    wide = (2 * _CELL + _GAP) if any(one.item.source for one in scored) else _CELL
    tall = _CELL + 2 * _TEXT + _GAP
    most = min(_WORST + 1, max((len(ones) for ones in groups.values()), default=1))
    canvas = Image.new("RGB", (most * (wide + _GAP) + _GAP, max(len(groups), 1) * tall + _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for line, (group, ones) in enumerate(groups.items()):
        ordered = sorted(ones, key=lambda one: (one.values or {})[main])
        middle = (len(ordered) - 1) // 2
        chosen = sorted({*range(min(_WORST, len(ordered))), middle})
        for place, one in enumerate(ordered[number] for number in chosen):
            left, top = _GAP + place * (wide + _GAP), _GAP + line * tall
            label = f"{latin(group)} {latin(one.item.id)}"
            draw.text((left, top), _cut(label, wide, draw, font), "black", font)
            kind = "median" if chosen[place] == middle > 0 else "worst"
            draw.text((left, top + _TEXT), f"{kind}: {(one.values or {})[main]:.2f}", "black", font)
            for number, path in enumerate(_pair(one.item, pictures.get((one.item.id, one.sample)))):
                picture = None if path is None else small(path, _CELL)
                if picture is not None:
                    x, y = left + number * (_CELL + _GAP // 2), top + 2 * _TEXT
                    draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline="gray")
                    canvas.paste(picture, (x, y))
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


def _cut(text: str, width: int, draw: ImageDraw.ImageDraw, font: Any) -> str:
    """Return the beginning of a text that fits the width."""
    while draw.textlength(text, font) > width:
        text = text[:-1]
    return text


def _pair(item: BenchItem, result: Path | None) -> list[Path | None]:
    return [Path(item.source), result] if item.source else [result]


def latin(text: str) -> str:
    """Replace letters that Pillow's own font lacks."""
    return text.encode("latin-1", "replace").decode("latin-1")
