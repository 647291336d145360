"""The parts of an open model on their device: loaded on first use, and offloaded when another part needs the room."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..loading.memory import ManagedModule, ModelMemory, default_budget
from ..loading.speed import Speed
from ..loading.storage import Storage, set_compute
from .family import FamilyParts


class PlacedParts:
    """Loads the parts of a model to a device.

    Args:
        parts: the parts, opened.
        storage: how their weights are stored.
        device: the compute device.
        offload: a name in `OFFLOADS`. With "none", and with "auto" on a CPU, where parts are mapped from their files, every
            part stays loaded.
        speed: how the DiT runs; None for the defaults.
    """

    def __init__(
        self,
        parts: FamilyParts,
        storage: Storage,
        device: torch.device | str,
        offload: str = "none",
        speed: Speed | None = None,
    ) -> None:
        self._parts, self._storage, self._device = parts, storage, device
        managed = offload != "none" and (offload != "auto" or torch.device(device).type == "cuda")
        self._memory = ModelMemory(default_budget(), warnings.warn) if managed else None
        self._offload, self._speed = offload, speed or Speed()
        self._managed: dict[str, ManagedModule[Any]] = {}

    def part(self, name: str, storage: torch.dtype | Storage | None = None) -> Any:
        """Return a loaded part by its name. `storage` replaces the model's for this part, which is then not offloaded."""
        if self._memory is None or storage is not None:
            return self._applied(name, self._parts.get(name, storage or self._storage, self._device))
        return self.on_device(name)

    def on_device(self, name: str, working_memory: int = 0) -> Any:
        """Return a part on its device. Others are offloaded if it and `working_memory` bytes need the room."""
        if self._memory is None:
            return self.part(name)
        owner = self._parts.containers.get(name, name)
        if owner not in self._managed:

            def load() -> Any:
                return self._applied(owner, self._parts[owner].load(self._storage, "cpu"))

            self._managed[owner] = self._memory.manage(load(), torch.device(self._device), load, self._offload, owner)
        module = self._managed[owner].on_device(working_memory)
        set_compute(module, device=self._device)
        return module if owner == name else getattr(module, name)

    def _applied(self, name: str, part: Any) -> Any:
        return self._speed.applied(part) if name == "dit" else part
