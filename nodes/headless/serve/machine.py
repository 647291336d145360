"""How much memory the machine, this process and the compute device have, without a package for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def machine_memory() -> tuple[int, int]:
    """Bytes in all and bytes available; zeros where the system does not tell."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
    except (ValueError, OSError):
        return 0, 0
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return total, int(line.split()[1]) * 1024
    except OSError:
        pass
    return total, 0


def _windows_memory() -> tuple[int, int]:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *[(f"bytes{n}", ctypes.c_uint64) for n in range(7)],
        ]

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        return 0, 0
    return int(status.bytes0), int(status.bytes1)


def process_bytes() -> int:
    """Memory this process holds now; its highest so far where only that is told; 0 where neither is."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def compute_devices() -> list[dict[str, Any]]:
    """The devices as ComfyUI's `/system_stats` lists them, the one that models use by default first."""
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


def _device(name: str, kind: str, index: int | None, *numbers: int) -> dict[str, Any]:
    keys = ("vram_total", "vram_free", "torch_vram_total", "torch_vram_free")
    return {"name": name, "type": kind, "index": index, **dict(zip(keys, numbers))}
