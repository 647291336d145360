"""UniSandbox: pictures that need reasoning or knowledge, described by a judge and compared with the answer by text.

Source: PKU-YuanGroup/UniSandBox c5f0af8 and 2bc73eb, eval/eval_{math,mapping,knowledge}.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from .....uniworld_core.errors import UniWorldError, shown
from ..download import Download, is_relative, text_of
from ..items import BenchItem, BenchItems, BenchScores, Suite, SuiteOptions, Values
from ..judging.ask import Ask, AskPicture
from ..scoring import unisandbox
from ..scoring.outcome import Mode, Unscored
from ..scoring.unisandbox import Test

_WHERE = "Download https://github.com/PKU-YuanGroup/UniSandBox; it needs the folders benchmark and eval."


@dataclass(frozen=True)
class _Script:
    """The published script of a test: names of its prompts, the template's fields, and the limits of tokens."""

    first: str
    second: str
    description: str
    answer: str
    first_tokens: int = 10240
    second_tokens: int = 10240


_SCRIPTS: dict[Test, _Script] = {
    "math": _Script("CAPTION_PROMPT", "EVALUATION_PROMPT_TEMPLATE", "caption", "expected_answer"),
    "mapping": _Script("IDENTIFICATION_PROMPT", "EVALUATION_PROMPT_TEMPLATE", "identified_object", "expected_answer"),
    "knowledge": _Script("CAPTION_PROMPT", "EVAL_PROMPT_TEMPLATE", "caption", "gt", 2048, 1024),
}
# For each split: files of the items, the tests in them, and the folder of the pictures.
_SPLITS: dict[str, tuple[str, tuple[Test, ...], str]] = {
    "reasoning": ("test_reasoning/*.jsonl", ("math", "mapping"), "normal"),
    "reasoning_think": ("test_reasoning/*.jsonl", ("math", "mapping"), "think"),
    "knowledge": ("test_knowledge/*.jsonl", ("knowledge",), "normal"),
    "knowledge_think": ("test_knowledge/*.jsonl", ("knowledge",), "think"),
}


