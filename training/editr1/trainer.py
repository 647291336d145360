"""The trainer of a run with rewards: one epoch is rollouts, rewards, and one step of the optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from ...uniworld_core import UniWorld
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.sampling.condition import Condition
from ..config.editr1 import EditR1Config
from ..engine.checkpoints import CheckpointSaver, read_meta
from ..engine.ema import ShardedEMA
from ..engine.optimizer import (
    clip_factor,
    gradient_norm,
    learning_rate,
    make_optimizer,
    scale_gradients,
    set_learning_rate,
)
from ..engine.parallel import World
from ..objective.batch import BadSample
from ..run.folder import CHECKPOINTS
from ..run.state import restore, state_tensors, state_values
from .advantage import Advantages, advantages
from .decay import old_decay
from .groups import Group, plan_epoch
from .history import SampleHistory
from .metrics import EpochMetrics, Update, epoch_metrics
from .policy import Policy, blend
from .prompts import EditPrompt, Prompts
from .reward.protocol import Reward, RewardFailure, Score
from .rollout import Rollout, encode, paint_group, pictures_of, schedule
from .scoring import scored, watched_scores
from .sheet import GroupRow, write_group_sheet
from .store import EpochStore
from .update import backward

SHEETS = "groups"
OLD = "old/"

# Distance of the replacements in endless data, beyond what a run uses otherwise.
_BEYOND = 2**40

T = TypeVar("T")


class EpochRefused(UniWorldError):
    """An epoch cannot be finished, but what the run has trained and painted so far is worth keeping."""


class TooManyFailures(EpochRefused):
    """More samples or scores are missing than the configuration allows."""


class EditR1Trainer:
    """Trains a policy epoch by epoch. Its methods are collective: all processes call them together.

    Args:
        config: the configuration.
        folder: the run's folder.
        world: the processes.
        model: the frozen parts.
        policy: the policies.
        prompts: the prompts.
        reward: the reward.
        watched: rewards that are only recorded, by name.

    Attributes:
        step: number of epochs done.
        skipped: names of the bad samples replaced so far.
        history: the samples painted and mastered so far.
        saver: writes the checkpoints.
    """

    def __init__(
        self,
        config: EditR1Config,
        folder: Path,
        world: World,
        model: UniWorld,
        policy: Policy,
        prompts: Prompts,
        reward: Reward,
        watched: Mapping[str, Reward] | None = None,
    ) -> None:
        self.config, self.folder, self.world, self.model = config, folder, world, model
        self.policy, self.prompts, self.reward, self.watched = policy, prompts, reward, watched or {}
        self.optimizer = make_optimizer(policy.trained.values(), config.optimizer)
        # Published: the average counts its updates from 1.
        self.ema = ShardedEMA(policy.trained, config.ema.decay, world.rank, world.size, first=1)
        self.saver = CheckpointSaver(folder / CHECKPOINTS, world, config.run.keep, config.run.keep_best)
        self.sigmas = schedule(policy.painter, config)
        self.step = 0
        self.skipped: dict[str, str] = {}
        self.history = SampleHistory()
        self._bad: dict[str, str] = {}  # of this process and epoch
        self._saved: int | None = None
        self._rewards_since_save: list[float] = []

    def epoch(self) -> EpochMetrics:
        """Perform one epoch.

        Raises:
            EpochRefused: too many samples are bad, too many pictures have no score, or too few samples are left. Finished
                rollouts are kept.
            UniWorldError: the loss or the gradient is not finite, or a file cannot be written.
        """
        started = time.perf_counter()
        store = EpochStore(self.folder, self.step, self.policy.old_fingerprint(self.world))
        self.world.on_rank0(store.remove_others)
        rollouts = self._roll_out(store)
        everyone = sorted(one for some in self.world.gather_objects(_scores(rollouts)) for one in some)
        table = {number: scores for number, _, scores in everyone}
        self._check_failures(table, store)
        rewards = [math.nan if isinstance(one, RewardFailure) else one for row in table.values() for one in row]
        members = [number for number, row in table.items() for _ in row]
        found = advantages(np.array(rewards, dtype=np.float64), members, self.config.advantage)
        self.history.add(found, {number: sample for number, sample, _ in everyone})
        watched = watched_scores(rollouts, self.watched, self.world)
        rolled = time.perf_counter()
        update = self._update(rollouts, found)
        self._write_sheet(rollouts, found)
        self.step += 1
        metrics = epoch_metrics(
            self.step,
            found,
            rewards,
            update,
            self.ema.updates,
            time.perf_counter() - started,
            rolled - started,
            len(self.skipped),
            self.history,
            watched,
        )
        if metrics.reward is not None:
            self._rewards_since_save.append(metrics.reward)
        return metrics

    def save(self) -> None:
        """Start writing a checkpoint, unless this epoch is saved already.

        Raises:
            UniWorldError: the previous checkpoint could not be written.
        """
        if self._saved == self.step:
            return
        rewards = self._rewards_since_save
        parts = (self.policy, self.optimizer, self.ema)
        meta: dict[str, object] = {
            "step": self.step,
            "loss": -math.fsum(rewards) / len(rewards) if rewards else None,
            "samples": self.prompts.fingerprint,
            "frozen": self.policy.frozen,
            "skipped": self.skipped,
            "history": self.history.to_json(),
            "state": state_values(*parts),
        }
        tensors = state_tensors(*parts, self.world) | self._old_tensors()
        self.saver.save(self.step, tensors, meta)
        self._saved, self._rewards_since_save = self.step, []

    def resume(self, checkpoint: Path) -> None:
        """Resume from a checkpoint of this run.

        Raises:
            UniWorldError: the checkpoint is damaged, or belongs to other prompts or another model.
        """
        meta = read_meta(checkpoint)
        for key, value, what in (
            ("samples", self.prompts.fingerprint, "trained on other prompts than those of data"),
            ("frozen", self.policy.frozen, "trained from another model than that in model.checkpoint"),
        ):
            if meta[key] != value:
                raise UniWorldError(
                    f"The run in {self.folder} was {what}: restore what it started with, or choose another folder."
                )
        parts = (self.policy, self.optimizer, self.ema)
        restore(checkpoint, meta["state"], *parts, self.world, self._old_tensors())
        self.step = self._saved = meta["step"]
        self.skipped = dict(meta["skipped"])
        if "history" in meta:  # checkpoints of older versions have no such key
            self.history = SampleHistory.from_json(meta["history"])

    def _old_tensors(self) -> dict[str, Tensor]:
        return {OLD + name: tensor for name, tensor in self.policy.old.items()}

    def _roll_out(self, store: EpochStore) -> list[Rollout]:
        """Paint and score this process's groups, or read those that are there already."""
        settings, world = self.config.editr1, self.world
        count, retired, seed = self.prompts.count, self._retired(), self.config.run.seed
        plan = plan_epoch(count, settings.groups, settings.group_size, seed, self.step, retired)
        mine = plan[world.rank :: world.size]
        prompts = self._agreed([self._prompt(group, retired) for group in mine])
        return [self._roll_out_group(*prompt, store) for prompt in prompts]

    def _retired(self) -> frozenset[int]:
        """Return the samples that are not drawn again. Raises EpochRefused if too few others are left."""
        count, groups = self.prompts.count, self.config.editr1.groups
        if count is None or not self.config.advantage.retire:
            return frozenset()
        mastered = frozenset(self.history.mastered)
        if count - len(mastered) < groups:
            raise EpochRefused(
                f"{len(mastered)} of the {count} samples are mastered and retired, and the others are fewer than "
                f"editr1.groups = {groups}: the run has nothing left to learn from. Export it, or start another run with "
                "harder samples or advantage.retire = false."
            )
        return mastered

    def _roll_out_group(self, group: Group, prompt: EditPrompt, condition: Condition, store: EpochStore) -> Rollout:
        latents = store.latents(group.number, prompt.key)
        missing = latents is None
        # FSDP2 gathers the shards of all processes for each forward pass, so all must paint if one must.
        if missing if self.world.engine == "data" else self.world.gather([missing]).any():
            painted = self._paint(condition, group)
            if latents is None:
                latents = painted
                store.keep_latents(group.number, prompt.key, painted)
        assert latents is not None
        rollout = Rollout(group, prompt, condition, latents, ())
        return scored(rollout, self.reward, self.watched, store, lambda: self._pictures(rollout))

    def _paint(self, condition: Condition, group: Group) -> Tensor:
        with self.policy.as_old():
            painter, dtype = self.policy.painter, self.model.dtype
            return paint_group(painter, condition, group.seeds, self.sigmas, self.config, dtype)

    def _pictures(self, rollout: Rollout) -> list:
        return pictures_of(self.model, rollout.latents, self.config.run.micro_batch_size)

    def _prompt(self, group: Group, retired: Collection[int]) -> tuple[Group, EditPrompt, Condition] | None:
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
                return replace(group, sample=index), prompt, self._encoded(prompt)
            except BadSample as error:
                self._bad[error.key] = error.reason
        return None

    def _encoded(self, prompt: EditPrompt) -> Condition:
        try:
            return encode(self.model, prompt, self.config)
        except UniWorldError as error:  # such as a prompt that is longer than the model's context
            raise BadSample(prompt.key, str(error)) from error

    def _agreed(self, found: Sequence[T | None]) -> list[T]:
        """Exchange the bad samples. Raises TooManyFailures in every process if there are too many."""
        lost, skipped = False, dict(self.skipped)
        for others, none in self.world.gather_objects((self._bad, None in found)):
            skipped.update(others)
            lost = lost or none
        self._bad = {}
        limit = self.config.data.bad_limit
        if lost or len(skipped) > limit:
            # Not added to `skipped`: the resumed run repeats this epoch, with repaired data or a higher limit.
            latest = "; ".join(f"{key}: {reason}" for key, reason in list(skipped.items())[-3:])
            few = len(skipped) <= limit
            count, fix = ("too few are left", "") if few else (f"data.bad_limit is {limit}", " or raise data.bad_limit")
            raise TooManyFailures(
                f"{len(skipped)} samples are invalid; {count}. The latest: {latest} Fix them{fix}, then run the same "
                "command again to resume."
            )
        self.skipped = skipped
        return [one for one in found if one is not None]

    def _check_failures(self, table: dict[int, tuple], store: EpochStore) -> None:
        """Raise TooManyFailures if too many pictures of the epoch have no score; a resumed run then asks again."""
        failures = {number: one for number, row in table.items() for one in row if isinstance(one, RewardFailure)}
        count = sum(isinstance(one, RewardFailure) for row in table.values() for one in row)
        total = sum(map(len, table.values()))
        if count <= self.config.reward.max_failed * total and count < total:
            return
        for number in failures:
            store.forget_scores(number)
        reasons = "; ".join(dict.fromkeys(one.reason for one in list(failures.values())[:3]))
        raise TooManyFailures(
            f"The reward {self.reward.name} failed on {count} of the {total} pictures of epoch {self.step}, more than "
            f"reward.max_failed = {self.config.reward.max_failed:g} allows: {reasons}. The pictures are kept: run the same "
            "command again to score them."
        )

    def _update(self, rollouts: Sequence[Rollout], found: Advantages) -> Update | None:
        """Take an optimizer step on the valid pictures, then move EMA and old policy.

        Without a valid picture nothing changes, and None is returned.
        """
        if not found.valid.any():
            return None
        config, trained = self.config, self.policy.trained
        rate = learning_rate(config.optimizer, self.ema.updates, config.run.steps)
        loss, kl = backward(self.policy, rollouts, found, self.sigmas, config, self.world, self.step, self.model.dtype)
        norm = gradient_norm(trained.values())
        if not math.isfinite(norm) or not math.isfinite(loss):
            raise UniWorldError(
                f"The loss or its gradient is not finite in epoch {self.step}: this step was discarded, and earlier "
                "checkpoints are intact. Continue in a new folder with a lower optimizer.lr."
            )
        scale_gradients(trained.values(), clip_factor(norm, config.optimizer.clip))
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        blend(self.policy.old, trained, old_decay(config.editr1.old, self.ema.updates))
        return Update(loss, kl, norm, rate)

    def _write_sheet(self, rollouts: Sequence[Rollout], found: Advantages) -> None:
        run = self.config.run
        if not run.sheet_every or self.step % run.sheet_every:
            return

        def write() -> None:
            rows = [
                GroupRow(one.prompt, self._pictures(one), one.scores, _trains(found, one.group.number), one.watched)
                for one in rollouts[: run.sheet_groups]
            ]
            write_group_sheet(rows, self.folder / SHEETS / f"epoch-{self.step:08d}.png")

        self.world.on_rank0(write)


def _scores(rollouts: Sequence[Rollout]) -> list[tuple[int, int, tuple[Score, ...]]]:
    """Return (number of the group, its sample, scores) of each rollout."""
    return [(one.group.number, one.group.sample, one.scores) for one in rollouts]


def _trains(found: Advantages, group: int) -> bool:
    return group in found.stats and found.stats[group].trains
