"""The report of edits in a row, for which no scorer is published: the results side by side, for people to compare."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..items import BenchItem
from ..plan import BenchPlan
from ..run_folder import Made
from ..score_step import about_run, versions
from .page import document, escaped, image, latin, small
from .text_table import aligned, title_line

# Longest side of a picture in the page: four of them fill a window of 1920 pixels.
_SIDE = 448
# The contact sheet: side of a picture, gap, height of a line of text, and the number of items of a group.
_CELL, _GAP, _TEXT, _MOST = 128, 6, 14, 20


def turns_result(plan: BenchPlan, made: Made, workflow_hash: str | None) -> dict[str, Any]:
    """Return the content of result.json: which results exist, and why others are missing."""
    results = []
    for item, turn in plan.results:
        reason = made.missing.get((item.id, turn), "")
        state = "missing" if reason else "made"
        one = {"id": item.id, "turn": turn + 1, "group": item.group, "prompt": item.instruction(turn)}
        results.append({**one, "state": state, "reason": reason})
    counts = {"made": len(made.pictures), "missing": len(made.missing)}
    about = about_run(plan, workflow_hash)
    return {**about, "counts": counts, "complete": not made.missing, "results": results, "versions": versions()}


def turns_text(plan: BenchPlan, made: Made) -> str:
    """Return a table with the number of results of each group and turn."""
    existing = Counter((item.group, turn) for item, turn in plan.results if (item.id, turn) in made.pictures)
    wanted = Counter((item.group, turn) for item, turn in plan.results)
    turns = range(_longest(plan))
    rows = [["", "n", *(f"turn {turn + 1}" for turn in turns)]]
    for group in _groups(plan):
        count = sum(item.group == group for item in plan.items)
        cells = (f"{existing[group, turn]} of {wanted[group, turn]}" if wanted[group, turn] else "" for turn in turns)
        rows.append([group, str(count), *cells])
    head = f"{title_line(plan)}\n{len(made.pictures)} made, {len(made.missing)} missing"
    return (
        f"{head}\n\n{aligned(rows)}\n\nThere is no score: the benchmark leaves the comparison to people, and publishes no "
        "scorer."
    )


def turns_page(title: str, plan: BenchPlan, made: Made) -> str:
    """Return the HTML of the report: each item with its source and the results of its turns."""
    turns = range(_longest(plan))
    heads = ["item", "group", "source", *(f"turn {turn + 1}" for turn in turns)]
    rows = []
    for item in plan.items:
        cells = [f"<td>{escape(item.id)}</td><td>{escape(item.group)}</td>"]
        cells += [f'<td class="step">{image(Path(str(item.source)), "source", _SIDE)}</td>']
        cells += [f'<td class="step">{_turn_cell(item, turn, made)}</td>' for turn in turns]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return document(title, turns_text(plan, made), heads, range(2), rows)


def _turn_cell(item: BenchItem, turn: int, made: Made) -> str:
    if turn >= item.samples:
        return ""
    place = (item.id, turn)
    reason = f'<div class="reason">missing: {escaped(made.missing[place])}</div>' if place in made.missing else ""
    return f"{image(made.pictures.get(place), f'turn {turn + 1}', _SIDE)}{reason}{escaped(item.instruction(turn))}"


def turns_sheet(plan: BenchPlan, made: Made) -> bytes:
    """Return a contact sheet as PNG: a column for each group, with the source and the results of an item in each line."""
    groups = {group: [item for item in plan.items if item.group == group][:_MOST] for group in _groups(plan)}
    wide = (1 + _longest(plan)) * (_CELL + _GAP) + 2 * _GAP
    tall = _CELL + _TEXT + _GAP
    lines = max((len(items) for items in groups.values()), default=1)
    canvas = Image.new("RGB", (max(len(groups), 1) * wide, lines * tall + _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for column, items in enumerate(groups.values()):
        for line, item in enumerate(items):
            left, top = _GAP + column * wide, _GAP + line * tall
            draw.text((left, top), latin(item.id)[:60], "black", font)
            for place, path in enumerate(_steps(item, made.pictures)):
                corner = (left + place * (_CELL + _GAP), top + _TEXT)
                picture = None if path is None else small(path, _CELL)
                width, height = (_CELL, _CELL) if picture is None else picture.size
                if picture is not None:
                    canvas.paste(picture, corner)
                # A frame, because a result may be white.
                draw.rectangle((*corner, corner[0] + width - 1, corner[1] + height - 1), outline="lightgray")
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


def _steps(item: BenchItem, pictures: Mapping[tuple[str, int], Path]) -> list[Path | None]:
    """Return the source and the results of an item; None for a missing one."""
    return [Path(str(item.source)), *(pictures.get((item.id, turn)) for turn in range(item.samples))]


def _groups(plan: BenchPlan) -> list[str]:
    return list(dict.fromkeys(item.group for item in plan.items))


def _longest(plan: BenchPlan) -> int:
    return max((item.samples for item in plan.items), default=0)
