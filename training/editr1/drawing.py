"""The prompts of an epoch: planned, read, encoded, and agreed on by all processes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ...uniworld_core import UniWorld
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.sampling.condition import Condition
from ..config.editr1 import EditR1Config
from ..engine.parallel import World
from ..objective.batch import BadSample
from .groups import Group, plan_epoch
from .history import SampleHistory
from .prompts import EditPrompt, Prompts
from .rollout import encode

# Distance of the replacements in endless data, beyond what a run uses otherwise.
_BEYOND = 2**40


class EpochRefused(UniWorldError):
    """An epoch cannot be finished, but what the run has trained and painted so far is worth keeping."""


class TooManyFailures(EpochRefused):
    """More samples or scores are missing than the configuration allows."""


@dataclass(frozen=True)
class DrawnPrompt:
    """A group with its prompt, and the encoded prompt on the CPU. `group.sample` is the sample that was read."""

    group: Group
    prompt: EditPrompt
    condition: Condition


class PromptDraw:
    """Draws the prompts of each epoch. Bad samples are replaced, and mastered ones are left out if they retire.

    Args:
        config: the configuration.
        world: the processes.
        model: encodes the prompts.
        prompts: the prompts.

    Attributes:
        skipped: {name: reason} of the bad samples replaced so far.
        history: the samples painted and mastered so far.
    """

    def __init__(self, config: EditR1Config, world: World, model: UniWorld, prompts: Prompts) -> None:
        self.config, self.world, self.model, self.prompts = config, world, model, prompts
        self.skipped: dict[str, str] = {}
        self.history = SampleHistory()

    def draw(self, epoch: int) -> list[DrawnPrompt]:
        """Return the prompts of this process's groups. Collective.

        Raises:
            EpochRefused: too many samples are bad, or too few are left.
        """
        settings, count, retired = self.config.editr1, self.prompts.count, self._retired()
        plan = plan_epoch(count, settings.groups, settings.group_size, self.config.run.seed, epoch, retired)
        bad: dict[str, str] = {}
        mine = [self._read(group, retired, bad) for group in plan[self.world.rank :: self.world.size]]
        self._agree(bad, lost=None in mine)
        return [one for one in mine if one is not None]

    def _retired(self) -> frozenset[int]:
        """Return the samples that are not drawn again. Raises EpochRefused if too few others are left."""
        count, groups = self.prompts.count, self.config.editr1.groups
        if count is None or not self.config.advantage.retire:
            return frozenset()
        # A prompt to preserve is usually mastered, and held at the reference only while it is drawn.
        mastered = frozenset(index for index in self.history.mastered if not self.prompts.is_preserved(index))
        if count - len(mastered) < groups:
            raise EpochRefused(
                f"{len(mastered)} of the {count} samples are mastered and retired, and the others are fewer than "
                f"editr1.groups = {groups}: the run has nothing left to learn from. Export it, or start another run with "
                "harder samples or advantage.retire = false."
            )
        return mastered

    def _read(self, group: Group, retired: Collection[int], bad: dict[str, str]) -> DrawnPrompt | None:
        """Read and encode a group's prompt. A bad one is replaced by the next good one; None if there is none in the limit."""
        count = self.prompts.count
        stride = 1 if count is not None else _BEYOND
        tries = self.config.data.bad_limit + 1
        for offset in range(tries if count is None else min(count, tries)):
            index = group.sample + offset * stride
            index = index if count is None else index % count
            if index in retired:
                continue
            try:
                prompt = self.prompts.read(index)
                return DrawnPrompt(replace(group, sample=index), prompt, self._encoded(prompt))
            except BadSample as error:
                bad[error.key] = error.reason
        return None

    def _encoded(self, prompt: EditPrompt) -> Condition:
        try:
            return encode(self.model, prompt, self.config)
        except UniWorldError as error:  # such as a prompt that is longer than the model's context
            raise BadSample(prompt.key, str(error)) from error

    def _agree(self, bad: dict[str, str], lost: bool) -> None:
        """Exchange the bad samples. Raises TooManyFailures in every process if there are too many."""
        skipped = dict(self.skipped)
        everyone = self.world.gather_objects((bad, lost))
        for others, _ in everyone:
            skipped.update(others)
        limit = self.config.data.bad_limit
        if len(skipped) > limit or any(none for _, none in everyone):
            # Not added to `skipped`: the resumed run repeats this epoch, with repaired data or a higher limit.
            latest = "; ".join(f"{key}: {reason}" for key, reason in list(skipped.items())[-3:])
            few = len(skipped) <= limit
            count, fix = ("too few are left", "") if few else (f"data.bad_limit is {limit}", " or raise data.bad_limit")
            raise TooManyFailures(
                f"{len(skipped)} samples are invalid; {count}. The latest: {latest} Fix them{fix}, then run the same "
                "command again to resume."
            )
        self.skipped = skipped
