"""What a variant's run paints, examined, and kept as numbers for each task."""

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
from ..exam.report import Examined
from ..judge.oracle import pixels
from ..tasks.tasks import EDITS, ShapesTask
from .train import KINDS, Runs, Variant

EXPORTED = "exported"  # a folder of checkpoints that are being examined
# Of the picture. An object takes at most a tenth of it, and a new ground or style changes more than an eighth: the
# held-out edits have a wide gap here, and every threshold in it splits them alike.
SMALL = 1 / 8


@dataclass(frozen=True)
class TaskScore:
    """How one task was done.

    Attributes:
        edited: share of the picture that had to change.
        right, kept, psnr: of its `Verdict`.
    """

    kind: str
    edited: float
    right: bool
    kept: float | None
    psnr: float | None


@dataclass(frozen=True)
class Exam:
    """How runs are examined.

    Attributes:
        count: tasks of each kind.
        paint_steps: of the sampling.
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
    """The scores of a variant on the tasks of a seed: read, or trained, examined and kept.

    Args:
        progress: told how many of how many tasks are done.
        train_bar: show the training's own bar on a terminal.
    """
    found = kept_scores(runs, variant, seed, exam)
    if found is None:
        file = _file(runs, variant, seed)
        run = runs.train(variant, seed, train_bar)
        found = tuple(map(score, _examined(runs, variant, run, seed, exam, progress)))
        whole = {"settings": _settings(exam, seed), "marks": [asdict(one) for one in found]}
        write_atomic(file, json.dumps(whole).encode())
    return found


def score(one: Examined) -> TaskScore:
    verdict = one.verdict
    return TaskScore(one.task.kind, edited_share(one.task), verdict.right, verdict.kept, verdict.psnr)


def edited_share(task: ShapesTask) -> float:
    """How much of the first reference the target changes, 0 to 1."""
    assert task.target is not None
    return float((pixels(task.references[0]) != pixels(task.target)).any(-1).mean())


def is_small(one: TaskScore) -> bool:
    return one.kind in EDITS and one.edited <= SMALL


def is_large(one: TaskScore) -> bool:
    return one.kind in EDITS and one.edited > SMALL


def kept_scores(runs: Runs, variant: Variant, seed: int, exam: Exam) -> tuple[TaskScore, ...] | None:
    """The scores that an examination left; None if there are none, or none of this examination.

    Raises:
        UniWorldError: the file is damaged.
    """
    file = _file(runs, variant, seed)
    if not file.is_file():
        return None
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        return tuple(TaskScore(**one) for one in whole["marks"]) if whole["settings"] == _settings(exam, seed) else None
    except (ValueError, KeyError, TypeError) as error:
        raise UniWorldError(f"'{file}' is damaged ({error}): delete it, and the run is examined again.") from error


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
) -> Sequence[Examined]:
    checkpoint = runs.folder / EXPORTED / f"{variant.name}-seed-{seed}"
    shutil.rmtree(checkpoint, ignore_errors=True)  # of an examination that was killed
    # In float32, so that the difference of averaged and raw weights is not rounded away.
    export_run(run, checkpoint, raw=variant.raw, dtype=torch.float32)

    def told(kind: str, done: int, count: int) -> None:
        if progress is not None:
            progress(KINDS.index(kind) * count + done, len(KINDS) * count)

    try:
        model = UniWorld.from_pretrained(checkpoint, runs.flux, runs.siglip, torch.float32, exam.device)
        report = examine(model, exam.count, KINDS, seed, exam.paint_steps, use_siglip=variant.use_siglip, progress=told)
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return report.examined
