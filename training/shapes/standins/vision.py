"""Attention of Qwen2.5-VL's vision half over many pictures of one size at once.

transformers takes picture after picture, which for small pictures costs more than the attention itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def attend_at_once(visual: Any, patches: int) -> None:
    """Let every block of the vision half attend over all its pictures together, to the same result.

    Args:
        visual: the vision half; one window of it holds a whole picture.
        patches: of each picture.
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
    mixed = functional.scaled_dot_product_attention(_turned(q, cos, sin), _turned(k, cos, sin), v)
    return attention.proj(mixed.transpose(1, 2).reshape(hidden_states.shape))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, in float32 as the model does it."""
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x)
