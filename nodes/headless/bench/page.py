"""The report of a run: one HTML file without external resources, and a contact sheet.

Prompts and replies are text of strangers: everything is escaped, and the page's policy forbids all but its own script.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .items import BenchItem
from .score_step import ScoredResult

_SIDE = 200
_SCRIPT = """
document.querySelectorAll("th[data-column]").forEach((head) => head.addEventListener("click", () => {
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
}));
"""
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #1c1c1e; background: #fff; }
pre { background: #f4f4f6; padding: 1rem; overflow-x: auto; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem; border-bottom: 1px solid #ddd; }
th { position: sticky; top: 0; background: #fff; }
th[data-column] { cursor: pointer; }
th[aria-sort=ascending]::after { content: " \\25B2"; }
th[aria-sort=descending]::after { content: " \\25BC"; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 14rem; max-width: 32rem; }
img { display: block; max-width: 200px; }
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
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    columns = list(dict.fromkeys(name for one in scored for name in shown or one.values or ()))
    heads = ["source", "result", "item", "group", "prompt", *columns, "reply"]
    sortable = range(2, 5 + len(columns))
    head = "".join(
        f'<th data-column="{place}">{escape(name)}</th>' if place in sortable else f"<th>{escape(name)}</th>"
        for place, name in enumerate(heads)
    )
    rows = "\n".join(_row(one, columns, pictures.get((one.item.id, one.sample))) for one in scored)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f"<pre>{escape(table)}</pre>\n<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _row(one: ScoredResult, columns: Sequence[str], result: Path | None) -> str:
    item = one.item
    values = one.values or {}
    cells = [
        f"<td>{_image(Path(item.source) if item.source else None, 'source')}</td>",
        f"<td>{_image(result, 'result')}</td>",
        f'<td data-value="{escape(item.id)}">{escape(item.id)}{f" / {one.sample}" if item.samples > 1 else ""}</td>',
        f"<td>{escape(item.group)}</td>",
        f'<td class="text">{escape(item.prompt)}</td>',
        *(_value_cell(values.get(name)) for name in columns),
        f'<td class="text">{_reply(one)}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _value_cell(value: float | None) -> str:
    return f'<td data-value="{"" if value is None else value}">{"" if value is None else f"{value:.2f}"}</td>'


def _reply(one: ScoredResult) -> str:
    texts = one.replies or {}
    parts = [f"{kind}:\n{text}" if len(texts) > 1 else text for kind, text in texts.items()]
    reason = f'<div class="reason">{escape(one.state)}: {escape(one.reason)}</div>' if one.reason else ""
    return reason + escape("\n\n".join(parts))


def _image(path: Path | None, text: str) -> str:
    data = None if path is None else _thumbnail(path)
    if data is None:
        return ""
    return f'<img loading="lazy" alt="{text}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def _thumbnail(path: Path) -> bytes | None:
    picture = _small(path)
    if picture is None:
        return None
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def _small(path: Path, side: int = _SIDE) -> Image.Image | None:
    """Return a small copy of a picture; None if it cannot be read."""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((side, side))
            return small
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
    wide = 2 * _CELL + _GAP
    tall = _CELL + 2 * _TEXT + _GAP
    most = min(_WORST + 1, max((len(ones) for ones in groups.values()), default=1))
    image = Image.new("RGB", (most * (wide + _GAP) + _GAP, max(len(groups), 1) * tall + _GAP), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    for line, (group, ones) in enumerate(groups.items()):
        ordered = sorted(ones, key=lambda one: (one.values or {})[main])
        middle = (len(ordered) - 1) // 2
        chosen = [*range(min(_WORST, len(ordered))), *([middle] if middle >= _WORST else [])]
        for place, one in enumerate(ordered[number] for number in chosen):
            left, top = _GAP + place * (wide + _GAP), _GAP + line * tall
            label = f"{_latin(group)} {_latin(one.item.id)}"
            draw.text((left, top), label[:40], "black", font)
            kind = "median" if chosen[place] >= _WORST else "worst"
            draw.text((left, top + _TEXT), f"{kind}: {(one.values or {})[main]:.2f}", "black", font)
            for number, path in enumerate(_pair(one.item, pictures.get((one.item.id, one.sample)))):
                small = None if path is None else _small(path, _CELL)
                if small is not None:
                    image.paste(small, (left + number * (_CELL + _GAP // 2), top + 2 * _TEXT))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _pair(item: BenchItem, result: Path | None) -> list[Path | None]:
    return [Path(item.source), result] if item.source else [result]


def _latin(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")
