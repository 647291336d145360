"""One run's training in motion: a step, its checkpoint, its validation sheet."""

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
from ..engine.optimizer import (
    clip_factor,
    gradient_norm,
    learning_rate,
    make_optimizer,
    scale_gradients,
    set_learning_rate,
)
from ..engine.parallel import World, unsharded, without_sync
from ..engine.precision import autocast
from ..objective.batch import BadSample, Draws, EncodedSample
from ..objective.step import DenoiseTower
from .folder import CHECKPOINTS, VALIDATION
from .metrics import StepMetrics
from .setup import PreparedModel, compute_dtype
from .state import restore, state_tensors, state_values
from .validate import Validator


@dataclass(frozen=True)
class StepConsensus:
    """What the processes know together before a step.

    Attributes:
        good: samples of use in the whole batch.
        bad: those of no use that were not met before, of all processes.
        stop: one of the processes was asked to stop after this step.
    """

    good: int
    bad: tuple[BadSample, ...]
    stop: bool


class TooManyBadSamples(UniWorldError):
    """More samples are of no use than `data.bad_limit` allows."""


class Trainer:
    """Trains a model step by step; all processes call its methods together.

    Args:
        folder: the run's.
        samples: fingerprint of its data.

    Attributes:
        step: optimizer steps done.
        skipped: names of the bad samples met.
        saver: writes its checkpoints.
    """

    def __init__(self, config: Config, folder: Path, world: World, model: PreparedModel, samples: str) -> None:
        self.config, self.folder, self.world, self.model, self.samples = config, folder, world, model, samples
        self.optimizer = make_optimizer(model.trained.values(), config.optimizer)
        self.ema = ShardedEMA(model.trained, config.ema.decay, world.rank, world.size)
        self.saver = CheckpointSaver(folder / CHECKPOINTS, world, config.run.keep, config.run.keep_best)
        self.step = 0
        self.skipped: set[str] = set()
        self._saved: int | None = None
        self._losses_since_save: list[float] = []
        self._ended = time.perf_counter()

    def agree(self, data: StepData, stop: bool) -> StepConsensus:
        """What all processes must know before the step on `data`.

        Raises:
            TooManyBadSamples: more bad samples than `data.bad_limit`.
            UniWorldError: a checkpoint that could not be written.
        """
        mine = [sum(map(len, data.passes)), len(data.skipped), stop, self.saver.failed]
        good, bad, stops, failures = self.world.gather(mine).sum(dim=0).tolist()
        if failures:
            self.saver.wait()
        met: dict[str, BadSample] = {}
        if bad:
            for found in self.world.gather_objects(data.skipped):
                met.update({one.key: one for one in found if one.key not in self.skipped})
        count = len(self.skipped) + len(met)
        if met and count > self.config.data.bad_limit:
            # They are not taken for met: once they are mended, or the limit is raised, this step meets them anew.
            worst = "; ".join(map(str, list(met.values())[:3]))
            raise TooManyBadSamples(
                f"{count} samples are of no use, more than data.bad_limit = {self.config.data.bad_limit}. "
                f"The last: {worst} `uniworld data check` names each one: mend their pictures, or raise data.bad_limit, "
                "and the same command goes on from here."
            )
        self.skipped.update(met)
        return StepConsensus(int(good), tuple(met.values()), bool(stops))

    def train(self, data: StepData, agreed: StepConsensus) -> StepMetrics | None:
        """One optimizer step, on the mean loss of the batch's good samples over all processes; None without any.

        Raises:
            UniWorldError: a loss or the gradient is not finite; the samples are named.
        """
        self.step += 1
        if not agreed.good:
            return None
        rate = learning_rate(self.config.optimizer, self.step - 1, self.config.run.steps)
        loss = self._backward(data, agreed.good)
        norm = gradient_norm(self.model.trained.values())
        if not math.isfinite(norm):
            keys = [item.key for one in data.passes for _, item in one]
            raise UniWorldError(
                f"The gradient is not finite at step {self.step}, on {', '.join(keys)}: {_NONFINITE_ADVICE}"
            )
        scale_gradients(self.model.trained.values(), clip_factor(norm, self.config.optimizer.clip))
        set_learning_rate(self.optimizer, rate)
        used = rate * self.optimizer.param_groups[0].get("d", 1.0)  # Prodigy's own estimate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self._losses_since_save.append(loss)
        seconds = self._lap()
        return StepMetrics(
            self.step, data.epoch, loss, used, norm, agreed.good / seconds, seconds, skipped=len(self.skipped)
        )

    def save(self) -> None:
        """Begin to write a checkpoint of now, unless there is one. Raises UniWorldError if the last one could not be."""
        if self._saved == self.step:
            return
        losses = self._losses_since_save
        parts = (self.model, self.optimizer, self.ema)
        meta: dict[str, object] = {
            "step": self.step,
            "loss": math.fsum(losses) / len(losses) if losses else None,
            "samples": self.samples,
            "frozen": self.model.frozen,
            "skipped": sorted(self.skipped),
            "state": state_values(*parts),
        }
        self.saver.save(self.step, state_tensors(*parts, self.world), meta)
        self._saved, self._losses_since_save = self.step, []
        self._lap()

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint of this run.

        Raises:
            UniWorldError: it is damaged, or of other samples or another model.
        """
        meta = read_meta(checkpoint)
        if meta["samples"] != self.samples:
            raise UniWorldError(
                f"The run in {self.folder} was trained on other samples than data.list or data.shards names now: give it "
                "the same annotations in the same order, or name another folder."
            )
        if meta.get("frozen", self.model.frozen) != self.model.frozen:  # older checkpoints do not tell
            raise UniWorldError(
                f"The run in {self.folder} was trained with other weights in the parts that do not train (VLM, SigLIP, VAE, "
                "CLIP, T5, or what of the DiT and projectors stays): the files of model.checkpoint, model.flux, model.siglip "
                "or model.start have changed since. Put the same ones back, or name another folder."
            )
        restore(checkpoint, meta["state"], self.model, self.optimizer, self.ema, self.world)
        self.step = self._saved = meta["step"]
        self.skipped = set(meta["skipped"])
        self._lap()

    def validate(self, validator: Validator) -> None:
        """Paint the validation prompts with the averaged weights, and write their sheet."""
        spread_out = self.world.engine == "fsdp"
        file = self.folder / VALIDATION / f"{checkpoint_name(self.step)}.png"
        with self.ema.applied(), unsharded(self.model.wrapped):
            # Where every process has the whole model, one paints and the others wait.
            latents = validator.paint(self.model.tower) if spread_out or self.world.is_rank0 else []
        self.world.on_rank0(lambda: validator.write(latents, file))
        self._lap()

    def _backward(self, data: StepData, good: int) -> float:
        """Leave the gradient of the batch's mean loss in the parameters; gives that loss."""
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
        """Forward and backward of some samples; gives their losses (B,). Without any, the engines' exchange alone."""
        device = self.world.device
        dtype = compute_dtype(self.config, device)
        samples = [item for _, item in items] or [empty_sample(self.model.tower)]
        positions = [position for position, _ in items] or [0]
        draws = Draws.of(self.config.run.seed, positions, samples[0].latent.shape)
        batch = self.model.tower.collate(samples, draws).to(device)
        with autocast(device, dtype):
            losses = self.model.wrapped(batch)
            # The engines take the mean over the processes, and what is wanted is the mean over the samples of all.
            total = losses.sum() * (self.world.size / good if items else 0.0)
        total.backward()
        return losses.detach()[: len(items)]

    def _lap(self) -> float:
        """Seconds since the last step, checkpoint or sheet ended."""
        before, self._ended = self._ended, time.perf_counter()
        return self._ended - before


_NONFINITE_ADVICE = (
    "nothing of this step was kept, and the checkpoints before are whole. Look at these samples with `uniworld data check`. "
    "If they are sound, go on in a new folder, with a lower optimizer.lr and this run as model.start."
)


def empty_sample(tower: DenoiseTower) -> EncodedSample:
    """The smallest sample that passes the model, for a process that has none while the others wait for it."""
    width, latents = tower.projectors.denoise_projector.width, tower.dit.latent_format
    return EncodedSample(
        key="nothing",
        hidden=torch.zeros(1, width),
        ends=torch.zeros(1, dtype=torch.bool),
        features=(),
        pooled=torch.zeros(tower.dit.transformer.config.pooled_projection_dim),
        t5=None,
        latent=torch.zeros(latents.channels, latents.pack, latents.pack),
        weight=None,
    )
