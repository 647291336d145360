"""Batched attention of Qwen2.5-VL's vision tower over many pictures of the same size.

transformers processes the pictures one by one; for small pictures that overhead exceeds the attention itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def batch_vision_attention(visual: Any, patches: int) -> None:
    """Replace the attention of every block of the vision tower by a batched one with the same result.

    Args:
        visual: the vision tower; a window must contain a complete picture.
        patches: number of patches per picture.
    """
    for block in visual.blocks:
        block.attn.forward = partial(_attend, block.attn, patches)


def _attend(
    attention: Any,
    patches: int,
    hidden_states: Tensor,
    *_: object,
    position_embeddings: tuple[Tensor, Tensor],
    **__: object,
) -> Tensor:
    q, k, v = (
        attention.qkv(hidden_states)
        .reshape(-1, patches, 3, attention.num_heads, attention.head_dim)
        .permute(2, 0, 3, 1, 4)
    )
    cos, sin = (table.reshape(-1, 1, patches, attention.head_dim).float() for table in position_embeddings)
    mixed = functional.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
    return attention.proj(mixed.transpose(1, 2).reshape(hidden_states.shape))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions, in float32 like the model."""
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x)
