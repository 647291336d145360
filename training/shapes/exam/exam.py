"""The examination: a model does held-out tasks of every kind, and the oracle judges them.

report = examine(UniWorld.from_pretrained("nano", dtype=torch.float32), count=40)
report.text(), report.json()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from ....uniworld_core import UniWorld
from ....uniworld_core.backbones.flux_vae import VAE
from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.families.uniworld_v1.painting import GUIDANCE, STEPS
from ....uniworld_core.images.pictures import to_bytes
from ....uniworld_core.prompts.reference import Reference
from ..judge.judge import judge, judge_answer
from ..judge.verdict import Verdict
from ..tasks.split import Split
from ..tasks.tasks import KINDS, ShapesTask, make_task
from ..world.scene import SIDE
from .report import Examined, ExamReport

# The longest answer is two words.
ANSWER_TOKENS = 8


def exam_tasks(kind: str, count: int, seed: int = 0, split: Split = "test", side: int = SIDE) -> list[ShapesTask]:
    """The tasks of one kind: more of them begin with the same ones, whatever other kinds are examined."""
    stream = [seed, KINDS.index(kind)] if kind in KINDS else [seed]
    return [make_task(kind, np.random.default_rng([*stream, number]), split, side) for number in range(count)]


def examine(
    model: UniWorld,
    count: int = 40,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 20,
    use_siglip: bool = True,
    use_t5: bool = False,
    split: Split = "test",
    side: int = SIDE,
    progress: Callable[[str, int, int], None] | None = None,
) -> ExamReport:
    """Let a model do tasks, and judge them.

    Args:
        count: tasks of each kind.
        kinds: some of `KINDS`; None takes all.
        seed: of the tasks and of the paintings.
        steps, guidance: of the sampling.
        batch: tasks done at once.
        use_siglip, use_t5: what the model is shown; T5 was dropped in training.
        split: "test" is what training never saw.
        side: of the pictures in pixels.
        progress: called with the kind, the tasks of it that are done, and how many there are.

    Raises:
        UniWorldError: a kind that is not known, or a count, batch or seed that is none.
    """
    chosen = tuple(KINDS if kinds is None else kinds)
    _check(chosen, count, batch, seed)
    examined: list[Examined] = []
    for kind in chosen:
        tasks = exam_tasks(kind, count, seed, split, side)
        for start in range(0, count, batch):
            some = tasks[start : start + batch]
            seeds = [(seed + number) % 2**64 for number in range(start, start + len(some))]
            examined += _examine_some(model, some, seeds, steps, guidance, use_siglip, use_t5)
            if progress is not None:
                progress(kind, start + len(some), count)
    settings = {
        "checkpoint": str(model.checkpoint),
        "count": count,
        "seed": seed,
        "split": split,
        "side": side,
        "steps": steps,
        "guidance": guidance,
        "siglip": use_siglip,
        "t5": use_t5,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return ExamReport(settings, tuple(examined))


def examine_vae(
    vae: VAE,
    count: int = 40,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
    batch: int = 20,
    split: Split = "test",
    side: int = SIDE,
) -> ExamReport:
    """Judge the right pictures themselves, encoded and decoded: no model paints better than its VAE lets it.

    Args:
        kinds: some of `KINDS` but "question"; None takes all of them.

    Raises:
        UniWorldError: a kind that is not known or not painted, or a count, batch or seed that is none.
    """
    painted = tuple(kind for kind in KINDS if kind != "question")
    chosen = painted if kinds is None else tuple(kinds)
    _check(chosen, count, batch, seed, painted)
    examined: list[Examined] = []
    for kind in chosen:
        tasks = exam_tasks(kind, count, seed, split, side)
        for start in range(0, count, batch):
            some = tasks[start : start + batch]
            pictures = np.stack([np.asarray(task.target) for task in some])
            with torch.inference_mode():
                decoded = _pictures(vae.decode(vae.encode(torch.from_numpy(pictures).float() / 255)))
            examined += [Examined(task, judge(task, picture), picture) for task, picture in zip(some, decoded)]
    settings = {"examined": "the VAE alone", "count": count, "seed": seed, "split": split, "side": side}
    return ExamReport(settings, tuple(examined))


def _check(kinds: Sequence[str], count: int, batch: int, seed: int, known: Sequence[str] = KINDS) -> None:
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        raise UniWorldError(f"The kinds of tasks {unknown} are not known here; choose some of {', '.join(known)}.")
    for name, value in (("count", count), ("batch", batch)):
        if value < 1:
            raise UniWorldError(f"The {name} is {value}; it must be at least 1.")
    if seed < 0:
        raise UniWorldError(f"The seed is {seed}; it must be 0 or more.")


def _examine_some(
    model: UniWorld,
    tasks: Sequence[ShapesTask],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    use_siglip: bool,
    use_t5: bool,
) -> list[Examined]:
    """Let the model do some tasks of one kind."""
    references = [model.reference(list(task.references), use_siglip) for task in tasks]
    if tasks[0].kind == "question":
        done = _answer(model, tasks, references)
    else:
        done = _paint(model, tasks, references, seeds, steps, guidance, use_t5)
    return [replace(one, routed_right=way) for one, way in zip(done, _route(model, tasks, references))]


def _paint(
    model: UniWorld,
    tasks: Sequence[ShapesTask],
    references: Sequence[list[Reference]],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    use_t5: bool,
) -> list[Examined]:
    side = tasks[0].side
    with torch.inference_mode():
        condition = model.encode([task.prompt for task in tasks], list(references), use_t5=use_t5)
        latents = model.sample(condition, side, side, steps=steps, guidance=guidance, seed=list(seeds))
        painted = _pictures(model.decode(latents))
    return [Examined(task, judge(task, picture), picture) for task, picture in zip(tasks, painted)]


def _pictures(image_BHW3: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(picture_HW3.numpy()) for picture_HW3 in to_bytes(image_BHW3).cpu()]


def _answer(model: UniWorld, tasks: Sequence[ShapesTask], references: Sequence[list[Reference]]) -> list[Examined]:
    answers = model.understand([task.prompt for task in tasks], list(references), max_new_tokens=ANSWER_TOKENS)
    examined = []
    for task, answer in zip(tasks, answers):
        right = judge_answer(task, answer)
        reasons = () if right else (f"the answer is '{answer}', not '{task.answer}'",)
        examined.append(Examined(task, Verdict(right, reasons), answer=answer))
    return examined


def _route(
    model: UniWorld, tasks: Sequence[ShapesTask], references: Sequence[list[Reference]]
) -> list[bool] | list[None]:
    """Whether each task was sent the right way; None where the checkpoint has no routing head."""
    if model.understanding.task_head is None:
        return [None] * len(tasks)
    paint = model.route([task.prompt for task in tasks], list(references)).paint.tolist()
    return [way == (task.kind != "question") for way, task in zip(paint, tasks)]
