"""The workflows shipped with the package: their short names, files, titles and descriptions.

ComfyUI lists the templates of a pack by file name, so the names are readable ("1 Edit a picture"). Commands and URLs use
the short name in the `extra` of each workflow.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..storage.folders import PACKAGE_ROOT

SHIPPED = PACKAGE_ROOT / "workflows"


@dataclass(frozen=True)
class ShippedWorkflow:
    """A workflow of the package.

    Attributes:
        name: the short name, such as `edit`.
        needs_comfyui: whether it has nodes that only ComfyUI has, so that it runs there or with --server.
        needs_model: the folder in models/diffusers or models/unipic that it is for; "" if it runs with a model that ships.
        file: its editor form; the thumbnail has the same name with the suffix .jpg.
    """

    name: str
    file: Path
    title: str
    description: str
    tags: tuple[str, ...]
    needs_comfyui: bool = False
    needs_model: str = ""


@cache
def shipped(folder: Path = SHIPPED) -> dict[str, ShippedWorkflow]:
    """Return the workflows of a folder by short name, in the order of their file names."""
    found = (_read(file) for file in sorted(folder.glob("*.json")))
    return {one.name: one for one in found}


def missing_model(file: Path) -> str | None:
    """Return a sentence about the model that a shipped workflow is for, if it is not there; None otherwise."""
    from ...pack.folders import checkpoint_choices, why_unlisted

    needed = next((one.needs_model for one in shipped().values() if one.file == file), "")
    if not needed or needed in checkpoint_choices():
        return None
    if (reason := why_unlisted(needed)) is not None:
        return f"This workflow is for {needed}, whose folder cannot be used: {reason}"
    return f"This workflow is for {needed}: download it as the README says (Where the weights go)."


def _read(file: Path) -> ShippedWorkflow:
    extra = json.loads(file.read_text(encoding="utf-8")).get("extra") or {}
    about = extra.get("uniworld") or {}
    title = about.get("title", file.stem)
    tags = tuple(about.get("tags", ()))
    return ShippedWorkflow(
        about.get("name", file.stem),
        file,
        title,
        about.get("description", title),
        tags,
        about.get("needs_comfyui") is True,
        about.get("needs_model", ""),
    )
