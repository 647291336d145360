"""The host where no ComfyUI is: folders, progress, interrupt and devices, with nothing but torch."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...uniworld_core.loading.memory import ModelMemory
from .protocol import MODEL_FOLDERS, Held, Module, Progress

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Interrupted(Exception):
    """The user asked to stop. Raised by the plain host; inside ComfyUI its own exception is raised instead."""


class ExecutionBlocker:
    """A node's output that keeps the nodes behind it from running (the plain host's; ComfyUI has its own).

    Attributes:
        message: reported as the reason where it stops an output node; None stops silently.
    """

    def __init__(self, message: str | None = None) -> None:
        self.message = message


ProgressHook = Callable[[int, int, "Image.Image | None"], None]
WarningHook = Callable[[str], None]


@dataclass(frozen=True)
class NodeHooks:
    """Where a running node's progress and warnings go."""

    progress: ProgressHook | None
    warning: WarningHook | None


# Those of the node whose code runs now: coroutines of several nodes take turns in one thread, each in its own context.
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
    """What the nodes need when no ComfyUI is there.

    Attributes:
        models: folders that hold `uniworld/`, `diffusers/` and `siglip/`, searched in order.
        progress_hook: called with (value, total, preview) by code that is in no `running_node`.
        warning_hook: called with each sentence of `warn`, likewise; without one, Python's `warnings` get it.
        interrupted: set it, and the running node stops within a step.
        memory: the loaded modules, and how much they may take together.
    """

    models: list[Path] = field(default_factory=list)
    progress_hook: ProgressHook | None = None
    warning_hook: WarningHook | None = None
    interrupted: threading.Event = field(default_factory=threading.Event)
    memory: ModelMemory = field(default_factory=ModelMemory)

    @property
    def _hooks(self) -> NodeHooks:
        return running_node.get() or NodeHooks(self.progress_hook, self.warning_hook)

    def model_folders(self, kind: str) -> list[Path]:
        return [root / MODEL_FOLDERS[kind] for root in self.models]

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

    def hold(self, module: Module, device: str, reload: Callable[[], Module]) -> Held[Module]:
        return self.memory.hold(module, self.load_device(device), reload)

    def load_device(self, device: str) -> torch.device:
        import torch

        if device != "default":
            return torch.device(device)
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    def offload_device(self, device: str) -> torch.device:
        import torch

        # Within a budget, room is made only when the module is used.
        return self.load_device(device) if self.memory.budget is None else torch.device("cpu")
