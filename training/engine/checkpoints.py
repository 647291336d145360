"""Checkpoints of a run: written beside by torch.distributed.checkpoint while training goes on, then renamed.

A folder `step-00001000` holds what trains ("weights/"), its average ("ema/"), the optimizer's tensors ("optimizer/"), all
of them restorable onto any number of processes, and `meta.json`: the rest of the state, and checksums of the files. A
folder without that name is not a checkpoint.

The thread is our own and not `dcp.async_save`'s: checksums, the rename and the removal of older checkpoints belong into the
same background work, and its future ends before them. Timings of the two (256 MiB, one core) do not tell them apart.
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

# Said at each save and load of a single process, which is what is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def checkpoint_name(step: int) -> str:
    """The folder's name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def finished(folder: Path) -> list[Path]:
    """The finished checkpoints in a run's `checkpoints` folder, oldest first."""
    found = [one for one in folder.glob("step-*") if one.suffix != _PARTIAL and (one / META).is_file()]
    return sorted(found, key=lambda one: one.name)


def latest(folder: Path) -> Path | None:
    """The newest finished checkpoint, or None."""
    return next(reversed(finished(folder)), None)


def read_with_retry(find: Callable[[], F], read: Callable[[F], T]) -> T:
    """What `read` gives of the checkpoint, or checkpoints, that `find` names.

    A run in work removes its older checkpoints: where that was the reason why reading failed, `find` names another one by
    then, which is read instead.
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
    """What a checkpoint says besides its tensors. Raises UniWorldError if that is not readable."""
    try:
        return json.loads((checkpoint / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UniWorldError(
            f"{checkpoint / META} cannot be read ({error}): the checkpoint is damaged. Remove the folder {checkpoint}, and "
            "the run goes on from the one before, or begins anew if it is the only one."
        ) from error


def verify(checkpoint: Path) -> None:
    """Hold every file of a checkpoint against its checksum. Raises UniWorldError naming the one that differs."""
    for name, wanted in read_meta(checkpoint)["files"].items():
        file = checkpoint / name
        if not file.is_file() or sha256_file(file) != wanted:
            state = "is not what was written" if file.is_file() else "is missing"
            raise UniWorldError(
                f"{file} {state}: the checkpoint is damaged. Remove the folder {checkpoint}, and the run goes on from the "
                "one before, or begins anew if it is the only one."
            )


class CheckpointSaver:
    """Writes checkpoints in the background, one at a time. All processes call its methods together.

    Args:
        folder: the run's `checkpoints` folder, on a disk that all processes share.
        world: the run's processes.
        keep: newest checkpoints that stay, 0 for all.
        keep_best: besides them, so many with the lowest "loss" in their meta.
    """

    def __init__(self, folder: Path, world: World, keep: int = 0, keep_best: int = 0) -> None:
        self.folder, self.world, self.keep, self.keep_best = folder, world, keep, keep_best
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        world.on_rank0(self._remove_partial)

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
        """Begin to write the checkpoint of `step`; the tensors are copied now and may change at once.

        Raises:
            UniWorldError: this one, or the one before, cannot be written.
        """
        self.wait()
        name = checkpoint_name(step)
        copied = {key: _copy(tensor) for key, tensor in tensors.items()}
        self.world.on_rank0(lambda: (self.folder / (name + _PARTIAL)).mkdir())
        # A thread for each: one that stayed would keep OpenMP threads of its own, and with more of those than cores the
        # training's threads go to sleep between any two operations.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = self._thread.submit(self._write, name, copied, dict(meta))
        self._thread.shutdown(wait=False)

    def wait(self) -> None:
        """Wait until what was begun is finished. Raises UniWorldError in every process if it could not be written."""
        pending, self._pending = self._pending, None
        error = pending.exception() if pending is not None else None
        told = [text for text in self.world.gather_objects(error and str(error)) if text]
        if told:
            raise UniWorldError(told[0]) from error

    @property
    def failed(self) -> bool:
        """Whether this process knows that the checkpoint in work cannot be written; `wait` then says why."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def close(self) -> None:
        """End the thread, once what it writes is written."""
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
            still = f"the last whole one is {kept.name}" if kept else "there is none before it"
            raise UniWorldError(
                f"The checkpoint {self.folder / name} could not be written ({_root_cause(error)}); {still}. Make room or mend "
                "the disk, and start the same command again: it goes on from there."
            ) from error
        if self.world.is_rank0:
            self._prune()

    def _prune(self) -> None:
        done = finished(self.folder)
        best = sorted(done, key=_loss)[: self.keep_best] if self.keep_best else []
        for old in done[: -self.keep] if self.keep else []:
            if old not in best:
                # Renamed first, so that one killed in the midst of removing leaves no half checkpoint.
                gone = old.with_name(old.name + _PARTIAL)
                try:
                    old.rename(gone)
                    shutil.rmtree(gone)
                except OSError as error:
                    raise UniWorldError(
                        f"The checkpoint {done[-1]} was written, but the older {old} cannot be removed ({error}), and the "
                        "disk would fill: remove it by hand, and start the same command again."
                    ) from error


