"""The checkpoint's understanding half: the VLM, the projectors that carry its states on, and the routing head."""

from __future__ import annotations

from torch import nn

from ...backbones.qwen_vl import VLM
from .projectors import Projectors, TaskHead


class Understanding(nn.Module):
    """What reads instructions and pictures.

    Attributes:
        vlm: Qwen2.5-VL.
        projectors: to the DiT's text tokens.
        task_head: the routing head, float32, or None for a checkpoint without one.
    """

    def __init__(self, vlm: VLM, projectors: Projectors, task_head: TaskHead | None) -> None:
        super().__init__()
        self.vlm = vlm
        self.projectors = projectors
        self.task_head = task_head
