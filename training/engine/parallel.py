"""Parallelism: the process group, small collective operations, and the model under DDP or FSDP2."""

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

# Timeout of collective operations: long enough for rank 0 to paint a validation sheet at full size.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: rank of this process.
        size: number of processes.
        device: device of this process.
        engine: "data" (DDP) or "fsdp".
        files: a separate process group for checkpoints, which are written while training continues; None for one process.
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
        """Return the values of all processes in order of rank: (size, len(values)) float64 on the CPU. Collective."""
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size == 1:
            return mine[None].cpu()
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(everyone, mine)
        return torch.stack(everyone).cpu()

    def gather_objects(self, value: T) -> list[T]:
        """Return a small object of every process in order of rank. Collective."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        distributed.all_gather_object(everyone, value)
        return everyone

    def on_rank0(self, work: Callable[[], T]) -> T | None:
        """Run `work` on rank 0 while the other processes wait; they return None. Collective.

        Raises:
            UniWorldError: in every process, if `work` raises a UniWorldError or an OSError.
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
                failure = f"{named} cannot be accessed ({error.strerror or error}): check its path and permissions."
        failure = self.broadcast(failure)
        if failure is not None:
            raise UniWorldError(failure)
        return result

    def broadcast(self, value: T) -> T:
        """Return rank 0's value in every process. Collective."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def start_world(device: str = "auto", engine: str = "data") -> Iterator[World]:
    """Yield the processes that torchrun started, or this process only.

    Args:
        device: "auto", "cpu" or "cuda".
        engine: "data" or "fsdp".

    Raises:
        UniWorldError: there is no GPU for "cuda", or the processes cannot connect.
        RunFailed: another process exited within the block.
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
            f"Another of the {size} training processes exited, so rank {rank} cannot continue; see that process's own "
            "message. Run the same command again to resume from the newest checkpoint."
        ) from error


def parallelize(tower: nn.Module, world: World, compute: torch.dtype) -> nn.Module:
    """Wrap the model for the processes: unchanged for one, DDP, or FSDP2 with one shard group per transformer block.

    Args:
        tower: a module with a painter as `dit`, such as `step.DenoiseTower`. Its trainable parameters are set already.
        world: the processes.
        compute: dtype of FSDP2's gathered parameters.

    Raises:
        UniWorldError: this PyTorch does not support FSDP2 on the CPU.
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
            f"run.parallel is 'fsdp' on the CPU, but PyTorch {torch.__version__} shards models only on GPUs: set "
            "run.parallel = 'data', or install a newer PyTorch."
        )
    # FSDP2 warns that these outputs must not be modified in place; FLUX's blocks add to them out of place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    transformer: Any = tower.dit.transformer  # type: ignore[union-attr]
    single = getattr(transformer, "single_transformer_blocks", ())
    for module in [*transformer.transformer_blocks, *single, tower]:
        # FSDP2 needs a single dtype, so everything becomes float32. Each block is sharded right after its conversion, to
        # keep the peak memory low.
        fully_shard(module.float(), mesh=mesh, mp_policy=policy)
    set_compute(tower, compute)  # `float` has changed the compute dtype; gathered parameters have `compute`
    return tower


def without_sync(engine: nn.Module) -> AbstractContextManager[None]:
    """Disable DDP's gradient synchronization within the block; without effect on other modules."""
    from torch.nn.parallel import DistributedDataParallel

    return engine.no_sync() if isinstance(engine, DistributedDataParallel) else nullcontext()


def reshard(engine: nn.Module) -> None:
    """Drop the gathered parameters of an FSDP2 model's root, so that the next forward pass sees changes of the shards.

    FSDP2 keeps them from a forward pass until its backward pass.
    """
    if hasattr(engine, "reshard"):
        engine.reshard()  # type: ignore[operator]


@contextmanager
def unsharded(engine: nn.Module) -> Iterator[None]:
    """Gather the parameters of an FSDP2 model's root within the block.

    FSDP2 gathers them only in the root's own forward, so calling a submodule directly needs this.
    """
    if not hasattr(engine, "unshard"):
        yield
        return
    engine.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        reshard(engine)


def _device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UniWorldError("run.device is 'cuda', but PyTorch finds no GPU: set run.device to 'auto' or 'cpu'.")
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(chosen)
    return chosen


def _start_group(device: torch.device) -> None:
    # Gloo in addition to NCCL, because checkpoints and small messages go through the CPU.
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UniWorldError(
            f"The training processes cannot connect to each other ({error}): start them with torchrun, which sets RANK, "
            "WORLD_SIZE, MASTER_ADDR and MASTER_PORT."
        ) from error
    # One group for all runs of these processes. If it were destroyed and created again between two runs, a fast process
    # could reach the rendezvous of a slow process's previous run, and both would wait forever.
    atexit.register(_end_group)


def _end_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _is_lost_peer(error: RuntimeError) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    words = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe")
    return "DistError" in names or any(word in str(error) for word in words)
