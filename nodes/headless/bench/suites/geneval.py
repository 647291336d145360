"""GenEval: 553 prompts in six tags, four pictures each, judged by an object detector and CLIP.

Source: djghosh13/geneval af4902f, evaluation/evaluate_images.py. The detector's reply is the JSON list of what it found, so
that rules are applied to recorded detections.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .....uniworld_core.errors import UniWorldError, shown
from .....uniworld_core.json_text import BadJson, loads
from ..download import Download, text_of
from ..items import DRAW, BenchItem, BenchItems, BenchScores, Suite, SuiteOptions, Values
from ..judging.ask import Ask, AskPicture
from ..scoring import geneval
from ..scoring.outcome import Mode, Unscored

_WHERE = (
    "Download https://github.com/djghosh13/geneval; the prompts are in its folder prompts, the names in evaluation."
)
SAMPLES = 4
CLASSES = 80
# SHA-256 of the metadata without the prompts, as JSON with sorted keys.
_KNOWN = "43aacfc727c36e564e12cbbd02affd5c814c0e2a07f17defd8a4371a87454467"
# Long prompts of Bagel have the same metadata.
_SPLITS = {"original": "evaluation_metadata.jsonl", "rewritten": "evaluation_metadata_long.jsonl"}


class GenEvalSuite(Suite):
    """GenEval; "rewritten" has the longer prompts of Bagel with the same metadata."""

    title = "GenEval"
    sizes = dict.fromkeys(_SPLITS, 553)
    about = "553 prompts for text to image, four pictures each, judged by an object detector"
    splits: tuple[str, ...] = tuple(_SPLITS)
    main = "correct"
    by_detector = True
    pooled: tuple[str, ...] = ("pictures", "prompts")

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """See `Suite.read`."""
        download = Download(data, self.title, _WHERE)
        path = download.one(_SPLITS[options.split])
        names = [line.strip() for line in download.text(download.one("object_names.txt")).splitlines() if line.strip()]
        if len(names) != CLASSES:
            raise UniWorldError(f"object_names.txt has {len(names)} names, expected {CLASSES}. {_WHERE}")
        records = download.json_lines(path)
        items = tuple(_item(number, record, set(names), path) for number, record in enumerate(records))
        if not items:
            raise UniWorldError(f"'{path}' has no prompts. {_WHERE}")
        rules = [{key: one for key, one in item.extra["metadata"].items() if key != "prompt"} for item in items]
        digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
        edition = options.split if digest == _KNOWN else "unknown"
        return BenchItems(edition, items, {"names": "\n".join(names)}, download.files)

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """See `Suite.asks`. The text lists the classes for the detector, and those whose colors matter."""
        colored = sorted({one["class"] for one in item.extra["metadata"].get("include", ()) if "color" in one})
        question = {"names": prompts["names"].split("\n"), "colors_of": colored}
        return [Ask("detections", json.dumps(question), (AskPicture(result),))]

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check`."""
        found = _detections(reply)
        return found if isinstance(found, Unscored) else None

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """See `Suite.score`: 1 if the picture matches its prompt."""
        found = _detections(answers.get("detections", ""))
        if isinstance(found, Unscored):
            return found
        colors = {id(detection): color for detection, color in found}
        kept = geneval.keep([detection for detection, _ in found], item.group)

        def colors_of(name: str, ones: Sequence[geneval.Detection]) -> list[str]:
            return [colors[id(one)] for one in ones]

        return {"correct": float(geneval.judge(item.extra["metadata"], kept, colors_of).correct)}

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """See `Suite.aggregate`. GenEval's score is the mean over tags."""
        rows = [
            (item.group, f"{item.extra.get(DRAW, 0)} {json.dumps(item.extra['metadata'])}", values["correct"] == 1)
            for item, values in entries
        ]
        made = geneval.summarize(rows)
        tags = [tag for tag in geneval.TAGS if tag in made.tags] + [tag for tag in made.tags if tag not in geneval.TAGS]
        overall = {"overall": made.overall, "pictures": made.pictures, "prompts": made.prompts}
        return BenchScores({tag: {"correct": made.tags[tag]} for tag in tags}, overall)

    def companions(self, item: BenchItem) -> dict[str, str]:
        """See `Suite.companions`: the published scorer reads the prompt's metadata beside its pictures."""
        return {f"{item.id}/metadata.jsonl": json.dumps(item.extra["metadata"])}


def _item(number: int, record: Any, names: set[str], path: Path) -> BenchItem:
    where = f"Line {number + 1} of '{path}'"
    if not isinstance(record, dict):
        raise UniWorldError(f"{where} is {shown(record)}, expected a prompt. {_WHERE}")
    include, exclude = record.get("include", []), record.get("exclude", [])
    clauses = [*include, *exclude] if isinstance(include, list) and isinstance(exclude, list) else [None]
    for place, clause in enumerate(clauses):
        if not _valid(clause, names, place):
            raise UniWorldError(f"{where} has an invalid clause: {shown(clause)}. {_WHERE}")
    name = f"{number:05d}"
    prompt, tag = text_of(record, "prompt", where), text_of(record, "tag", where)
    return BenchItem(name, tag, name, prompt, f"{name}/samples/{{sample}}", samples=SAMPLES, extra={"metadata": record})


def _valid(clause: Any, names: set[str], place: int) -> bool:
    if (
        not isinstance(clause, dict)
        or clause.get("class") not in list(names)
        or not isinstance(clause.get("count"), int)
    ):
        return False
    if clause.get("color") not in (None, *geneval.COLORS):
        return False
    position = clause.get("position")
    if position is None:
        return True
    # Another relation would never hold.
    valid = isinstance(position, list) and len(position) == 2 and position[0] in geneval.RELATIONS
    return valid and position[1] in range(place)


def _detections(reply: str) -> list[tuple[geneval.Detection, str]] | Unscored:
    """Return the detections of a reply, with the color of each ("" if it was not asked for)."""
    try:
        found = loads(reply)
        return [
            (geneval.Detection(one["name"], tuple(one["box"]), one["score"]), one.get("color", "")) for one in found
        ]
    except (BadJson, KeyError, TypeError):
        return Unscored("the detections are damaged")
