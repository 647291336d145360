"""True classifier-free guidance: two predictions instead of an embedded number.

Published: diffusers' Qwen-Image pipelines, `true_cfg_scale`.
"""

from __future__ import annotations

import torch


def true_cfg(positive: torch.Tensor, negative: torch.Tensor, scale: float) -> torch.Tensor:
    """Extrapolate from the negative to the positive prediction, and keep the norm of the positive one.

    Args:
        positive, negative: predictions (..., K). The norm of each vector of K values is kept; for packed latents, a vector is
            a token.
        scale: 1 returns the positive prediction, up to rounding.
    """
    combined = negative + scale * (positive - negative)
    norm = torch.norm(combined, dim=-1, keepdim=True).clamp_min(torch.finfo(combined.dtype).tiny)
    return combined * (torch.norm(positive, dim=-1, keepdim=True) / norm)
