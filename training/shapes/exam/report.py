"""The examination's report: numbers for each kind of task, the levels to reach, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from PIL import Image

from ..judge.verdict import Verdict
from ..tasks.tasks import EDITS, ShapesTask


@dataclass(frozen=True)
class Examined:
    """One task and what the model made of it.

    Attributes:
        painted: None for a question.
        answer: a question's, as the model gave it.
        routed_right: whether the routing head chose between painting and answering as it should; None without a head.
    """

    task: ShapesTask
    verdict: Verdict
    painted: Image.Image | None = None
    answer: str | None = None
    routed_right: bool | None = None


@dataclass(frozen=True)
class KindReport:
    """The means over the tasks of one kind; a number is None where the kind has none.

    Attributes:
        right: share of tasks done right, as are `kept`, `order_right`, `joints` and `routed_right` shares.
        psnr: of the untouched area, in dB.
        iou: of the marked area, the box, or of what stands out of a depth map's ground.
        angle: of the normals painted on objects to the right ones, in degrees.
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
    """A level to reach: `value` is None where no task of the kind was examined."""

    name: str
    wanted: float
    value: float | None

    @property
    def reached(self) -> bool:
        return self.value is not None and self.value >= self.wanted


@dataclass(frozen=True)
class ExamReport:
    """Everything that was examined, and by what settings."""

    settings: dict[str, object]
    examined: tuple[Examined, ...]

    def of(self, kind: str) -> list[Examined]:
        return [one for one in self.examined if one.task.kind == kind]

    def kinds(self) -> list[KindReport]:
        """One row for each kind, in the order they were examined in."""
        return [_row(kind, self.of(kind)) for kind in dict.fromkeys(one.task.kind for one in self.examined)]

    def levels(self) -> list[Level]:
        """The levels that the project set itself, and what was reached."""
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
        """The numbers as a table, and the levels under it."""
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
            (level.name, f"{level.wanted:.2f}", _said(level.value), "reached" if level.reached else "not reached")
            for level in self.levels()
        ]
        return f"{_table([heads, *rows])}\n\n{_table([('level', 'wanted', 'is', ''), *levels])}"

    def json(self) -> str:
        """The same as JSON, with the reasons of all that went wrong."""
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
        whole = {"settings": self.settings, "levels": levels, "kinds": kinds, "wrong": wrong}
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _row(kind: str, examined: Sequence[Examined]) -> KindReport:
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


def _said(value: float | None) -> str:
    return "not examined" if value is None else f"{value:.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