class UniSandboxSuite(Suite):
    """UniSandbox. The splits "think" have the same items; the pictures are made with a chain of thought."""

    title = "UniSandbox"
    about = "text to image that needs reasoning, or knowledge from training"
    splits: tuple[str, ...] = tuple(_SPLITS)
    main = "correct"
    pooled: tuple[str, ...] = ("accuracy",)

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """See `Suite.read`."""
        download = Download(data, self.title, _WHERE)
        pattern, tests, folder = _SPLITS[options.split]
        prompts: dict[str, str] = {}
        for test in tests:
            prompts |= _prompts(download, test)
        items: dict[str, BenchItem] = {}
        for path in _files(download, pattern, tests):
            for number, record in enumerate(download.json_lines(path), 1):
                item = _item(record, path.stem, _test_of(path, tests), folder, f"Line {number} of '{path}'")
                if item.id in items:
                    raise UniWorldError(f"'{path}' has several items with the id {item.id}. {_WHERE}")
                items[item.id] = item
        return BenchItems("unknown", tuple(items.values()), prompts, download.files)

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """See `Suite.asks`. The second question, about the description, has no picture."""
        test: Test = item.extra["test"]
        script = _SCRIPTS[test]
        first, second = f"{test} description", f"{test} verdict"
        picture = (AskPicture(result),)
        asks = [Ask(first, prompts[first], picture, "", script.first_tokens, 0.0, pictures_first=True)]
        found = unisandbox.description(answered.get(first), test)
        if isinstance(found, str):
            fields = {script.description: found, script.answer: item.extra["answer"]}
            asks.append(Ask(second, _filled(prompts[second], fields), (), "", script.second_tokens, 0.0))
        return asks

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check`."""
        test, _, question = kind.partition(" ")
        if question == "verdict":
            read: object = unisandbox.verdict(reply, mode)
        else:
            read = unisandbox.description(reply, next(one for one in get_args(Test) if one == test))
        return read if isinstance(read, Unscored) else None

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """See `Suite.score`: 1 if the picture shows the answer. Without a description to compare, it is wrong."""
        test: Test = item.extra["test"]
        found = unisandbox.description(answers.get(f"{test} description"), test)
        right = unisandbox.verdict(answers.get(f"{test} verdict"), mode) if isinstance(found, str) else found
        return right if isinstance(right, Unscored) else {"correct": float(right)}

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """See `Suite.aggregate`. A mapping item counts once, for both of its pictures."""
        verdicts, groups = {}, {}
        for place, (group, right) in enumerate(_joined(entries)):
            verdicts[str(place)], groups[str(place)] = right, group
        table = unisandbox.table(verdicts, groups)
        return BenchScores({name: {"correct": value} for name, value in table.groups.items()}, table.overall)


def _joined(entries: Sequence[tuple[BenchItem, Values]]) -> list[tuple[str, bool | Unscored]]:
    """Return the group and the verdict of each item, with the two pictures of a mapping item joined.

    A resampled pair occurs as often as it is drawn. A pair with one scored picture is wrong if that one is, else unscored.
    """
    made: list[tuple[str, bool | Unscored]] = []
    pairs: dict[str, tuple[BenchItem, dict[str, list[bool]]]] = {}
    for item, values in entries:
        right = values["correct"] == 1
        if "side" not in item.extra:
            made.append((item.group, right))
        else:
            sides = pairs.setdefault(item.cluster, (item, {"A": [], "B": []}))[1]
            sides[item.extra["side"]].append(right)
    for item, sides in pairs.values():
        unscored = Unscored("the other picture of the pair has no score")
        for place in range(max(map(len, sides.values()))):
            first, second = (one[place] if place < len(one) else unscored for one in sides.values())
            made.append((item.group, unisandbox.both(first, second)))
    return made


def _prompts(download: Download, test: Test) -> dict[str, str]:
    script = _SCRIPTS[test]
    path = download.one(f"eval_{test}.py")
    found = download.constants(path, (script.first, script.second))
    for name in (script.description, script.answer):
        if f"{{{name}}}" not in found[script.second]:
            raise UniWorldError(f"'{path}': {script.second} has no field {{{name}}}. {_WHERE}")
    return {f"{test} description": found[script.first], f"{test} verdict": found[script.second]}


def _filled(template: str, fields: Mapping[str, str]) -> str:
    """Replace `{name}` in one pass, so that braces in a description stay as they are."""
    return re.sub("|".join(rf"\{{({name})\}}" for name in fields), lambda found: fields[found[0][1:-1]], template)


def _files(download: Download, pattern: str, tests: Sequence[Test]) -> list[Path]:
    names = sorted({f"{path.parent.name}/{path.name}" for path in download.all(pattern)})
    found = [download.one(name) for name in names]
    lacking = set(tests) - {_test_of(path, tests) for path in found}
    if lacking:
        raise download.missing(f"the files '{pattern}' of the test {min(lacking)}")
    return found


def _test_of(path: Path, tests: Sequence[Test]) -> Test:
    return "mapping" if "mapping" in path.stem and "mapping" in tests else tests[0]


def _item(record: Any, stem: str, test: Test, folder: str, where: str) -> BenchItem:
    if not isinstance(record, dict):
        raise UniWorldError(f"{where} is {shown(record)}, expected an item. {_WHERE}")
    number = record.get("id", record.get("ID"))
    if isinstance(number, bool) or not isinstance(number, int | str) or not is_relative(str(number)):
        raise UniWorldError(f"{where}: the id is {shown(number)}, expected a number. {_WHERE}")
    name = cluster = f"{stem}/{number}"
    extra = {"test": test, "answer": text_of(record, "Answer", where)}
    key = "Question"
    if test == "mapping":
        side = "A" if "Question_A" in record else "B"
        key, name, extra = f"Question_{side}", f"{name}_{side}", {**extra, "side": side}
    return BenchItem(name, stem, cluster, text_of(record, key, where), f"{folder}/{name}", extra=extra)