def stored_tensors(checkpoint: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """{name: (shape, dtype)} of the tensors in a checkpoint. Raises UniWorldError if it is damaged."""
    from torch.distributed.checkpoint import FileSystemReader

    try:
        metadata = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    except _dcp_errors() as error:
        raise _damaged(checkpoint, error) from error
    return {name: (tuple(entry.size), entry.properties.dtype) for name, entry in metadata.items()}  # type: ignore[union-attr]


def load_into(checkpoint: Path, tensors: dict[str, Tensor], world: World | None = None) -> None:
    """Read tensors by name into the given ones, whole or spread, however they were spread when written.

    Raises:
        UniWorldError: the checkpoint is damaged, or lacks one of them.
    """
    from torch.distributed import checkpoint as dcp

    try:
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(checkpoint), process_group=world and world.files)
    except _dcp_errors() as error:
        raise _damaged(checkpoint, error) from error


def read_tensors(checkpoint: Path, prefix: str) -> dict[str, Tensor]:
    """The whole tensors of a checkpoint below a prefix ("weights/", "ema/"), without it, in one process's memory.

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
    except UniWorldError:  # a damaged one is none of the best
        loss = None
    return float("inf") if loss is None else float(loss)


def _copy(tensor: Tensor) -> Tensor:
    """A copy in the CPU's memory, spread as the original."""
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
    """Put the meta in, and give a written checkpoint its name."""
    files = {file.name: sha256_file(file) for file in sorted(partial.iterdir())}
    write_atomic(partial / META, json.dumps({**meta, "files": files}, indent=1).encode())
    if final.exists():
        raise UniWorldError(f"{final} is there already, and a checkpoint is never written over")
    partial.rename(final)
    sync_folder(final.parent)


def _dcp_errors() -> tuple[type[BaseException], ...]:
    """What torch.distributed.checkpoint raises: errors of any type, wrapped in one that is no `Exception`."""
    from torch.distributed.checkpoint.api import CheckpointException

    return Exception, CheckpointException


def _root_cause(error: BaseException) -> str:
    """The innermost reason of an error, of the failures that torch.distributed.checkpoint gathers.

    What the system says goes before what torch says of it: a full disk is "unexpected pos" to its archive's writer.
    """
    failures = getattr(error, "failures", None)
    inner = next(iter(failures.values()))[0] if failures else error.__cause__ or error.__context__
    if isinstance(inner, BaseException) and not (isinstance(error, OSError) and error.strerror):
        return _root_cause(inner)
    return str(error)


def _damaged(checkpoint: Path, error: BaseException) -> UniWorldError:
    return UniWorldError(
        f"The checkpoint {checkpoint} cannot be read ({_root_cause(error)}): it is damaged or of another configuration. Remove "
        "the folder, and the run goes on from the one before, or begins anew if it is the only one."
    )
