"""Advantages of an epoch's rewards within their groups, and the filters of uninformative groups.

Published: flow_grpo/stat_tracking.py and scripts/train_nft_kontext.py; paper: arXiv 2510.16888, low-variance group filter.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...uniworld_core.errors import UniWorldError
from ..config.editr1 import AdvantageSettings

# Added to the standard deviation, as published.
_EPS = 1e-4


@dataclass(frozen=True)
class GroupStats:
    """Statistics of one group.

    Attributes:
        rewards: its rewards.
        mean, std: of the rewards; the standard deviation is that of the population.
        trains: whether the group passed the filter.
    """

    rewards: tuple[float, ...]
    mean: float
    std: float
    trains: bool

    @property
    def best(self) -> float:
        """The highest reward."""
        return max(self.rewards)

    def top_mean(self, percent: float) -> float:
        """Return the mean of the rewards from the (100 - percent)th percentile up."""
        rewards = np.array(self.rewards)
        return float(rewards[rewards >= np.percentile(rewards, 100 - percent)].mean())


@dataclass(frozen=True)
class Advantages:
    """Advantages of N samples.

    Attributes:
        values: (N,) float64; 0 for samples without a reward.
        valid: (N,) whether the sample is trained on.
        stats: {group: statistics of its rewards}.
        mastered: groups with std < `min_std` and mean > `max_mean`.
    """

    values: NDArray[np.float64]
    valid: NDArray[np.bool_]
    stats: dict[Hashable, GroupStats]
    mastered: tuple[Hashable, ...]

    @property
    def flat_share(self) -> float:
        """Fraction of groups whose rewards are all equal."""
        return float(np.mean([one.std == 0 for one in self.stats.values()])) if self.stats else 0.0

    def top_mean(self, percent: float) -> float | None:
        """Return the mean over all groups of their `GroupStats.top_mean`, as published; None without a group."""
        return float(np.mean([one.top_mean(percent) for one in self.stats.values()])) if self.stats else None


def advantages(rewards: NDArray[np.floating], groups: Sequence[Hashable], settings: AdvantageSettings) -> Advantages:
    """Compute advantages, in float64: (reward - mean of its group) / (std + 1e-4).

    Args:
        rewards: (N,) NaN where a sample has no reward; such samples have no part in any statistic.
        groups: group of each sample.

    Raises:
        UniWorldError: the lengths differ.
    """
    if len(rewards) != len(groups):
        raise UniWorldError(f"There are {len(rewards)} rewards and {len(groups)} groups: give one group per reward.")
    values = np.asarray(rewards, dtype=np.float64)
    known = np.isfinite(values)
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        if known[index]:
            members.setdefault(group, []).append(index)
    overall = float(np.std(values[known])) if known.any() else 0.0
    result, valid, stats = np.zeros(len(values)), np.zeros(len(values), dtype=bool), {}
    mastered = []
    for group, indices in members.items():
        some = values[indices]
        mean, std = float(np.mean(some)), float(np.std(some))
        good = std < settings.min_std and mean > settings.max_mean
        stats[group] = GroupStats(tuple(some.tolist()), mean, std, _trains(mean, std, good, settings))
        result[indices] = (some - mean) / ((overall if settings.spread == "global" else std) + _EPS)
        valid[indices] = stats[group].trains
        if good:
            mastered.append(group)
    return Advantages(result, valid, stats, tuple(mastered))


def _trains(mean: float, std: float, mastered: bool, settings: AdvantageSettings) -> bool:
    if settings.filter == "published":
        return std > settings.min_std and mean < settings.max_mean
    return settings.filter == "none" or not mastered
