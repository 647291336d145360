"""A weighted mean of several rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....uniworld_core.errors import UniWorldError, shown
from .protocol import Reward, RewardFailure, RewardItem, Score, checked_scores


class WeightedReward:
    """Adds the scores of rewards with weights. Weights are divided by their sum, so scores stay within 0 to 1.

    Args:
        parts: rewards with positive weights.

    Attributes:
        name: as in `Reward`.
        parts: the rewards with their shares, which add up to 1.

    Raises:
        UniWorldError: there are no parts, or a weight is not a positive number.
    """

    def __init__(self, parts: Sequence[tuple[Reward, float]]) -> None:
        for reward, weight in parts:
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise UniWorldError(f"The weight of the reward {reward.name} is {shown(weight)}; it must be above 0.")
        if not parts:
            raise UniWorldError("A weighted reward has no parts: name at least one.")
        total = sum(weight for _, weight in parts)
        self.parts = [(reward, weight / total) for reward, weight in parts]
        self.name = " + ".join(f"{share:.2g} {reward.name}" for reward, share in self.parts)

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """As `Reward.score`. An item fails if any part fails; later parts do not see it then."""
        sums = [0.0] * len(items)
        failures: dict[int, RewardFailure] = {}
        for reward, share in self.parts:
            left = [index for index in range(len(items)) if index not in failures]
            for index, score in zip(left, checked_scores(reward, [items[index] for index in left]), strict=True):
                if isinstance(score, RewardFailure):
                    failures[index] = RewardFailure(f"{reward.name}: {score.reason}")
                else:
                    sums[index] += share * score
        # A rounding error may lead above 1.
        return [failures.get(index, min(total, 1.0)) for index, total in enumerate(sums)]

    def close(self) -> None:
        """Close all parts."""
        for reward, _ in self.parts:
            reward.close()
