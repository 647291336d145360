"""The prompts and rewards that a configuration can name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ...uniworld_core.errors import UniWorldError, shown
from ..config.editr1 import EditR1Config
from ..engine.precision import resolve_device
from .groups import check_groups
from .prompts import ListedPrompts, MetadataPrompts, Prompts
from .reward.logit import LogitReward
from .reward.protocol import Reward
from .reward.question import QuestionTemplate, read_question
from .reward.ray_workers import RayReward
from .reward.remote import OpenAIReward, RemoteReward
from .reward.requests import TOKEN_VARIABLE, RetryPolicy
from .reward.weighted import WeightedReward

OpenPrompts: TypeAlias = "Callable[[EditR1Config], Prompts]"
OpenReward: TypeAlias = "Callable[[EditR1Config], Reward]"
CheckReward: TypeAlias = "Callable[[EditR1Config], None]"


@dataclass(frozen=True)
class Providers:
    """What a run can use.

    Attributes:
        prompts: {key in the table `data`: opens its prompts}.
        rewards: {name of a reward: opens it}.
        checks: {name of a reward: checks what it needs, without opening anything large or remote}.
    """

    prompts: Mapping[str, OpenPrompts]
    rewards: Mapping[str, OpenReward]
    checks: Mapping[str, CheckReward] = field(default_factory=lambda: REWARD_CHECKS)

    def open_prompts(self, config: EditR1Config) -> Prompts:
        """Open the configured prompts.

        Raises:
            UniWorldError: they are invalid, fewer than the groups of an epoch, or marked to be preserved without a weight or
                the other way around.
        """
        prompts = self.prompts[config.data.sources[0]](config)
        if prompts.count is not None:
            check_groups(prompts.count, config.editr1.groups)
        if prompts.preserves and not config.preserve.weight:
            raise UniWorldError(
                "Some prompts are marked to be preserved, but preserve.weight is 0: set it, for example to 5, or mark none."
            )
        if config.preserve.weight and not prompts.preserves:
            raise UniWorldError(
                f"preserve.weight is {config.preserve.weight:g}, but no prompt is marked to be preserved: set preserve.kinds for "
                'data.shapes, or "preserve": true in lines of data.metadata.'
            )
        return prompts

    def open_reward(self, config: EditR1Config) -> Reward:
        """Open the configured rewards. Raises UniWorldError if a name is unknown or a reward cannot be used."""
        self.check_reward(config)
        settings = config.reward
        if settings.ray:
            here = replace(config, reward=replace(settings, ray=""))
            name = " + ".join(settings.name)
            opener = partial(self.open_reward, here)
            return RayReward(name, opener, settings.ray, settings.workers, settings.batch, settings.timeout)
        names = settings.name
        opened = [self.rewards[name](config) for name in names]
        if len(opened) == 1:
            return opened[0]
        return WeightedReward(list(zip(opened, settings.weights or [1.0] * len(opened))))

    def open_watched(self, config: EditR1Config) -> dict[str, Reward]:
        """Open the rewards that are only recorded, by name, in this process. Raises as `open_reward`."""
        self.check_reward(config)
        return {name: self.rewards[name](config) for name in config.reward.watch}

    def check_reward(self, config: EditR1Config) -> None:
        """Check the configured rewards without opening them.

        Raises:
            UniWorldError: a name is unknown, or a reward lacks a setting that it needs.
        """
        for key in ("name", "watch"):
            for name in getattr(config.reward, key):
                if name not in self.rewards:
                    raise UniWorldError(f"reward.{key} is {shown(name)}; it must be one of {', '.join(self.rewards)}.")
        for name in dict.fromkeys((*config.reward.name, *config.reward.watch)):
            if name in self.checks:
                self.checks[name](config)


# The prompts that need no particular data.
PROMPTS: dict[str, OpenPrompts] = {
    "metadata": lambda config: MetadataPrompts(Path(config.data.metadata), config.editr1.side),
    "list": lambda config: ListedPrompts(Path(config.data.list)),
}


def _logit(config: EditR1Config) -> LogitReward:
    from .reward.judges import open_judge

    settings = config.reward
    judge = open_judge(settings.model, resolve_device(config.run.device), pixels=settings.pixels or None)
    return LogitReward(judge, _question(config), settings.answers, settings.batch)


def _remote(config: EditR1Config) -> RemoteReward:
    settings = config.reward
    reward = RemoteReward(settings.url, _token(), _policy(config), batch=settings.batch)
    reward.check()
    return reward


def _openai(config: EditR1Config) -> OpenAIReward:
    settings = config.reward
    reward = OpenAIReward(
        settings.url,
        settings.model,
        _token(),
        _question(config),
        settings.answers,
        _policy(config),
        parallel=settings.batch,
    )
    reward.check()
    return reward


def _check_logit(config: EditR1Config) -> None:
    needed_setting("model", config.reward.model, "logit", "the judge's folder")
    _question(config)


def _check_remote(config: EditR1Config) -> None:
    needed_setting("url", config.reward.url, "remote", "the server's address")


def _check_openai(config: EditR1Config) -> None:
    needed_setting("url", config.reward.url, "openai", "the server's address")
    needed_setting("model", config.reward.model, "openai", "the model's name on the server")
    _question(config)


def _question(config: EditR1Config) -> QuestionTemplate:
    template = config.reward.template
    return read_question(Path(template)) if template else QuestionTemplate()


def _policy(config: EditR1Config) -> RetryPolicy:
    return RetryPolicy(config.reward.timeout, config.reward.attempts)


def _token() -> str | None:
    return os.environ.get(TOKEN_VARIABLE) or None


def needed_setting(key: str, value: str, name: str, what: str) -> None:
    """Raise UniWorldError if a setting is empty that the reward `name` needs."""
    if not value:
        raise UniWorldError(f"reward.{key} is not set: the reward '{name}' needs {what}.")


# The rewards that need no particular data.
REWARDS: dict[str, OpenReward] = {"logit": _logit, "remote": _remote, "openai": _openai}
REWARD_CHECKS: dict[str, CheckReward] = {"logit": _check_logit, "remote": _check_remote, "openai": _check_openai}
