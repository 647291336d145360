"""Checkpoints of a run, written by torch.distributed.checkpoint in the background and then renamed.

A folder `step-00001000` has the trained parameters ("weights/"), their EMA ("ema/") and the optimizer's tensors
("optimizer/"), all of which can be loaded on any number of processes. `meta.json` has the rest of the state and checksums
of the files. A folder with another name is not a finished checkpoint.

Our own thread rather than `dcp.async_save`: checksums, the rename and the pruning of older checkpoints belong to the same
background work, but the future of `async_save` completes before them. Both take the same time (256 MiB, one core).
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.files import sha256_file, sync_folder, write_atomic
from .optimizer import local
from .parallel import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

META = "meta.json"
WEIGHTS, EMA, OPTIMIZER = "weights/", "ema/", "optimizer/"
_PARTIAL = ".partial"

T = TypeVar("T")
F = TypeVar("F")

# Warned at each save and load in a single process, which is intended here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def finished(folder: Path) -> list[Path]:
    """Return the finished checkpoints in a run's `checkpoints` folder, oldest first."""
    found = [one for one in folder.glob("step-*") if one.suffix != _PARTIAL and (one / META).is_file()]
    return sorted(found, key=lambda one: one.name)


def latest(folder: Path) -> Path | None:
    """Return the newest finished checkpoint, or None."""
    return next(reversed(finished(folder)), None)


def read_with_retry(find: Callable[[], F], read: Callable[[F], T]) -> T:
    """Call `read` on the checkpoint or checkpoints that `find` returns; try again if they were pruned meanwhile.

    A running job prunes old checkpoints. If reading fails and `find` now returns another checkpoint, that one is read.
    """
    checkpoint = find()
    while True:
        try:
            return read(checkpoint)
        except UniWorldError:
            newer = find()
            if newer == checkpoint:
                raise
            checkpoint = newer


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's `meta.json`. Raises UniWorldError if it is not readable."""
    try:
        return json.loads((checkpoint / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UniWorldError(
            f"{checkpoint / META} cannot be read ({error}): the checkpoint is damaged. {_recovery(checkpoint)}"
        ) from error


def verify(checkpoint: Path) -> None:
    """Check every file of a checkpoint against its checksum. Raises UniWorldError naming the first that differs."""
    for name, wanted in read_meta(checkpoint)["files"].items():
        file = checkpoint / name
        if not file.is_file() or sha256_file(file) != wanted:
            state = "does not match its checksum" if file.is_file() else "is missing"
            raise UniWorldError(f"{file} {state}: the checkpoint is damaged. {_recovery(checkpoint)}")


class CheckpointSaver:
    """Writes checkpoints in the background, one at a time. Its methods are collective: all processes call them together.

    Args:
        folder: the run's `checkpoints` folder, on a file system that all processes share.
        world: the run's processes.
        keep: number of newest checkpoints to keep; 0 keeps all.
        keep_best: number of further checkpoints to keep, those with the lowest "loss" in their meta.
    """

    def __init__(self, folder: Path, world: World, keep: int = 0, keep_best: int = 0) -> None:
        self.folder, self.world, self.keep, self.keep_best = folder, world, keep, keep_best
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        world.on_rank0(self._remove_partial)

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
        """Start writing the checkpoint of `step`. The tensors are copied first, so the caller may change them at once.

        Raises:
            UniWorldError: this checkpoint or the previous one cannot be written.
        """
        self.wait()
        name = checkpoint_name(step)
        copied = {key: _copy(tensor) for key, tensor in tensors.items()}
        self.world.on_rank0(lambda: (self.folder / (name + _PARTIAL)).mkdir())
        # A new thread for each checkpoint: a persistent one would keep its own OpenMP threads alive, and with more of
        # those than cores the training's threads sleep between any two operations.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = self._thread.submit(self._write, name, copied, dict(meta))
        self._thread.shutdown(wait=False)

    def wait(self) -> None:
        """Wait for the pending checkpoint. Raises UniWorldError in every process if it could not be written."""
        pending, self._pending = self._pending, None
        error = pending.exception() if pending is not None else None
        messages = [text for text in self.world.gather_objects(error and str(error)) if text]
        if messages:
            raise UniWorldError(messages[0]) from error

    @property
    def failed(self) -> bool:
        """Whether writing the pending checkpoint has failed in this process; `wait` then raises the reason."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def close(self) -> None:
        """Wait for the thread to finish."""
        if self._thread is not None:
            self._thread.shutdown()

    def _remove_partial(self) -> None:
        for partial in self.folder.glob(f"step-*{_PARTIAL}"):
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, name: str, tensors: dict[str, Tensor], meta: dict[str, object]) -> None:
        partial = self.folder / (name + _PARTIAL)
        try:
            _write_tensors(partial, tensors, self.world)
            if self.world.is_rank0:
                _finish(partial, self.folder / name, meta)
        except _dcp_errors() as error:
            if self.world.is_rank0:
                shutil.rmtree(partial, ignore_errors=True)
            kept = latest(self.folder)
            previous = f"the last complete one is {kept.name}" if kept else "there is no earlier one"
            raise UniWorldError(
                f"The checkpoint {self.folder / name} could not be written ({_root_cause(error)}); {previous}. Free disk "
                "space or repair the disk, then run the same command again to resume."
            ) from error
        if self.world.is_rank0:
            self._prune()

    def _prune(self) -> None:
        done = finished(self.folder)
        best = sorted(done, key=_loss)[: self.keep_best] if self.keep_best else []
        for old in done[: -self.keep] if self.keep else []:
            if old not in best:
                # Renamed first, so that a kill during the removal does not leave an incomplete checkpoint.
                removed = old.with_name(old.name + _PARTIAL)
                try:
                    old.rename(removed)
                    shutil.rmtree(removed)
                except OSError as error:
                    raise UniWorldError(
                        f"The checkpoint {done[-1]} was written, but the older {old} cannot be removed ({error}), so the "
                        "disk would fill up: remove it by hand, then run the same command again."
                    ) from error


def stored_tensors(checkpoint: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return {name: (shape, dtype)} of the tensors in a checkpoint. Raises UniWorldError if it is damaged."""
    from torch.distributed.checkpoint import FileSystemReader

    try:
        metadata = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    except _dcp_errors() as error:
        raise _damaged(checkpoint, error) from error
    return {name: (tuple(entry.size), entry.properties.dtype) for name, entry in metadata.items()}  # type: ignore[union-attr]


def load_into(checkpoint: Path, tensors: dict[str, Tensor], world: World | None = None) -> None:
    """Load tensors by name into existing ones. Both may be sharded in different ways.

    Raises:
        UniWorldError: the checkpoint is damaged, or a tensor is missing in it.
    """
    from torch.distributed import checkpoint as dcp

    try:
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(checkpoint), process_group=world and world.files)
    except _dcp_errors() as error:
        raise _damaged(checkpoint, error) from error


def read_tensors(checkpoint: Path, prefix: str) -> dict[str, Tensor]:
    """Read the unsharded tensors below a prefix ("weights/", "ema/") into one process's memory; names lose the prefix.

    Raises:
        UniWorldError: the checkpoint is damaged.
    """
    empty = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in stored_tensors(checkpoint).items()
        if name.startswith(prefix)
    }
    load_into(checkpoint, empty)
    return {name[len(prefix) :]: tensor for name, tensor in empty.items()}


