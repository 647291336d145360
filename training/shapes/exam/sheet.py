"""The evaluation's contact sheet: for each kind some tasks with references, target and painted picture."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw

from ...files import write_atomic
from ...run.sheet_text import fit_text
from .report import ExamReport, ExamResult

_CELL, _GAP, _TEXT, _MARK = 96, 6, 14, 16
_RIGHT, _WRONG = (20, 150, 40), (210, 30, 30)
PER_KIND = 4


def contact_sheet(report: ExamReport, per_kind: int = PER_KIND) -> Image.Image:
    """Draw one row per kind: `per_kind` tasks, each with references, target and painted picture, and a tick or a cross.

    Up to half of the tasks are wrong ones, so that the sheet shows typical errors.
    """
    kinds = [row.kind for row in report.kinds()]
    rows = [_chosen(report.of(kind), per_kind) for kind in kinds]
    width = 4 * _CELL + 4 * _GAP
    height = 2 * _TEXT + _CELL + 2 * _GAP
    sheet = Image.new("RGB", (per_kind * width + _GAP, max(len(rows), 1) * height), "white")
    for row, examined in enumerate(rows):
        for column, one in enumerate(examined):
            _place(sheet, one, _GAP + column * width, row * height, width - 2 * _GAP)
    return sheet


def write_sheet(report: ExamReport, to: Path, per_kind: int = PER_KIND) -> None:
    """Write the contact sheet as a PNG. Raises UniWorldError if it cannot be written."""
    buffer = io.BytesIO()
    contact_sheet(report, per_kind).save(buffer, "PNG")
    write_atomic(to, buffer.getvalue())


def _chosen(examined: list[ExamResult], count: int) -> list[ExamResult]:
    wrong = [one for one in examined if not one.verdict.right]
    right = [one for one in examined if one.verdict.right]
    few = min(len(wrong), max(count // 2, count - len(right)))
    return [*right[: count - few], *wrong[:few]]


def _place(sheet: Image.Image, one: ExamResult, left: int, top: int, width: int) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.text((left, top), f"{one.task.kind}: ", fill="gray")
    pen.text((left, top + _TEXT), fit_text(pen, one.task.prompt, width), fill="black")
    top += 2 * _TEXT + _GAP
    pictures = [*one.task.references, *(picture for picture in (one.task.target, one.painted) if picture)]
    for number, picture in enumerate(pictures):
        small = picture.resize((_CELL, _CELL), Image.Resampling.NEAREST)
        at = left + number * (_CELL + _GAP)
        sheet.paste(small, (at, top))
        pen.rectangle((at - 1, top - 1, at + _CELL, top + _CELL), outline="lightgray")
    left += (len(pictures) - 1) * (_CELL + _GAP)
    if one.answer is not None:
        left += _CELL + _GAP
        pen.text((left, top), f"{one.task.answer}", fill="gray")
        pen.text((left, top + _TEXT), fit_text(pen, one.answer, _CELL), fill="black")
    _mark(pen, left + _CELL - _MARK - 3, top + _CELL - _MARK - 3, one.verdict.right)


def _mark(pen: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """Draw a tick or a cross on a white disc, as lines because Pillow's built-in font has neither."""
    pen.ellipse((x - 2, y - 2, x + _MARK + 2, y + _MARK + 2), fill="white")
    low, middle, high = 3, _MARK // 2, _MARK - 3
    if right:
        pen.line([(x + low, y + middle), (x + middle - 1, y + high), (x + high, y + low)], fill=_RIGHT, width=3)
    else:
        pen.line([(x + low, y + low), (x + high, y + high)], fill=_WRONG, width=3)
        pen.line([(x + low, y + high), (x + high, y + low)], fill=_WRONG, width=3)
