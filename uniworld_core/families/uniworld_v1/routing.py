"""Routing: whether an instruction asks for a picture or for an answer in text (published: serve/cli.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import UniWorldError
from ...loading.dtypes import OVERFLOW
from ...prompts.conversation import Conversation
from ..family import Route
from .understanding import Understanding


def route(understanding: Understanding, conversations: Sequence[Conversation]) -> Route:
    """Apply the routing head to the hidden state at the last `assistant` token of each conversation.

    Raises:
        UniWorldError: a conversation exceeds the model's context length, the checkpoint has no routing head, or the logits
            are not finite.
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
        raise UniWorldError(
            f"The routing head's logits are NaN or infinite: {OVERFLOW}; otherwise the weights are damaged."
        )
    return Route(logits)
