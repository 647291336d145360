"""A reward from questions whose correct answers are known: how probable a vision-language model finds these answers.

It needs no model that can grade. One that answers simple questions about pictures is enough, if the task says what the
painted picture must show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ....uniworld_core.errors import UniWorldError
from .logit import LogitJudge
from .protocol import RewardFailure, RewardItem, Score
from .question import Question
from .score_tokens import answer_probability, check_answers


@dataclass(frozen=True)
class KnownQuestion:
    """A question with its correct answer.

    Attributes:
        question: the question.
        answers: the possible answers, each a single token of the judge.
        right: the correct one of them.
    """

    question: Question
    answers: tuple[str, ...]
    right: str


# Returns the questions about an item, at least one; or why there are none.
AskKnown: TypeAlias = "Callable[[RewardItem], Sequence[KnownQuestion] | RewardFailure]"


class KnownAnswerReward:
    """Asks a judge several questions about every picture.

    The score is the geometric mean of the probabilities of the correct answers, among the possible ones. A single wrong
    answer thus costs more than in the arithmetic mean, where many easy questions would hide it.

    Args:
        judge: the model.
        ask: makes the questions about an item.
        batch: number of questions at once.

    Attributes:
        name: as in `Reward`.

    Raises:
        UniWorldError: `batch` is less than 1.
    """

    name = "questions"

    def __init__(self, judge: LogitJudge, ask: AskKnown, batch: int = 8) -> None:
        if batch < 1:
            raise UniWorldError(f"The batch of the reward from questions is {batch}; it must be at least 1.")
        self._judge, self._ask, self._batch = judge, ask, batch
        self._ids: dict[str, int] = {}

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """As `Reward.score`. An item fails if there is no question about it, or the judge cannot answer one.

        Raises:
            UniWorldError: an answer is not a single token of the judge.
        """
        asked = [self._ask(item) for item in items]
        todo = [(index, one) for index, some in enumerate(asked) if not isinstance(some, RewardFailure) for one in some]
        # Questions of similar length share a batch, with little padding.
        todo.sort(key=lambda pair: len(pair[1].question.text) + len(pair[1].question.begun))
        found: dict[int, list[Score]] = {index: [] for index in range(len(items))}
        for start in range(0, len(todo), self._batch):
            some = todo[start : start + self._batch]
            for (index, _), score in zip(some, self._probabilities([one for _, one in some]), strict=True):
                found[index].append(score)
        return [one if isinstance(one, RewardFailure) else _joined(found[index]) for index, one in enumerate(asked)]

    def close(self) -> None:
        """Do nothing; the judge belongs to the caller."""

    def _probabilities(self, asked: Sequence[KnownQuestion]) -> list[Score]:
        answers = [[self._id(answer) for answer in check_answers(one.answers)] for one in asked]
        try:
            logits = self._judge.logits([one.question for one in asked])
        except UniWorldError as error:
            if len(asked) > 1:
                return [score for one in asked for score in self._probabilities([one])]
            return [RewardFailure(str(error))]
        return [
            _probability(row, ids, one.answers.index(one.right))
            for row, ids, one in zip(logits, answers, asked, strict=True)
        ]

    def _id(self, answer: str) -> int:
        if answer not in self._ids:
            self._ids[answer] = self._judge.token_id(answer)
        return self._ids[answer]


def _probability(logits_V: torch.Tensor, ids: Sequence[int], right: int) -> Score:
    if not torch.isfinite(logits_V[list(ids)].float()).all():
        return RewardFailure("the judge's logits are NaN or infinite")
    return answer_probability(logits_V, ids, right)


def _joined(scores: Sequence[Score]) -> Score:
    """Return the geometric mean, or the first failure."""
    failures = [one for one in scores if isinstance(one, RewardFailure)]
    if failures or not scores:
        return failures[0] if failures else RewardFailure("there is no question about the picture")
    values = [one for one in scores if not isinstance(one, RewardFailure)]
    return math.prod(values) ** (1 / len(values))
