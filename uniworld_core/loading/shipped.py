"""The models that ship with the package, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHIPPED_FOLDER = Path(__file__).parents[1] / "shipped"


@dataclass(frozen=True)
class ShippedModel:
    """The folders of one shipped model."""

    checkpoint: Path
    flux: Path
    siglip: Path


def shipped_names() -> list[str]:
    """Return the names of the shipped models."""
    return sorted(folder.name for folder in SHIPPED_FOLDER.iterdir() if (folder / "uniworld").is_dir())


def shipped_lora_folders() -> list[Path]:
    """Folders with LoRAs of the shipped models."""
    return sorted(folder for folder in SHIPPED_FOLDER.glob("*/loras") if folder.is_dir())


def shipped_model(name: str) -> ShippedModel | None:
    """Return the shipped model of that name, or None if there is none."""
    if name not in shipped_names():
        return None
    folder = SHIPPED_FOLDER / name
    return ShippedModel(folder / "uniworld", folder / "flux", folder / "siglip")
