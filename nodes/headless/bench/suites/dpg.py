"""DPG-Bench: 1,065 long prompts, each with yes/no questions to a VQA model about four pictures in a grid.

Source: TencentQQGYLab/ELLA 3c228f1, dpg_bench/compute_dpg_bench.py. The mode `published` reproduces the script with its
bugs, and `strict` gives the intended scores.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .....uniworld_core.errors import UniWorldError, brief, shown
from ..download import Download, is_relative, parquet_rows, text_of
from ..items import BenchItem, BenchItems, BenchScores, Suite, SuiteOptions, Values
from ..judging.ask import Ask, AskPicture
from ..judging.vqa import kind_of, question_text
from ..scoring import dpg
from ..scoring.outcome import Mode, Unscored, mean

_WHERE = "Download the folder dpg_bench of https://github.com/TencentQQGYLab/ELLA."
_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
# Pictures in each result: a grid of four, as published, or one.
_SPLITS = {"four": 4, "one": 1}
_OTHER = dpg.DPGQuestion("", 0, (0,), "", "")
# Endings of the values that are counts.
YES, OF = " (right)", " (questions)"
_REQUEST = "Look at the picture and answer with one word, yes or no.\n"


class DPGSuite(Suite):
    """DPG-Bench with a language model that sees pictures in place of the published VQA model."""

    title = "DPG-Bench"
    sizes = dict.fromkeys(_SPLITS, 1065)
    about = "1,065 long prompts for text to image, with questions to a VQA model"
    splits: tuple[str, ...] = tuple(_SPLITS)
    main = "score"
    columns: tuple[str, ...] = ("score",)

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """See `Suite.read`."""
        download = Download(data, self.title, _WHERE)
        rows, path = _rows(download)
        questions = dpg.read_questions(rows)
        if not questions:
            raise UniWorldError(f"'{path}' has no questions. {_WHERE}")
        prompts: dict[str, str] = {}
        asked: dict[str, list[dict[str, Any]]] = {}
        for place, (row, question) in enumerate(zip(rows, questions)):
            where = f"Row {place + 1} of '{path}'"
            if not is_relative(question.item) or "/" in question.item:
                raise UniWorldError(f"{where}: the id is {shown(question.item)}, expected a name. {_WHERE}")
            prompts.setdefault(question.item, text_of(row, "text", where))
            starts = place == 0 or questions[place - 1].item != question.item
            asked.setdefault(question.item, []).append(
                {
                    "number": question.number,
                    "parents": list(question.parents),
                    "category": question.category,
                    "text": text_of(row, "question_natural_language", where),
                    "after": "start" if place == 0 else "other" if starts else "same",
                }
            )
        tiles = _SPLITS[options.split]
        items = [
            BenchItem(name, "all", name, prompt, name, tiles=tiles, extra={"questions": asked[name]})
            for name, prompt in prompts.items()
        ]
        return BenchItems("unknown", tuple(items), {}, download.files)

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """See `Suite.asks`: each question about each picture of the grid."""
        boxes = _boxes(result) if item.tiles > 1 else [None]
        asks = {}
        for place, box in enumerate(boxes):
            crop = place + 1 if box is not None else 0
            for question in item.extra["questions"]:
                kind, text = kind_of(crop, question["text"]), self._text(question["text"], crop)
                asks[kind] = Ask(kind, text, (AskPicture(result, box=box),), temperature=self._temperature)
        return list(asks.values())

    _temperature: float | None = 0.0

    def _text(self, question: str, crop: int) -> str:
        return _REQUEST + question

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check`. The first word must be yes or no."""
        found = self._answer(reply)
        return found if isinstance(found, Unscored) else None

    def _answer(self, reply: str) -> str | Unscored:
        word = next(iter(re.findall(r"[^\W\d_]+", reply)), "").casefold()
        return word if word in ("yes", "no") else Unscored("the reply does not start with yes or no")

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """See `Suite.score`: the mean over the pictures, and the answers by category for the table."""
        crops = range(1, item.tiles + 1) if item.tiles > 1 else [0]
        given = {}
        for one in item.extra["questions"]:
            found = [self._answer(answers[kind_of(crop, one["text"])]) for crop in crops]
            unread = next((answer for answer in found if isinstance(answer, Unscored)), None)
            if unread is not None:
                return unread
            given[one["number"]] = [str(answer) for answer in found]
        compute = dpg.published if mode == "published" else dpg.intended
        made = compute(_questions(item), {item.id: given})
        if item.id in made.unscored:
            return Unscored(made.unscored[item.id])
        values = {"score": made.pictures[item.id].score}
        for category, (yes, count) in made.answers.items():
            values |= {f"{category}{YES}": yes, f"{category}{OF}": float(count)}
        return values

    def rows(self, items: Sequence[BenchItem]) -> list[str]:
        """See `Suite.rows`: the categories and subcategories of the questions; the published script skips the first one."""
        asked = [one for item in items for one in item.extra["questions"] if one["after"] != "start"]
        details = dict.fromkeys(one["category"] for one in asked)
        return list(dict.fromkeys([*(_broad(name) for name in details), *details]))

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """See `Suite.aggregate`: percent of yes by category and subcategory, and the DPG-Bench score in percent."""
        return by_question([values for _, values in entries], 100.0, "DPG", _broad)


