"""The reward from questions with known answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from uniworld.training.editr1.reward.judges import open_judge
from uniworld.training.editr1.reward.known_answers import KnownAnswerReward, KnownQuestion
from uniworld.training.editr1.reward.protocol import RewardFailure, RewardItem, Score
from uniworld.training.editr1.reward.question import Question
from uniworld.uniworld_core.errors import UniWorldError

WORDS = {"no": 3, "yes": 7, "red": 5}


class KnownJudge:
    """Finds "yes" nine times as probable as "no" and "red", and rejects the word "bad"."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def token_id(self, answer: str) -> int:
        if answer not in WORDS:
            raise UniWorldError(f"The answer {answer!r} is 2 tokens")
        return WORDS[answer]

    def logits(self, questions: Sequence[Question]) -> torch.Tensor:
        self.asked.append(len(questions))
        if any("bad" in question.text for question in questions):
            raise UniWorldError("a question is too long")
        logits = torch.full((len(questions), 9), 50.0)
        logits[:, 3] = logits[:, 5] = 0
        logits[:, 7] = torch.tensor([float("nan") if "nan" in q.text else 2.1972246 for q in questions])
        return logits


def ask(item: RewardItem) -> list[KnownQuestion] | RewardFailure:
    """Each word of the prompt is a question whose correct answer it is."""
    if not item.prompt:
        return RewardFailure("nothing to ask")
    return [
        KnownQuestion(Question(word, (item.picture,)), ("no", "yes", "red")[: 2 + (word == "red")], word[:3])
        for word in item.prompt.split()
    ]


def score(judge: KnownJudge, *prompts: str) -> list[Score]:
    items = [RewardItem(prompt, (), Image.new("RGB", (8, 8))) for prompt in prompts]
    return KnownAnswerReward(judge, ask, batch=2).score(items)


def test_the_score_is_the_geometric_mean_of_the_probabilities_of_the_correct_answers() -> None:
    judge = KnownJudge()
    scores = score(judge, "yes", "yes no yes", "red", "")
    assert scores[:3] == pytest.approx([0.9, (0.9 * 0.1 * 0.9) ** (1 / 3), 1 / 11])
    assert scores[3] == RewardFailure("nothing to ask")
    assert judge.asked == [2, 2, 1]


def test_a_question_without_an_answer_fails_its_own_picture_only() -> None:
    class Renamed(KnownJudge):
        def token_id(self, answer: str) -> int:
            return WORDS[{"bad": "no", "nan": "no"}.get(answer, answer)]

    def asked(item: RewardItem) -> list[KnownQuestion]:
        return [KnownQuestion(Question(word, (item.picture,)), ("yes", word), word) for word in item.prompt.split()]

    items = [RewardItem(prompt, (), Image.new("RGB", (8, 8))) for prompt in ("no", "bad no", "nan", "red no")]
    scores = KnownAnswerReward(Renamed(), asked, batch=8).score(items)
    assert [isinstance(one, RewardFailure) for one in scores] == [False, True, True, False]
    assert "too long" in str(scores[1])
    assert "NaN" in str(scores[2])
    with pytest.raises(UniWorldError, match="2 tokens"):
        KnownAnswerReward(KnownJudge(), asked).score([RewardItem("white", (), Image.new("RGB", (8, 8)))])
    with pytest.raises(UniWorldError, match="at least 1"):
        KnownAnswerReward(KnownJudge(), ask, batch=0)


def test_a_judge_continues_an_answer_that_is_begun() -> None:
    judge = open_judge("tiny", "cpu", torch.float32)
    picture = Image.new("RGB", (28, 28), "red")
    alone, begun, padded = (
        judge.logits([Question("Describe it.", (picture,), start) for start in starts])[0]
        for starts in (("",), ("A red",), ("A red", "A red square on a very"))
    )
    assert (alone - begun).abs().max() > 1e-3
    torch.testing.assert_close(begun, padded, atol=1e-4, rtol=1e-4)
