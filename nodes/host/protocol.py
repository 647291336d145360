"""What the nodes ask of the program that runs them, and what every such program shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from PIL import Image

# Where models lie below a models folder: the name ComfyUI's `folder_paths` knows -> the folder.
# `diffusers` is ComfyUI's own folder for diffusers-layout models, so that a FLUX.1-dev already there is found.
MODEL_FOLDERS = {"uniworld": "uniworld", "diffusers": "diffusers", "siglip": "siglip"}

# The message that carries a warning to the pack's script in the editor; node texts go when a run ends.
WARNING = "uniworld.warning"


class Progress(Protocol):
    """A node's progress bar."""

    def update(self, value: int, preview: Image.Image | None = None) -> None:
        """Report that `value` of the total steps are done, with a preview picture if there is one."""


Module = TypeVar("Module", bound="torch.nn.Module")
HeldAs = TypeVar("HeldAs", covariant=True)


class Held(Protocol[HeldAs]):
    """A module under the host's memory management."""

    def on_device(self, working_memory: int = 0) -> HeldAs:
        """The module, moved to the compute device now, with so many bytes free beside it if the host can see to that."""


class Host(Protocol):
    """The program that runs the nodes."""

    def model_folders(self, kind: str) -> list[Path]:
        """Folders, best first, that hold models of a kind of `MODEL_FOLDERS`."""

    def progress(self, total: int) -> Progress:
        """The progress bar of the running node, of so many steps."""

    def check_interrupt(self) -> None:
        """Raise the host's interrupt exception if the user asked to stop."""

    def warn(self, text: str) -> None:
        """Show the user a sentence about the running node that does not stop it."""

    def block(self) -> object:
        """An output that silently keeps the nodes behind it from running."""

    def devices(self) -> list[str]:
        """Names of devices a model may be put on; the first, "default", is the host's choice, in every host alike."""

    def hold(self, module: Module, device: str, reload: Callable[[], Module]) -> Held[Module]:
        """Take a loaded module under memory management.

        Args:
            device: one of `devices()`.
            reload: reads the module again, for a host that drops it where there is no other memory to move it to.
        """

    def load_device(self, device: str) -> torch.device:
        """Where a module computes that is loaded for `device`."""

    def offload_device(self, device: str) -> torch.device:
        """Where a module is to be loaded at first, before `Held.on_device` moves it."""
