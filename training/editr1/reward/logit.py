"""The logit reward: a vision-language model judges a picture, and its first token's logits are the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ....uniworld_core.errors import UniWorldError
from .protocol import RewardFailure, RewardItem, Score
from .question import Ask, Question, QuestionTemplate
from .score_tokens import DIGITS, check_answers, expected_score


class LogitJudge(Protocol):
    """A vision-language model that answers questions about pictures."""

    def token_id(self, answer: str) -> int:
        """Return the id of an answer's token. Raises UniWorldError if the answer is not a single token."""

    def logits(self, questions: Sequence[Question]) -> torch.Tensor:
        """Return the logits (N, V) of the first token of the answers, or after their start, in any float dtype.

        Raises:
            UniWorldError: a question is invalid, for example too long.
        """


class LogitReward:
    """Asks a judge about every picture.

    Args:
        judge: the model.
        ask: makes the question about an item.
        answers: possible answers from the worst to the best, each a single token.
        batch: number of questions at once.

    Attributes:
        name: as in `Reward`.

    Raises:
        UniWorldError: an answer is not a single token of the judge, or `batch` is less than 1.
    """

    name = "logit"

    def __init__(
        self, judge: LogitJudge, ask: Ask | None = None, answers: Sequence[str] = DIGITS, batch: int = 8
    ) -> None:
        if batch < 1:
            raise UniWorldError(f"The batch of the logit reward is {batch}; it must be at least 1.")
        self._judge, self._ask, self._batch = judge, ask or QuestionTemplate(), batch
        self._tokens = [judge.token_id(answer) for answer in check_answers(answers)]

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """As `Reward.score`. A question that the judge cannot answer is a failure of its item only."""
        scores: list[Score] = []
        for start in range(0, len(items), self._batch):
            questions = [self._ask(item) for item in items[start : start + self._batch]]
            try:
                scores += self._scores(questions)
            except UniWorldError:
                scores += [self._alone(question) for question in questions]
        return scores

    def close(self) -> None:
        """Do nothing; the judge belongs to the caller."""

    def _alone(self, question: Question) -> Score:
        try:
            return self._scores([question])[0]
        except UniWorldError as error:
            return RewardFailure(str(error))

    def _scores(self, questions: Sequence[Question]) -> list[Score]:
        logits = self._judge.logits(questions)
        finite = torch.isfinite(logits[:, self._tokens].float()).all(dim=-1).tolist()
        scores = expected_score(logits, self._tokens).tolist()
        return [
            score if good else RewardFailure("the judge's logits are NaN or infinite")
            for score, good in zip(scores, finite, strict=True)
        ]
