"""The protocol of a reward: it scores painted pictures, or reports why it could not.

A failure masks its sample and is counted. It never becomes a score, because a silent 0 would train the policy away from a
picture that nobody has looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from PIL import Image

from ....uniworld_core.errors import UniWorldError, shown

_REASON_LENGTH = 300


@dataclass(frozen=True)
class RewardItem:
    """A painted picture with what it was painted from.

    Attributes:
        prompt: the instruction.
        references: the reference pictures, as the policy saw them.
        picture: the painted picture.
        requirement: what the judge must check in addition, as in the published annotations; "" for nothing.
        task: the task's exact answer, for rewards that know it, such as the oracle of the world of shapes; else None.
    """

    prompt: str
    references: tuple[Image.Image, ...]
    picture: Image.Image
    requirement: str = ""
    task: object = None


@dataclass(frozen=True)
class RewardFailure:
    """Why a picture has no score."""

    reason: str


Score: TypeAlias = "float | RewardFailure"


class Reward(Protocol):
    """Scores painted pictures from 0, the worst, to 1.

    Attributes:
        name: name of the reward in metrics and messages.
    """

    name: str

    def score(self, items: Sequence[RewardItem]) -> Sequence[Score]:
        """Return a score or a failure for each item, in order.

        An item that cannot be scored is a `RewardFailure`. Raise only if no item can ever be scored.

        Raises:
            UniWorldError: the reward cannot be used at all, for example because a token is rejected.
        """

    def close(self) -> None:
        """Release what the reward holds, such as connections and workers."""


def checked_scores(reward: Reward, items: Sequence[RewardItem]) -> list[Score]:
    """Score items, and turn scores that are not numbers from 0 to 1 into failures.

    Raises:
        UniWorldError: the reward returned another number of scores, so that none can be assigned to its item.
    """
    if not items:
        return []
    scores = list(reward.score(items))
    if len(scores) != len(items):
        raise UniWorldError(
            f"The reward {reward.name} returned {len(scores)} scores for {len(items)} pictures: none can be assigned."
        )
    return [_checked(score) for score in scores]


def _checked(score: object) -> Score:
    if isinstance(score, RewardFailure):
        return RewardFailure(" ".join(score.reason.split())[:_REASON_LENGTH] or "no reason given")
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        return RewardFailure(f"the score is {shown(score)}, which is not a number")
    if not 0 <= score <= 1:  # not a number is outside too
        return RewardFailure(f"the score is {shown(score)}, which is not from 0 to 1")
    return float(score)
