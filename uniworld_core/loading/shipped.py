"""The models that ship with the package, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHIPPED_FOLDER = Path(__file__).parents[1] / "shipped"


@dataclass(frozen=True)
class ShippedModel:
    """Folders of one shipped model."""

    checkpoint: Path
    flux: Path
    siglip: Path


def shipped_names() -> list[str]:
    """Names of the shipped models."""
    return sorted(folder.name for folder in SHIPPED_FOLDER.iterdir() if (folder / "uniworld").is_dir())


def shipped_model(name: str) -> ShippedModel | None:
    """The shipped model of that name, or None."""
    if name not in shipped_names():
        return None
    folder = SHIPPED_FOLDER / name
    return ShippedModel(folder / "uniworld", folder / "flux", folder / "siglip")
