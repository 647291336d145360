"""Stream parts that do not fit their compute device block by block, and explain out-of-memory errors.

diffusers' group offloading (`apply_group_offloading`) moves each block to the compute device just before it runs. On CUDA,
the next block is copied meanwhile. It needs accelerate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from ..errors import UniWorldError
from .layers import CastEmbedding, NF4Linear, ScaledLinear
from .module_size import module_bytes
from .storage import ComputeModule


class OutOfMemory(UniWorldError, torch.OutOfMemoryError):
    """The compute device ran out of memory. ComfyUI recognizes it by its second base, and unloads its models."""


def streamable(module: nn.Module) -> list[nn.Module]:
    """Return the networks within a part that can be streamed."""
    return [network for part in module.modules() if isinstance(part, ComputeModule) for network in part.networks]


def working_bytes(module: nn.Module) -> int:
    """Return the bytes that a part typically needs to compute, in addition to its weights."""
    return max((part.working_bytes for part in module.modules() if isinstance(part, ComputeModule)), default=0)


def stream_blocks(module: nn.Module, device: torch.device, in_files: bool = False) -> int:
    """Stream a part to a device: at most two of its blocks are there at a time. This cannot be undone.

    Args:
        module: the part, with its weights in system RAM or in mapped files.
        in_files: keep mapped weights in their files. Without it, CUDA devices get them from pinned RAM, which is faster.

    Returns:
        Bytes on the device while the part runs: the two largest blocks, and everything outside of blocks.
    """
    from diffusers.hooks import apply_group_offloading

    networks = streamable(module)
    streams = device.type == "cuda"
    tables = [_take_table(network) for network in networks]
    try:
        for network in networks:
            apply_group_offloading(
                network,
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=streams,
                record_stream=streams,
                low_cpu_mem_usage=streams and in_files,
            )
    except AttributeError as error:  # diffusers before 0.41 queries an accelerator even if the machine has none
        raise UniWorldError(
            f"This version of diffusers cannot stream blocks on a machine without a GPU ({error}): set offload to auto or "
            "none, or install diffusers 0.41 or later."
        ) from error
    finally:
        for network, table in zip(networks, tables):
            if table is not None:
                network.embed_tokens = table
    streamed = {id(tensor) for network in networks for tensor in (*network.parameters(), *network.buffers())}
    streamed |= {id(table.weight) for table in tables if table is not None}
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) not in streamed:
            tensor.data = tensor.data.to(device)
    for part in module.modules():
        if isinstance(part, ComputeModule) and part.networks:
            part.streamed = True
    blocks = [module_bytes(block) for network in networks for block in _blocks(network)]
    rest = module_bytes(module) - sum(blocks) - sum(table.weight.nbytes for table in tables if table is not None)
    return rest + sum(sorted(blocks)[-2:])


def _take_table(network: nn.Module) -> nn.Embedding | None:
    """Take a network's token embedding out of it while hooks are set, and let it look up rows where its table is.

    Qwen's own code calls it outside of the network's `forward`, so hooks would not move it to the device. A prompt needs only a
    few hundred rows of a table of 1 GB.
    """
    table = getattr(network, "embed_tokens", None)
    if not isinstance(table, nn.Embedding):
        return None
    if not isinstance(table, CastEmbedding):
        table.__class__ = CastEmbedding
        table.row_dtype = table.weight.dtype  # type: ignore[assignment]
    del network.embed_tokens
    return table


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    for child in network.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from child


def available_ram() -> int:
    """Return the bytes of system RAM that can be used without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


@contextmanager
def explain_out_of_memory(part: ComputeModule, what: str) -> Iterator[None]:
    """Turn an out-of-memory error in the block into one that names the next smaller setting.

    Args:
        what: the input to reduce, such as "picture".
    """
    try:
        yield
    except OutOfMemory:
        raise
    except torch.OutOfMemoryError as error:
        release_frames(error)
        raise OutOfMemory(
            f"{part.device} ran out of memory in {type(part).__name__}: {_smaller(part)} or a smaller {what}."
        ) from error


def _smaller(part: ComputeModule) -> str:
    """Return the settings of a part that take less memory than its own, the next smaller one first."""
    if not part.networks:
        return "choose device=cpu, close other programs that use the device,"
    kinds = {kind for layer in part.modules() for kind in type(layer).__mro__}  # a LoRA puts subclasses in their place
    settings = [] if NF4Linear in kinds else ["storage=nf4" if ScaledLinear in kinds else "storage=int8"]
    settings += [] if part.streamed else ["offload=blocks"]
    return f"choose {', '.join(settings)}" if settings else "choose fewer or smaller references"


def release_frames(error: BaseException) -> None:
    """Free the activations of a failed computation, which the frames of its traceback refer to."""
    trace = error.__traceback__
    while trace is not None:
        with suppress(RuntimeError):  # the frame is still running
            trace.tb_frame.clear()
        trace = trace.tb_next
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose_offload(setting: str, need: int, room: int | None, can_stream: bool) -> str:
    """Decide how a part is offloaded.

    Args:
        setting: one of `OFFLOADS`.
        need: bytes of its weights and working memory.
        room: bytes that the compute device has for it after other parts are offloaded; None for no limit.
        can_stream: whether it has blocks.

    Returns:
        "none", "blocks" or "disk".
    """
    if setting != "auto":
        return setting if can_stream or setting == "none" else "none"
    return "blocks" if can_stream and room is not None and need > room else "none"


def describe(name: str, mode: str, size: int, room: int | None, device: Any) -> str:
    """Return a message for the user on how a part is streamed."""
    source = "system RAM" if mode == "blocks" else "its files"
    reason = "" if room is None else f", as {device} has {room / 1e9:.1f} GB for it"
    return f"{name} ({size / 1e9:.1f} GB) is streamed block by block from {source}{reason}."
