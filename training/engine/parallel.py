"""One process or many: the process group, what the processes agree on, and the model's form under PyTorch's engines."""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from ...uniworld_core.errors import RunFailed, UniWorldError
from ...uniworld_core.loading.storage import set_compute

T = TypeVar("T")

# How long the others wait for a process that does not come: long enough for a validation sheet at full size.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: this process, 0 for the main one.
        size: how many there are.
        device: where this one computes.
        engine: "data" or "fsdp".
        files: a group of its own for checkpoints, since they are written while training goes on; None for one process.
    """

    rank: int
    size: int
    device: torch.device
    engine: str
    files: ProcessGroup | None = None

    @property
    def is_rank0(self) -> bool:
        return self.rank == 0

    def gather(self, values: Sequence[float]) -> Tensor:
        """(size, len(values)) float64 on the CPU: the values of every process, in their order."""
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size == 1:
            return mine[None].cpu()
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(everyone, mine)
        return torch.stack(everyone).cpu()

    def gather_objects(self, value: T) -> list[T]:
        """One small value of every process, in their order."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        distributed.all_gather_object(everyone, value)
        return everyone

    def on_rank0(self, work: Callable[[], T]) -> T | None:
        """Do `work` in the main process, while the others wait; they get None.

        Raises:
            UniWorldError: in every process, if the work raises one or an OSError.
        """
        result: T | None = None
        failure: str | None = None
        if self.is_rank0:
            try:
                result = work()
            except UniWorldError as error:
                failure = str(error)
            except OSError as error:
                named = f"'{error.filename}'" if error.filename else "A file"
                failure = f"{named} cannot be used ({error.strerror or error}): check its path and its rights."
        failure = self.broadcast(failure)
        if failure is not None:
            raise UniWorldError(failure)
        return result

    def broadcast(self, value: T) -> T:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def start_world(device: str = "auto", engine: str = "data") -> Iterator[World]:
    """The world of this run: the processes that torchrun started, else this one alone.

    Args:
        device: "auto", "cpu" or "cuda".
        engine: "data" or "fsdp".

    Raises:
        UniWorldError: no GPU where one is asked for, processes that cannot find each other, or, out of
            the block, another process that ended in its midst.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = _device(device)
    if size == 1:
        yield World(0, 1, chosen, "data")
        return
    if not distributed.is_initialized():
        _start_group(chosen)
    try:
        yield World(rank, size, chosen, engine, distributed.new_group(backend="gloo", timeout=_TIMEOUT))
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise RunFailed(
            f"Another of the {size} training processes ended, and process {rank} cannot go on alone: its own message says "
            "why. Start the same command again; it goes on from the newest checkpoint."
        ) from error


def parallelize(tower: nn.Module, world: World, compute: torch.dtype) -> nn.Module:
    """The tower as the engine wants it: itself alone, in DDP, or parallelize by FSDP2, a transformer block at a time.

    Args:
        tower: a `step.DenoiseTower` whose trainable tensors are chosen already.
        compute: the dtype of FSDP2's gathered weights.

    Raises:
        UniWorldError: FSDP2 on the CPU with a PyTorch that cannot.
    """
    if world.size == 1:
        return tower
    if world.engine == "data":
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(tower)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if world.device.type == "cpu" and not hasattr(torch.cpu.current_stream(), "record_event"):
        raise UniWorldError(
            f"run.parallel is 'fsdp' on the CPU, and PyTorch {torch.__version__} spreads models over GPUs alone: set "
            "run.parallel = 'data', or install a newer PyTorch."
        )
    # It warns that such outputs must not be changed in place, and FLUX's blocks add to them out of place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    transformer: Any = tower.dit.transformer  # type: ignore[union-attr]
    for module in [*transformer.transformer_blocks, *transformer.single_transformer_blocks, tower]:
        # FSDP2 takes tensors of one dtype: float32 throughout, one block after another, which is parallelize at once.
        fully_shard(module.float(), mesh=mesh, mp_policy=policy)
    set_compute(tower, compute)  # which `float` has changed, and the gathered weights have
    return tower


def without_sync(engine: nn.Module) -> AbstractContextManager[None]:
    """Within it, backward passes of DDP keep their gradients to themselves; those of others are not changed."""
    from torch.nn.parallel import DistributedDataParallel

    return engine.no_sync() if isinstance(engine, DistributedDataParallel) else nullcontext()


@contextmanager
def unsharded(engine: nn.Module) -> Iterator[None]:
    """Within it, parts of a parallelize tower may be called without going through the tower itself."""
    if not hasattr(engine, "unshard"):
        yield
        return
    engine.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        engine.reshard()  # type: ignore[operator]


def _device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UniWorldError("run.device is 'cuda', and PyTorch finds no GPU: set run.device = 'auto' or 'cpu'.")
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(chosen)
    return chosen


def _start_group(device: torch.device) -> None:
    # Gloo beside NCCL: checkpoints and small messages go through the CPU.
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UniWorldError(
            f"The training processes cannot find each other ({error}): start them with torchrun, which sets RANK, "
            "WORLD_SIZE, MASTER_ADDR and MASTER_PORT."
        ) from error
    # It serves all runs of these processes. Were it taken down and started anew between two of them, the faster process
    # could meet the slower one's old meeting point, and both would wait for ever.
    atexit.register(_end_group)


def _end_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _is_lost_peer(error: RuntimeError) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    words = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe")
    return "DistError" in names or any(word in str(error) for word in words)
