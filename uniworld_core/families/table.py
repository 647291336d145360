"""The families that can be opened, and the one that a folder is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UniWorldError, shown
from ..loading.settings import read_json
from .family import Family


def _uniworld_v1() -> Family:
    from .uniworld_v1.family import UniWorldV1

    return UniWorldV1()


# What a folder's configuration says that it is (`model_type` in config.json, `_class_name` in diffusers' model_index.json):
# the family, imported when a folder of it is opened.
FAMILIES: dict[str, Callable[[], Family]] = {"univa_qwen2p5vl": _uniworld_v1}

# Files by which a folder is known, and the key in each; the first one that is there counts.
KINDS = {"config.json": "model_type", "model_index.json": "_class_name"}


def family_of(folder: str | Path) -> Family:
    """The family that a model's folder is of.

    Raises:
        UniWorldError: the file that says so is missing or damaged, or it is of no known family; the known ones are named.
    """
    files = [Path(folder) / name for name in KINDS]
    file = next((file for file in files if file.is_file()), files[0])
    return family_by_config(read_json(file), str(file), KINDS[file.name])


def family_by_config(config: Mapping[str, Any], source: str = "config", key: str = "model_type") -> Family:
    """As `family_of`, by what a configuration holds.

    Args:
        source: what to call the configuration in errors.
    """
    kind = config.get(key)
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(f"{name!r} ({make().name})" for name, make in FAMILIES.items())
        raise UniWorldError(
            f"{source} has {key} {shown(kind)}, which is none of the known model families, {known}: choose the folder "
            "of such a model itself, not of one of its base models."
        )
    return FAMILIES[kind]()
