"""ImgEdit-Bench multi-turn: two or three edits in a row of each picture, which people compare.

Source: PKU-YuanGroup/ImgEdit 547185d, Benchmark/Multiturn/Multiturn_readme.md. It gives the items as a JSON object by number.
The files in Benchmark.tar, `multiturn/content_memory/annotation.json` and two more, are JSON Lines without numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .....uniworld_core.errors import UniWorldError, shown
from .....uniworld_core.json_text import BadJson, loads
from ..damaged import picture_problem
from ..download import Download, is_relative, root_of, text_of
from ..items import BenchItem, BenchItems, BenchScores, Suite, SuiteOptions, Values
from ..judging.ask import Ask
from ..scoring.outcome import Mode, Unscored

_WHERE = "Download Benchmark.tar from https://huggingface.co/datasets/sysuyy/ImgEdit and unpack it."

EDITS, CONVERSATION = "edits", "conversation"
# The three tasks, with the names of their folders in Benchmark.tar and in the README.
_TASKS = {
    "content_memory": ("content_memory",),
    "content_understanding": ("content_understand", "content_understanding"),
    "version_backtracking": ("version_backtrace", "version_backtracking"),
}


class ImgEditTurnsSuite(Suite):
    """The multi-turn suite. A result is a turn of an item; the sample is the number of the turn."""

    title = "ImgEdit-Bench multi-turn"
    about = "two or three edits in a row; without a published scorer, so that people compare the images"
    splits: tuple[str, ...] = (EDITS, CONVERSATION)
    main = ""
    scored = False

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """See `Suite.read`."""
        download = Download(data, self.title, _WHERE)
        items: list[BenchItem] = []
        missing: dict[str, str] = {}
        for task, names in _TASKS.items():
            path = _file(download, task, names)
            records = _records(download, path)
            root = root_of(download, [str(record.get("id")) for record in records.values()], path.parent)
            for key, record in records.items():
                item = _item(task, key, record, path.parent if root is None else root, path)
                items.append(item)
                problem = picture_problem(Path(str(item.picture)))
                if problem is not None:
                    missing[item.id] = problem
        return BenchItems("unknown", tuple(items), {}, download.files, missing)

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """See `Suite.asks`."""
        return []

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check`."""
        return Unscored("there is no scorer")

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """See `Suite.score`."""
        return Unscored("there is no scorer")

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """See `Suite.aggregate`."""
        return BenchScores({}, {})


def _file(download: Download, task: str, names: Sequence[str]) -> Path:
    """Return the file of a task: any JSON file in its folder, or named like it."""
    found = {
        path.name
        for path in download.all("*.json", "*.jsonl")
        if not path.name.startswith(".") and (path.parent.name in names or path.stem in names)
    }
    if not found:
        raise download.missing(f"the file 'multiturn/{names[0]}/annotation.json'")
    return download.one(*sorted(found), accept=lambda path: path.parent.name in names or path.stem in names)


def _records(download: Download, path: Path) -> dict[str, dict[str, Any]]:
    """Return the items by number."""
    try:
        content = loads(download.text(path))
    except BadJson:
        content = download.json_lines(path)  # which says what is wrong
    if isinstance(content, dict) and "turn1" in content:
        content = [content]  # JSON Lines with a single line
    if isinstance(content, list):
        content = {str(number): record for number, record in enumerate(content, 1)}
    if not isinstance(content, dict) or not content or not all(isinstance(one, dict) for one in content.values()):
        raise UniWorldError(f"'{path}' must contain items with id and turn1; it is {shown(content)}. {_WHERE}")
    return content


def _item(task: str, key: str, record: Mapping[str, Any], root: Path, path: Path) -> BenchItem:
    where = f"Item '{key}' of '{path}'"
    name = text_of(record, "id", where)
    if not is_relative(name) or not is_relative(key) or "/" in key:
        raise UniWorldError(f"{where}: the key or the picture '{name}' is not a name inside its folder. {_WHERE}")
    given = {field: value for field, value in record.items() if re.fullmatch(r"turn\d+", field)}
    while given and given[last := max(given, key=lambda field: int(field[4:]))] in ("", None):
        del given[last]  # such as the third of two turns
    fields = [f"turn{number}" for number in range(1, len(given) + 1)]
    if not given or given.keys() != set(fields):
        listed = ", ".join(given) or "missing"
        raise UniWorldError(f"{where}: its turns are {listed}, expected turn1, turn2 and so on. {_WHERE}")
    turns = [text_of(record, field, where) for field in fields]
    return BenchItem(
        id=f"{task}/{key}",
        group=task,
        cluster=f"{task}/{name}",
        prompt="\n".join(turns),
        target=f"{task}/{key}_turn{{turn}}",
        picture=str((root / name).resolve()),
        samples=len(turns),
        extra={"turns": turns},
    )
