"""The prompts and rewards that a configuration can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ...uniworld_core.errors import UniWorldError, shown
from ..config.editr1 import EditR1Config
from .prompts import ListedPrompts, MetadataPrompts, Prompts
from .reward.protocol import Reward

OpenPrompts: TypeAlias = "Callable[[EditR1Config], Prompts]"
OpenReward: TypeAlias = "Callable[[EditR1Config], Reward]"


@dataclass(frozen=True)
class Providers:
    """What a run can use.

    Attributes:
        prompts: {key in the table `data`: opens its prompts}.
        rewards: {name of a reward: opens it}.
    """

    prompts: Mapping[str, OpenPrompts]
    rewards: Mapping[str, OpenReward]

    def open_prompts(self, config: EditR1Config) -> Prompts:
        """Open the configured prompts. Raises UniWorldError if they are invalid."""
        return self.prompts[config.data.sources[0]](config)

    def open_reward(self, config: EditR1Config) -> Reward:
        """Open the configured reward. Raises UniWorldError if its name is unknown or it cannot be used."""
        self.check_reward(config)
        return self.rewards[config.reward.name](config)

    def check_reward(self, config: EditR1Config) -> None:
        """Check the name of the configured reward, without opening it. Raises UniWorldError if it is unknown."""
        name = config.reward.name
        if name not in self.rewards:
            raise UniWorldError(f"reward.name is {shown(name)}; it must be one of {', '.join(self.rewards)}.")


# The prompts that need no particular data.
PROMPTS: dict[str, OpenPrompts] = {
    "metadata": lambda config: MetadataPrompts(Path(config.data.metadata), config.editr1.side),
    "list": lambda config: ListedPrompts(Path(config.data.list)),
}
# The rewards that need no particular data.
REWARDS: dict[str, OpenReward] = {}
