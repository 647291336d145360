"""TIFA: from a VQA model's answers to multiple-choice questions to the table.

Source: Yushi-Hu/tifa 8e37050, tifascore/tifa_score.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .outcome import mean


@dataclass(frozen=True)
class TIFAQuestion:
    """One question about a caption's picture, with the correct answer."""

    caption: str
    text: str
    answer: str
    element_type: str


@dataclass(frozen=True)
class TIFAResult:
    """The table of a run.

    Attributes:
        captions: fraction of correct answers for each caption whose questions are all answered.
        types: fraction of correct answers for each element type, over the questions of these captions.
        average: mean over captions; None if there are none.
        deviation: sample standard deviation (n - 1) over captions; None for fewer than two.
        unscored: captions without a score, with the reason.
    """

    captions: dict[str, float]
    types: dict[str, float]
    average: float | None
    deviation: float | None
    unscored: dict[str, str]


def score(questions: Sequence[TIFAQuestion], answers: Mapping[tuple[str, str], str]) -> TIFAResult:
    """Compute the table from answers by (caption, question).

    A caption with an unanswered question is unscored; the published script would crash.
    """
    by_caption: dict[str, list[TIFAQuestion]] = {}
    for question in questions:
        by_caption.setdefault(question.caption, []).append(question)
    captions: dict[str, float] = {}
    types: dict[str, list[float]] = {}
    unscored: dict[str, str] = {}
    for caption, asked in by_caption.items():
        missing = [question.text for question in asked if (caption, question.text) not in answers]
        if missing:
            unscored[caption] = f"{len(missing)} of {len(asked)} questions have no answer"
            continue
        right = [float(answers[caption, question.text] == question.answer) for question in asked]
        captions[caption] = mean(right)
        for question, one in zip(asked, right):
            types.setdefault(question.element_type, []).append(one)
    return TIFAResult(
        captions,
        {name: mean(values) for name, values in types.items()},
        mean(captions.values()) if captions else None,
        statistics.stdev(captions.values()) if len(captions) > 1 else None,
        unscored,
    )
