"""Evaluate a model on held-out tasks of every kind, judged by the oracle.

report = examine(UniWorld.from_pretrained("nano", dtype=torch.float32), count=40)
report.text(), report.json()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image

from ....uniworld_core import UniWorld
from ....uniworld_core.backbones.flux_vae import VAE
from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.families.uniworld_v1.painting import GUIDANCE, STEPS
from ....uniworld_core.images.pictures import to_bytes
from ....uniworld_core.prompts.reference import Reference
from ....uniworld_core.sampling.cache import CACHES
from ....uniworld_core.sampling.solvers import SOLVERS
from ..judge.judge import judge, judge_answer
from ..judge.verdict import Verdict
from ..tasks.split import Split
from ..tasks.tasks import KINDS, PAINTED_KINDS, ShapesTask, make_task
from ..world.scene import SIDE
from .report import ExamReport, ExamResult

# The longest answer has two words.
ANSWER_TOKENS = 8


def exam_tasks(kind: str, count: int, seed: int = 0, split: Split = "test", side: int = SIDE) -> list[ShapesTask]:
    """Return tasks of one kind. They depend neither on `count`, which only adds more, nor on other kinds."""
    return [exam_task(kind, number, seed, split, side) for number in range(count)]


def exam_task(kind: str, number: int, seed: int = 0, split: Split = "test", side: int = SIDE) -> ShapesTask:
    """Return one task of `exam_tasks` by its number."""
    stream = [seed, KINDS.index(kind)] if kind in KINDS else [seed]
    return make_task(kind, np.random.default_rng([*stream, number]), split, side)


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
    solver: str = SOLVERS[0],
    cache: str = CACHES[0],
) -> ExamReport:
    """Evaluate a model.

    Args:
        model: the model.
        count: tasks per kind.
        kinds: some of `KINDS`; None means all.
        seed: seed of the tasks and of sampling.
        steps, guidance: sampling steps and guidance.
        batch: tasks per batch.
        use_siglip, use_t5: inputs of the model; T5 was dropped in training.
        split: "test" is held out from training.
        side: side of the pictures in pixels.
        progress: called with the kind, its finished tasks and their total.
        solver, cache: as in `UniWorld.sample`.

    Raises:
        UniWorldError: a kind is unknown, or `count`, `batch` or `seed` is invalid.
    """
    chosen = tuple(KINDS if kinds is None else kinds)
    _check(chosen, count, batch, seed)
    sample = partial(model.sample, steps=steps, guidance=guidance, solver=solver, cache=cache)
    examined: list[ExamResult] = []
    for kind in chosen:
        tasks = exam_tasks(kind, count, seed, split, side)
        for start in range(0, count, batch):
            some = tasks[start : start + batch]
            seeds = [(seed + number) % 2**64 for number in range(start, start + len(some))]
            examined += _examine_some(model, some, seeds, sample, use_siglip, use_t5)
            if progress is not None:
                progress(kind, start + len(some), count)
    settings: dict[str, object] = {
        "checkpoint": str(model.checkpoint),
        "count": count,
        "seed": seed,
        "split": split,
        "side": side,
        "steps": steps,
        "guidance": guidance,
        "solver": solver,
        "cache": cache,
        "siglip": use_siglip,
        "t5": use_t5,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if model.loras:
        settings["loras"] = [f"{file}:{strength:g}" for file, strength in model.loras]
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
    """Evaluate a VAE: judge the targets themselves after encoding and decoding, an upper bound for any model.

    Args:
        vae: the VAE.
        kinds: some of `KINDS` except "question"; None means all of them.

    For the other arguments see `examine`.

    Raises:
        UniWorldError: a kind is unknown or not painted, or `count`, `batch` or `seed` is invalid.
    """
    chosen = PAINTED_KINDS if kinds is None else tuple(kinds)
    _check(chosen, count, batch, seed, PAINTED_KINDS)
    examined: list[ExamResult] = []
    for kind in chosen:
        tasks = exam_tasks(kind, count, seed, split, side)
        for start in range(0, count, batch):
            some = tasks[start : start + batch]
            pictures = np.stack([np.asarray(task.target) for task in some])
            with torch.inference_mode():
                decoded = _pictures(vae.decode(vae.encode(torch.from_numpy(pictures).float() / 255)))
            examined += [ExamResult(task, judge(task, picture), picture) for task, picture in zip(some, decoded)]
    settings = {"examined": "the VAE alone", "count": count, "seed": seed, "split": split, "side": side}
    return ExamReport(settings, tuple(examined))


def _check(kinds: Sequence[str], count: int, batch: int, seed: int, known: Sequence[str] = KINDS) -> None:
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        raise UniWorldError(f"The kinds of tasks {unknown} are unknown; choose some of {', '.join(known)}.")
    for name, value in (("count", count), ("batch", batch)):
        if value < 1:
            raise UniWorldError(f"The {name} is {value}; it must be at least 1.")
    if seed < 0:
        raise UniWorldError(f"The seed is {seed}; it must be 0 or more.")


def _examine_some(
    model: UniWorld,
    tasks: Sequence[ShapesTask],
    seeds: Sequence[int],
    sample: Callable[..., torch.Tensor],
    use_siglip: bool,
    use_t5: bool,
) -> list[ExamResult]:
    """Evaluate some tasks of one kind."""
    references = [model.reference(list(task.references), use_siglip) for task in tasks]
    if tasks[0].kind == "question":
        done = _answer(model, tasks, references)
    else:
        done = _paint(model, tasks, references, seeds, sample, use_t5)
    return [replace(one, routed_right=way) for one, way in zip(done, _route(model, tasks, references))]


def _paint(
    model: UniWorld,
    tasks: Sequence[ShapesTask],
    references: Sequence[list[Reference]],
    seeds: Sequence[int],
    sample: Callable[..., torch.Tensor],
    use_t5: bool,
) -> list[ExamResult]:
    side = tasks[0].side
    with torch.inference_mode():
        condition = model.encode([task.prompt for task in tasks], list(references), use_t5=use_t5)
        latents = sample(condition, side, side, seed=list(seeds))
        painted = _pictures(model.decode(latents))
    return [ExamResult(task, judge(task, picture), picture) for task, picture in zip(tasks, painted)]


def _pictures(image_BHW3: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(picture_HW3.numpy()) for picture_HW3 in to_bytes(image_BHW3).cpu()]


def _answer(model: UniWorld, tasks: Sequence[ShapesTask], references: Sequence[list[Reference]]) -> list[ExamResult]:
    answers = model.understand([task.prompt for task in tasks], list(references), max_new_tokens=ANSWER_TOKENS)
    examined = []
    for task, answer in zip(tasks, answers):
        right = judge_answer(task, answer)
        reasons = () if right else (f"the answer is '{answer}', not '{task.answer}'",)
        examined.append(ExamResult(task, Verdict(right, reasons), answer=answer))
    return examined


def _route(
    model: UniWorld, tasks: Sequence[ShapesTask], references: Sequence[list[Reference]]
) -> list[bool] | list[None]:
    """Return whether each task is routed correctly, or None if the checkpoint has no routing head."""
    if model.understanding.task_head is None:
        return [None] * len(tasks)
    paint = model.route([task.prompt for task in tasks], list(references)).paint.tolist()
    return [way == (task.kind != "question") for way, task in zip(paint, tasks)]
