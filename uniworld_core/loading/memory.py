"""A memory budget for loaded modules: the least recently used are offloaded first."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .module_size import module_bytes

if TYPE_CHECKING:
    import torch


Module = TypeVar("Module", bound="torch.nn.Module")


class ManagedModule(Generic[Module]):
    """A module that `ModelMemory` may offload, and that `on_device` loads again.

    Attributes:
        size: bytes on the compute device while it runs: all weights, or the largest blocks if it is streamed.
        resident: whether they are on the compute device.
    """

    def __init__(
        self,
        memory: ModelMemory,
        module: Module,
        device: torch.device,
        reload: Callable[[], Module] | None,
        offload: str = "auto",
        name: str = "",
    ) -> None:
        from .offload import streamable, working_bytes

        self.device, self.size, self.resident, self.last_use = device, module_bytes(module), False, 0
        self.name, self.working_bytes, self._can_stream = name, working_bytes(module), bool(streamable(module))
        self._memory, self._reload, self._setting, self._streamed = memory, reload, offload, False
        self._module: Module | None = module

    def on_device(self, working_memory: int = 0) -> Module:
        """Return the module on its compute device, or ready to be streamed to it.

        Other modules are offloaded if the budget has no room for its weights and `working_memory` (bytes).
        """
        working_memory = max(working_memory, self.working_bytes)
        self._memory.make_room(self, working_memory)
        if self._module is None:
            assert self._reload is not None
            self._module, self._streamed = self._reload(), False
        if not self._streamed:
            self._place(self._module, working_memory)
        self.resident = True
        return self._module

    def _place(self, module: Module, working_memory: int) -> None:
        from .offload import choose_offload, describe, stream_blocks

        room = self._memory.room(self.device)
        # On a CPU, streaming from system RAM saves no memory, so "auto" never chooses it. Tests request it explicitly.
        limit = room if _has_own_memory(self.device) else None
        mode = choose_offload(self._setting, self.size + working_memory, limit, self._can_stream)
        if mode == "none":
            module.to(self.device)
            return
        full = self.size
        # Pinning copies the weights in system RAM, which may be too small for the copy.
        in_files = mode == "disk" or not _fits_ram(full)
        self.size = stream_blocks(module.to("cpu"), self.device, in_files)
        self._streamed = True
        if self._memory.report is not None and self._setting == "auto":
            self._memory.report(describe(self.name, "disk" if in_files else "blocks", full, room, self.device))

    def offload(self) -> bool:
        """Move the weights from a GPU to system RAM.

        A module that computes on the CPU or does not fit system RAM is dropped, and read again at its next use.

        Returns:
            False if nothing is freed, because the module is streamed or can neither be moved nor read again.
        """
        if self._streamed:
            return False
        if self.device.type != "cpu" and self._module is not None and (self._reload is None or self._stays_in_ram()):
            self._module = self._module.to("cpu")
        elif self._reload is None:
            return False
        else:
            self._module = None
        self.resident = False
        return True

    def _stays_in_ram(self) -> bool:
        return self._setting != "disk" and _fits_ram(self.size)


class ModelMemory:
    """All loaded modules, of all devices together.

    Attributes:
        budget: bytes for weights and working memory; None for no limit. A larger module is streamed block by block, or runs
            while all others are offloaded.
        report: called with a sentence when a module is streamed because it does not fit.
    """

    def __init__(self, budget: int | None = None, report: Callable[[str], None] | None = None) -> None:
        self.budget, self.report = budget, report
        # Weak references: when its last user drops a module (often the cache of node results), it is no longer counted.
        self._managed: weakref.WeakSet[ManagedModule[Any]] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._clock = count(1)

    def manage(
        self,
        module: Module,
        device: torch.device,
        reload: Callable[[], Module] | None = None,
        offload: str = "auto",
        name: str = "",
    ) -> ManagedModule[Module]:
        """Start to manage a module.

        Args:
            reload: reads the module again. Without it, a module that computes on the CPU is never dropped.
            offload: one of `OFFLOADS`.
            name: for reports.
        """
        managed = ManagedModule(self, module, device, reload, offload, name)
        with self._lock:
            self._managed.add(managed)
        return managed

    def make_room(self, wanted: ManagedModule[Any], working_memory: int) -> None:
        """Offload other modules, least recently used first, until a module that is about to run fits the budget."""
        with self._lock:
            wanted.last_use = next(self._clock)
            room = self.room(wanted.device)
            if room is None:
                return
            need = wanted.size + working_memory
            resident = (one for one in self._managed if one.resident and one is not wanted)
            others = sorted(resident, key=lambda one: one.last_use)
            taken = sum(one.size for one in others)
            moved = False
            for one in others:
                if taken + need <= room:
                    break
                if one.offload():
                    taken -= one.size
                    moved = True
            if moved:
                _empty_device_caches()

    def room(self, device: torch.device) -> int | None:
        """Return the bytes for weights and working memory on a device, other modules offloaded; None for no limit.

        That is the budget, or less if other programs have taken memory since.
        """
        if self.budget is None or device.type != "cuda":
            return self.budget
        import torch

        # Memory that PyTorch has reserved but does not use is available too.
        free = (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
        return min(self.budget, free + self.used())

    def used(self) -> int:
        """Return the bytes of weights that are on compute devices."""
        with self._lock:
            return sum(one.size for one in self._managed if one.resident)

    def offload_all(self) -> None:
        """Offload every module."""
        with self._lock:
            for one in list(self._managed):
                if one.resident:
                    one.offload()
            _empty_device_caches()


def _empty_device_caches() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _has_own_memory(device: torch.device) -> bool:
    return device.type != "cpu"


def _fits_ram(size: int) -> bool:
    """Return whether `size` bytes fit into 90 % of the available system RAM."""
    from .offload import available_ram

    return size < 0.9 * available_ram()


def default_budget() -> int | None:
    """Return the default memory budget in bytes: 90 % of the GPU's memory that is free, or None (no limit) without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    # The rest is a reserve: modules announce their working memory only approximately.
    return int(torch.cuda.mem_get_info()[0] * 0.9)
