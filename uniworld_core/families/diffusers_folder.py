"""What all model folders in diffusers layout have in common: a subfolder for each part, and a class in its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UniWorldError, shown
from ..loading.settings import read_json


def check_components(folder: Path, components: Sequence[str], family: str) -> None:
    """Check that a model's folder has all its subfolders.

    Args:
        components: their names.
        family: name of the family, for the message.

    Raises:
        UniWorldError: some are missing; all of them are named.
    """
    missing = [name for name in components if not (folder / name).is_dir()]
    if missing:
        raise UniWorldError(
            f"{folder} has no {', '.join(f'{name}/' for name in missing)}, which {family} needs: download the complete folder."
        )


def component_settings(folder: Path, kind: str, family: str) -> tuple[dict[str, Any], Path]:
    """Return the configuration of a part, and its file.

    Args:
        folder: the part's subfolder.
        kind: the class that the configuration must name.
        family: name of the family, for the message.

    Raises:
        UniWorldError: the file is missing or damaged, or names another class.
    """
    file = folder / "config.json"
    raw = read_json(file)
    if raw.get("_class_name") != kind:
        raise UniWorldError(
            f"{file} has _class_name {shown(raw.get('_class_name'))}, expected {kind!r}: copy the {folder.name} folder of "
            f"{family}."
        )
    return raw, file
