"""The evaluation's report: scores per kind of task and target levels, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from PIL import Image

from ..judge.verdict import Verdict
from ..tasks.tasks import EDITS, ShapesTask


@dataclass(frozen=True)
class ExamResult:
    """One task with the model's output and verdict.

    Attributes:
        task: the task.
        verdict: the judge's verdict.
        painted: the painted picture; None for a question.
        answer: the model's answer to a question.
        routed_right: whether the routing head chose correctly between painting and answering; None without a head.
    """

    task: ShapesTask
    verdict: Verdict
    painted: Image.Image | None = None
    answer: str | None = None
    routed_right: bool | None = None


@dataclass(frozen=True)
class KindReport:
    """Mean scores over the tasks of one kind; a score is None if the kind does not have it.

    Attributes:
        right: fraction of correct tasks; `kept`, `order_right`, `joints` and `routed_right` are fractions too.
        psnr: PSNR of the unedited area, in dB.
        iou: IoU of the marked area, of the box, or of the foreground of a depth map.
        angle: mean angle between painted and correct normals on objects, in degrees.
    """

    kind: str
    count: int
    right: float
    kept: float | None
    psnr: float | None
    iou: float | None
    edge_f1: float | None
    order_right: float | None
    angle: float | None
    joints: float | None
    routed_right: float | None


@dataclass(frozen=True)
class Level:
    """A target level; `value` is None if no task of the kind was evaluated."""

    name: str
    wanted: float
    value: float | None

    @property
    def reached(self) -> bool:
        return self.value is not None and self.value >= self.wanted


@dataclass(frozen=True)
class ExamReport:
    """All results of an evaluation, and its settings."""

    settings: dict[str, object]
    examined: tuple[ExamResult, ...]

    def of(self, kind: str) -> list[ExamResult]:
        return [one for one in self.examined if one.task.kind == kind]

    def kinds(self) -> list[KindReport]:
        """Return one row per kind, in the order of evaluation."""
        return [_row(kind, self.of(kind)) for kind in dict.fromkeys(one.task.kind for one in self.examined)]

    def levels(self) -> list[Level]:
        """Return the project's target levels and the values reached."""
        rows = {row.kind: row for row in self.kinds()}
        edits = [one for one in self.examined if one.task.kind in EDITS]
        shares = [row.right for row in rows.values() if row.kind in EDITS]
        return [
            Level("edits right", 0.85, _mean([one.verdict.right for one in edits])),
            Level("edits right, worst kind", 0.70, min(shares, default=None)),
            Level("objects kept", 0.90, _mean([one.verdict.kept for one in edits])),
            Level("text to image right", 0.85, rows["text_to_image"].right if "text_to_image" in rows else None),
            Level("segmentation IoU", 0.80, rows["segmentation"].iou if "segmentation" in rows else None),
            Level("answers right", 0.95, rows["question"].right if "question" in rows else None),
            Level("routing right", 0.99, _mean([one.routed_right for one in self.examined])),
        ]

    def text(self) -> str:
        """Return the scores as a table, with the levels below."""
        heads = ("kind", "tasks", "right", "kept", "PSNR", "IoU", "edge F1", "angle", "order", "joints", "routing")
        rows = [
            (
                row.kind,
                str(row.count),
                *(_percent(share) for share in (row.right, row.kept)),
                *("" if value is None else f"{value:.{digits}f}" for value, digits in _numbers(row)),
                *(_percent(share) for share in (row.order_right, row.joints, row.routed_right)),
            )
            for row in self.kinds()
        ]
        levels = [
            (level.name, f"{level.wanted:.2f}", _value_text(level.value), "reached" if level.reached else "not reached")
            for level in self.levels()
        ]
        return f"{_table([heads, *rows])}\n\n{_table([('level', 'target', 'value', ''), *levels])}"

    def json(self) -> str:
        """Return the report as JSON, with the reasons of all wrong tasks."""
        wrong = [
            {
                "kind": one.task.kind,
                "prompt": one.task.prompt,
                **({"answer": one.answer, "wanted": one.task.answer} if one.answer is not None else {}),
                "reasons": list(one.verdict.reasons),
            }
            for one in self.examined
            if not one.verdict.right
        ]
        levels = [{**asdict(level), "reached": level.reached} for level in self.levels()]
        kinds = [asdict(row) for row in self.kinds()]
        content = {"settings": self.settings, "levels": levels, "kinds": kinds, "wrong": wrong}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _row(kind: str, examined: Sequence[ExamResult]) -> KindReport:
    verdicts = [one.verdict for one in examined]
    return KindReport(
        kind,
        len(examined),
        sum(verdict.right for verdict in verdicts) / len(verdicts),
        _mean([verdict.kept for verdict in verdicts]),
        _mean([verdict.psnr for verdict in verdicts]),
        _mean([verdict.iou for verdict in verdicts]),
        _mean([verdict.edge_f1 for verdict in verdicts]),
        _mean([verdict.order_right for verdict in verdicts]),
        _mean([verdict.angle for verdict in verdicts]),
        _mean([verdict.joints for verdict in verdicts]),
        _mean([one.routed_right for one in examined]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _numbers(row: KindReport) -> tuple[tuple[float | None, int], ...]:
    return (row.psnr, 1), (row.iou, 2), (row.edge_f1, 2), (row.angle, 1)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _value_text(value: float | None) -> str:
    return "not evaluated" if value is None else f"{value:.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as aligned columns: the first left-aligned, all others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
