"""TIFA: 4,081 captions with multiple-choice questions to a VQA model.

Source: Yushi-Hu/tifa 8e37050, tifascore/tifa_score.py and tifa_v1.0/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .....uniworld_core.errors import UniWorldError, shown
from ..download import Download, is_relative, text_of
from ..items import BenchItem, BenchItems, BenchScores, Suite, SuiteOptions, Values
from ..judging.ask import Ask, AskPicture
from ..judging.vqa import question_text
from ..scoring import tifa
from ..scoring.outcome import Mode, Unscored
from .dpg import OF, YES, by_question

_WHERE = "Download the folder tifa_v1.0 of https://github.com/Yushi-Hu/tifa."
_FILE = "tifa_v1.0_question_answers.json"
_REQUEST = "Look at the picture and answer the question with one of the choices, and nothing else.\n"


class TIFASuite(Suite):
    """TIFA with a language model that sees pictures in place of the published VQA model."""

    title = "TIFA"
    about = "captions for text to image, with multiple-choice questions to a VQA model"
    splits: tuple[str, ...] = ()
    main = "score"
    columns: tuple[str, ...] = ("score",)

    def read(self, data: Sequence[Path], options: SuiteOptions, sources: Path) -> BenchItems:
        """See `Suite.read`."""
        download = Download(data, self.title, _WHERE)
        path = download.one(_FILE)
        records = download.json(path)
        if not isinstance(records, list) or not records:
            raise UniWorldError(f"'{path}' must be a list of questions; it is {shown(records)}. {_WHERE}")
        captions: dict[str, str] = {}
        asked: dict[str, list[dict[str, Any]]] = {}
        for number, record in enumerate(records, 1):
            name, question = _question(record, f"Question {number} of '{path}'")
            captions.setdefault(name, text_of(record, "caption", f"Question {number} of '{path}'"))
            asked.setdefault(name, []).append(question)
        items = tuple(
            BenchItem(name, "all", name, caption, name, extra={"questions": asked[name]})
            for name, caption in captions.items()
        )
        return BenchItems("unknown", items, {}, download.files)

    def asks(self, item: BenchItem, result: Path, prompts: Mapping[str, str], answered: Mapping[str, str]) -> list[Ask]:
        """See `Suite.asks`."""
        picture = (AskPicture(result),)
        asks = {
            one["text"]: Ask(one["text"], self._text(one), picture, temperature=self._temperature)
            for one in item.extra["questions"]
        }
        return list(asks.values())

    _temperature: float | None = 0.0

    def _text(self, question: Mapping[str, Any]) -> str:
        return f"{_REQUEST}Question: {question['text']}\nChoices: {', '.join(question['choices'])}"

    def check(self, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check`. Whether a reply is one of the choices is known in `check_for` only."""
        return None if reply.strip() else Unscored("the reply is empty")

    def check_for(self, item: BenchItem, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check_for`: the reply must be one of the question's choices."""
        choices = {one["text"]: one["choices"] for one in item.extra["questions"]}[kind]
        answer = self._answer(reply, choices, mode)
        return self.check(kind, reply, mode) or (answer if isinstance(answer, Unscored) else None)

    def score(self, item: BenchItem, answers: Mapping[str, str], mode: Mode) -> Values | Unscored:
        """See `Suite.score`: the fraction of correct answers, and the answers by type for the table."""
        questions, given = [], {}
        for one in item.extra["questions"]:
            answer = self._answer(answers[one["text"]], one["choices"], mode)
            if isinstance(answer, Unscored):
                return answer
            given[item.id, one["text"]] = answer
            questions.append(tifa.TIFAQuestion(item.id, one["text"], one["answer"], one["type"]))
        made = tifa.score(questions, given)
        values = {"score": made.captions[item.id]}
        for kind in made.types:
            ones = [one for one in questions if one.element_type == kind]
            right = sum(given[item.id, one.text] == one.answer for one in ones)
            values |= {f"{kind}{YES}": float(right), f"{kind}{OF}": float(len(ones))}
        return values

    def _answer(self, reply: str, choices: Sequence[str], mode: Mode) -> str | Unscored:
        word = _plain(reply)
        found = [choice for choice in choices if _plain(choice) == word]
        return found[0] if found else Unscored(f"the reply {shown(reply)} is not one of the choices")

    def rows(self, items: Sequence[BenchItem]) -> list[str]:
        """See `Suite.rows`: the types of elements that the questions are about."""
        return list(dict.fromkeys(one["type"] for item in items for one in item.extra["questions"]))

    def aggregate(self, entries: Sequence[tuple[BenchItem, Values]]) -> BenchScores:
        """See `Suite.aggregate`: the mean over captions with its standard deviation, and by type of element."""
        made = by_question([values for _, values in entries], 1.0, "TIFA", lambda name: name)
        if len(entries) > 1:
            made.overall["deviation"] = float(np.std([values["score"] for _, values in entries], ddof=1))
        return made


class TIFAVQASuite(TIFASuite):
    """TIFA with a VQA model, which chooses an answer. `published` counts other answers as wrong."""

    _temperature = None

    def _text(self, question: Mapping[str, Any]) -> str:
        return question_text(question["text"], choices=tuple(question["choices"]))

    def check_for(self, item: BenchItem, kind: str, reply: str, mode: Mode) -> Unscored | None:
        """See `Suite.check_for`. Asked again, a VQA model gives the same answer."""
        return self.check(kind, reply, mode)

    def _answer(self, reply: str, choices: Sequence[str], mode: Mode) -> str | Unscored:
        return reply if mode == "published" else super()._answer(reply, choices, mode)


TIFASuite.vqa = TIFAVQASuite()


def _plain(text: str) -> str:
    return text.strip(" \t\r\n.*_\"'`").casefold()


def _question(record: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(record, dict):
        raise UniWorldError(f"{where} is {shown(record)}, expected a question. {_WHERE}")
    name, choices = text_of(record, "id", where), record.get("choices")
    if not is_relative(name) or "/" in name:
        raise UniWorldError(f"{where}: the id is {shown(name)}, expected a name. {_WHERE}")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise UniWorldError(f"{where}: 'choices' is {shown(choices)}, expected a list of texts. {_WHERE}")
    texts = {key: text_of(record, field, where) for key, field in _FIELDS.items()}
    return name, {**texts, "choices": choices}


_FIELDS = {"text": "question", "answer": "answer", "type": "element_type"}