class DPGVQASuite(DPGSuite):
    """DPG-Bench with a VQA model. As published, every answer but "yes" is no."""

    _temperature = None

    def _text(self, question: str, crop: int) -> str:
        return question_text(question, crop)

    def _answer(self, reply: str) -> str | Unscored:
        return reply


DPGSuite.vqa = DPGVQASuite()


def by_question(rows: Sequence[Values], scale: float, name: str, broad: Callable[[str], str]) -> BenchScores:
    """Compute the mean of the scores, and the fractions of right answers by category, times `scale`.

    Args:
        broad: returns the category of a subcategory; both are rows of the table.
    """
    totals: dict[str, list[float]] = {}
    for values in rows:
        for key, value in values.items():
            if key.endswith(YES):
                for category in {key.removesuffix(YES), broad(key.removesuffix(YES))}:
                    total = totals.setdefault(category, [0.0, 0.0])
                    total[0] += value
                    total[1] += values[key.removesuffix(YES) + OF]
    order = sorted(totals, key=lambda category: (category != broad(category), category))
    groups = {category: {"score": scale * totals[category][0] / totals[category][1]} for category in order}
    counts = {category: round(totals[category][1]) for category in order}
    return BenchScores(groups, {name: scale * mean(values["score"] for values in rows)}, counts)


def _broad(category: str) -> str:
    return category.split("-")[0].strip()


def _questions(item: BenchItem) -> list[dpg.DPGQuestion]:
    """Return the rows of one item with what is between them in the file: the published script depends on that."""
    made: list[dpg.DPGQuestion] = []
    for one in item.extra["questions"]:
        if one["after"] == "other":
            made.append(_OTHER)
        made.append(dpg.DPGQuestion(item.id, one["number"], tuple(one["parents"]), one["category"], one["text"]))
    return made


def _boxes(result: Path) -> list[tuple[int, int, int, int] | None]:
    """Return the four quarters of a picture, row by row."""
    try:
        with Image.open(result) as picture:
            width, height = picture.width // 2, picture.height // 2
    except (OSError, SyntaxError) as error:
        raise UniWorldError(f"The picture '{result}' cannot be read: {brief(error)}. Replace it.") from error
    places = ((0, 0), (width, 0), (0, height), (width, height))
    return [(left, top, left + width, top + height) for left, top in places]


def _rows(download: Download) -> tuple[list[Mapping[str, Any]], Path]:
    paths = download.all("dpg_bench.csv")
    if not paths:
        return parquet_rows(download, _COLUMNS, "the file 'dpg_bench.csv'")
    path = download.one("dpg_bench.csv")
    try:
        rows: list[Mapping[str, Any]] = list(csv.DictReader(io.StringIO(download.text(path), newline="")))
    except csv.Error as error:
        raise UniWorldError(f"'{path}' is not a CSV file: {brief(error)}. {_WHERE}") from error
    return rows, path
