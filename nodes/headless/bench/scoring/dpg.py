"""DPG-Bench: from a VQA model's yes/no answers on grids of pictures to the table.

Source: TencentQQGYLab/ELLA 3c228f1, dpg_bench/compute_dpg_bench.py, run as one process. Published results contain three
bugs of that script, which `published` reproduces and `intended` fixes:

- The first row of the questions is skipped. An item can thereby lose a question that others depend on, and drop out.
- Categories count only the last crop.
- A question whose parent's score was set to zero is set to zero too, but only if the parent precedes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .....uniworld_core.errors import UniWorldError
from .outcome import Unscored, mean

YES = "yes"


@dataclass(frozen=True)
class DPGQuestion:
    """One row of dpg_bench.csv.

    Attributes:
        item: file name of the picture without extension.
        number: `proposition_id`, which other questions of the item refer to.
        parents: `dependency`; 0 for none.
        category: the text before the parenthesis in `tuple`, such as "entity - whole".
    """

    item: str
    number: int
    parents: tuple[int, ...]
    category: str
    text: str


@dataclass(frozen=True)
class CropScores:
    """Scores of one picture's crops."""

    crops: tuple[float, ...]

    @property
    def score(self) -> float:
        return mean(self.crops)


@dataclass(frozen=True)
class DPGResult:
    """The table of a run.

    Attributes:
        pictures: scores of each scored item.
        unscored: items without a score, with the reason.
        broad: percentage of yes by category, such as "entity".
        detailed: percentage of yes by subcategory, such as "entity - whole".
        score: the DPG-Bench score in percent; None if no item is scored.
        answers: number of yes and of all answers by subcategory.
    """

    pictures: dict[str, CropScores]
    unscored: dict[str, str]
    broad: dict[str, float]
    detailed: dict[str, float]
    score: float | None
    answers: dict[str, tuple[float, int]]


# The VQA model's answers: item -> question number -> answer for each crop.
Answers = Mapping[str, Mapping[int, Sequence[str]]]


def read_questions(rows: Sequence[Mapping[str, object]]) -> list[DPGQuestion]:
    """Parse the rows of dpg_bench.csv. Raises UniWorldError with the number of an invalid row."""
    made = []
    for number, row in enumerate(rows, 1):
        try:
            parents = tuple(int(part) for part in str(row["dependency"]).split(","))
            category = str(row["tuple"]).split("(")[0].strip()
            made.append(
                DPGQuestion(
                    str(row["item_id"]),
                    int(str(row["proposition_id"])),
                    parents,
                    category,
                    str(row["question_natural_language"]),
                )
            )
        except (KeyError, ValueError) as error:
            raise UniWorldError(
                f"Row {number} of the questions is invalid ({error}): download dpg_bench.csv again."
            ) from error
    return made


def published(questions: Sequence[DPGQuestion], answers: Answers) -> DPGResult:
    """Compute the table of the published script, bugs included, for the items that have answers."""
    by_item: dict[str, dict[int, DPGQuestion]] = {}
    previous = None
    for question in questions[1:]:
        if question.item != previous:
            by_item[question.item] = {}
        by_item[question.item][question.number] = question
        previous = question.item
    pictures: dict[str, CropScores] = {}
    unscored: dict[str, str] = {}
    last: dict[str, list[float]] = {}
    for item, given in answers.items():
        asked = by_item.get(item, {})
        if not asked:
            unscored[item] = "it has no questions"
            continue
        scores = _crops(asked, given, chained=True)
        if isinstance(scores, Unscored):
            unscored[item] = scores.reason
            continue
        pictures[item] = CropScores(scores)
        for number, question in asked.items():
            last.setdefault(question.category, []).append(float(given[number][-1] == YES))
    return _result(pictures, unscored, last)


def intended(questions: Sequence[DPGQuestion], answers: Answers) -> DPGResult:
    """Compute the table without the script's bugs.

    All rows are used, categories count all crops, and a question counts as no only if one of its own parents was answered
    with no.
    """
    by_item: dict[str, dict[int, DPGQuestion]] = {}
    for question in questions:
        by_item.setdefault(question.item, {})[question.number] = question
    pictures: dict[str, CropScores] = {}
    unscored: dict[str, str] = {}
    every: dict[str, list[float]] = {}
    for item, given in answers.items():
        asked = by_item.get(item, {})
        scores = _crops(asked, given, chained=False) if asked else Unscored("it has no questions")
        if isinstance(scores, Unscored):
            unscored[item] = scores.reason
            continue
        pictures[item] = CropScores(scores)
        for number, question in asked.items():
            every.setdefault(question.category, []).extend(float(answer == YES) for answer in given[number])
    return _result(pictures, unscored, every)


def _crops(
    asked: Mapping[int, DPGQuestion], given: Mapping[int, Sequence[str]], chained: bool
) -> tuple[float, ...] | Unscored:
    """Return the score of each crop.

    Args:
        chained: a question that was set to zero also sets later questions that depend on it to zero.
    """
    missing = [question.text for number, question in asked.items() if number not in given]
    if missing:
        return Unscored(f"{len(missing)} questions have no answer, such as '{missing[0]}'")
    counts = {len(given[number]) for number in asked}
    if len(counts) != 1 or counts == {0}:
        return Unscored(f"its questions are answered for {sorted(counts)} crops")
    made = []
    for crop in range(counts.pop()):
        raw = {number: float(given[number][crop] == YES) for number in asked}
        scores = dict(raw)
        for number, question in asked.items():
            for parent in question.parents:
                if parent == 0:
                    continue
                if parent not in scores:
                    return Unscored(f"question {number} depends on question {parent}, which is missing")
                if (scores if chained else raw)[parent] == 0:
                    scores[number] = 0.0
                    break
        made.append(mean(scores.values()))
    return tuple(made)


def _result(
    pictures: dict[str, CropScores], unscored: dict[str, str], categories: Mapping[str, list[float]]
) -> DPGResult:
    broad: dict[str, list[float]] = {}
    for category, values in categories.items():
        broad.setdefault(category.split("-")[0].strip(), []).extend(values)
    return DPGResult(
        pictures,
        unscored,
        {name: 100 * mean(values) for name, values in broad.items()},
        {name: 100 * mean(values) for name, values in categories.items()},
        100 * mean(picture.score for picture in pictures.values()) if pictures else None,
        {name: (sum(values), len(values)) for name, values in categories.items()},
    )
