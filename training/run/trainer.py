"""The trainer of a run: optimizer steps, checkpoints and validation sheets."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...uniworld_core.errors import UniWorldError
from ..config.settings import Config
from ..data.loader import StepData
from ..engine.checkpoints import CheckpointSaver, checkpoint_name, read_meta
from ..engine.ema import ShardedEMA
from ..engine.optimizer import gradient_norm, learning_rate, make_optimizer, take_step
from ..engine.parallel import World, unsharded, without_sync
from ..engine.precision import autocast
from ..objective.batch import BadSample, Draws, EncodedSample
from ..objective.step import DenoiseTower
from .folder import CHECKPOINTS, VALIDATION
from .metrics import StepMetrics
from .setup import PreparedModel, compute_dtype
from .state import TrainingState
from .validate import Validator


@dataclass(frozen=True)
class StepConsensus:
    """What all processes agree on before a step.

    Attributes:
        good: number of valid samples in the global batch.
        bad: invalid samples of all processes that were not seen before.
        stop: whether a process received a signal to stop after this step.
    """

    good: int
    bad: tuple[BadSample, ...]
    stop: bool


class TooManyBadSamples(UniWorldError):
    """There are more bad samples than `data.bad_limit`."""


class Trainer:
    """Trains a model step by step. Its methods are collective: all processes call them together.

    Args:
        config: the configuration.
        folder: the run's folder.
        world: the processes.
        model: the model, ready for training.
        samples: fingerprint of the data.

    Attributes:
        step: number of optimizer steps done.
        skipped: names of the bad samples skipped so far.
        saver: writes the checkpoints.
    """

    def __init__(self, config: Config, folder: Path, world: World, model: PreparedModel, samples: str) -> None:
        self.config, self.folder, self.world, self.model, self.samples = config, folder, world, model, samples
        self.optimizer = make_optimizer(model.trained.values(), config.optimizer)
        self.ema = ShardedEMA(model.trained, config.ema.decay, world.rank, world.size)
        self.state = TrainingState(model, self.optimizer, self.ema, world)
        self.saver = CheckpointSaver(folder / CHECKPOINTS, world, config.run.keep, config.run.keep_best)
        self.step = 0
        self.skipped: set[str] = set()
        self._saved: int | None = None
        self._losses_since_save: list[float] = []
        self._lap_start = time.perf_counter()

    def agree(self, data: StepData, stop: bool) -> StepConsensus:
        """Exchange what all processes must agree on before the step on `data`.

        Raises:
            TooManyBadSamples: there are more bad samples than `data.bad_limit`.
            UniWorldError: the pending checkpoint could not be written.
        """
        mine = [sum(map(len, data.passes)), len(data.skipped), stop, self.saver.failed]
        good, bad, stops, failures = self.world.gather(mine).sum(dim=0).tolist()
        if failures:
            self.saver.wait()
        new: dict[str, BadSample] = {}
        if bad:
            for skipped in self.world.gather_objects(data.skipped):
                new.update({sample.key: sample for sample in skipped if sample.key not in self.skipped})
        count = len(self.skipped) + len(new)
        if new and count > self.config.data.bad_limit:
            # Not added to `skipped`: the resumed run repeats this step, with repaired data or a higher limit.
            latest = "; ".join(map(str, list(new.values())[:3]))
            raise TooManyBadSamples(
                f"{count} samples are invalid, more than data.bad_limit = {self.config.data.bad_limit}. "
                f"The latest: {latest} Run `uniworld data check` to list all of them. Fix the samples or raise "
                "data.bad_limit, then run the same command again to resume."
            )
        self.skipped.update(new)
        return StepConsensus(int(good), tuple(new.values()), bool(stops))

    def train(self, data: StepData, consensus: StepConsensus) -> StepMetrics | None:
        """Perform one optimizer step on the mean loss over the valid samples of all processes.

        Returns None, without a step of the optimizer, if the batch has no valid sample.

        Raises:
            UniWorldError: a loss or the gradient is not finite; the message names the samples.
        """
        self.step += 1
        if not consensus.good:
            return None
        rate = learning_rate(self.config.optimizer, self.step - 1, self.config.run.steps)
        loss = self._backward(data, consensus.good)
        norm = gradient_norm(self.model.trained.values())
        if not math.isfinite(norm):
            keys = [item.key for one in data.passes for _, item in one]
            raise UniWorldError(
                f"The gradient is not finite at step {self.step}, on {', '.join(keys)}: {_NONFINITE_ADVICE}"
            )
        used = take_step(self.optimizer, norm, self.config.optimizer.clip, rate)
        self.ema.update()
        self._losses_since_save.append(loss)
        seconds = self._lap()
        return StepMetrics(
            self.step, data.epoch, loss, used, norm, consensus.good / seconds, seconds, skipped=len(self.skipped)
        )

    def save(self) -> None:
        """Start writing a checkpoint, unless this step is saved already.

        Raises:
            UniWorldError: the previous checkpoint could not be written.
        """
        if self._saved == self.step:
            return
        losses = self._losses_since_save
        meta: dict[str, object] = {
            "step": self.step,
            "loss": math.fsum(losses) / len(losses) if losses else None,
            "samples": self.samples,
            "frozen": self.model.frozen,
            "skipped": sorted(self.skipped),
            "state": self.state.values(),
        }
        self.saver.save(self.step, self.state.tensors(), meta)
        self._saved, self._losses_since_save = self.step, []
        self._lap()

    def resume(self, checkpoint: Path) -> None:
        """Resume from a checkpoint of this run.

        Raises:
            UniWorldError: the checkpoint is damaged, or belongs to other samples or another model.
        """
        meta = read_meta(checkpoint)
        if meta["samples"] != self.samples:
            raise UniWorldError(
                f"The run in {self.folder} was trained on other samples than those of data.list or data.shards: use the "
                "same annotations in the same order, or choose another folder."
            )
        if meta.get("frozen", self.model.frozen) != self.model.frozen:  # checkpoints of older versions have no such key
            raise UniWorldError(
                f"The run in {self.folder} was trained with other frozen weights (VLM, SigLIP, VAE, CLIP, T5, or the frozen "
                "part of DiT and projectors): files of model.checkpoint, model.flux, model.siglip or model.start have "
                "changed since. Restore them, or choose another folder."
            )
        self.state.restore(checkpoint, meta["state"])
        self.step = self._saved = meta["step"]
        self.skipped = set(meta["skipped"])
        self._lap()

    def validate(self, validator: Validator) -> None:
        """Paint the validation prompts with the EMA weights, and write the contact sheet."""
        sharded = self.world.engine == "fsdp"
        file = self.folder / VALIDATION / f"{checkpoint_name(self.step)}.png"
        with self.ema.applied(), unsharded(self.model.wrapped):
            # Without sharding, rank 0 paints and the others wait.
            latents = validator.paint(self.model.tower) if sharded or self.world.is_rank0 else []
        self.world.on_rank0(lambda: validator.write(latents, file))
        self._lap()

    def _backward(self, data: StepData, good: int) -> float:
        """Accumulate the gradient of the batch's mean loss over all passes. Return that loss."""
        total, faulty = 0.0, []
        for number, items in enumerate(data.passes):
            if not items and self.world.size == 1:
                continue
            last = number == len(data.passes) - 1
            with nullcontext() if last else without_sync(self.model.wrapped):
                losses = self._pass(items, good)
            total += float(losses.double().sum())
            faulty += [item.key for (_, item), loss in zip(items, losses.tolist()) if not math.isfinite(loss)]
        sums = self.world.gather([total, len(faulty)]).sum(dim=0).tolist()
        if sums[1]:
            names = [name for found in self.world.gather_objects(faulty) for name in found]
            raise UniWorldError(
                f"The loss of {', '.join(names)} is not finite at step {self.step}: {_NONFINITE_ADVICE}"
            )
        return sums[0] / good

    def _pass(self, items: Sequence[tuple[int, EncodedSample]], good: int) -> Tensor:
        """Run forward and backward on some samples. Return their losses (B,).

        Without samples, a dummy sample with weight 0 runs, because DDP and FSDP2 need all processes to participate.
        """
        device = self.world.device
        dtype = compute_dtype(self.config, device)
        samples = [item for _, item in items] or [empty_sample(self.model.tower)]
        positions = [position for position, _ in items] or [0]
        draws = Draws.of(self.config.run.seed, positions, samples[0].latent.shape)
        batch = self.model.tower.collate(samples, draws).to(device)
        with autocast(device, dtype):
            losses = self.model.wrapped(batch)
            # DDP and FSDP2 average gradients over processes; the factor turns that into the mean over all samples.
            total = losses.sum() * (self.world.size / good if items else 0.0)
        total.backward()
        return losses.detach()[: len(items)]

    def _lap(self) -> float:
        """Return the seconds since the last step, checkpoint or sheet."""
        before, self._lap_start = self._lap_start, time.perf_counter()
        return self._lap_start - before


_NONFINITE_ADVICE = (
    "this step was discarded, and earlier checkpoints are intact. Check these samples with `uniworld data check`. If they "
    "are valid, continue in a new folder, with a lower optimizer.lr and this run as model.start."
)


def empty_sample(tower: DenoiseTower) -> EncodedSample:
    """Return the smallest sample that the model accepts, for processes that have no sample in a pass."""
    width, latents = tower.projectors.denoise_projector.width, tower.dit.latent_format
    return EncodedSample(
        key="empty",
        hidden=torch.zeros(1, width),
        ends=torch.zeros(1, dtype=torch.bool),
        features=(),
        pooled=torch.zeros(tower.dit.transformer.config.pooled_projection_dim),
        t5=None,
        latent=torch.zeros(latents.channels, latents.pack, latents.pack),
        weight=None,
    )
