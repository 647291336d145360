"""MAR's encoder and decoder over a grid of tokens of which some are hidden (arXiv 2406.11838).

Shapes: B batch, L = h * w tokens of the grid in raster order, K extra tokens without a place (`buffers`), V visible tokens,
C channels of a token, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class MARWidths:
    """Widths of MAR.

    Attributes:
        channels: channels of a token.
        width, hidden: width of the transformer and of its MLPs.
        heads: number of attention heads.
        encoder_depth, decoder_depth: numbers of blocks.
        side: side of the tables of positions, in tokens.
        buffers: number of extra tokens.
    """

    channels: int
    width: int
    hidden: int
    heads: int
    encoder_depth: int
    decoder_depth: int
    side: int
    buffers: int


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLW: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x_BLW).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width, hidden)

    def forward(self, x_BLW: torch.Tensor) -> torch.Tensor:
        x_BLW = x_BLW + self.attn(self.norm1(x_BLW))
        return x_BLW + self.mlp(self.norm2(x_BLW))


class MAREncoder(nn.Module):
    """Encodes the visible tokens. Hidden ones are dropped, so they cost nothing."""

    def __init__(self, widths: MARWidths) -> None:
        super().__init__()
        self.buffer_count = widths.buffers
        self.z_proj = nn.Linear(widths.channels, widths.width)
        self.z_proj_ln = nn.LayerNorm(widths.width, eps=1e-6)
        self.fake_latent = nn.Parameter(torch.empty(1, widths.width))
        self.positions = nn.Parameter(torch.empty(1, widths.buffers + widths.side**2, widths.width))
        self.blocks = nn.ModuleList(
            _Block(widths.width, widths.hidden, widths.heads) for _ in range(widths.encoder_depth)
        )
        self.norm = nn.LayerNorm(widths.width, eps=1e-6)

    def forward(self, x_BLC: torch.Tensor, visible_BL: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Return the states (B, K + V, W) of the buffers and of the visible tokens, in raster order.

        Args:
            x_BLC: normalized latents; the values of hidden tokens do not matter.
            visible_BL: True at visible tokens, equally many in each row.
            grid: height and width in tokens.
        """
        buffers = self.fake_latent.expand(len(x_BLC), self.buffer_count, -1)
        x = torch.cat([buffers, self.z_proj(x_BLC)], dim=1) + resized(self.positions, grid, self.buffer_count)
        x = self.z_proj_ln(x)[_with_buffers(visible_BL, self.buffer_count)].reshape(len(x), -1, x.shape[-1])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class MARDecoder(nn.Module):
    """Decodes the states of the visible tokens to a state for every place of the grid."""

    def __init__(self, widths: MARWidths) -> None:
        super().__init__()
        self.buffer_count = widths.buffers
        self.embed = nn.Linear(widths.width, widths.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, widths.width))
        self.positions = nn.Parameter(torch.empty(1, widths.buffers + widths.side**2, widths.width))
        self.blocks = nn.ModuleList(
            _Block(widths.width, widths.hidden, widths.heads) for _ in range(widths.decoder_depth)
        )
        self.norm = nn.LayerNorm(widths.width, eps=1e-6)
        self.places = nn.Parameter(torch.empty(1, widths.side**2, widths.width))

    def forward(
        self,
        x_BNW: torch.Tensor,
        visible_BL: torch.Tensor,
        grid: tuple[int, int],
        source_BMW: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the states (B, L, W) of all places.

        Args:
            x_BNW: states of the buffers and of the visible tokens.
            visible_BL: as in `MAREncoder`.
            grid: height and width in tokens.
            source_BMW: states (B, K + L, W) that stand at hidden places instead of the mask token, for an edit.
        """
        visible = _with_buffers(visible_BL, self.buffer_count)
        y = self.embed(x_BNW)
        hidden = self.mask_token.to(y.dtype) if source_BMW is None else self.embed(source_BMW)
        y_BMW = hidden.expand(*visible.shape, -1).clone()
        y_BMW[visible] = y.flatten(0, 1)
        y_BMW = y_BMW + resized(self.positions, grid, self.buffer_count)
        for block in self.blocks:
            y_BMW = block(y_BMW)
        return self.norm(y_BMW)[:, self.buffer_count :] + resized(self.places, grid, 0)


def resized(table_1MW: torch.Tensor, grid: tuple[int, int], buffers: int) -> torch.Tensor:
    """Return a table of positions for a grid: the buffers' rows, and the square of the rest resized bilinearly."""
    first, rest = table_1MW[:, :buffers], table_1MW[:, buffers:]
    side = round(rest.shape[1] ** 0.5)
    if grid == (side, side):
        return table_1MW
    square = rest.transpose(1, 2).unflatten(-1, (side, side))
    stretched = F.interpolate(square, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([first, stretched.flatten(2).transpose(1, 2)], dim=1)


def _with_buffers(visible_BL: torch.Tensor, buffers: int) -> torch.Tensor:
    return F.pad(visible_BL, (buffers, 0), value=True)
