"""The understanding half of a checkpoint: the VLM, the projectors to the DiT, and the routing head."""

from __future__ import annotations

from torch import nn

from ...backbones.qwen_vl import VLM
from .projectors import Projectors, TaskHead


class Understanding(nn.Module):
    """The part that reads instructions and pictures.

    Attributes:
        vlm: Qwen2.5-VL.
        projectors: project VLM states and SigLIP features to the DiT's text tokens.
        task_head: the routing head in float32, or None if the checkpoint has none.
    """

    def __init__(self, vlm: VLM, projectors: Projectors, task_head: TaskHead | None) -> None:
        super().__init__()
        self.vlm = vlm
        self.projectors = projectors
        self.task_head = task_head
