"""The scores of a group: by the reward that is trained on, and by those that are only recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from PIL import Image

from ...uniworld_core.errors import UniWorldError
from ..engine.parallel import World
from .reward.protocol import Reward, Score
from .rollout import Rollout, score_group
from .store import EpochStore


class RewardUnusable(UniWorldError):
    """A reward cannot score any picture, for example because its server rejects the token."""


def scored(
    rollout: Rollout,
    reward: Reward,
    watched: Mapping[str, Reward],
    store: EpochStore,
    decode: Callable[[], Sequence[Image.Image]],
) -> Rollout:
    """Return a rollout with its scores: those in the store, or new ones, which are stored.

    Args:
        rollout: a painted group.
        reward: the reward that is trained on.
        watched: rewards that are only recorded, by name.
        decode: returns the pictures; called at most once, and only if a score is missing.

    Raises:
        RewardUnusable: a reward cannot be used at all.
        UniWorldError: a file is damaged or cannot be written.
    """
    pictures, number = cache(decode), rollout.group.number

    def of(one: Reward, name: str = "") -> tuple[Score, ...]:
        scores = store.scores(number, name)
        if scores is None or len(scores) != len(rollout.latents):
            painted = pictures()
            try:
                scores = score_group(one, rollout.prompt, painted)
            except UniWorldError as error:
                raise RewardUnusable(str(error)) from error
            store.keep_scores(number, scores, name)
        return tuple(scores)

    return replace(rollout, scores=of(reward), watched={name: of(one, name) for name, one in watched.items()})


def watched_scores(rollouts: Sequence[Rollout], names: Iterable[str], world: World) -> dict[str, list[Score]]:
    """Return {name: the scores of all processes' pictures} of rewards that are only recorded."""
    mine = {one.group.number: one.watched for one in rollouts}
    table = dict(sorted(one for some in world.gather_objects(mine) for one in some.items()))
    return {name: [score for row in table.values() for score in row[name]] for name in names}
