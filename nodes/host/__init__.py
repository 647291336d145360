"""The one door to the program that hosts the nodes: ComfyUI, or the embedded host.

Nodes and their tests call `current()`. What they may ask is in `protocol`; `plain` answers it with nothing but torch, and
`nodes/headless/` fills in its folders, progress hook and interrupt flag; `comfy` answers it over ComfyUI, and is the only
file of this package that imports ComfyUI.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .plain import ExecutionBlocker, Interrupted, NodeHooks, PlainHost, running_node
from .protocol import MODEL_FOLDERS, WARNING, Held, Host, Progress

__all__ = [
    "MODEL_FOLDERS",
    "WARNING",
    "ExecutionBlocker",
    "Held",
    "Host",
    "Interrupted",
    "NodeHooks",
    "PlainHost",
    "Progress",
    "current",
    "install",
    "register_folders",
    "running_node",
]

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
    from .comfy import ComfyHost

    return ComfyHost()
