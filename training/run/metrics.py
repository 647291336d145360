"""Run metrics: JSON lines, a progress bar, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol

from ...streams import progress_bar
from ...uniworld_core.errors import UniWorldError
from ..files import cannot_write, write_atomic
from ..objective.batch import BadSample
from .folder import METRICS, SKIPPED, TENSORBOARD, RunConfig


class RunMetrics(Protocol):
    """Metrics of one step, a dataclass whose field names are the keys in `metrics.jsonl`. None is a missing value.

    The values of a field that is a mapping have keys of their own, FIELD/KEY.
    """

    HEADLINE: ClassVar[str]  # the field to show next to the progress bar

    @property
    def step(self) -> int: ...


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one optimizer step; the field names are the keys in `metrics.jsonl`.

    Attributes:
        step: number of the step, 1 for the first.
        epoch: epoch of its data, counted from 0.
        loss: mean over the samples of all processes.
        learning_rate: the learning rate used; with Prodigy, multiplied by its estimate.
        gradient_norm: global norm before clipping.
        samples_per_second: throughput over all processes.
        seconds: duration, including the wait for data.
        skipped: bad samples skipped since the start of the run.
    """

    HEADLINE: ClassVar[str] = "loss"

    step: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_norm: float
    samples_per_second: float
    seconds: float
    skipped: int


class Reporter:
    """Writes the metrics of every step. A context manager, for rank 0 only.

    Args:
        folder: the run's folder.
        config: its configuration.
        done: steps done before. Metrics of later steps, which were lost with a kill, are removed.
        progress: show a progress bar on a terminal.

    Raises:
        UniWorldError: a file cannot be written, or wandb is configured and not installed.
    """

    def __init__(self, folder: Path, config: RunConfig, done: int = 0, progress: bool = True) -> None:
        self._folder, self._every = folder, config.run.log_every
        self._files = {name: folder / name for name in (METRICS, SKIPPED)}
        for file in self._files.values():
            _drop_after(file, done)
        self._stack = ExitStack()
        self._outputs = {name: self._stack.enter_context(_open(file)) for name, file in self._files.items()}
        # disable=None shows the bar on terminals only.
        bar = progress_bar(total=config.run.steps, initial=done, unit="step", disable=None if progress else True)
        self._bar = self._stack.enter_context(bar)
        self._board = _tensorboard(folder, done, self._stack) if config.run.tensorboard else None
        self._wandb = _wandb(folder, config, self._stack) if config.run.wandb else None

    def step(self, step: int, metrics: RunMetrics | None) -> None:
        """Write the metrics of a step. A step without a good sample has none and only advances the bar."""
        if metrics is None:
            self._bar.update()
            return
        values = _flat(asdict(metrics))  # type: ignore[call-overload]
        if values[metrics.HEADLINE] is not None:
            self._bar.set_postfix({metrics.HEADLINE: f"{values[metrics.HEADLINE]:.4f}"}, refresh=False)
        self._bar.update()
        if step % self._every:
            return
        self._write(METRICS, values)
        shown = {name: value for name, value in values.items() if name != "step" and value is not None}
        if self._board is not None:
            try:
                for name, value in shown.items():
                    self._board.add_scalar(name, value, metrics.step)
            except OSError as error:
                raise UniWorldError(cannot_write(self._folder / TENSORBOARD, error)) from error
        if self._wandb is not None:
            self._wandb.log(shown, step=metrics.step)

    def skip(self, step: int, bad: Iterable[BadSample]) -> None:
        """Log the samples that a step skipped."""
        for sample in bad:
            self._write(SKIPPED, {"step": step, "key": sample.key, "reason": sample.reason})

    def _write(self, name: str, values: dict[str, object]) -> None:
        try:
            self._outputs[name].write(json.dumps(values) + "\n")
            self._outputs[name].flush()
        except OSError as error:
            raise UniWorldError(cannot_write(self._files[name], error)) from error

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(
            {f"{name}/{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return flat


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines. Truncated lines, which a kill leaves, are skipped; a missing file has no lines."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _drop_after(file: Path, step: int) -> None:
    if file.is_file():
        kept = [line for line in read_lines(file) if line["step"] <= step]
        write_atomic(file, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _open(file: Path) -> Any:
    try:
        return file.open("a", encoding="utf-8")
    except OSError as error:
        raise UniWorldError(cannot_write(file, error)) from error


def _tensorboard(folder: Path, done: int, stack: ExitStack) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional extra; the metrics are in the JSON lines as well
        return None
    stack.callback(setattr, threading, "excepthook", threading.excepthook)
    threading.excepthook = partial(_ignore_writer_errors, threading.excepthook)
    try:
        board = SummaryWriter(str(folder / TENSORBOARD), purge_step=done + 1)
    except OSError as error:
        raise UniWorldError(cannot_write(folder / TENSORBOARD, error)) from error
    stack.callback(_close, board)
    return board


def _close(board: Any) -> None:
    with suppress(OSError):  # whatever it cannot write is in `metrics.jsonl` too
        board.close()
    for thread in filter(_is_tensorboard, threading.enumerate()):
        thread.join(timeout=1)


def _ignore_writer_errors(hook: Callable[[Any], object], fault: Any) -> None:
    # TensorBoard's writer thread would print a traceback. The next step raises the same disk error as a sentence.
    if not (isinstance(fault.exc_value, OSError) and _is_tensorboard(fault.thread)):
        hook(fault)


def _is_tensorboard(thread: object) -> bool:
    return type(thread).__module__.startswith("tensorboard.")


def _wandb(folder: Path, config: RunConfig, stack: ExitStack) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UniWorldError(
            f"run.wandb is '{config.run.wandb}', but wandb is not installed: pip install wandb, or set run.wandb to ''."
        ) from error
    run = wandb.init(project=config.run.wandb, name=folder.name, dir=str(folder), config=asdict(config))
    stack.callback(run.finish)
    return run
