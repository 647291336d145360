"""The trainer of a run with rewards: one epoch is rollouts, rewards, and one step of the optimizer."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ...uniworld_core import UniWorld
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.sampling.condition import Condition
from ..config.editr1 import EditR1Config
from ..engine.checkpoints import CheckpointSaver, read_meta
from ..engine.ema import ShardedEMA
from ..engine.optimizer import gradient_norm, learning_rate, make_optimizer, take_step
from ..engine.parallel import World
from ..run.folder import CHECKPOINTS, fixed_settings
from ..run.state import TrainingState
from .advantage import Advantages, advantages
from .decay import old_decay
from .drawing import DrawnPrompt, EpochRefused, PromptDraw, TooManyFailures
from .groups import Group
from .history import SampleHistory
from .metrics import EpochMetrics, Update, epoch_metrics
from .policy import Policy, blend
from .prompts import Prompts
from .reward.protocol import Reward, RewardFailure, Score
from .rollout import Rollout, paint_group, pictures_of, schedule
from .scoring import RewardUnusable, scored, watched_scores
from .sheet import GroupRow, write_group_sheet
from .store import EpochStore
from .update import backward

SHEETS = "groups"
OLD = "old/"


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
        drawing: draws the prompts, and remembers which were bad or mastered.
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
        self.state = TrainingState(policy, self.optimizer, self.ema, world)
        self.saver = CheckpointSaver(folder / CHECKPOINTS, world, config.run.keep, config.run.keep_best)
        self.sigmas = schedule(policy.painter, config)
        self.step = 0
        self.drawing = PromptDraw(config, world, model, prompts)
        self._saved: int | None = None
        self._warned: set[str] = set()  # rewards that have failed
        self._rewards_since_save: list[float] = []

    def epoch(self) -> EpochMetrics:
        """Perform one epoch.

        Raises:
            EpochRefused: too many samples are bad, too many pictures have no score, the reward cannot be used, or too few
                samples are left. Finished rollouts are kept.
            UniWorldError: the loss or the gradient is not finite, or a file cannot be written.
        """
        started = time.perf_counter()
        store = EpochStore(self.folder, self.step, self._origin())
        self.world.on_rank0(store.remove_others)
        rollouts = self._roll_out(store)
        everyone = sorted(one for some in self.world.gather_objects(_scores(rollouts)) for one in some)
        table = {number: scores for number, _, scores in everyone}
        self._check_failures(table, store)
        rewards = [math.nan if isinstance(one, RewardFailure) else one for row in table.values() for one in row]
        members = [number for number, row in table.items() for _ in row]
        found = advantages(np.array(rewards, dtype=np.float64), members, self.config.advantage)
        self.drawing.history.add(found, {number: sample for number, sample, _ in everyone})
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
            len(self.drawing.skipped),
            self.drawing.history,
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
        meta: dict[str, object] = {
            "step": self.step,
            "loss": -math.fsum(rewards) / len(rewards) if rewards else None,
            "samples": self.prompts.fingerprint,
            "frozen": self.policy.frozen,
            "skipped": self.drawing.skipped,
            "history": self.drawing.history.to_json(),
            "state": self.state.values(),
        }
        tensors = self.state.tensors() | self._old_tensors()
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
        self.state.restore(checkpoint, meta["state"], self._old_tensors())
        self.step = self._saved = meta["step"]
        self.drawing.skipped = dict(meta["skipped"])
        if "history" in meta:  # checkpoints of older versions have no such key
            self.drawing.history = SampleHistory.from_json(meta["history"])

    def _old_tensors(self) -> dict[str, Tensor]:
        return {OLD + name: tensor for name, tensor in self.policy.old.items()}

    def _roll_out(self, store: EpochStore) -> list[Rollout]:
        """Paint and score this process's groups, or read those that are there already.

        It ends early once too many pictures have no score: a server that is gone would cost hours otherwise.
        """
        rollouts: list[Rollout] = []
        allowed = self.config.reward.max_failed * self._pictures_per_epoch
        # Every process has as many groups, so that all of them agree after each one.
        for drawn in self.drawing.draw(self.step):
            reason = None
            try:
                rollouts.append(self._roll_out_group(drawn, store))
                self._warn_of_failures(rollouts[-1])
            except RewardUnusable as error:
                reason = str(error)
            if reasons := [one for one in self.world.gather_objects(reason) if one is not None]:
                raise EpochRefused(f"{reasons[0]} The pictures are kept: run the same command again to score them.")
            failed = sum(isinstance(score, RewardFailure) for one in rollouts for score in one.scores)
            if float(self.world.gather([failed]).sum()) > allowed:
                break
        return rollouts

    def _origin(self) -> str:
        """Return a digest of all that decides what the old policy paints and how it is scored. Collective."""
        parts = (self.policy.old_fingerprint(self.world), self.policy.frozen, self.prompts.fingerprint)
        return hashlib.sha256("\n".join((*parts, fixed_settings(self.config))).encode()).hexdigest()[:32]

    @property
    def _pictures_per_epoch(self) -> int:
        return self.config.editr1.groups * self.config.editr1.group_size

    def _warn_of_failures(self, rollout: Rollout) -> None:
        """Warn of the first failure of each reward in this process."""
        for name, scores in {self.reward.name: rollout.scores, **rollout.watched}.items():
            reasons = [one.reason for one in scores if isinstance(one, RewardFailure)]
            if reasons and name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"The reward {name} failed on {len(reasons)} of the {len(scores)} pictures of group "
                    f"{rollout.group.number} in epoch {self.step}: {reasons[0]}. Further failures are only counted.",
                    stacklevel=2,
                )

    def _roll_out_group(self, drawn: DrawnPrompt, store: EpochStore) -> Rollout:
        group, prompt, condition = drawn.group, drawn.prompt, drawn.condition
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

    def _check_failures(self, table: dict[int, tuple], store: EpochStore) -> None:
        """Raise TooManyFailures if too many pictures of the epoch have no score; a resumed run then asks again."""
        failures = {number: one for number, row in table.items() for one in row if isinstance(one, RewardFailure)}
        count = sum(isinstance(one, RewardFailure) for row in table.values() for one in row)
        scored, total = sum(map(len, table.values())), self._pictures_per_epoch
        if count <= self.config.reward.max_failed * total and count < total:
            return
        for number in failures:
            store.forget_scores(number)
        reasons = "; ".join(dict.fromkeys(one.reason for one in list(failures.values())[:3]))
        first = f"first {scored} of the " if scored < total else ""
        raise TooManyFailures(
            f"The reward {self.reward.name} failed on {count} of the {first}{total} pictures of epoch {self.step}, more than "
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
        rate = take_step(self.optimizer, norm, config.optimizer.clip, rate)
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
