"""Scores of any reward are checked before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image
from uniworld.training.editr1.reward.protocol import RewardFailure, RewardItem, checked_scores
from uniworld.uniworld_core.errors import UniWorldError

ITEM = RewardItem("Paint it red.", (), Image.new("RGB", (8, 8)))


class Fixed:
    """Returns the given scores."""

    name = "fixed"

    def __init__(self, *scores: Any) -> None:
        self.scores = scores

    def score(self, items: Sequence[RewardItem]) -> Sequence[Any]:
        return self.scores

    def close(self) -> None:
        pass


def test_valid_scores_and_failures_pass() -> None:
    failed = RewardFailure("it\n timed out")
    assert checked_scores(Fixed(0, 0.25, 1.0, failed), [ITEM] * 4) == [0.0, 0.25, 1.0, RewardFailure("it timed out")]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.5, "0.5", None, True])
def test_anything_else_is_a_failure_that_names_it(score: Any) -> None:
    (found,) = checked_scores(Fixed(score), [ITEM])
    assert isinstance(found, RewardFailure)
    assert str(score) in found.reason


def test_a_wrong_number_of_scores_is_an_error() -> None:
    with pytest.raises(UniWorldError, match="fixed returned 1 scores for 2 pictures"):
        checked_scores(Fixed(0.5), [ITEM, ITEM])


def test_nothing_to_score_asks_nobody() -> None:
    assert checked_scores(Fixed(0.5), []) == []
