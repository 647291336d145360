"""Metrics of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .advantage import Advantages
from .history import SampleHistory
from .reward.protocol import RewardFailure, Score


@dataclass(frozen=True)
class Update:
    """What an optimizer step did.

    Attributes:
        loss: policy loss.
        kl: mean squared distance of the velocity from the reference's, on the pictures with a weight of it; None without.
        gradient_norm: global norm before clipping.
        learning_rate: the learning rate used.
    """

    loss: float
    kl: float | None
    gradient_norm: float
    learning_rate: float


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one epoch; the field names are the keys in `metrics.jsonl`.

    Attributes:
        step: number of the epoch, 1 for the first.
        epoch: the same, counted from 0.
        reward: mean over all scored pictures.
        reward_std: mean standard deviation within a group.
        best: mean of the best score of each group.
        top_75, top_50, top_25, top_10: mean over the groups of the mean of each group's best 75, 50, 25 and 10 %, as
            published.
        trained: fraction of pictures that passed the filter.
        flat: fraction of groups with equal rewards.
        failed: pictures without a score.
        loss: policy loss; None if nothing was trained on, as for the next three.
        kl: mean squared distance of the velocity from the reference's; None if it has no weight.
        learning_rate: the learning rate used.
        gradient_norm: global norm before clipping.
        updates: optimizer steps so far.
        seconds: duration.
        rollout_seconds: the part of it until all scores are there.
        skipped: bad samples replaced since the start of the run.
        painted: different samples painted since the start of the run.
        mastered: those of them whose group was once flat and good.
        watched: {name of a reward that is only recorded: mean over the pictures that it scored, None without one}; in
            `metrics.jsonl`, each has the key `watched/NAME`.
    """

    HEADLINE: ClassVar[str] = "reward"

    step: int
    epoch: int
    reward: float | None
    reward_std: float | None
    best: float | None
    top_75: float | None
    top_50: float | None
    top_25: float | None
    top_10: float | None
    trained: float
    flat: float
    failed: int
    loss: float | None
    kl: float | None
    learning_rate: float | None
    gradient_norm: float | None
    updates: int
    seconds: float
    rollout_seconds: float
    skipped: int
    painted: int
    mastered: int
    watched: Mapping[str, float | None]


def epoch_metrics(
    step: int,
    found: Advantages,
    rewards: Sequence[float],
    update: Update | None,
    updates: int,
    seconds: float,
    rollout_seconds: float,
    skipped: int,
    history: SampleHistory,
    watched: Mapping[str, Sequence[Score]],
) -> EpochMetrics:
    """Return the metrics of an epoch.

    Args:
        found: the advantages.
        rewards: one per picture, NaN without a score.
        update: the optimizer step; None if no picture passed the filter.
        history: the samples of all epochs until here.
        watched: {name of a reward that is only recorded: one score per picture}.

    For the other arguments see `EpochMetrics`.
    """
    values = np.array(rewards)
    known = values[np.isfinite(values)]
    stats = list(found.stats.values())
    return EpochMetrics(
        step=step,
        epoch=step - 1,
        reward=float(known.mean()) if len(known) else None,
        reward_std=float(np.mean([one.std for one in stats])) if stats else None,
        best=float(np.mean([one.best for one in stats])) if stats else None,
        top_75=found.top_mean(75),
        top_50=found.top_mean(50),
        top_25=found.top_mean(25),
        top_10=found.top_mean(10),
        trained=float(found.valid.mean()),
        flat=found.flat_share,
        failed=len(values) - len(known),
        loss=None if update is None else update.loss,
        kl=None if update is None else update.kl,
        learning_rate=None if update is None else update.learning_rate,
        gradient_norm=None if update is None else update.gradient_norm,
        updates=updates,
        seconds=seconds,
        rollout_seconds=rollout_seconds,
        skipped=skipped,
        painted=len(history.painted),
        mastered=len(history.mastered),
        watched={name: _mean(scores) for name, scores in watched.items()},
    )


def _mean(scores: Sequence[Score]) -> float | None:
    known = [one for one in scores if not isinstance(one, RewardFailure)]
    return float(np.mean(known)) if known else None