def _loss(checkpoint: Path) -> float:
    try:
        loss = read_meta(checkpoint).get("loss")
    except UniWorldError:  # a damaged checkpoint is never among the best
        loss = None
    return float("inf") if loss is None else float(loss)


def _copy(tensor: Tensor) -> Tensor:
    """Copy a tensor to system RAM, sharded like the original."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    mine = local(tensor.detach()).to("cpu", copy=True)
    mesh = _cpu_mesh(tensor.device_mesh)
    return DTensor.from_local(
        mine, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def _cpu_mesh(mesh: DeviceMesh) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    return mesh if mesh.device_type == "cpu" else init_device_mesh("cpu", tuple(mesh.shape))


def _write_tensors(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    from torch.distributed import checkpoint as dcp

    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
    dcp.save(tensors, storage_writer=writer, process_group=world.files)


def _finish(partial: Path, final: Path, meta: dict[str, object]) -> None:
    """Write the meta of a checkpoint and give it its final name."""
    files = {file.name: sha256_file(file) for file in sorted(partial.iterdir())}
    write_atomic(partial / META, json.dumps({**meta, "files": files}, indent=1).encode())
    if final.exists():
        raise UniWorldError(f"{final} already exists, and checkpoints are never overwritten")
    partial.rename(final)
    sync_folder(final.parent)


def _dcp_errors() -> tuple[type[BaseException], ...]:
    """Return the errors of torch.distributed.checkpoint: any type, wrapped in one that is not an `Exception`."""
    from torch.distributed.checkpoint.api import CheckpointException

    return Exception, CheckpointException


def _root_cause(error: BaseException) -> str:
    """Return the innermost reason of an error of torch.distributed.checkpoint.

    The operating system's message takes precedence: torch's archive writer reports a full disk as "unexpected pos".
    """
    failures = getattr(error, "failures", None)
    inner = next(iter(failures.values()))[0] if failures else error.__cause__ or error.__context__
    if isinstance(inner, BaseException) and not (isinstance(error, OSError) and error.strerror):
        return _root_cause(inner)
    return str(error)


def _damaged(checkpoint: Path, error: BaseException) -> UniWorldError:
    return UniWorldError(
        f"The checkpoint {checkpoint} cannot be read ({_root_cause(error)}): it is damaged or belongs to another "
        f"configuration. {_recovery(checkpoint)}"
    )


def _recovery(checkpoint: Path) -> str:
    return (
        f"Remove the folder {checkpoint}; the run then resumes from the previous checkpoint, or starts from scratch if "
        "there is none."
    )
