"""Write tasks as training data in the published format: pictures, annotations, and the list file.

    folder/data.txt            pictures,edits.json,true and pictures,others.json,false: the file for `[data] list`
    folder/edits.json          annotations of edits, whose loss is weighted by the edited area
    folder/others.json         annotations of all other tasks with a target picture
    folder/questions.json      questions with answers, not in the list
    folder/pictures/000/...    PNG

Task n depends only on the seed and n. Tasks are written in blocks, and the annotations of a block after its pictures, so
that an interrupted command resumes at the first missing block.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import PART_SUFFIX
from ....uniworld_core.json_text import BadJson, loads
from ....uniworld_core.loading.settings import read_json
from ...data.annotations import IMAGE_MARK, PAINT_MARK
from ...data.threads import map_in_threads
from ...files import cannot_write, write_atomic
from ..world.scene import SIDE, check_side
from .split import Split, check_split
from .tasks import KINDS, ShapesTask, any_kind, make_task

LIST = "data.txt"
BLOCK = 500  # tasks
_WORKERS = 2
_PICTURES, _BLOCKS, _SETTINGS = "pictures", "blocks", "settings.json"
_FILES = ("edits.json", "others.json", "questions.json")
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class _Settings:
    """The settings that determine the tasks of a folder."""

    count: int
    seed: int
    split: Split
    side: int
    kinds: tuple[str, ...]


def write_dataset(
    folder: str | Path,
    count: int,
    seed: int = 0,
    split: Split = "train",
    side: int = SIDE,
    kinds: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write tasks to a folder, or resume writing them.

    Args:
        folder: created if it does not exist.
        count: number of tasks, with kinds distributed by `KIND_WEIGHTS`.
        split: "train" or "test".
        side: side of the pictures in pixels.
        kinds: a subset of `KINDS`; None for all. A kind that is listed twice has twice the weight.
        progress: called with the number of finished tasks and the total.

    Returns:
        The list file, for `[data] list`.

    Raises:
        UniWorldError: a setting is invalid, the folder contains other files or tasks with other settings, or the disk is
            full.
    """
    settings = _Settings(count, seed, split, side, tuple(KINDS if kinds is None else kinds))
    _check(settings)
    folder = Path(folder)
    _claim(folder, settings)
    done = folder / LIST
    if done.is_file():
        return done
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    rows: list[list[list[dict[str, object]]]] = []
    # Pillow releases the GIL while it encodes PNGs: threads are as fast as processes here, and start faster.
    for block in map_in_threads(lambda numbers: _write_block(folder, settings, numbers), blocks, _WORKERS):
        rows.append(block)
        if progress is not None:
            progress(min(len(rows) * BLOCK, count), count)
    annotations = [[row for block in rows for row in block[file]] for file in range(len(_FILES))]
    for name, written in zip(_FILES, annotations):
        write_atomic(folder / name, _json(written))
    weighted = ((_FILES[0], "true"), (_FILES[1], "false"))
    lines = [f"{_PICTURES},{name},{weight}\n" for (name, weight), there in zip(weighted, annotations) if there]
    write_atomic(done, "".join(lines).encode())
    shutil.rmtree(folder / _BLOCKS)
    return done


def task_number(number: int, settings: _Settings) -> ShapesTask:
    """Return task `number`, independently of all other tasks."""
    rng = np.random.default_rng([settings.seed, _SPLITS.index(settings.split), number])
    return make_task(any_kind(rng, settings.kinds), rng, settings.split, settings.side)


def _check(settings: _Settings) -> None:
    if settings.count < 1:
        raise UniWorldError(f"The number of tasks is {settings.count}; it must be at least 1.")
    if settings.seed < 0:
        raise UniWorldError(f"The seed is {settings.seed}; it must be 0 or more.")
    check_split(settings.split)
    check_side(settings.side)
    unknown = [kind for kind in settings.kinds if kind not in KINDS]
    if unknown or not settings.kinds:
        raise UniWorldError(f"Unknown kinds of tasks {unknown}; choose some of {', '.join(KINDS)}.")


def _claim(folder: Path, settings: _Settings) -> None:
    """Create the folder with these settings, or check that its settings are the same."""
    file = folder / _SETTINGS
    wanted = json.loads(_json(asdict(settings)))
    if file.is_file():
        there = read_json(file)
        other = [
            f"{name} {there.get(name)} instead of {value}" for name, value in wanted.items() if there.get(name) != value
        ]
        if other:
            raise UniWorldError(
                f"'{folder}' contains tasks with other settings ({'; '.join(other)}): choose another folder."
            )
        return
    try:
        if folder.is_dir() and any(file.suffix != PART_SUFFIX for file in folder.iterdir()):
            raise UniWorldError(f"'{folder}' contains other files: choose an empty or new folder.")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(cannot_write(folder, error)) from error
    write_atomic(file, _json(wanted))


def _write_block(folder: Path, settings: _Settings, numbers: range) -> list[list[dict[str, object]]]:
    """Write a block's pictures and return its annotations for each file. A finished block is only read."""
    block = numbers.start // BLOCK
    file = folder / _BLOCKS / f"{block:05d}.json"
    if file.is_file():
        try:
            return loads(file.read_bytes())
        except BadJson as error:
            raise UniWorldError(f"'{file}' {error}: delete it to generate its tasks again.") from error
    rows: list[list[dict[str, object]]] = [[] for _ in _FILES]
    within = Path(f"{block:05d}")
    try:
        (folder / _PICTURES / within).mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(exist_ok=True)
        for number in numbers:
            task = task_number(number, settings)
            images = [*task.references, *([task.target] if task.target else [])]
            names = [(within / f"{number:08d}-{place}.png").as_posix() for place in range(len(images))]
            for name, image in zip(names, images):
                (folder / _PICTURES / name).write_bytes(_png(image))
            rows[2 if task.kind == "question" else int(not task.weighted)].append(_annotation(number, task, names))
    except OSError as error:
        raise UniWorldError(cannot_write(folder / _PICTURES / within, error)) from error
    write_atomic(file, _json(rows))
    return rows


def _annotation(number: int, task: ShapesTask, names: list[str]) -> dict[str, object]:
    marks = IMAGE_MARK * len(task.before)
    answer = PAINT_MARK if task.answer is None else task.answer
    turns = [{"from": "human", "value": f"{marks}{task.prompt}"}, {"from": "gpt", "value": answer}]
    return {"id": f"{task.kind}-{number:08d}", "image": names, "conversations": turns}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, indent=0, ensure_ascii=False).encode()
