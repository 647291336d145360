"""The workflows that come with the package: their short names, files, titles and descriptions.

ComfyUI shows a pack's templates by the names of their files, so these are made for people ("1 Edit a picture"). Command
lines and addresses use the short name that each workflow carries in its `extra`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..storage.folders import PACKAGE_ROOT

SHIPPED = PACKAGE_ROOT / "workflows"


@dataclass(frozen=True)
class Shipped:
    """One workflow of the package.

    Attributes:
        name: the short name, such as `edit`.
        file: its editor form; a thumbnail has the same name with the suffix .jpg.
    """

    name: str
    file: Path
    title: str
    description: str
    tags: tuple[str, ...]


@cache
def shipped(folder: Path = SHIPPED) -> dict[str, Shipped]:
    """The workflows of a folder by short name, in the order of their files."""
    found = (_read(file) for file in sorted(folder.glob("*.json")))
    return {one.name: one for one in found}


def _read(file: Path) -> Shipped:
    extra = json.loads(file.read_text(encoding="utf-8")).get("extra") or {}
    about = extra.get("uniworld") or {}
    title = about.get("title", file.stem)
    tags = tuple(about.get("tags", ()))
    return Shipped(about.get("name", file.stem), file, title, about.get("description", title), tags)
