"""The training loop: train a configuration in a folder until it finishes or is interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ...uniworld_core.errors import RunFailed, UniWorldError
from ..config.settings import Config
from ..data.cache import Cache
from ..data.encode import Encoder
from ..data.loader import StepData, batches
from ..engine.parallel import World, start_world
from . import folder as run_folder
from .metrics import Reporter
from .setup import RunData, load_frozen_parts, open_data, open_encoder, open_model
from .trainer import StepConsensus, TooManyBadSamples, Trainer
from .validate import Validator

# Signals that stop a run: Ctrl-C, and what schedulers and torchrun send.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Signals within this many seconds count as one: torchrun forwards to its processes what the terminal has sent them already.
_REPEAT_SECONDS = 3.0


@dataclass(frozen=True)
class TrainingResult:
    """The result of `train`.

    Attributes:
        steps: optimizer steps of the run so far, including earlier calls.
        loss: loss of the last step; None if there were no steps left.
        skipped: number of bad samples skipped.
        interrupted: whether a signal stopped the run before its last step; a checkpoint is saved.
    """

    steps: int
    loss: float | None
    skipped: int
    interrupted: bool


def train(
    config: Config,
    folder: Path,
    progress: bool = True,
    data_of: Callable[[Config, Encoder], RunData] | None = None,
) -> TrainingResult:
    """Train, or resume the run in `folder` if it has a checkpoint of the same configuration.

    Under torchrun every process calls it. Ctrl-C and SIGTERM stop the run after the current step and save a checkpoint.

    Args:
        config: the configuration.
        folder: the run's folder; see `run.folder`.
        progress: show a progress bar on a terminal.
        data_of: opens the samples, if they are not those that the configuration names.

    Raises:
        RunFailed: during training: too many bad samples, a loss that is not finite, a full disk, or another process that
            exited. Earlier checkpoints are kept.
        UniWorldError: the configuration, model, data or run folder cannot be used.
    """
    config.check_complete()
    with start_world(config.run.device, config.run.parallel) as world, ExitStack() as stack:
        if world.size > config.run.batch_size:
            raise UniWorldError(
                f"run.batch_size is {config.run.batch_size}, less than the number of processes, {world.size}: set it to "
                f"{world.size} or more, or start fewer processes."
            )
        world.on_rank0(lambda: stack.enter_context(run_folder.lock(folder)))
        checkpoint = world.broadcast(world.on_rank0(lambda: run_folder.resume_from(folder, config)))
        encoder = open_encoder(config, world.device)
        if checkpoint is None:  # a new run reads the pictures' current sizes
            world.on_rank0(lambda: (folder / run_folder.SIZES).unlink(missing_ok=True))
        data = open_data(config, encoder, folder / run_folder.SIZES) if data_of is None else data_of(config, encoder)
        if not isinstance(data.source, Cache):
            load_frozen_parts(encoder)
        validator = Validator(encoder, config.validation) if config.run.validate_every else None
        model = open_model(config, encoder, world, folder / run_folder.START, resumes=checkpoint is not None)
        trainer = Trainer(config, folder, world, model, data.fingerprint)
        stack.callback(trainer.saver.close)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        world.on_rank0(lambda: run_folder.write_config(folder, config))
        reporter = world.on_rank0(lambda: stack.enter_context(Reporter(folder, config, trainer.step, progress)))
        stop = stack.enter_context(stop_on_signal())
        try:
            return _run(trainer, data, encoder, validator, reporter, stop)
        except UniWorldError as error:
            raise RunFailed(str(error)) from error


def _run(
    trainer: Trainer,
    data: RunData,
    encoder: Encoder,
    validator: Validator | None,
    reporter: Reporter | None,
    stop: threading.Event,
) -> TrainingResult:
    run, world = trainer.config.run, trainer.world
    loss, interrupted = None, False
    with closing(_steps(trainer, data, encoder, world)) as steps:
        for step in steps:
            consensus = _agree(trainer, step, stop.is_set())
            metrics = trainer.train(step, consensus)
            if reporter is not None:
                reporter.skip(trainer.step, consensus.bad)
                reporter.step(trainer.step, metrics)
            loss = loss if metrics is None else metrics.loss
            if validator is not None and trainer.step % run.validate_every == 0:
                trainer.validate(validator)
            interrupted = consensus.stop and trainer.step < run.steps
            if trainer.step % run.save_every == 0 or interrupted:
                trainer.save()
            if interrupted:
                break
    trainer.save()
    trainer.saver.wait()
    return TrainingResult(trainer.step, loss, len(trainer.skipped), interrupted)


def _agree(trainer: Trainer, step: StepData, stop: bool) -> StepConsensus:
    try:
        return trainer.agree(step, stop)
    except TooManyBadSamples:  # keep the progress, to resume with repaired data or a higher limit
        trainer.save()
        trainer.saver.wait()
        raise


def _steps(trainer: Trainer, data: RunData, encoder: Encoder, world: World) -> Generator[StepData, None, None]:
    run = trainer.config.run
    return batches(
        data.source,
        encoder,
        data.plan,
        start_step=trainer.step,
        stop_step=run.steps,
        rank=world.rank,
        world=world.size,
        micro=run.micro_batch_size,
        workers=trainer.config.data.workers,
    )


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that the first signal sets; a later one interrupts the process at once, as it would by default."""
    stop, first = threading.Event(), 0.0
    if threading.current_thread() is not threading.main_thread():  # Python allows signal handlers there only
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not stop.is_set():
            first = time.monotonic()
            stop.set()
        elif time.monotonic() - first > _REPEAT_SECONDS:
            restore()
            signal.raise_signal(number)

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
