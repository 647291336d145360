"""Routing: does the instruction ask for a picture or for an answer in words? (published: serve/cli.py)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...errors import UniWorldError
from ...loading.dtypes import OVERFLOW
from ...prompts.conversation import Conversation
from .understanding import Understanding


@dataclass(frozen=True, eq=False)
class Route:
    """What the routing head says of a batch.

    Attributes:
        logits: (B, 2) float32: answer, paint.
        probabilities: (B, 2), their softmax.
        paint: (B,) bool: True where the model is to paint.
    """

    logits: torch.Tensor

    @property
    def probabilities(self) -> torch.Tensor:
        """(B, 2), the softmax of the logits."""
        return self.logits.softmax(dim=-1)

    @property
    def paint(self) -> torch.Tensor:
        """(B,) bool: logit 1 beats logit 0."""
        return self.logits[:, 0] < self.logits[:, 1]


def route(understanding: Understanding, conversations: Sequence[Conversation]) -> Route:
    """Read the head at the last `assistant` token of each conversation.

    Raises:
        UniWorldError: a conversation is longer than the model reads, the checkpoint has no routing head, or what it says is
            not finite.
    """
    vlm, head = understanding.vlm, understanding.task_head
    if head is None:
        raise UniWorldError(
            "The checkpoint has no task_head_final.pt, which decides between painting and answering: "
            "copy it from the published checkpoint, or choose yourself."
        )
    with torch.inference_mode():
        inputs = vlm.inputs(conversations)
        states = vlm.assistant_states(inputs, vlm.hidden_states(inputs))
        logits = head(states.to(head.device, head.dtype)).float().cpu()
    if not torch.isfinite(logits).all():
        raise UniWorldError(f"The routing head's logits are NaN or infinite: {OVERFLOW}; else the weights are damaged.")
    return Route(logits)
