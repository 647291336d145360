"""The only access to the program that runs the nodes: ComfyUI or the headless host.

Nodes and their tests call `current()`. `protocol` defines the interface. `plain` implements it with nothing but torch;
`nodes/headless/` sets its folders, progress hook and interrupt flag. `comfy` implements it over ComfyUI.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .plain import ExecutionBlocker, Interrupted, NodeHooks, PlainHost, running_node
from .protocol import MODEL_FOLDERS, WARNING, Host, Managed, Progress

__all__ = [
    "MODEL_FOLDERS",
    "WARNING",
    "ExecutionBlocker",
    "Host",
    "Interrupted",
    "Managed",
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
    """Make `current()` return `host`; None restores detection."""
    global _installed
    _installed = host


def current() -> Host:
    """Return the host of this process: the installed one, else ComfyUI if it is loaded, else a plain one."""
    global _installed
    if _installed is None:
        _installed = _comfy_host() if _inside_comfyui() else PlainHost(models=[Path("models")])
    return _installed


def register_folders() -> None:
    """Inside ComfyUI, register the model folders, so that `extra_model_paths.yaml` can name them too."""
    if _inside_comfyui():
        current()


def _inside_comfyui() -> bool:
    # ComfyUI imports both before it loads custom nodes. Importing them here would start a
    # half-configured ComfyUI in any process that merely has it on sys.path.
    return "folder_paths" in sys.modules and "comfy.model_management" in sys.modules


def _comfy_host() -> Host:
    from .comfy import ComfyHost

    return ComfyHost()
