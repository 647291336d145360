"""A memory budget for loaded modules: the least recently used are offloaded first."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch


Module = TypeVar("Module", bound="torch.nn.Module")


class ManagedModule(Generic[Module]):
    """A module that `ModelMemory` may offload; `on_device` brings it back.

    Attributes:
        size: size of its weights in bytes.
        resident: whether the weights are on the compute device now.
    """

    def __init__(
        self,
        memory: ModelMemory,
        module: Module,
        device: torch.device,
        reload: Callable[[], Module] | None,
    ) -> None:
        self.device, self.size, self.resident, self.last_use = device, module_bytes(module), False, 0
        self._memory, self._reload = memory, reload
        self._module: Module | None = module

    def on_device(self, working_memory: int = 0) -> Module:
        """Return the module on its compute device.

        Other modules are offloaded if the budget has no room for its weights and `working_memory` (bytes).
        """
        self._memory.make_room(self, working_memory)
        if self._module is None:
            assert self._reload is not None
            self._module = self._reload()
        self.resident = True
        return self._module.to(self.device)

    def offload(self) -> bool:
        """Move the weights from a GPU to system RAM. A module that computes on the CPU is dropped and read again when used.

        Returns:
            False if it computes on the CPU and cannot be read again.
        """
        if self.device.type != "cpu":
            self._module = self._module.to("cpu") if self._module is not None else None
        elif self._reload is None:
            return False
        else:
            self._module = None
        self.resident = False
        return True


class ModelMemory:
    """All loaded modules, of all devices together.

    Attributes:
        budget: bytes for weights and working memory; None for no limit. A larger module runs while all others are offloaded.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        # Weak references: when its last user drops a module (often the cache of node results), it is no longer counted.
        self._managed: weakref.WeakSet[ManagedModule[Any]] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._clock = count(1)

    def manage(
        self, module: Module, device: torch.device, reload: Callable[[], Module] | None = None
    ) -> ManagedModule[Module]:
        """Start to manage a module.

        Args:
            reload: reads the module again. Without it, a module that computes on the CPU is never dropped.
        """
        managed = ManagedModule(self, module, device, reload)
        with self._lock:
            self._managed.add(managed)
        return managed

    def make_room(self, wanted: ManagedModule[Any], working_memory: int) -> None:
        """Offload other modules, least recently used first, until a module that is about to run fits the budget."""
        with self._lock:
            wanted.last_use = next(self._clock)
            if self.budget is None:
                return
            need = wanted.size + working_memory
            resident = (one for one in self._managed if one.resident and one is not wanted)
            others = sorted(resident, key=lambda one: one.last_use)
            taken = sum(one.size for one in others)
            moved = False
            for one in others:
                if taken + need <= self.budget:
                    break
                if one.offload():
                    taken -= one.size
                    moved = True
            if moved:
                _empty_device_caches()

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


def module_bytes(module: torch.nn.Module) -> int:
    """Return the size of a module's parameters and buffers in bytes."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _empty_device_caches() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def default_budget() -> int | None:
    """Return the default memory budget in bytes: 90 % of the GPU's memory, or None (no limit) on machines without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    # The rest is a reserve: modules announce their working memory only approximately.
    return int(torch.cuda.get_device_properties(0).total_memory * 0.9)
