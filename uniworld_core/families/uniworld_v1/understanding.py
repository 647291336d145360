"""The checkpoint's understanding half: the VLM, the projectors that carry its states on, and the routing head."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ...backbones.qwen_vl import VLM
from .checkpoint import load_vlm, projector_weights, read_config
from .projectors import Projectors, read_task_head


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
        cls, checkpoint: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Understanding:
        """Load from a UniWorld checkpoint folder. Raises UniWorldError naming a file or tensor that does not fit."""
        folder = Path(checkpoint)
        head = read_task_head(folder, read_config(folder).vlm.width)
        vlm = load_vlm(folder, dtype, device)
        return cls(vlm, projector_weights(folder).load(dtype, device), None if head is None else head.to(device))
