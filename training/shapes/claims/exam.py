"""Evaluate a variant's run, and save a score for each task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ....uniworld_core import UniWorld
from ....uniworld_core.errors import UniWorldError
from ...files import write_atomic
from ...publish.export import export_run
from ..exam.exam import examine
from ..exam.report import ExamResult
from ..judge.oracle import pixels
from ..tasks.tasks import EDITS, ShapesTask
from .train import KINDS, Runs, Variant

EXPORTED = "exported"  # folder of checkpoints under evaluation
# Largest fraction of the picture that a small edit changes. An object takes at most a tenth, while a new background or style
# changes more than an eighth: held-out edits have a wide gap here, and any threshold in it splits them the same way.
SMALL = 1 / 8


@dataclass(frozen=True)
class TaskScore:
    """The score of one task.

    Attributes:
        kind: kind of the task.
        edited: fraction of the picture that the edit changes.
        right, kept, psnr: from its `Verdict`.
    """

    kind: str
    edited: float
    right: bool
    kept: float | None
    psnr: float | None


@dataclass(frozen=True)
class Exam:
    """Settings of the evaluation.

    Attributes:
        count: tasks per kind.
        paint_steps: sampling steps.
        device: "cpu" or "cuda".
    """

    count: int
    paint_steps: int
    device: str


def scores_of(
    runs: Runs,
    variant: Variant,
    seed: int,
    exam: Exam,
    progress: Callable[[int, int], None] | None = None,
    train_bar: bool = False,
) -> tuple[TaskScore, ...]:
    """Return the scores of a variant on the tasks of a seed. Unless they are saved, train, evaluate and save them.

    Args:
        runs, variant, seed, exam: what to evaluate.
        progress: called with the number of finished tasks and their total.
        train_bar: show the training's progress bar on a terminal.
    """
    found = saved_scores(runs, variant, seed, exam)
    if found is None:
        file = _file(runs, variant, seed)
        run = runs.train(variant, seed, train_bar)
        found = tuple(map(score, _examined(runs, variant, run, seed, exam, progress)))
        content = {"settings": _settings(exam, seed), "marks": [asdict(one) for one in found]}
        write_atomic(file, json.dumps(content).encode())
    return found


def score(one: ExamResult) -> TaskScore:
    verdict = one.verdict
    return TaskScore(one.task.kind, edited_share(one.task), verdict.right, verdict.kept, verdict.psnr)


def edited_share(task: ShapesTask) -> float:
    """Return the fraction of pixels in which the target differs from the first reference."""
    assert task.target is not None
    return float((pixels(task.references[0]) != pixels(task.target)).any(-1).mean())


def is_small(one: TaskScore) -> bool:
    return one.kind in EDITS and one.edited <= SMALL


def is_large(one: TaskScore) -> bool:
    return one.kind in EDITS and one.edited > SMALL


def saved_scores(runs: Runs, variant: Variant, seed: int, exam: Exam) -> tuple[TaskScore, ...] | None:
    """Read saved scores; None if there are none, or if they have other settings.

    Raises:
        UniWorldError: the file is damaged.
    """
    file = _file(runs, variant, seed)
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return (
            tuple(TaskScore(**one) for one in content["marks"])
            if content["settings"] == _settings(exam, seed)
            else None
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UniWorldError(f"'{file}' is damaged ({error}): delete it to evaluate the run again.") from error


def _file(runs: Runs, variant: Variant, seed: int) -> Path:
    return runs.folder / "results" / f"{variant.name}-seed-{seed}.json"


def _settings(exam: Exam, seed: int) -> dict[str, int]:
    return {"count": exam.count, "paint_steps": exam.paint_steps, "seed": seed}


def _examined(
    runs: Runs,
    variant: Variant,
    run: Path,
    seed: int,
    exam: Exam,
    progress: Callable[[int, int], None] | None,
) -> Sequence[ExamResult]:
    checkpoint = runs.folder / EXPORTED / f"{variant.name}-seed-{seed}"
    shutil.rmtree(checkpoint, ignore_errors=True)  # remains of a killed evaluation
    # In float32, so that rounding does not hide the difference between EMA and raw weights.
    export_run(run, checkpoint, raw=variant.raw, dtype=torch.float32)

    def report_done(kind: str, done: int, count: int) -> None:
        if progress is not None:
            progress(KINDS.index(kind) * count + done, len(KINDS) * count)

    try:
        model = UniWorld.from_pretrained(checkpoint, runs.flux, runs.siglip, torch.float32, exam.device)
        report = examine(
            model, exam.count, KINDS, seed, exam.paint_steps, use_siglip=variant.use_siglip, progress=report_done
        )
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return report.examined
