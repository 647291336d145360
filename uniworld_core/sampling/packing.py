"""Packing: latents as the tokens of a transformer, and back.

Shapes: B batch, C latent channels, h, w latent sides, N packed tokens of K values, p cells a side of one token.
"""

from __future__ import annotations

import torch


def pack(latent_BChw: torch.Tensor, p: int) -> torch.Tensor:
    """Latents (B, C, h, w) as packed tokens (B, h/p * w/p, p*p*C): each p by p cells are one token, channel first."""
    b, c, h, w = latent_BChw.shape
    cells = latent_BChw.reshape(b, c, h // p, p, w // p, p)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // p) * (w // p), c * p * p)


def unpack(tokens_BNK: torch.Tensor, h: int, w: int, p: int) -> torch.Tensor:
    """Packed tokens (B, N, p*p*C) as latents (B, C, h, w)."""
    b, _, k = tokens_BNK.shape
    cells = tokens_BNK.reshape(b, h // p, w // p, k // p**2, p, p)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(b, k // p**2, h, w)


def grid_positions(rows: int, columns: int, device: torch.device, first: int = 0) -> torch.Tensor:
    """(N, 3) positions of packed tokens, float32: `first`, row, column.

    Args:
        first: 0 for what is painted; models that take reference latents give theirs another number.
    """
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([torch.full_like(row, first), row, column], dim=-1).reshape(-1, 3).float()
