"""The rows of a batch: what each row changes in the workflow, read from a JSON Lines file and checked before a run."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError, shown
from ....uniworld_core.files import read_limited
from ....uniworld_core.json_text import BadJson, loads
from ..check.validate import validate_prompt
from ..registry.registry import Registry
from ..storage import folders
from ..workflow.file import Workflow, find_node, set_value

KEYS = ("id", "set", "image")
MAX_BYTES = 2**30  # all rows are kept in memory
_MAX_LISTED_LINES = 10


class BadRows(UniWorldError):
    """Rows that cannot run; `problems` has one sentence per problem."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__("\n  ".join([f"The rows in '{path}' cannot run:", *problems]), problems)


@dataclass(frozen=True)
class BatchRow:
    """One run of the workflow.

    Attributes:
        line: line number in the file, from 1.
        set: values by "NODE.input", as for `--set`.
        image: picture files by node, as for `--image`, relative to the folder of the rows file.
        folder: name of the folder for this row's pictures.
    """

    id: str
    line: int
    set: dict[str, str | int | float | bool] = field(default_factory=dict)
    image: dict[str, str] = field(default_factory=dict)
    folder: str = ""


def read_rows(path: Path) -> list[BatchRow]:
    """Read a file of rows: one JSON object per line, `{"id": ..., "set": {...}, "image": {...}}`, every key optional.

    Raises:
        UniWorldError: the file cannot be read.
        BadRows: lines are invalid; every one of them is named.
    """
    try:
        data = read_limited(path, MAX_BYTES)
    except OSError as error:
        raise UniWorldError(f"The rows '{path}' cannot be read: {error.strerror}. Check the path.") from error
    if data is None:
        raise UniWorldError(f"'{path}' is larger than {MAX_BYTES // 2**20} MiB. Split it into several batches.")
    rows: list[BatchRow] = []
    problems: list[str] = []
    lines: dict[str, int] = {}
    # Not splitlines(): it also splits at separators such as U+2028, which are valid inside a JSON string.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = _parse_row(line, number)
            if row.id in lines:
                raise UniWorldError(f"line {lines[row.id]} also has the id {shown(row.id)}. Ids must be unique.")
        except UniWorldError as error:
            problems.append(f"Line {number}: {error}")
            continue
        lines[row.id] = number
        rows.append(row)
    if not rows and not problems:
        problems.append(
            'The file has no rows. A row is a line such as {"id": "fox", "set": {"Condition.prompt": "A fox."}}.'
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
        raise UniWorldError(f"{shown(data)} is not a JSON object. Write {{}} to run the workflow unchanged.")
    unknown = [key for key in data if key not in KEYS]
    if unknown:
        raise UniWorldError(f"unknown key {shown(unknown[0])}. A row may have the keys {', '.join(KEYS)}.")
    row_id = data.get("id", str(number))
    if not isinstance(row_id, str) or not row_id.strip() or len(row_id) > 1000:
        raise UniWorldError(f'"id" must be a string of 1 to 1000 characters, not {shown(row_id)}.')
    values, images = data.get("set", {}), data.get("image", {})
    if not isinstance(values, dict):
        raise UniWorldError(f'"set" must map NODE.input to values; it is {shown(values)}.')
    if not isinstance(images, dict):
        raise UniWorldError(f'"image" must map nodes to picture files; it is {shown(images)}.')
    for target, value in values.items():
        if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            raise UniWorldError(
                f'"set" gives {target} the invalid value {shown(value)}. Use a string, a number, true or false.'
            )
    for node, file in images.items():
        if not isinstance(file, str) or not file:
            raise UniWorldError(f'"image" gives {node} the picture {shown(file)}. Use the path of a file, as a string.')
    return BatchRow(row_id, number, values, images)


def _with_folders(rows: list[BatchRow]) -> list[BatchRow]:
    """Give each row a folder name: deterministic, made of plain characters, and unique on every file system."""
    taken: set[str] = set()  # case-folded, as Windows and macOS ignore case
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


def check_rows(
    rows: list[BatchRow],
    path: Path,
    workflow: Workflow,
    registry: Registry,
    problems_of: Callable[[dict[str, Any]], list[str]] | None = None,
) -> None:
    """Check the workflow with the values of every row, without running anything.

    Args:
        problems_of: returns the problems of a workflow in API form; None for the check of a local run.

    Raises:
        BadRows: some rows cannot run. Lines with the same problem share a sentence.
    """
    lines: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        try:
            # Pictures are bound per row: thousands of them would otherwise pile up in the lists of choices.
            with folders.use(replace(folders.current(), bound={})):
                # Only the prompt is checked; copying the editor's graph for every row is slow.
                changed = apply_row(Workflow(workflow.prompt), row, path.parent, registry)
                if problems_of is None:
                    problems = validate_prompt(changed.prompt, registry).sentences
                else:
                    problems = problems_of(changed.prompt)
        except UniWorldError as error:
            problems = [str(error)]
        for problem in problems:
            lines[problem].append(row.line)
    if lines:
        raise BadRows(path, [f"{_line_list(numbers)}: {problem}" for problem, numbers in lines.items()])


def _line_list(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"Line {numbers[0]}"
    few = ", ".join(map(str, numbers[:_MAX_LISTED_LINES]))
    return f"Lines {few}" + (f" and {len(numbers) - _MAX_LISTED_LINES} more" * (len(numbers) > _MAX_LISTED_LINES))


def apply_row(workflow: Workflow, row: BatchRow, pictures: Path, registry: Registry) -> Workflow:
    """Return a copy of the workflow with the row's values and pictures.

    The pictures are bound to names in the current folders (`folders.use`).

    Args:
        pictures: the folder that the row's picture paths are relative to.

    Raises:
        UniWorldError: the workflow has no such node or input, the value is invalid, or a picture is missing.
    """
    changed = workflow.copied()
    for target, value in row.set.items():
        node, dot, name = target.rpartition(".")
        if not dot or not node:
            raise UniWorldError(f"'{target}' in \"set\" is not of the form NODE.input, such as Sampler.steps.")
        # set_value parses text, as the command line passes it; the JSON text of a value is exactly that.
        set_value(changed, registry, node, name, value if isinstance(value, str) else json.dumps(value))
    for node, file in row.image.items():
        # Looked up first, so that a wrong node name is reported before a wrong path.
        node_id = find_node(changed.prompt, node)
        set_value(changed, registry, node_id, "image", folders.current().bind(pictures / folders.expand_path(file)))
    changed.resolve_texts(registry)
    return changed


def hash_rows(rows: list[BatchRow]) -> str:
    return hash_json([{"id": row.id, "set": row.set, "image": row.image} for row in rows])


def hash_json(value: object) -> str:
    """Hash a JSON value, independent of whitespace and key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
