"""Memory of the machine, this process and the compute devices."""

from __future__ import annotations

import psutil


def machine_memory() -> tuple[int, int]:
    """Return total system RAM, and the part that is available without swapping, in bytes."""
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def process_bytes() -> int:
    """Return the system RAM that this process uses, in bytes."""
    return int(psutil.Process().memory_info().rss)


def compute_devices() -> list[dict[str, object]]:
    """Return the devices in the form of ComfyUI's `/system_stats`, the default one first."""
    import torch

    if not torch.cuda.is_available():
        total, free = machine_memory()
        return [_device("cpu", "cpu", None, total, free, total, free)]
    devices = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        reserved = torch.cuda.memory_reserved(index)
        unused = reserved - torch.cuda.memory_allocated(index)
        name = f"cuda:{index} {torch.cuda.get_device_name(index)}"
        devices.append(_device(name, "cuda", index, total, free + unused, reserved, unused))
    return devices


def _device(name: str, kind: str, index: int | None, *numbers: int) -> dict[str, object]:
    keys = ("vram_total", "vram_free", "torch_vram_total", "torch_vram_free")
    return {"name": name, "type": kind, "index": index, **dict(zip(keys, numbers))}
