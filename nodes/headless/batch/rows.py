"""The rows of a batch: what each one changes in the workflow, read from a file of JSON lines and checked as a whole."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from ....uniworld_core.errors import UniWorldError, shown
from ....uniworld_core.json_text import BadJson, loads
from ..check.validate import validate_prompt
from ..registry.registry import Registry
from ..storage import folders
from ..workflow.file import Workflow, find_node, set_value

KEYS = ("id", "set", "image")
MAX_BYTES = 2**30  # the rows are held in memory
_MAX_LISTED_LINES = 10


class BadRows(UniWorldError):
    """What is wrong with the rows, a sentence each in `problems`."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__("\n  ".join([f"The rows in '{path}' cannot run:", *problems]), problems)


@dataclass(frozen=True)
class BatchRow:
    """One run of the workflow.

    Attributes:
        line: where it stands in the file, counted from 1.
        set: values by "NODE.input", as of `--set`.
        image: picture files by node, as of `--image`, relative to the folder of the rows.
        folder: the name of the folder that its pictures go to.
    """

    id: str
    line: int
    set: dict[str, str | int | float | bool] = field(default_factory=dict)
    image: dict[str, str] = field(default_factory=dict)
    folder: str = ""


def read_rows(path: Path) -> list[BatchRow]:
    """Read a file of rows: one JSON object per line, `{"id": ..., "set": {...}, "image": {...}}`, every key optional.

    Raises:
        UniWorldError: the file cannot be read, or a `BadRows` that names every bad line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UniWorldError(f"'{path}' is larger than {MAX_BYTES // 2**20} MiB. Split it into several batches.")
        data = path.read_bytes()
    except OSError as error:
        raise UniWorldError(f"The rows '{path}' cannot be read: {error.strerror}. Check the path.") from error
    rows: list[BatchRow] = []
    problems: list[str] = []
    lines: dict[str, int] = {}
    # Not splitlines(), which would also split at separators that may stand inside a JSON text.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = _parse_row(line, number)
            if row.id in lines:
                raise UniWorldError(f"the id {shown(row.id)} is that of line {lines[row.id]} too. Ids must be unique.")
        except UniWorldError as error:
            problems.append(f"Line {number}: {error}")
            continue
        lines[row.id] = number
        rows.append(row)
    if not rows and not problems:
        problems.append(
            'It holds no rows. A row is a line such as {"id": "fox", "set": {"Condition.prompt": "A fox."}}.'
        )
    if problems:
        raise BadRows(path, problems)
    return _with_folders(rows)


def _parse_row(line: bytes, number: int) -> BatchRow:
    try:
        data = loads(line)
    except BadJson as error:
        raise UniWorldError(f"it {error}.") from error
    if not isinstance(data, dict):
        raise UniWorldError(f"it holds {shown(data)}, no JSON object. Write {{}} for the workflow as it is.")
    unknown = [key for key in data if key not in KEYS]
    if unknown:
        raise UniWorldError(f"there is no key {shown(unknown[0])} in a row. The keys are: {', '.join(KEYS)}.")
    row_id = data.get("id", str(number))
    if not isinstance(row_id, str) or not row_id.strip() or len(row_id) > 1000:
        raise UniWorldError(f'"id" must be a text of 1 to 1000 characters, and is {shown(row_id)}.')
    values, images = data.get("set", {}), data.get("image", {})
    if not isinstance(values, dict):
        raise UniWorldError(f'"set" must map NODE.input to values, and is {shown(values)}.')
    if not isinstance(images, dict):
        raise UniWorldError(f'"image" must map nodes to picture files, and is {shown(images)}.')
    for target, value in values.items():
        if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            raise UniWorldError(f'"set" gives {target} the value {shown(value)}. Give a text, a number, true or false.')
    for node, file in images.items():
        if not isinstance(file, str):
            raise UniWorldError(f'"image" gives {node} the picture {shown(file)}. Give the path of a file as a text.')
    return BatchRow(row_id, number, values, images)


def _with_folders(rows: list[BatchRow]) -> list[BatchRow]:
    """Give each row a folder name that is the same each time, plain, and different on every file system."""
    taken: set[str] = set()
    named = []
    for row in rows:
        plain = re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", row.id))[:50].strip(".") or "row"
        if not _is_folder_name(plain):
            plain = "row"
        name, digest, length = plain, hashlib.sha256(row.id.encode(errors="surrogatepass")).hexdigest(), 8
        while name.casefold() in taken:
            name, length = f"{plain}-{digest[:length]}", length + 8
        taken.add(name.casefold())
        named.append(replace(row, folder=name))
    return named


def _is_folder_name(name: str) -> bool:
    try:
        folders.check_relative(name)
    except UniWorldError:
        return False
    return True


def check_rows(rows: list[BatchRow], path: Path, workflow: Workflow, registry: Registry) -> None:
    """Check the workflow with the values of every row, running nothing.

    Raises:
        BadRows: some row cannot run; lines with the same problem are told together.
    """
    lines: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        try:
            # Each row's pictures are bound for itself, so that thousands do not pile up in the lists of choices.
            with folders.use(replace(folders.current(), bound={})):
                # Without the graph, which does not matter for the check and is slow to copy.
                changed = apply_row(Workflow(workflow.prompt), row, path.parent, registry)
                problems = validate_prompt(changed.prompt, registry).sentences
        except UniWorldError as error:
            problems = [str(error)]
        for problem in problems:
            lines[problem].append(row.line)
    if lines:
        raise BadRows(path, [f"{_told(numbers)}: {problem}" for problem, numbers in lines.items()])


def _told(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"Line {numbers[0]}"
    few = ", ".join(map(str, numbers[:_MAX_LISTED_LINES]))
    return f"Lines {few}" + (f" and {len(numbers) - _MAX_LISTED_LINES} more" * (len(numbers) > _MAX_LISTED_LINES))


def apply_row(workflow: Workflow, row: BatchRow, pictures: Path, registry: Registry) -> Workflow:
    """A copy of the workflow with the row's values and pictures, which lie in or relative to the folder `pictures`.

    The pictures get their names in the current folders (`folders.use`).

    Raises:
        UniWorldError: the workflow has no such node or input, it does not take the value, or a picture is missing.
    """
    changed = workflow.copied()
    for target, value in row.set.items():
        node, dot, name = target.rpartition(".")
        if not dot or not node:
            raise UniWorldError(f"'{target}' in \"set\" is not of the form NODE.input, such as Sampler.steps.")
        # One way of giving values: what --set takes is the text of the JSON value.
        set_value(changed, registry, node, name, value if isinstance(value, str) else json.dumps(value))
    for node, file in row.image.items():
        # Looked up first, so that a wrong node name is told before a wrong path.
        node_id = find_node(changed.prompt, node)
        set_value(changed, registry, node_id, "image", folders.current().bind(pictures / folders.named_path(file)))
    changed.fill_in(registry)
    return changed


def hash_rows(rows: list[BatchRow]) -> str:
    return hash_json([{"id": row.id, "set": row.set, "image": row.image} for row in rows])


def hash_json(value: object) -> str:
    """A hash of what the JSON means, whatever its spaces and the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
