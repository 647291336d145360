"""The contact sheet of an epoch: some groups with their prompts, references, painted pictures and scores."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

from ..files import write_atomic
from ..run.sheet_text import fit_text
from .prompts import EditPrompt
from .reward.protocol import RewardFailure, Score

_CELL, _GAP, _TEXT = 128, 6, 14
_TRAINED, _FILTERED = "black", "gray"


@dataclass(frozen=True)
class GroupRow:
    """One row of the sheet.

    Attributes:
        prompt: the prompt and its references.
        pictures: the painted pictures.
        scores: one per picture.
        trained: whether the group passed the filter.
        watched: {name of a reward that is only recorded: one score per picture}.
    """

    prompt: EditPrompt
    pictures: Sequence[Image.Image]
    scores: Sequence[Score]
    trained: bool
    watched: Mapping[str, Sequence[Score]] = field(default_factory=dict)


def group_sheet(rows: Sequence[GroupRow]) -> Image.Image:
    """Draw a row per group: the prompt, gray if the group was filtered out; references; pictures, best score first."""
    columns = max(len(row.prompt.references) + len(row.pictures) for row in rows)
    height = 2 * _TEXT + _CELL + 2 * _GAP
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, len(rows) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * height + _GAP
        colour = _TRAINED if row.trained else _FILTERED
        text = row.prompt.prompt if row.trained else f"(filtered out) {row.prompt.prompt}"
        pen.text((_GAP, top), fit_text(pen, text, sheet.width - 2 * _GAP), fill=colour)
        order = sorted(range(len(row.pictures)), key=lambda index: (-_value(row.scores[index]), index))
        cells = [("reference", picture) for picture in row.prompt.references]
        cells += [(_labels(row, index), row.pictures[index]) for index in order]
        for column, (label, picture) in enumerate(cells):
            left = _GAP + column * (_CELL + _GAP)
            small = picture.resize((_CELL, _CELL), Image.Resampling.BICUBIC)
            sheet.paste(small, (left, top + _TEXT))
            pen.text((left, top + _TEXT + _CELL), fit_text(pen, label, _CELL), fill=colour)
    return sheet


def write_group_sheet(rows: Sequence[GroupRow], to: Path) -> None:
    """Write the sheet as a PNG, atomically. Raises UniWorldError if it cannot be written."""
    buffer = io.BytesIO()
    group_sheet(rows).save(buffer, "PNG")
    write_atomic(to, buffer.getvalue())


def _value(score: Score) -> float:
    return -1.0 if isinstance(score, RewardFailure) else score


def _labels(row: GroupRow, index: int) -> str:
    watched = [f"{name} {_label(scores[index])}" for name, scores in row.watched.items()]
    return ", ".join([_label(row.scores[index]), *watched])


def _label(score: Score) -> str:
    return f"failed: {score.reason}" if isinstance(score, RewardFailure) else f"{score:.3f}"
