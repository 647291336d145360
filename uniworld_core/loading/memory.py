"""Loaded modules under one memory budget: those used least recently leave first."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch


Module = TypeVar("Module", bound="torch.nn.Module")


class HeldModule(Generic[Module]):
    """A module that the memory may move out; `on_device` brings it back.

    Attributes:
        size: bytes of its weights.
        resident: whether these bytes are on the compute device now.
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
        """The module on its compute device, others moved out as far as it and `working_memory` need."""
        self._memory.admit(self, working_memory)
        if self._module is None:
            assert self._reload is not None
            self._module = self._reload()
        self.resident = True
        return self._module.to(self.device)

    def leave(self) -> bool:
        """Free the compute device: to the CPU's memory, or, where that is the compute device, away until used again.

        False if it can do neither.
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
    """What is loaded, of all devices together.

    Attributes:
        budget: bytes that weights and working memory may take; None for no limit. A module larger than that runs alone.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        # A module whose last user has gone, such as the cache of results, is no more ours to count.
        self._held: weakref.WeakSet[HeldModule[Any]] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._clock = count(1)

    def hold(
        self, module: Module, device: torch.device, reload: Callable[[], Module] | None = None
    ) -> HeldModule[Module]:
        """Take a module under management; `reload` reads it again, so that it may be dropped where it cannot be moved."""
        held = HeldModule(self, module, device, reload)
        with self._lock:
            self._held.add(held)
        return held

    def admit(self, held: HeldModule[Any], working_memory: int) -> None:
        """Make room for a module that is about to be used."""
        with self._lock:
            held.last_use = next(self._clock)
            if self.budget is None:
                return
            need = held.size + working_memory
            others = sorted((one for one in self._held if one.resident and one is not held), key=lambda o: o.last_use)
            taken = sum(one.size for one in others)
            moved = False
            for one in others:
                if taken + need <= self.budget:
                    break
                if one.leave():
                    taken -= one.size
                    moved = True
            if moved:
                _empty_device_caches()

    def used(self) -> int:
        """Bytes of weights on compute devices."""
        with self._lock:
            return sum(one.size for one in self._held if one.resident)

    def empty(self) -> None:
        """Move everything out."""
        with self._lock:
            for one in list(self._held):
                if one.resident:
                    one.leave()
            _empty_device_caches()


def module_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _empty_device_caches() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def default_budget() -> int | None:
    """Bytes that models may take where nobody said: most of the GPU's; no limit where the machine's own are used."""
    import torch

    if not torch.cuda.is_available():
        return None
    # What is left is for the work itself, which a module announces only roughly.
    return int(torch.cuda.get_device_properties(0).total_memory * 0.9)
