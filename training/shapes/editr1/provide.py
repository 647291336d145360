"""The prompts and the reward of the world of shapes, for runs with rewards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from ....uniworld_core.errors import UniWorldError
from ...config.editr1 import EditR1Config
from ...editr1.groups import stream_seed
from ...editr1.prompts import EditPrompt
from ...editr1.providers import PROMPTS, REWARD_CHECKS, REWARDS, OpenReward, Providers, needed_setting
from ...editr1.reward.known_answers import KnownAnswerReward
from ...editr1.reward.protocol import RewardFailure, RewardItem, Score
from ...engine.precision import resolve_device
from ..judge.judge import judge
from ..judge.verdict import Verdict
from ..tasks.tasks import PAINTED_KINDS, ShapesTask, make_task
from ..world.scene import check_side
from .quiz import ask_quiz, check_quiz_kinds

ORACLE = "oracle"
# Part of the reward for a task that is solved completely; the rest falls with each thing that is wrong.
RIGHT_SHARE = 0.5
MOST_FAULTS = 3


class ShapesPrompts:
    """Tasks of the training split that never repeat, of some kinds in turn.

    Args:
        kinds: kinds of tasks; a kind may occur several times.
        seed: seed of the tasks.
        side: side of the pictures in pixels.
        preserve: kinds that are marked to be preserved.

    Raises:
        UniWorldError: a kind is unknown or not painted, or the side is invalid.
    """

    count = None

    def __init__(self, kinds: Sequence[str], seed: int, side: int, preserve: Sequence[str] = ()) -> None:
        unknown = [kind for kind in kinds if kind not in PAINTED_KINDS]
        if unknown:
            raise UniWorldError(f"data.shapes has {', '.join(unknown)}; choose some of {', '.join(PAINTED_KINDS)}.")
        check_side(side)
        self._kinds, self._seed, self._side = tuple(kinds), seed, side
        self._preserve = frozenset(preserve)
        self.preserves = bool(self._preserve)
        self.fingerprint = hashlib.sha256(repr((self._kinds, seed, side)).encode()).hexdigest()[:32]

    def is_preserved(self, index: int) -> bool:
        """Whether the kind of task number `index` is one to preserve."""
        return self._kind(index) in self._preserve

    def read(self, index: int) -> EditPrompt:
        """Make task number `index`."""
        kind = self._kind(index)
        rng = np.random.default_rng(stream_seed(self._seed, index))
        task = make_task(kind, rng, "train", self._side)
        key, preserve = f"{kind}-{index:08d}", self.is_preserved(index)
        return EditPrompt(key, task.prompt, task.references, task=task, preserve=preserve)

    def _kind(self, index: int) -> str:
        return self._kinds[index % len(self._kinds)]


class OracleReward:
    """The exact judge of the world of shapes: half for a solved task, and half that falls with the number of faults."""

    name = ORACLE

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        return [
            shaped(judge(item.task, item.picture))
            if isinstance(item.task, ShapesTask)
            else RewardFailure("the oracle only knows tasks of the world of shapes: set data.shapes")
            for item in items
        ]

    def close(self) -> None:
        """Nothing to release."""


def shaped(verdict: Verdict) -> float:
    """Return the reward of a verdict, 0 to 1."""
    faults = min(len(verdict.reasons), MOST_FAULTS)
    return RIGHT_SHARE * verdict.right + (1 - RIGHT_SHARE) * (1 - faults / MOST_FAULTS)


def _prompts(config: EditR1Config) -> ShapesPrompts:
    return ShapesPrompts(config.data.shapes, config.run.seed, config.editr1.side, config.preserve.kinds)


def _check_oracle(config: EditR1Config) -> None:
    if not config.data.shapes:
        raise UniWorldError(
            "reward.name has 'oracle', which only knows the world of shapes: set data.shapes, or another reward."
        )


def _questions(config: EditR1Config) -> KnownAnswerReward:
    from ...editr1.reward.judges import open_judge

    settings = config.reward
    dtype = None if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    judge = open_judge(settings.model, resolve_device(config.run.device), dtype, pixels=settings.pixels or None)
    return KnownAnswerReward(judge, ask_quiz, settings.batch)


def _check_questions(config: EditR1Config) -> None:
    check_quiz_kinds(config.data.shapes)
    needed_setting("model", config.reward.model, KnownAnswerReward.name, "the judge's folder, or nano")


def providers() -> Providers:
    """Return the prompts and rewards of all runs, with those of the world of shapes."""
    rewards: dict[str, OpenReward] = {ORACLE: lambda _: OracleReward(), KnownAnswerReward.name: _questions}
    checks = {ORACLE: _check_oracle, KnownAnswerReward.name: _check_questions}
    return Providers({**PROMPTS, "shapes": _prompts}, {**REWARDS, **rewards}, {**REWARD_CHECKS, **checks})
