"""The interface between the nodes and the program that runs them, and constants that all hosts share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from PIL import Image

# Subfolders of a models folder: name in ComfyUI's `folder_paths` -> subfolder.
# `diffusers` is ComfyUI's own folder for models in diffusers layout, so an existing FLUX.1-dev is found there.
MODEL_FOLDERS = {"uniworld": "uniworld", "diffusers": "diffusers", "siglip": "siglip", "unipic": "unipic"}

# Type of the message that carries a warning to `nodes/web/warnings.js`. The text on the node does not last: newer
# editors remove it when the run finishes.
WARNING = "uniworld.warning"


class Progress(Protocol):
    """A node's progress bar."""

    def update(self, value: int, preview: Image.Image | None = None) -> None:
        """Report that `value` steps of the total are done, with an optional preview image."""


Module = TypeVar("Module", bound="torch.nn.Module")
ManagedAs = TypeVar("ManagedAs", covariant=True)


class Managed(Protocol[ManagedAs]):
    """A module under the host's memory management."""

    def on_device(self, working_memory: int = 0) -> ManagedAs:
        """Move the module to its compute device and return it.

        Args:
            working_memory: bytes to keep free in addition to the weights, where the host supports it.
        """


class Host(Protocol):
    """The program that runs the nodes."""

    def is_comfyui(self) -> bool:
        """Return whether the program is ComfyUI, with its own types such as MODEL."""

    def model_folders(self, kind: str) -> list[Path]:
        """Return the folders with models of a kind of `MODEL_FOLDERS`, or with "loras", highest priority first."""

    def model_files(self, kind: str) -> list[str]:
        """Return the names of the files in the model folders of a kind, such as "loras", subfolders included.

        The headless host has only "loras", which include those of the shipped models. ComfyUI has all of its own kinds.
        """

    def model_file(self, kind: str, name: str) -> Path | None:
        """Return the file of a name in `model_files`, or None if it does not exist."""

    def progress(self, total: int) -> Progress:
        """Create the progress bar of the running node, with `total` steps."""

    def check_interrupt(self) -> None:
        """Raise the host's interrupt exception if the user cancelled the run."""

    def warn(self, text: str) -> None:
        """Show the user a warning about the running node. The node continues."""

    def block(self) -> object:
        """Return an output value that silently prevents downstream nodes from running."""

    def devices(self) -> list[str]:
        """Return the names of the devices for models. The first is always "default", which leaves the choice to the host."""

    def manage(
        self, module: Module, device: str, reload: Callable[[], Module], offload: str = "auto", name: str = ""
    ) -> Managed[Module]:
        """Put a loaded module under memory management.

        Args:
            device: one of `devices()`.
            reload: loads the module again, for hosts that drop modules because there is no memory to offload them to.
            offload: one of the core's `OFFLOADS`, for hosts that do not manage memory themselves.
            name: what to call it in messages.
        """

    def load_device(self, device: str) -> torch.device:
        """Return the device on which a module for `device` computes."""

    def offload_device(self, device: str) -> torch.device:
        """Return the device on which a module is loaded first, before `Managed.on_device` moves it."""
