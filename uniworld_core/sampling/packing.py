"""Packing of latents into the tokens of a transformer, and back.

Shapes: B batch, C latent channels, h, w latent sides, N packed tokens of K values, p side of a token in cells.
"""

from __future__ import annotations

import torch


def pack(latent_BChw: torch.Tensor, p: int) -> torch.Tensor:
    """Pack latents (B, C, h, w) into tokens (B, h/p * w/p, C*p*p): each p by p cells become one token, channel first."""
    b, c, h, w = latent_BChw.shape
    cells = latent_BChw.reshape(b, c, h // p, p, w // p, p)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // p) * (w // p), c * p * p)


def unpack(tokens_BNK: torch.Tensor, h: int, w: int, p: int) -> torch.Tensor:
    """Unpack tokens (B, N, C*p*p) into latents (B, C, h, w)."""
    b, _, k = tokens_BNK.shape
    cells = tokens_BNK.reshape(b, h // p, w // p, k // p**2, p, p)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(b, k // p**2, h, w)


def grid_positions(rows: int, columns: int, device: torch.device, first: int = 0) -> torch.Tensor:
    """Return the positions (N, 3) of packed tokens, float32: `first`, row, column.

    Args:
        first: value on the first axis: 0 for the painted picture, other numbers for reference latents in some models.
    """
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([torch.full_like(row, first), row, column], dim=-1).reshape(-1, 3).float()
