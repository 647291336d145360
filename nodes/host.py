"""The one door to the program that hosts the nodes: ComfyUI, or the embedded host.

Nodes and their tests call `current()`; nothing else in this package imports ComfyUI. The plain host below does what
ComfyUI's own `folder_paths`, `ProgressBar`, `model_management` and `ModelPatcher` do inside ComfyUI, with nothing but
torch; `nodes/headless/` fills in its folders, progress hook and interrupt flag.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .memory import ModelMemory

if TYPE_CHECKING:
    import torch
    from PIL import Image

# Where models lie below a models folder: the name ComfyUI's `folder_paths` knows -> the folder.
# `diffusers` is ComfyUI's own folder for diffusers-layout models, so that a FLUX.1-dev already there is found.
MODEL_FOLDERS = {"uniworld": "uniworld", "diffusers": "diffusers", "siglip": "siglip"}


# The message by which the pack's script in the editor is told of a warning; node texts go when a run ends.
WARNING = "uniworld.warning"


class Interrupted(Exception):
    """The user asked to stop. Raised by the plain host; inside ComfyUI its own exception is raised instead."""


class ExecutionBlocker:
    """A node's output that keeps the nodes behind it from running (the plain host's; ComfyUI has its own).

    Attributes:
        message: reported as the reason where it stops an output node; None stops silently.
    """

    def __init__(self, message: str | None = None) -> None:
        self.message = message


class Progress(Protocol):
    """A node's progress bar."""

    def update(self, value: int, preview: Image.Image | None = None) -> None:
        """Report that `value` of the total steps are done, with a preview picture if there is one."""


class Held(Protocol):
    """A module under the host's memory management."""

    def on_device(self, working_memory: int = 0) -> torch.nn.Module:
        """The module, moved to the compute device now, with so many bytes free beside it if the host can see to that."""


class Host(Protocol):
    """What the nodes ask of the program that runs them."""

    def model_folders(self, kind: str) -> list[Path]:
        """Folders, best first, that hold models of a kind of `MODEL_FOLDERS`."""

    def progress(self, total: int) -> Progress: ...

    def check_interrupt(self) -> None:
        """Raise the host's interrupt exception if the user asked to stop."""

    def warn(self, text: str) -> None:
        """Show the user a sentence about the running node that does not stop it."""

    def block(self) -> Any:
        """An output that silently keeps the nodes behind it from running."""

    def devices(self) -> list[str]:
        """Names of devices a model may be put on; the first, "default", is the host's choice, in every host alike."""

    def hold(self, module: torch.nn.Module, device: str, reload: Callable[[], torch.nn.Module]) -> Held:
        """Take a loaded module under memory management.

        Args:
            device: one of `devices()`.
            reload: reads the module again, for a host that drops it where there is no other memory to move it to.
        """

    def load_device(self, device: str) -> torch.device:
        """Where a module computes that is loaded for `device`."""

    def offload_device(self, device: str) -> torch.device:
        """Where a module is to be loaded at first, before `Held.on_device` moves it."""


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

    def hold(self, module: torch.nn.Module, device: str, reload: Callable[[], torch.nn.Module]) -> Held:
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


_installed: Host | None = None


def install(host: Host | None) -> None:
    """Make `host` the one that `current()` returns; None goes back to finding it."""
    global _installed
    _installed = host


def current() -> Host:
    """The host in whose process we run: an installed one, else ComfyUI if it is loaded, else a plain one."""
    global _installed
    if _installed is None:
        _installed = _comfy_host() if _inside_comfyui() else PlainHost(models=[Path("models")])
    return _installed


def register_folders() -> None:
    """Inside ComfyUI, make the model folders known to it, so that `extra_model_paths.yaml` can name them too."""
    if _inside_comfyui():
        current()


def _inside_comfyui() -> bool:
    # ComfyUI has imported both long before it loads custom nodes; importing them ourselves would
    # start a half-configured ComfyUI in any process that merely has it on sys.path.
    return "folder_paths" in sys.modules and "comfy.model_management" in sys.modules


def _comfy_host() -> Host:
    from .comfy_host import ComfyHost

    return ComfyHost()
