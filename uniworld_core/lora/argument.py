"""A LoRA on a command line: FILE, or FILE:STRENGTH."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .painter import check_strength

METAVAR = "FILE[:STRENGTH]"
# The end of the option's help.
STRENGTH_HELP = "strength 1, the default, is as trained; repeat the option for several"


@dataclass(frozen=True)
class LoraArgument:
    """A LoRA as the user named it, and its strength, 1 as trained."""

    name: str
    strength: float


def read_lora_argument(text: str) -> LoraArgument:
    """Split FILE:STRENGTH. What follows the last colon counts as the strength if it is a number and no file has the whole name.

    Raises:
        UniWorldError: the strength is not finite.
    """
    name, _, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:  # also "C:\\lora.safetensors"
        return LoraArgument(text, 1.0)
    if not name or Path(text).exists():
        return LoraArgument(text, 1.0)
    return LoraArgument(name, check_strength(strength))
