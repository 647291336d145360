"""Tasks as training data in the published format: pictures, annotations, and the list that names them.

    folder/data.txt            pictures,edits.json,true and pictures,others.json,false: what `[data] list` takes
    folder/edits.json          annotations whose edited area is weighed
    folder/others.json         all other paintings
    folder/questions.json      questions with answers, outside the list
    folder/pictures/000/...    PNG

Task number n depends on the seed and n alone. Tasks are written in blocks, and a block's annotations after its
pictures, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import PART_SUFFIX
from ....uniworld_core.json_text import BadJson, loads
from ....uniworld_core.loading.settings import read_json
from ...data.annotations import IMAGE_MARK, PAINT_MARK
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
    """What the tasks of a folder are made by."""

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
    """Write tasks, or go on writing them.

    Args:
        folder: is made if it is not there.
        count: of tasks, of kinds as often as `KIND_WEIGHTS` says.
        split: "train" or "test".
        side: of the pictures in pixels.
        kinds: some of `KINDS`; None takes all.
        progress: called with the tasks done and all there are.

    Returns:
        The list file, for `[data] list`.

    Raises:
        UniWorldError: a setting that is not known, a folder that holds tasks of other settings, or a disk that is full.
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
    # Writing PNGs leaves Python's lock: threads are as good as processes here, and start at once.
    with ThreadPoolExecutor(_WORKERS) as pool:
        for block in pool.map(lambda numbers: _write_block(folder, settings, numbers), blocks):
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
    """The task of that number: the same whatever was made before it."""
    rng = np.random.default_rng([settings.seed, _SPLITS.index(settings.split), number])
    return make_task(any_kind(rng, settings.kinds), rng, settings.split, settings.side)


def _check(settings: _Settings) -> None:
    if settings.count < 1:
        raise UniWorldError(f"{settings.count} tasks were asked for; it must be at least 1.")
    if settings.seed < 0:
        raise UniWorldError(f"The seed is {settings.seed}; it must be 0 or more.")
    check_split(settings.split)
    check_side(settings.side)
    unknown = [kind for kind in settings.kinds if kind not in KINDS]
    if unknown or not settings.kinds:
        raise UniWorldError(f"The kinds of tasks {unknown} are not known; choose some of {', '.join(KINDS)}.")


def _claim(folder: Path, settings: _Settings) -> None:
    """Make the folder this run's, or find that it is."""
    file = folder / _SETTINGS
    wanted = json.loads(_json(asdict(settings)))
    if file.is_file():
        there = read_json(file)
        other = [
            f"{name} {there.get(name)} instead of {value}" for name, value in wanted.items() if there.get(name) != value
        ]
        if other:
            raise UniWorldError(f"'{folder}' holds tasks of other settings ({'; '.join(other)}): name another folder.")
        return
    try:
        if folder.is_dir() and any(file.suffix != PART_SUFFIX for file in folder.iterdir()):
            raise UniWorldError(f"'{folder}' holds other files: name an empty folder, or one that does not exist.")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniWorldError(cannot_write(folder, error)) from error
    write_atomic(file, _json(wanted))


def _write_block(folder: Path, settings: _Settings, numbers: range) -> list[list[dict[str, object]]]:
    """The annotations of a block for each of the files, after its pictures are written; read if they were before."""
    block = numbers.start // BLOCK
    file = folder / _BLOCKS / f"{block:05d}.json"
    if file.is_file():
        try:
            return loads(file.read_bytes())
        except BadJson as error:
            raise UniWorldError(f"'{file}' {error}: delete it, and its tasks are made again.") from error
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
