"""UniWorld Load LoRA: the DiT with a LoRA, for any of the package's own samplers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...uniworld_core.errors import UniWorldError, shown
from .. import host
from ..declare import Input, Inputs, Node, Output, by_id

if TYPE_CHECKING:
    from pathlib import Path

    from ...uniworld_core.families.family import PaintingFacts
    from ...uniworld_core.lora.matching import NetworkLayers
    from ...uniworld_core.lora.painter import Lora
    from ...uniworld_core.sampling.painter import Painter
    from .wires import DiTWire

LORAS = "loras"  # as `folder_paths` names it
_SUFFIX = ".safetensors"  # reading the other formats in that folder could run code
# Bounds of ComfyUI's own LoRA loaders.
_MAX_STRENGTH = 100.0


def lora_names() -> list[str]:
    """Return the names of the LoRAs in the host's folders."""
    return [name for name in host.current().model_files(LORAS) if name.endswith(_SUFFIX)]


def lora_file(name: str) -> Path:
    """Return the file of a LoRA. Raises UniWorldError unless it is one of `lora_names`."""
    file = host.current().model_file(LORAS, name) if name in lora_names() else None
    if file is None:
        raise UniWorldError(
            f"There is no LoRA {shown(name)} in models/{LORAS}: choose another one, or copy the file there."
        )
    return file


@dataclass(frozen=True)
class LoraDiT:
    """UNIWORLD_DIT with a LoRA. The DiT itself, and others with other LoRAs, share its weights.

    Attributes:
        base: the DiT, which may have LoRAs too.
        lora: the LoRA.
        strength: 1 as trained.
    """

    base: DiTWire
    lora: Lora
    strength: float

    @property
    def facts(self) -> PaintingFacts:
        """As `DiTWire`."""
        return self.base.facts

    def layers(self) -> NetworkLayers:
        """As `DiTWire`."""
        return self.base.layers()

    def on_device(self, working_memory: int = 0) -> Painter:
        """As `DiTWire`."""
        from ...uniworld_core.lora.painter import LoraPainter

        return LoraPainter(self.base.on_device(working_memory + self.lora.nbytes), self.lora, self.strength)


def with_lora(dit: DiTWire, file: Path, strength: float) -> DiTWire:
    """Return the DiT with a LoRA, or the DiT itself at strength 0.

    Raises:
        UniWorldError: the file is missing, damaged or not a plain LoRA, or belongs to another model; modules are named.
    """
    from ...uniworld_core.lora.painter import open_lora

    return dit if strength == 0 else LoraDiT(dit, open_lora(file, dit.layers()), strength)


class LoadLoRA(Node):
    """Add a LoRA to the DiT."""

    ID = "UniWorldLoadLoRA"
    DISPLAY_NAME = "UniWorld Load LoRA"
    SEARCH_ALIASES = ["LoRA loader", "LoraLoaderModelOnly", "adapter", "PEFT", "Edit-R1", "UniWorld-V2"]
    CATEGORY = "UniWorld/loaders"
    DESCRIPTION = (
        "Adds a LoRA to the DiT. Its weights are not changed, so every storage and offload setting works. Chain several "
        "nodes for several LoRAs. A LoRA that was trained for another model is an error that names its modules."
    )
    OUTPUTS = (Output("dit", "UNIWORLD_DIT", "The DiT with the LoRA, for UniWorld Sampler or another LoRA."),)

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.wire("dit", "UNIWORLD_DIT", "The DiT from Load UniWorld, or from another UniWorld Load LoRA."),
            Input.choice("lora_name", lora_names(), "A safetensors file in models/loras."),
            Input.number(
                "strength_model",
                "1 is the strength of training (alpha / rank), 0 has no effect. Without alpha in the file or beside it, alpha "
                "counts as the rank; for an Edit-R1 LoRA without its adapter_config.json, set 2.",
                default=1.0,
                min=-_MAX_STRENGTH,
                max=_MAX_STRENGTH,
                step=0.01,
            ),
        )

    @classmethod
    def IS_CHANGED(cls, lora_name: str, **_: object) -> str:
        """Return a value that changes when the file or its configuration is replaced."""
        from ...uniworld_core.lora.files import CONFIG

        file = lora_file(lora_name)
        stats = [one.stat() for one in (file, file.with_name(CONFIG)) if one.is_file()]
        return str([(stat.st_mtime_ns, stat.st_size) for stat in stats])

    def execute(self, dit: DiTWire, lora_name: str, strength_model: float) -> tuple[DiTWire]:
        return (with_lora(dit, lora_file(lora_name), strength_model),)


NODES = by_id(LoadLoRA)
