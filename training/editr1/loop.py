"""The loop of a run with rewards: epochs until it finishes or is interrupted."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ...uniworld_core import UniWorld
from ...uniworld_core.errors import RunFailed, UniWorldError
from ...uniworld_core.loading.dtypes import choose_dtype
from ...uniworld_core.loading.storage import FloatStorage
from ..config.editr1 import EditR1Config
from ..engine.parallel import World, start_world
from ..objective.batch import BadSample
from ..run import folder as run_folder
from ..run.loop import stop_on_signal
from ..run.metrics import Reporter
from ..run.plot import plot
from .drawing import EpochRefused
from .export import check_exportable
from .groups import stream_seed
from .metrics import EpochMetrics
from .policy import open_policy
from .prompts import Prompts
from .providers import Providers
from .reward.protocol import Reward
from .trainer import EditR1Trainer

CURVES = "curves.png"


@dataclass(frozen=True)
class EditR1Result:
    """The result of `train_editr1`.

    Attributes:
        steps: epochs of the run so far, including earlier calls.
        reward: mean reward of the last epoch; None if there were no epochs left.
        skipped: number of bad samples replaced.
        idle: number of epochs of this call in which no group passed the filter, so that nothing changed.
        interrupted: whether a signal stopped the run before its last epoch; a checkpoint is saved.
    """

    steps: int
    reward: float | None
    skipped: int
    idle: int
    interrupted: bool


def train_editr1(config: EditR1Config, folder: Path, providers: Providers, progress: bool = True) -> EditR1Result:
    """Train with rewards, or resume the run in `folder` if it has a checkpoint of the same configuration.

    Under torchrun every process calls it. Ctrl-C and SIGTERM stop the run after the current epoch and save a checkpoint.

    Args:
        config: the configuration.
        folder: the run's folder; see `run.folder`.
        providers: the prompts and rewards that it may name.
        progress: show a progress bar on a terminal.

    Raises:
        RunFailed: during training: too many bad samples or failed scores, a loss that is not finite, a full disk, or
            another process that exited. Earlier checkpoints, finished rollouts and scores are kept.
        UniWorldError: the configuration, model, data, reward or run folder cannot be used.
    """
    config.check_complete()
    check_exportable(config)
    providers.check_reward(config)
    with start_world(config.run.device, config.run.parallel) as world, ExitStack() as stack:
        if config.editr1.groups % world.size:
            raise UniWorldError(
                f"editr1.groups is {config.editr1.groups}, which {world.size} processes cannot share equally: choose a "
                "multiple, or start another number of processes."
            )
        prompts = providers.open_prompts(config)
        world.on_rank0(lambda: stack.enter_context(run_folder.lock(folder)))
        checkpoint = world.broadcast(world.on_rank0(lambda: run_folder.resume_from(folder, config)))
        model = open_base_model(config, world.device)  # before the reward, because loading a judge may take minutes
        with _open_rewards(providers, config) as (reward, watched):
            trainer = _open_trainer(config, folder, world, model, prompts, reward, watched)
            stack.callback(trainer.saver.close)
            if checkpoint is not None:
                trainer.resume(checkpoint)
            world.on_rank0(lambda: run_folder.write_config(folder, config))
            reporter = world.on_rank0(lambda: stack.enter_context(Reporter(folder, config, trainer.step, progress)))
            stop = stack.enter_context(stop_on_signal())
            try:
                return _run(trainer, reporter, stop)
            except UniWorldError as error:
                raise RunFailed(str(error)) from error


@contextmanager
def _open_rewards(providers: Providers, config: EditR1Config) -> Iterator[tuple[Reward, dict[str, Reward]]]:
    """Open the reward and those that are only recorded."""
    with ExitStack() as stack:
        reward = providers.open_reward(config)
        stack.callback(reward.close)
        watched = providers.open_watched(config)
        for one in watched.values():
            stack.callback(one.close)
        yield reward, watched


def _plot(folder: Path) -> None:
    """Write the curves next to the contact sheets, if matplotlib is installed."""
    if find_spec("matplotlib") is not None:
        plot({folder.resolve().name: folder}, folder / CURVES)


def _open_trainer(
    config: EditR1Config,
    folder: Path,
    world: World,
    model: UniWorld,
    prompts: Prompts,
    reward: Reward,
    watched: dict[str, Reward],
) -> EditR1Trainer:
    policy = open_policy(config, model, world)
    # Our own numbers come from generators of their own. These are for rewards and libraries; checkpoints store them.
    seed = stream_seed(config.run.seed, world.rank)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    return EditR1Trainer(config, folder, world, model, policy, prompts, reward, watched)


def open_base_model(config: EditR1Config, device: torch.device) -> UniWorld:
    """Open the configured model, and warn if it is a small one that knows only another size of pictures.

    Raises:
        UniWorldError: a folder is missing or its parts do not fit.
    """
    settings = config.model
    dtype = choose_dtype(None if settings.dtype == "auto" else getattr(torch, settings.dtype), device)
    model = UniWorld.from_pretrained(
        settings.checkpoint,
        settings.flux or None,
        settings.siglip or None,
        device=device,
        storage=FloatStorage(dtype),  # quantized weights cannot be trained
        offload="none",
    )
    side, native = config.editr1.side, model.parts.facts.native_side
    if model.scope is not None and side != native:
        warnings.warn(
            f"editr1.side is {side}, and {settings.checkpoint} knows only pictures of {native}x{native} pixels, so that others "
            f"will be poor: set editr1.side to {native}.",
            stacklevel=2,
        )
    return model


def _run(trainer: EditR1Trainer, reporter: Reporter | None, stop: threading.Event) -> EditR1Result:
    run, world = trainer.config.run, trainer.world
    metrics: EpochMetrics | None = None
    idle, interrupted = 0, False
    while trainer.step < run.steps and not interrupted:
        known = set(trainer.drawing.skipped)
        try:
            metrics = trainer.epoch()
        except EpochRefused:  # keep the progress, to resume with repaired data or a working reward
            if trainer.step:
                trainer.save()
                trainer.saver.wait()
            raise
        if reporter is not None:
            new = [BadSample(key, reason) for key, reason in trainer.drawing.skipped.items() if key not in known]
            reporter.skip(trainer.step, new)
            reporter.step(trainer.step, metrics)
        idle += metrics.loss is None
        interrupted = bool(world.gather([stop.is_set()]).any()) and trainer.step < run.steps
        if trainer.step % run.save_every == 0 or interrupted:
            trainer.save()
        last = interrupted or trainer.step == run.steps
        if reporter is not None and run.sheet_every and (last or (trainer.step - 1) % run.sheet_every == 0):
            _plot(trainer.folder)
    trainer.save()
    trainer.saver.wait()
    reward = None if metrics is None else metrics.reward
    return EditR1Result(trainer.step, reward, len(trainer.drawing.skipped), idle, interrupted)
