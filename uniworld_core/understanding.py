"""The checkpoint's understanding half: the VLM, the projectors that carry its states on, and the routing head."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .config import UniWorldConfig, read_json
from .projectors import Projectors, read_task_head
from .vlm import VLM
from .weights import Shards, build, check, load

PROJECTOR_PREFIX = "denoise_tower."


class Understanding(nn.Module):
    """What reads instructions and pictures.

    Attributes:
        vlm: Qwen2.5-VL.
        projectors: to the DiT's text tokens.
        task_head: the routing head, float32, or None for a checkpoint without one.
    """

    def __init__(self, vlm: VLM, projectors: Projectors, task_head: nn.Module | None) -> None:
        super().__init__()
        self.vlm = vlm
        self.projectors = projectors
        self.task_head = task_head

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | Path, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
    ) -> Understanding:
        """Load from a UniWorld checkpoint folder. Raises ValueError naming a file or tensor that does not fit."""
        folder = Path(checkpoint)
        head = read_task_head(folder, read_config(folder).vlm_width)
        vlm = VLM.from_pretrained(folder, dtype, device)
        return cls(vlm, load_projectors(folder, dtype, device), None if head is None else head.to(device))


def read_config(checkpoint: Path) -> UniWorldConfig:
    """The configuration of a checkpoint, with the SigLIP width that its tensors show."""
    file = checkpoint / "config.json"
    config = read_json(file)
    shape = Shards(checkpoint).shapes.get(f"{PROJECTOR_PREFIX}siglip_projector.0.weight")
    return UniWorldConfig.from_dict(config, shape[1] if shape and len(shape) == 2 else None, str(file))


def projector_key(name: str) -> str | None:
    """From a tensor's name in a checkpoint to its name in `Projectors`, or None."""
    short = name.removeprefix(PROJECTOR_PREFIX)
    return short if short != name and short.split(".")[0].endswith("_projector") else None


def load_projectors(checkpoint: str | Path, dtype: torch.dtype, device: torch.device | str) -> Projectors:
    """The three projectors alone. Raises ValueError naming a tensor that does not fit."""
    config = read_config(Path(checkpoint))
    return load(build(lambda: Projectors(config)), Shards(Path(checkpoint)), projector_key, dtype, device)


def check_projectors(config: UniWorldConfig, shards: Shards) -> None:
    """Hold a checkpoint's names and shapes against the projectors without loading them. Raises ValueError."""
    check(build(lambda: Projectors(config)), shards, projector_key)
