"""The host without ComfyUI: folders, progress, interrupts and devices, with nothing but torch."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...uniworld_core.loading.memory import ModelMemory
from ...uniworld_core.loading.shipped import shipped_lora_folders
from .protocol import MODEL_FOLDERS, Managed, Module, Progress

if TYPE_CHECKING:
    import torch
    from PIL import Image


_LORAS = "loras"  # ComfyUI's name of the folder


class Interrupted(Exception):
    """The user cancelled the run. Raised by the plain host; ComfyUI raises an exception of its own."""


class ExecutionBlocker:
    """An output value that prevents downstream nodes from running. ComfyUI has a class of its own for this.

    Attributes:
        message: the reason reported when an output node is blocked; None blocks silently.
    """

    def __init__(self, message: str | None = None) -> None:
        self.message = message


ProgressHook = Callable[[int, int, "Image.Image | None"], None]
WarningHook = Callable[[str], None]


@dataclass(frozen=True)
class NodeHooks:
    """Receivers of a running node's progress and warnings."""

    progress: ProgressHook | None
    warning: WarningHook | None


# The hooks of the running node. A context variable, because coroutines of several nodes take turns in one thread.
running_node: ContextVar[NodeHooks | None] = ContextVar("running_node", default=None)


@dataclass
class _PlainProgress:
    total: int
    hook: ProgressHook | None

    def update(self, value: int, preview: Image.Image | None = None) -> None:
        if self.hook is not None:
            self.hook(value, self.total, preview)


@dataclass
class PlainHost:
    """`protocol.Host` without ComfyUI.

    Attributes:
        models: folders that contain `uniworld/`, `diffusers/`, `siglip/` and `loras/`, searched in order.
        progress_hook: called with (value, total, preview) outside of a `running_node`.
        warning_hook: called with each message of `warn`, also outside of a `running_node`. Without a hook, the message
            goes to Python's `warnings`.
        interrupted: setting it stops the running node within a step.
        memory: the loaded modules and their memory budget.
    """

    models: list[Path] = field(default_factory=list)
    progress_hook: ProgressHook | None = None
    warning_hook: WarningHook | None = None
    interrupted: threading.Event = field(default_factory=threading.Event)
    memory: ModelMemory = field(default_factory=ModelMemory)

    @property
    def _hooks(self) -> NodeHooks:
        return running_node.get() or NodeHooks(self.progress_hook, self.warning_hook)

    def is_comfyui(self) -> bool:
        return False

    def model_folders(self, kind: str) -> list[Path]:
        if kind == _LORAS:
            return [*(root / _LORAS for root in self.models), *shipped_lora_folders()]
        return [root / MODEL_FOLDERS[kind] for root in self.models]

    def model_files(self, kind: str) -> list[str]:
        return list(self._files(kind))

    def model_file(self, kind: str, name: str) -> Path | None:
        return self._files(kind).get(name)

    def _files(self, kind: str) -> dict[str, Path]:
        """Return {name: file} of the LoRAs, the user's first. Files of other kinds belong to ComfyUI's own loaders."""
        if kind != _LORAS:
            return {}
        found: dict[str, Path] = {}
        for folder in self.model_folders(_LORAS):
            for file in sorted(folder.rglob("*.safetensors")):
                if file.is_file():
                    found.setdefault(file.relative_to(folder).as_posix(), file)
        return found

    def progress(self, total: int) -> Progress:
        return _PlainProgress(total, self._hooks.progress)

    def check_interrupt(self) -> None:
        if self.interrupted.is_set():
            raise Interrupted("The run was interrupted.")

    def warn(self, text: str) -> None:
        if (hook := self._hooks.warning) is not None:
            hook(text)
        else:
            warnings.warn(text, stacklevel=2)

    def block(self) -> ExecutionBlocker:
        return ExecutionBlocker()

    def devices(self) -> list[str]:
        import torch

        return ["default", "cpu", *[f"cuda:{i}" for i in range(torch.cuda.device_count())]]

    def manage(
        self, module: Module, device: str, reload: Callable[[], Module], offload: str = "auto", name: str = ""
    ) -> Managed[Module]:
        if self.memory.report is None:
            self.memory.report = self.warn
        return self.memory.manage(module, self.load_device(device), reload, offload, name)

    def load_device(self, device: str) -> torch.device:
        import torch

        if device != "default":
            return torch.device(device)
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    def offload_device(self, device: str) -> torch.device:
        import torch

        # With a budget, memory is freed only when the module is used, so it is loaded to system RAM first.
        return self.load_device(device) if self.memory.budget is None else torch.device("cpu")
