"""The examination on shapes for any workflow: tasks of the world of shapes, judged by its exact oracle.

`uniworld eval shapes` gives a checkpoint the same tasks. This file alone imports `training.shapes`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ....uniworld_core.errors import UniWorldError, brief
from ....uniworld_core.files import write_atomic
from .items import BenchItem, BenchItems, BenchScores, Suite, SuiteOptions, Values
from .judging.ask import Ask
from .scoring.outcome import Mode, Unscored, mean

_SEED = 0
# Kinds with one picture, or none; "compose" needs two.
_KINDS = {
    "edits": ("add", "remove", "replace", "recolour", "background", "extract", "style"),
    "text_to_image": ("text_to_image",),
    "maps": ("edge", "depth", "segmentation", "detection", "hed", "mlsd", "normal", "sketch", "openpose"),
}


class ShapesSuite(Suite):
    """Held-out tasks of the world of shapes."""

    title = "Shapes"
    about = "tasks on pictures of shapes, judged by an exact oracle; needs no download and no judge"
    splits: tuple[str, ...] = tuple(_KINDS)
    main = "right"
    pooled: tuple[str, ...] = ("right",)
    draws = True
    exact = True

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """See `Suite.read`."""
        from ....training.shapes.exam.exam import exam_task

        items = []
        for kind in _KINDS[options.split]:
            for number in range(options.count):
                task = exam_task(kind, number, _SEED)
                picture = None if not task.references else _drawn(task.references[0], sources, f"{kind}_{number}.png")
                name, extra = f"{kind}/{number}", {"kind": kind, "number": number}
                items.append(BenchItem(name, kind, name, task.prompt, name, picture, extra=extra))
        return BenchItems("test tasks, seed 0", tuple(items), {}, {})

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """See `Suite.asks`. The oracle needs no judge."""
        return []

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check`."""
        return Unscored("there is no judge")

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """See `Suite.score`."""
        return Unscored("there is no judge")

    def measure(self, item: BenchItem, result: Path) -> Values | Unscored:
        """See `Suite.measure`: 1 for a correct picture, and the fraction of other objects that are kept."""
        from ....training.shapes.exam.exam import exam_task
        from ....training.shapes.judge.judge import judge

        task = exam_task(item.extra["kind"], item.extra["number"], _SEED)
        try:
            with Image.open(result) as picture:
                verdict = judge(task, picture.convert("RGB"))
        except (OSError, SyntaxError) as error:
            return Unscored(f"the picture cannot be read ({brief(error)})")
        kept = {} if verdict.kept is None else {"kept": float(verdict.kept)}
        return {"right": float(verdict.right), **kept}

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """See `Suite.aggregate`. "right" is the mean over pictures, "worst kind" the lowest mean of a kind."""
        groups: dict[str, dict[str, float]] = {}
        for kind in dict.fromkeys(item.group for item, _ in entries):
            ones = [values for item, values in entries if item.group == kind]
            groups[kind] = {"right": mean(one["right"] for one in ones)}
            kept = [one["kept"] for one in ones if "kept" in one]
            groups[kind] |= {"kept": mean(kept)} if kept else {}
        overall = {
            "right": mean(values["right"] for _, values in entries),
            "worst kind": min(row["right"] for row in groups.values()),
        }
        return BenchScores(groups, overall)


def _drawn(picture: Image.Image, sources: Path, name: str) -> str:
    path = sources.resolve() / name
    file = io.BytesIO()
    picture.save(file, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, file.getvalue(), sync=False)
    except OSError as error:
        raise UniWorldError(f"'{path}' cannot be written: {error.strerror}. Choose another --out.") from error
    return str(path)
